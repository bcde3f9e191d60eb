"""The gates: what a file of each precision may differ by. Defaults here, overridden key by key in `gates.toml`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path

from cxr_edge.common.limits import read_limits
from cxr_edge.export.verification.parity import Parity
from cxr_edge.runtime.errors import UsageError


@dataclass(frozen=True)
class Gate:
    """Limits for one precision; None does not limit.

    Each is one of `HIGHEST` or `LEAST`; docs/gates.md says what each means.
    """

    logit_max: float | None = None
    probability_max: float | None = None
    flip_rate: float | None = None
    auc_drop: float | None = None
    sensitivity_drop: float | None = None
    specificity_drop: float | None = None
    ece_rise: float | None = None
    brier_rise: float | None = None
    novelty_flip_rate: float | None = None
    heatmap_rank_correlation: float | None = None
    heatmap_iou: float | None = None
    calibration_images: float | None = None


#: Limits that what was measured must not exceed …
HIGHEST: Mapping[str, Callable[[Parity], float | None]] = {
    "logit_max": lambda p: p.logit_max,
    "probability_max": lambda p: p.probability_max,
    "flip_rate": lambda p: p.flip_rate,
    "auc_drop": lambda p: 0.0 - p.auc_delta,
    "sensitivity_drop": lambda p: 0.0 - p.sensitivity_delta,
    "specificity_drop": lambda p: 0.0 - p.specificity_delta,
    "ece_rise": lambda p: p.ece_delta,
    "brier_rise": lambda p: p.brier_delta,
    "novelty_flip_rate": lambda p: None if p.novelty_flips is None else p.novelty_flips / p.images,
}
#: … and that it must reach.
LEAST: Mapping[str, Callable[[Parity], float | None]] = {
    "heatmap_rank_correlation": lambda p: p.heatmap_rank_correlation,
    "heatmap_iou": lambda p: p.heatmap_iou,
    "calibration_images": lambda p: p.calibration_images,
}


@dataclass(frozen=True)
class Check:
    """One limit, what was measured, and whether it held."""

    name: str
    value: float
    limit: float
    passed: bool

    def __str__(self) -> str:
        return f"{self.name} is {self.value:.4g}, the gate's limit {self.limit:.4g}"


DEFAULTS: Mapping[str, Gate] = {
    "fp32": Gate(logit_max=1e-3, probability_max=1e-4, flip_rate=0.0),
    "fp16": Gate(probability_max=0.02, flip_rate=0.002),
    "int8": Gate(
        flip_rate=0.005, auc_drop=0.002, sensitivity_drop=0.005, heatmap_rank_correlation=0.95, calibration_images=30
    ),
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
    gates = dict(DEFAULTS)
    for precision, limits in read_limits(path, {field.name for field in fields(Gate)}).items():
        if precision not in DEFAULTS:
            raise UsageError(f"{path}: [{precision}] is no precision; known: {', '.join(DEFAULTS)}")
        gates[precision] = replace(gates[precision], **limits)
    return gates


def is_default_or_stricter(gate: Gate, precision: str) -> bool:
    """Whether every default limit of a precision is there and none is looser; a limit of NaN lets nothing pass."""
    for name in (*HIGHEST, *LEAST):
        default, limit = getattr(DEFAULTS[precision], name), getattr(gate, name)
        if default is not None and (limit is None or (limit > default if name in HIGHEST else limit < default)):
            return False
    return True


def check(parity: Parity, gate: Gate) -> list[Check]:
    """Hold what was measured against a gate; a limit on what the file does not give binds nothing. NaN never passes."""
    checks = []
    for name, measure in {**HIGHEST, **LEAST}.items():
        limit, value = getattr(gate, name), measure(parity)
        if limit is not None and value is not None:
            checks.append(Check(name, value, limit, value <= limit if name in HIGHEST else value >= limit))
    return checks
