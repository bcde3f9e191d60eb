"""False alarms and alarms of `cxr-edge monitor`, simulated from held-out radiographs.

::

    python -m cxr_edge.benchmarks.monitoring -m BUNDLE --data chest_xray --cache /tmp/monitoring -o docs

computes what the bundle says about the hold-out, the validation images and their perturbations (once; kept in the
folder of --cache), simulates windows, prints a table in Markdown, and draws `monitoring.png`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt

from cxr_edge.benchmarks.observed import ORIGINAL, Observed, observe
from cxr_edge.common.reference import Measured, reference_of
from cxr_edge.runtime.bundles.bundle import Reference
from cxr_edge.runtime.cli.console import table

#: Number of windows of each kind, and of images in one.
WINDOWS, SIZE = 100, 200
#: Share of the images of a window that are changed.
DOSES = (0.1, 0.25, 0.5, 1.0)
NO_LIMITS = (0.0, 1.0)


@dataclass(frozen=True)
class Shifted:
    """Alarms at one perturbation.

    Attributes
    ----------
    distance
        Largest Kolmogorov-Smirnov distance of the perturbed hold-out from the reference, over logit, novelty and
        evidence.
    flipped
        Share of images whose decision the perturbation changes.
    alarms
        Share of the images changed -> share of windows with an alarm.
    """

    name: str
    distance: float
    flipped: float
    alarms: Mapping[float, float]


@dataclass(frozen=True)
class Simulation:
    """Windows from the held-out images of a bundle; `threshold` is a logit."""

    observed: Observed
    reference: Reference
    novelty_threshold: float
    threshold: float

    def alarms(self, version: Measured, dose: float, windows: int = WINDOWS, prevalence: float | None = None) -> float:
        """Share of windows with an alarm, if this share of the images is of a version."""
        from cxr_edge.sites.monitoring.monitor import FALSE_ALARMS, p_values

        random, alarms = np.random.default_rng(0), 0
        for _ in range(windows):
            rows = self.draw(random, prevalence)
            window = mixed(self.observed.versions[ORIGINAL].take(rows), version.take(rows), random.random(SIZE) < dose)
            found = p_values(window, self.novelty_threshold, self.reference, NO_LIMITS)
            alarms += min(found.values()) <= FALSE_ALARMS / len(found)
        return alarms / windows

    @cached_property
    def groups(self) -> list[npt.NDArray[np.intp]]:
        """Rows of each patient."""
        patients = self.observed.patients
        return [np.flatnonzero(patients == name) for name in np.unique(patients)]

    def draw(self, random: np.random.Generator, prevalence: float | None = None) -> npt.NDArray[np.intp]:
        """Rows of one window: patients with replacement, with all their images, until it is full."""
        labels, groups = self.observed.labels, self.groups
        weights = np.ones(len(groups))
        if prevalence is not None:  # patients of both classes, so that pneumonia has this share of the images
            sick = np.array([labels[group].mean() for group in groups])
            sizes = np.array([len(group) for group in groups])
            each = [
                share / sizes[rows].sum() for share, rows in ((1 - prevalence, sick <= 0.5), (prevalence, sick > 0.5))
            ]
            weights = np.where(sick > 0.5, each[1], each[0])
        order = random.choice(len(groups), SIZE, p=weights / weights.sum())
        return np.concatenate([groups[group] for group in order])[:SIZE]

    def shifted(self, name: str) -> Shifted:
        """Alarms at one perturbation, for each dose."""
        from cxr_edge.common.drift import distances

        version, original = self.observed.versions[name], self.observed.versions[ORIGINAL]
        _, found = distances(version, self.reference)
        flipped = np.mean((version.logit >= self.threshold) != (original.logit >= self.threshold))
        alarms = {dose: self.alarms(version, dose) for dose in DOSES}
        return Shifted(name, max(each.ks for each in found.values()), float(flipped), alarms)


def mixed(first: Measured, second: Measured, chosen: npt.NDArray[np.bool_]) -> Measured:
    """The second where chosen, else the first."""
    pairs = [(getattr(first, name), getattr(second, name)) for name in vars(first)]
    return Measured(*(None if a is None else np.where(chosen, b, a) for a, b in pairs))  # type: ignore[arg-type]


@click.command()
@click.option("-m", "--model", type=click.Path(path_type=Path), help="Bundle.  [default: the packaged model]")
@click.option("--data", type=click.Path(path_type=Path), required=True, help="The data set that it was trained on.")
@click.option("--cache", type=click.Path(path_type=Path), required=True, help="Folder for the numbers of all versions.")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Folder for monitoring.png.")
def main(model: Path | None, data: Path, cache: Path, output: Path) -> None:
    """Simulate windows from the hold-out and its perturbations; print the tables of docs/monitoring.md."""
    from cxr_edge.runtime.predictor import load
    from cxr_edge.sites.calibration.fit import to_log_odds

    predictor = load(model, engine="onnx", precision="fp32", threads=1)
    manifest, observed = predictor.manifest, observe(predictor, data, cache)
    original = observed.versions[ORIGINAL]
    reference = manifest.reference or reference_of(
        original, observed.labels, list(observed.patients), manifest.novelty_threshold, "hold-out"
    )
    threshold = manifest.temperature * to_log_odds(manifest.operating_point().threshold)
    simulation = Simulation(observed, reference, manifest.novelty_threshold, threshold)
    click.echo(table(_false_alarms(simulation)))
    found = sorted((simulation.shifted(name) for name in list(observed.versions)[1:]), key=lambda row: row.distance)
    click.echo(_markdown(found))
    output.mkdir(parents=True, exist_ok=True)
    (output / "monitoring.png").write_bytes(_plot(found))


def _false_alarms(simulation: Simulation) -> list[dict[str, Any]]:
    """Share of windows with an alarm, from the hold-out as it is and at other shares of pneumonia."""
    original = simulation.observed.versions[ORIGINAL]
    return [
        {"pneumonia": "as in the hold-out" if share is None else f"{share:.0%}", "windows": windows,
         "alarms": round(windows * simulation.alarms(original, 0.0, windows, share))}
        for share, windows in ((None, 400), (0.2, 100), (0.5, 100))
    ]  # fmt: skip


def _markdown(found: list[Shifted]) -> str:
    """The table of docs/monitoring.md."""
    doses = " | ".join(f"{dose:.0%}" for dose in DOSES)
    lines = [f"| perturbation | size (KS) | decisions changed | {doses} |", "|---|" + "---|" * (len(DOSES) + 2)]
    for row in found:
        shares = " | ".join(f"{row.alarms[dose]:.0%}" for dose in DOSES)
        lines.append(f"| {row.name} | {row.distance:.2f} | {row.flipped:.1%} | {shares} |")
    return "\n".join(lines)


def _plot(found: list[Shifted]) -> bytes:
    from cxr_edge.common.figures import draw_png

    def draw(axes: Any) -> None:
        for dose in DOSES:
            places = [dose * row.distance for row in found]
            axes.plot(places, [row.alarms[dose] for row in found], "o", label=f"{dose:.0%} of the images changed")
        axes.set(xlabel="size of the shift: share changed × KS distance", ylabel="share of windows with an alarm")
        axes.set_ylim(-0.03, 1.03)
        axes.grid(alpha=0.3)
        axes.legend()

    return draw_png(draw, 7.5, 4)


if __name__ == "__main__":
    main()
