"""Commands of `sites`: `calibrate` and `monitor`."""

from __future__ import annotations

import click


@click.command()
def calibrate() -> None:
    """Give a bundle the threshold of a site."""


@click.command()
def monitor() -> None:
    """Compare decisions with the reference of the model."""
