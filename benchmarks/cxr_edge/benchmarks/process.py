"""Cold start and memory of the command line in a new process."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

from cxr_edge.runtime.bundles.bundle import ModelFile
from cxr_edge.runtime.errors import EngineError

STARTS = 5
PEAK = "peak KB: "
#: The command line, which prints its peak memory at the end. The parent cannot measure it: the peak of the child by
#: `wait4` includes the memory of the parent before `exec`.
PROGRAM = f"""
import sys
from cxr_edge.runtime.cli.main import main
code = main()
with open("/proc/self/status") as status:
    peak = next(line.split()[1] for line in status if line.startswith("VmHWM"))
sys.stderr.write("{PEAK}" + peak)
sys.exit(code)
"""


@dataclass(frozen=True)
class ColdStart:
    """New processes that decide on one image: seconds until the answer, and the largest resident set (MB)."""

    seconds: list[float]
    peak_rss_mb: float


def cold_start(bundle: Path, file: ModelFile, image: Path, python: str = sys.executable) -> ColdStart:
    """Start `cxr-edge predict` several times and wait for its first line. The first start, without caches, is left out.

    Parameters
    ----------
    python
        Python interpreter of the environment.
    """
    command = [python, "-c", PROGRAM, "predict", "-m", str(bundle), str(image)]
    command += ["--engine", file.engine, "--precision", file.precision, "--format", "jsonl"]
    results = [_start(command) for _ in range(STARTS + 1)][1:]
    return ColdStart([seconds for seconds, _ in results], max(rss for _, rss in results))


def _start(command: list[str]) -> tuple[float, float]:
    start = perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        answer = process.stdout.readline()
        seconds = perf_counter() - start
        _, said = process.communicate()
    if process.returncode or not answer:
        raise EngineError(f"{command[3:]}: the new process failed with exit code {process.returncode}:\n{said}")
    return seconds, float(said.rsplit(PEAK, 1)[1]) / 1024
