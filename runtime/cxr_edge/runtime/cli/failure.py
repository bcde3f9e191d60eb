"""Messages and exit codes for commands that fail."""

from __future__ import annotations

import errno
import os
import platform
import shlex
import sys
import tempfile
import traceback
from contextlib import suppress
from importlib.metadata import version

import click

from cxr_edge.runtime.cli.console import ClosedPipeError, Terminated
from cxr_edge.runtime.errors import (
    EXIT_BAD_INPUT,
    EXIT_CLOSED_PIPE,
    EXIT_DEFECT,
    EXIT_INTERRUPTED,
    EXIT_TERMINATED,
    CxrEdgeError,
)


def answer(error: BaseException) -> int:
    """Print what an error means and what to do; return the exit code.

    Problems that the user can fix (files, memory, missing packages) give exit code 2. An unexpected exception is a
    defect of cxr-edge and gives 70; its traceback is written to a file.
    """
    if isinstance(error, (ClosedPipeError, BrokenPipeError)):
        _give_up_broken_stdout()
        return EXIT_CLOSED_PIPE
    if isinstance(error, (click.Abort, KeyboardInterrupt)):
        _say("interrupted")
        return EXIT_TERMINATED if isinstance(error.__cause__ or error, Terminated) else EXIT_INTERRUPTED
    if isinstance(error, click.ClickException):
        error.show()
        return error.exit_code
    message = _of_surroundings(error)
    if message is None:
        _say(_report(error))
        return EXIT_DEFECT
    _say(f"error: {message}")
    return EXIT_BAD_INPUT


def _of_surroundings(error: BaseException) -> str | None:
    """The message of an error that the user can fix; None for a defect of cxr-edge."""
    if isinstance(error, CxrEdgeError):
        return str(error)
    if isinstance(error, MemoryError):
        return "not enough memory; close other programs, or use smaller images"
    if isinstance(error, ImportError) and not (error.name or "").startswith("cxr_edge"):
        return f"{error}; a package is missing or broken: `cxr-edge doctor` shows which one and what to install"
    if isinstance(error, OSError):
        return _of_system(error)
    return None


def _of_system(error: OSError) -> str:
    """The message of an error of the operating system; for a full disk it names no file."""
    _give_up_broken_stdout()
    if error.filename is not None:
        return f"{error.filename}: {error.strerror}; check the path, its permissions and the free space"
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO):
        return f"standard output: cannot be written ({error.strerror}); free disk space, or write to another place"
    return f"{error}; check files, network and free space"


def _report(error: BaseException) -> str:
    """Write the traceback to a file; return the message that asks for a report."""
    text = (
        f"cxr-edge {version('cxr-edge')}, Python {platform.python_version()}, {platform.platform()}\n"
        f"{shlex.join(sys.argv)}\n\n{''.join(traceback.format_exception(error))}"
    )
    what = " ".join(f"{type(error).__name__}: {error}".split())[:200]
    asks = f"this is a defect of cxr-edge ({what}); please report it"
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="cxr-edge-", suffix=".txt", delete=False, encoding="utf-8", errors="backslashreplace"
        ) as file:
            file.write(text)
    except OSError:
        return f"{text}\n{asks} with the lines above"
    return (
        f"{asks} with {file.name}, which contains the traceback and your command line; remove names of patients first"
    )


def _say(message: str) -> None:
    with suppress(OSError):  # standard error may be closed as well
        click.echo(message, err=True)


def _give_up_broken_stdout() -> None:
    """Redirect a broken standard output to the null device, because its buffer would fail again at exit."""
    try:
        if sys.stdout:
            sys.stdout.flush()
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
