"""Gates: how much a file may differ from the trained network, by precision. `gates.toml` overrides single limits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path

from cxr_edge.common.limits import read_limits
from cxr_edge.export.conversion.formats import gate_of
from cxr_edge.export.verification.parity import Parity
from cxr_edge.runtime.bundles.bundle import ModelFile
from cxr_edge.runtime.errors import BundleError, UsageError


@dataclass(frozen=True)
class Gate:
    """Limits for one precision; None means no limit.

    Each field is a key of `HIGHEST` or `LEAST`. docs/gates.md explains them.
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
    lungs_dice: float | None = None


#: Upper limits: the measured value must not exceed them.
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
#: Lower limits: the measured value must reach them.
LEAST: Mapping[str, Callable[[Parity], float | None]] = {
    "heatmap_rank_correlation": lambda p: p.heatmap_rank_correlation,
    "heatmap_iou": lambda p: p.heatmap_iou,
    "calibration_images": lambda p: p.calibration_images,
    "lungs_dice": lambda p: p.lungs_dice,
}


@dataclass(frozen=True)
class Check:
    """One limit, the measured value, and whether it passed."""

    name: str
    value: float
    limit: float
    passed: bool

    def __str__(self) -> str:
        return f"{self.name} is {self.value:.4g}, beyond the gate's limit {self.limit:.4g}"


DEFAULTS: Mapping[str, Gate] = {
    "fp32": Gate(logit_max=1e-3, probability_max=1e-4, flip_rate=0.0, lungs_dice=0.999),
    "fp16": Gate(probability_max=0.02, flip_rate=0.002, lungs_dice=0.999),
    "int8": Gate(
        flip_rate=0.005,
        auc_drop=0.002,
        sensitivity_drop=0.005,
        heatmap_rank_correlation=0.95,
        calibration_images=30,
        lungs_dice=0.99,
    ),
}


def load_gates(path: Path | None) -> Mapping[str, Gate]:
    """The default gates, overridden by the keys of a `gates.toml`.

    Raises
    ------
    UsageError
        If the file is not TOML, or has an unknown table or key: a misspelt limit must not be ignored.
    """
    if path is None:
        return DEFAULTS
    gates = dict(DEFAULTS)
    for precision, limits in read_limits(path, {field.name for field in fields(Gate)}).items():
        if precision not in DEFAULTS:
            raise UsageError(f"{path}: [{precision}] is not a gate; known: {', '.join(DEFAULTS)}")
        gates[precision] = replace(gates[precision], **limits)
    return gates


def gate_for(file: ModelFile, gates: Mapping[str, Gate]) -> Gate:
    """The gate that a file is held to.

    Raises
    ------
    BundleError
        If its precision has none.
    """
    if gate := gates.get(gate_of(file.precision)):
        return gate
    raise BundleError(
        f"{file.path}: found the precision {file.precision!r}, which has no gate; expected {', '.join(gates)} or "
        "another that this release exports; export the bundle again"
    )


def is_default_or_stricter(gate: Gate, precision: str) -> bool:
    """Whether a gate has every default limit of a precision and none is looser; nothing passes a limit of NaN."""
    for name in (*HIGHEST, *LEAST):
        default, limit = getattr(DEFAULTS[gate_of(precision)], name), getattr(gate, name)
        if default is not None and (limit is None or (limit > default if name in HIGHEST else limit < default)):
            return False
    return True


def check(parity: Parity, gate: Gate) -> list[Check]:
    """Check the measured values against a gate. Limits on missing outputs are skipped; NaN never passes."""
    checks = []
    for name, measure in {**HIGHEST, **LEAST}.items():
        limit, value = getattr(gate, name), measure(parity)
        if limit is not None and value is not None:
            checks.append(Check(name, value, limit, value <= limit if name in HIGHEST else value >= limit))
    return checks
