"""The gates: what a file of each precision may differ by. Defaults here, overridden key by key in `gates.toml`."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from cxr_edge.export.parity import Parity
from cxr_edge.runtime.errors import UsageError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@dataclass(frozen=True)
class Gate:
    """Limits for one precision; None does not limit.

    Attributes
    ----------
    logit_max, probability_max
        Largest |Δlogit| and |Δprobability| of any image.
    flip_rate
        Share of images decided otherwise at any operating point, in [0, 1].
    auc_drop, sensitivity_drop
        How much AUC, and sensitivity at the default operating point, may fall, in [0, 1].
    heatmap_rank_correlation
        Least median of Spearman's rho.
    """

    logit_max: float | None = None
    probability_max: float | None = None
    flip_rate: float | None = None
    auc_drop: float | None = None
    sensitivity_drop: float | None = None
    heatmap_rank_correlation: float | None = None


@dataclass(frozen=True)
class Check:
    """One limit, what was measured, and whether it held."""

    name: str
    value: float
    limit: float
    passed: bool


DEFAULTS: Mapping[str, Gate] = {
    "fp32": Gate(logit_max=1e-3, flip_rate=0.0),
    "fp16": Gate(probability_max=0.02, flip_rate=0.002),
    "int8": Gate(flip_rate=0.005, auc_drop=0.002, sensitivity_drop=0.005, heatmap_rank_correlation=0.95),
}


def load_gates(path: Path | None) -> Mapping[str, Gate]:
    """The default gates, with the keys of a `gates.toml` put over them.

    Raises
    ------
    UsageError
        If the file is not TOML, or has a table or key that means nothing: a misspelt limit must not pass silently.
    """
    if path is None:
        return DEFAULTS
    try:
        tables = tomllib.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: cannot be read as TOML ({error})") from error
    gates = dict(DEFAULTS)
    for precision, keys in tables.items():
        if precision not in DEFAULTS or not isinstance(keys, dict):
            raise UsageError(f"{path}: [{precision}] is no precision; known: {', '.join(DEFAULTS)}")
        gates[precision] = _override(gates[precision], keys, f"{path}: [{precision}]")
    return gates


def check(parity: Parity, gate: Gate) -> list[Check]:
    """Hold what was measured against a gate. NaN never passes."""
    highest = {
        "logit_max": parity.logit_max,
        "probability_max": parity.probability_max,
        "flip_rate": parity.flip_rate,
        "auc_drop": -parity.auc_delta,
        "sensitivity_drop": -parity.sensitivity_delta,
    }
    checks = [
        Check(name, value, limit, value <= limit)
        for name, value in highest.items()
        if (limit := getattr(gate, name)) is not None
    ]
    if (least := gate.heatmap_rank_correlation) is not None:
        value = parity.heatmap_rank_correlation
        checks.append(Check("heatmap_rank_correlation", value, least, value >= least))
    return checks


def _override(gate: Gate, keys: Mapping[str, Any], where: str) -> Gate:
    known = {field.name for field in fields(Gate)}
    for key, value in keys.items():
        if key not in known:
            raise UsageError(f"{where}: unknown key {key!r}; known: {', '.join(sorted(known))}")
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise UsageError(f"{where}: {key} must be a number")
    return replace(gate, **keys)
