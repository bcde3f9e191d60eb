"""The command `cxr-edge`: finds its commands through entry points, turns errors into messages and exit codes."""

from __future__ import annotations

import re
import sys
import warnings
from importlib.metadata import Distribution, PackageNotFoundError, distribution, version
from typing import Any

import click

from cxr_edge.runtime.errors import EXIT_BAD_INPUT, CxrEdgeError, MissingExtraError

#: Order of `--help`: the way of a model.
ORDER = ("demo", "audit", "train", "evaluate", "export", "verify", "predict", "explain", "bench", "inspect", "doctor")
EXIT_INTERRUPTED = 130


class Commands(click.Group):
    """The commands of all installed layers, each loaded when it is asked for."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._distribution = distribution("cxr-edge")
        self._found = {e.name: e for e in self._distribution.entry_points if e.group == "cxr_edge.commands"}

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of all commands, in the order of a model's way."""
        return sorted(self._found, key=lambda name: ORDER.index(name) if name in ORDER else len(ORDER))

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """Load a command; its heavy imports wait until it runs."""
        return self._found[name].load() if name in self._found else None

    def extra_of(self, name: str) -> str | None:
        """The extra that a command needs, by its entry point."""
        return next(iter(self._found[name].extras), None)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands, each with the extra that it still lacks."""
        rows = []
        for name in self.list_commands(ctx):
            command = self.get_command(ctx, name)
            extra = self.extra_of(name)
            lacks = f"  [needs cxr-edge[{extra}]]" if extra and not _is_installed(self._distribution, extra) else ""
            rows.append((name, (command.get_short_help_str(70) if command else "") + lacks))
        with formatter.section("Commands"):
            formatter.write_dl(rows)

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; a package that is missing becomes the extra that holds it."""
        try:
            return super().invoke(ctx)
        except ModuleNotFoundError as error:
            extra = self.extra_of(ctx.invoked_subcommand) if ctx.invoked_subcommand else None
            if extra is None or isinstance(error, CxrEdgeError) or _is_installed(self._distribution, extra):
                raise
            raise MissingExtraError(extra, error.name) from error


@click.command(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(version("cxr-edge"), prog_name="cxr-edge")
def cli() -> None:
    """Chest radiographs -> a verified pneumonia classifier for small devices.

    \b
      radiographs --train--> run --export--> bundle --verify--> gate --predict--> decision + heatmap

    Research tool, not a medical device. Exit codes: 0 done, 1 a gate or check did not hold, 2 wrong usage or bad input,
    3 some inputs of a batch failed and the others are done.
    """


def main() -> int:
    """Run the command line and return its exit code."""
    warnings.showwarning = _show_warning
    try:
        return cli(standalone_mode=False) or 0
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        return EXIT_INTERRUPTED
    except CxrEdgeError as error:
        click.echo(f"error: {error}", err=True)
        return EXIT_BAD_INPUT


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    click.echo(f"warning: {message}", err=True)


def _is_installed(of: Distribution, extra: str) -> bool:
    """Whether all packages of an extra are installed, those of the extras it includes too."""
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
            version(package)
        except PackageNotFoundError:
            return False
    return True


if __name__ == "__main__":
    sys.exit(main())
