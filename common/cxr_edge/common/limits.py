"""TOML files of numeric limits: gates of `verify`, budgets of `bench`."""

from __future__ import annotations

import sys
from collections.abc import Collection
from pathlib import Path

from cxr_edge.runtime.errors import UsageError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def read_limits(path: Path, known: Collection[str]) -> dict[str, dict[str, float]]:
    """Tables of numbers in a TOML file, their keys among those known; UsageError if it has anything else."""
    try:
        tables = tomllib.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: cannot be read as TOML ({error})") from error
    for name, limits in tables.items():
        if not isinstance(limits, dict):
            raise UsageError(f"{path}: {name} stands outside of a table")
        for key, value in limits.items():
            if isinstance(value, dict):
                raise UsageError(f'{path}: [{name}.{key}]: a name with dots is quoted, ["model.onnx"]')
            if key not in known:
                raise UsageError(f"{path}: [{name}]: unknown key {key!r}; known: {', '.join(sorted(known))}")
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise UsageError(f"{path}: [{name}]: {key} must be a number")
    return tables
