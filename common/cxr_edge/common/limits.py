"""Reading TOML files of numeric limits, such as the gates of `verify` and the budgets of `bench`."""

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
    """Read a TOML file whose tables contain only numbers with known keys; UsageError otherwise."""
    try:
        tables = tomllib.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: cannot be read as TOML ({error}); correct the file") from error
    for name, limits in tables.items():
        if not isinstance(limits, dict):
            raise UsageError(f"{path}: {name} is outside of a table; put it below a line such as [all]")
        for key, value in limits.items():
            if isinstance(value, dict):
                raise UsageError(f'{path}: [{name}.{key}]: a name with dots must be quoted, as in ["model.onnx"]')
            if key not in known:
                raise UsageError(f"{path}: [{name}]: unknown key {key!r}; known: {', '.join(sorted(known))}")
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise UsageError(f"{path}: [{name}]: {key} is {value!r}; it must be a number")
    return tables
