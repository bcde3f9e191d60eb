"""Feed broken image files of every format to the public interface.

    python tests/fuzz/images.py --count 100000 --seed 0

A finding is an exception other than `CxrEdgeError`, a crash, a Python warning, a file that takes more than `--seconds`
of processor time, or a process that takes more than `--megabytes`. Its file is saved to the folder `--keep` and can be
run again with `--replay FILE`. Exit code 1 if there is a finding.
"""

import argparse
import subprocess
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic, process_time
from typing import IO

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from cxr_edge.runtime import CxrEdgeError, load
from cxr_edge.runtime.imaging.preprocess import read_input
from fuzz.mutate import mutate
from fuzz.seeds import SEEDS

Reader = Callable[[bytes], object]
#: Files that one process is fed: a crash ends only its process.
CHUNK = 2000


def make_file(seeds: dict[str, list[bytes]], seed: int, index: int) -> tuple[str, bytes]:
    """The broken file `index` of the run `seed`: its format and content."""
    rng = np.random.default_rng([seed, index])
    kind = list(seeds)[index % len(seeds)]
    others = seeds[str(rng.choice(list(seeds)))] if rng.random() < 0.3 else seeds[kind]
    data, other = seeds[kind][rng.integers(len(seeds[kind]))], others[rng.integers(len(others))]
    return kind, mutate(data, other, rng)


def make_seeds(formats: list[str]) -> dict[str, list[bytes]]:
    made = {kind: SEEDS[kind]() for kind in formats}
    return {kind: files for kind, files in made.items() if files}


def run_file(read: Reader, data: bytes, seconds: float) -> tuple[str, str]:
    """Feed one file: the outcome, and what is wrong with it, if anything."""
    took = float("inf")
    for _ in range(3):  # a busy machine slows a run down, hardly three
        start = process_time()  # of all threads; waiting for a busy processor does not count
        try:
            read(data)
            outcome = "read"
        except CxrEdgeError as error:
            outcome = type(error).__name__
        except Exception as error:
            return "finding", f"{type(error).__name__}: {error}".replace("\n", " ")
        took = min(took, process_time() - start)
        if took <= seconds:
            return outcome, ""
    return outcome, f"took {took:.2f} s"


def work(options: argparse.Namespace, first: int, last: int) -> None:
    """Feed the files of one process: a line of `index format outcome [finding]` each, begun before the file is fed."""
    warnings.simplefilter("error")
    seeds = make_seeds(options.formats)
    read = reader(options)
    for index in range(first, last):
        kind, data = make_file(seeds, options.seed, index)
        print(index, kind, end=" ", flush=True)
        outcome, finding = run_file(read, data, options.seconds)
        if not finding and peak_megabytes() > options.megabytes:
            print(outcome, f"the process took {peak_megabytes():.0f} MB", flush=True)
            return  # the next files need a fresh process
        print(outcome, finding, flush=True)
    print("peak", peak_megabytes())


def peak_megabytes() -> float:
    """The most memory that this process took; not `ru_maxrss`, which a child inherits from its parent."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def reader(options: argparse.Namespace) -> Reader:
    return read_input if options.read else load(threads=1).predict


def run_chunk(options: argparse.Namespace, first: int, last: int, errors: IO[bytes]) -> Iterator[list[str]]:
    """The lines of one process as `[index, format, outcome, finding]`, and `["peak", megabytes]`."""
    arguments = [sys.executable, __file__, *sys.argv[1:], "--work", str(first), str(last)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=errors, text=True) as process:
        for line in process.stdout or ():
            fields = line.rstrip("\n").split(" ", 3)
            crashed = len(fields) == 3 and not fields[2]  # begun and not ended
            yield [*fields[:2], "crash", f"the process ended with {process.wait()}"] if crashed else fields


def fuzz(options: argparse.Namespace) -> int:
    """Run all files, in a process for each chunk; print progress and a summary. Returns how many findings there are."""
    seeds = make_seeds(options.formats)
    outcomes: Counter[str] = Counter()
    findings, peak, start, index = 0, 0.0, monotonic(), 0
    options.keep.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile() as errors:
        while index < options.count:
            first = index
            for fields in run_chunk(options, first, min(first + CHUNK, options.count), errors):
                if fields[0] == "peak":
                    peak = max(peak, float(fields[1]))
                    continue
                index = int(fields[0]) + 1
                outcomes[f"{fields[1]} {fields[2]}"] += 1
                if fields[3]:
                    findings += 1
                    report(options, seeds, index - 1, fields[3])
            if index == first:
                raise SystemExit(f"the process of files {first} on did not start:\n{tail(errors)}")
            print(f"{index:,} files, {findings} findings, {monotonic() - start:.0f} s", file=sys.stderr, flush=True)
        noise = errors.seek(0, 2)
        if noise:
            print(f"end of standard error:\n{tail(errors)}", file=sys.stderr)
    for outcome, count in sorted(outcomes.items()):
        print(f"{outcome:24} {count:8,}")
    print(
        f"{index:,} files in {monotonic() - start:.0f} s: {findings} findings; peak {peak:.0f} MB; "
        f"{noise:,} bytes on standard error"
    )
    return findings


def tail(errors: IO[bytes]) -> str:
    errors.seek(max(0, errors.seek(0, 2) - 2000))
    return errors.read().decode(errors="replace")


def report(options: argparse.Namespace, seeds: dict[str, list[bytes]], index: int, finding: str) -> None:
    path = options.keep / f"{options.seed}-{index}.bin"
    path.write_bytes(make_file(seeds, options.seed, index)[1])
    print(f"FINDING {path}: {finding}", file=sys.stderr, flush=True)


def replay(options: argparse.Namespace) -> int:
    warnings.simplefilter("error")
    read, data, start = reader(options), options.replay.read_bytes(), process_time()
    outcome, finding = run_file(read, data, options.seconds)
    print(f"{options.replay}: {outcome} {finding} ({process_time() - start:.2f} s, {peak_megabytes():.0f} MB)")
    return bool(finding)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000, help="files to make")
    parser.add_argument("--seed", type=int, default=0, help="the same seed makes the same files")
    parser.add_argument("--formats", nargs="+", default=list(SEEDS), choices=list(SEEDS))
    parser.add_argument("--read", action="store_true", help="only read the files, without a network")
    parser.add_argument("--seconds", type=float, default=0.5, help="most processor time of a file")
    parser.add_argument("--megabytes", type=float, default=400, help="most memory of a process")
    parser.add_argument(
        "--keep", type=Path, default=Path(tempfile.gettempdir()) / "cxr-edge-fuzz", help="folder of findings"
    )
    parser.add_argument("--replay", type=Path, help="feed this one file")
    parser.add_argument("--work", type=int, nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(options, *options.work)
        return 0
    return int(bool(replay(options) if options.replay else fuzz(options)))


if __name__ == "__main__":
    sys.exit(main())
