"""Reading of small kernel files below a root, which tests replace by recorded trees."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path


def text(path: Path) -> str | None:
    """Content of a file without white space around it; None if it is missing or may not be read."""
    try:
        return path.read_text(errors="replace").strip("\0 \t\n")
    except OSError:
        return None


def number(path: Path, base: int = 10) -> int | None:
    """Content of a file as an integer; None if it is missing, may not be read, or is not a number."""
    found = text(path)
    try:
        return None if found is None else int(found, base)
    except ValueError:
        return None


def hwmon(root: Path) -> Iterator[tuple[str, Path]]:
    """Name of the chip and folder of each hardware monitor (Documentation/hwmon/sysfs-interface)."""
    for folder in sorted((root / "sys/class/hwmon").glob("hwmon*")):
        yield text(folder / "name") or "", folder
