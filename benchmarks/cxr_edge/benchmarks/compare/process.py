"""Processes that answer one line with one line."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from cxr_edge.runtime.errors import EngineError

#: Libraries of linear algebra start as many threads as there are cores, unless these variables say otherwise.
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


class Answering:
    """A process that prints one line when it is ready, and one for each line that it gets."""

    def __init__(self, name: str, process: subprocess.Popen[str], said: Path) -> None:
        self.name = name
        self._process = process
        self._said = said
        self.greeting = self._answer()

    def ask(self, line: str) -> str:
        """Send a line and wait for the answer.

        Raises
        ------
        EngineError
            If the process ended; the message has what it wrote to standard error.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(f"{line}\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            self._fail()
        return self._answer()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        if not (line := self._process.stdout.readline()):
            self._fail()
        return line

    def _fail(self) -> None:
        code = self._process.wait()
        lines = self._said.read_text(errors="replace").strip().splitlines()[-5:]
        raise EngineError(
            f"{self.name}: the process that measures this side ended with exit code {code}; run its command alone to "
            "see why. It said:\n" + "\n".join(lines)
        )


@contextmanager
def started(
    name: str, program: Path, arguments: Sequence[str], python: str, path: Sequence[Path] | None = None
) -> Iterator[Answering]:
    """Start a program in a new process, and end it with the block.

    Parameters
    ----------
    name
        What error messages call it.
    path
        Folders from which the process imports packages before all others; None keeps those of this process.
    """
    environment = os.environ | ONE_THREAD
    if path is not None:
        environment["PYTHONPATH"] = os.pathsep.join(map(str, path))
    command = [python, "-c", program.read_text(), *arguments]  # with -c, the folder of the program is not searched
    with tempfile.NamedTemporaryFile() as said:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, text=True, env=environment
        )
        with process:
            try:
                yield Answering(name, process, Path(said.name))
            finally:
                process.kill()
