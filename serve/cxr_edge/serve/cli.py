"""Command `serve`."""

from __future__ import annotations

import click


@click.command()
def serve() -> None:
    """Serve a bundle over HTTP."""
