"""Hooks of `mkdocs build`: command-line reference, pages from files at the root, links between pages."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

import click
from mkdocs.structure.files import File, Files

from cxr_edge.runtime.cli.main import cli

ROOT = Path(__file__).parents[1]
#: File of the repository outside docs/ -> page of the site.
PAGES = {
    "README.md": "index.md",
    "ARCHITECTURE.md": "architecture.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "runtime/cxr_edge/runtime/model/MODEL_CARD.md": "model-card.md",
}
SOURCES = {page: source for source, page in PAGES.items()}
LINK = re.compile(r"(?<=\]\()(?!https?:|mailto:|#)([^)#\s]+)")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages whose text lies outside docs/."""
    for source, page in PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    files.append(File.generated(config, "cli.md", content=command_reference()))
    return files


def command_reference() -> str:
    """The `--help` of the program and of each of its commands, as a page."""
    with click.Context(cli, info_name="cxr-edge", terminal_width=100, **cli.context_settings) as program:
        page = f"# Command line\n\n```text\n{cli.get_help(program)}\n```\n"
        for name in cli.list_commands(program):
            command = cli.get_command(program, name)
            assert command is not None
            with click.Context(command, info_name=name, parent=program) as context:
                page += f"\n## {name}\n\n```text\n{command.get_help(context)}\n```\n"
    return page


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Turn links between files of the repository into links between pages of the site."""
    source = SOURCES.get(page.file.src_uri, f"docs/{page.file.src_uri}")
    folder = posixpath.dirname(source)

    def to_page(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(folder, link[0]))
        return PAGES.get(target, target.removeprefix("docs/"))

    return LINK.sub(to_page, markdown)
