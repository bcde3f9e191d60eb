"""The program `cxr-edge`: loads its commands from entry points and turns errors into messages and exit codes."""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from importlib import import_module
from typing import TYPE_CHECKING, Any

import click

from cxr_edge.runtime.cli.console import ClosedPipeError
from cxr_edge.runtime.errors import CxrEdgeError, MissingExtraError

if TYPE_CHECKING:
    from importlib.metadata import Distribution, EntryPoint

#: Commands of the runtime itself -> their modules. They are found without `importlib.metadata`, which takes 20 ms to
#: import: a tenth of the time until the first answer. All others are entry points of the installed package.
OWN = {
    "predict": "cxr_edge.runtime.cli.decide",
    "explain": "cxr_edge.runtime.cli.decide",
    "inspect": "cxr_edge.runtime.cli.bundles",
    "doctor": "cxr_edge.runtime.cli.doctor",
}
#: Order of the commands in `--help`: the life of a model.
ORDER = (
    "demo",
    "audit",
    "train",
    "average",
    "evaluate",
    "export",
    "verify",
    "predict",
    "explain",
    "serve",
    "calibrate",
    "monitor",
    "score",
    "bench",
    "inspect",
    "sign",
    "doctor",
)


class Commands(click.Group):
    """The commands of all installed stages, each loaded when it is needed."""

    @cached_property
    def _distribution(self) -> Distribution:
        from importlib.metadata import distribution

        return distribution("cxr-edge")

    @cached_property
    def _found(self) -> dict[str, EntryPoint]:
        """Entry points of the other stages, by name."""
        return {e.name: e for e in self._distribution.entry_points if e.group == "cxr_edge.commands"}

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of all commands, in the order of `ORDER`."""
        return sorted({*OWN, *self._found}, key=lambda name: ORDER.index(name) if name in ORDER else len(ORDER))

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """Load a command; it imports heavy packages only when it runs."""
        if name in OWN:
            command: click.Command = getattr(import_module(OWN[name]), name)
            return command
        return self._found[name].load() if name in self._found else None

    def extra_of(self, name: str) -> str | None:
        """The extra that a command needs, as its entry point says."""
        return None if name in OWN else next(iter(self._found[name].extras), None)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands, each with the extra that is not installed yet."""
        rows = []
        for name in self.list_commands(ctx):
            command = self.get_command(ctx, name)
            extra = self.extra_of(name)
            lacks = f"  [needs cxr-edge[{extra}]]" if extra and not _is_installed(self._distribution, extra) else ""
            rows.append((name, (command.get_short_help_str(70) if command else "") + lacks))
        with formatter.section("Commands"):
            formatter.write_dl(rows)

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        """Parse the arguments; `--help` prints and exits here."""
        with _closed_pipe_is_ours():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; report a missing package as the extra that contains it."""
        try:
            with _closed_pipe_is_ours():
                return super().invoke(ctx)
        except ModuleNotFoundError as error:
            extra = self.extra_of(ctx.invoked_subcommand) if ctx.invoked_subcommand else None
            if extra is None or isinstance(error, CxrEdgeError) or _is_installed(self._distribution, extra):
                raise
            raise MissingExtraError(extra, error.name) from error


@click.command(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="cxr-edge", prog_name="cxr-edge")
def cli() -> None:
    """Train, export, verify and run a pneumonia classifier for small devices.

    \b
      radiographs --train--> run --export--> bundle --verify--> gate --predict--> decision + heatmap

    This is a research tool, not a medical device.

    \b
    Exit codes:
      0    done
      1    a gate or a check did not hold
      2    wrong usage, bad input, or a result that cannot be written
      3    some inputs of a batch failed; the others are done
      70   a defect of cxr-edge; the message names a file for the report
      130  interrupted by Ctrl-C
      141  the reader of the output closed it early, as `head` does
      143  terminated by SIGTERM
    """


def main() -> int:
    """Run the command line and return its exit code."""
    warnings.showwarning = _show_warning
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="surrogateescape")  # prints file names that are not UTF-8 unchanged
    try:
        code = cli(standalone_mode=False)
        if sys.stdout:
            sys.stdout.flush()  # reports a full disk or a closed pipe here
        return code or 0
    except (Exception, KeyboardInterrupt) as error:
        from cxr_edge.runtime.cli.failure import answer

        return answer(error)


@contextmanager
def _closed_pipe_is_ours() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError as error:
        raise ClosedPipeError from error


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    click.echo(f"warning: {message}", err=True)


def _is_installed(of: Distribution, extra: str) -> bool:
    """Whether all packages of an extra are installed, including those of the extras that it includes."""
    from importlib.metadata import PackageNotFoundError, distribution

    for requirement in of.requires or []:
        name, _, marker = requirement.partition(";")
        if f"extra == '{extra}'" not in marker.replace('"', "'"):
            continue
        package, inner = re.fullmatch(r"\s*([\w.-]+)(?:\[([\w,-]+)\])?.*", name, re.DOTALL).groups()  # type: ignore[union-attr]
        if package == "cxr-edge":
            if not all(_is_installed(of, each) for each in inner.split(",")):
                return False
            continue
        try:
            distribution(package)
        except PackageNotFoundError:
            return False
    return True
