"""Simulate sites from held-out radiographs, calibrate a bundle at each, and measure the gain and the harm.

    python benchmarks/new_site.py chest_xray -m bundle --adults adults --cache logits.npz

The logits are computed once, in ONNX Runtime with one thread, and kept in --cache; the simulations then take a minute.
Another bundle needs another cache. The output is Markdown: the tables of docs/new-site.md.

A site is the held-out images of both classes under one perturbation, a pair of them, or of one appearance cluster, or
with shifted logits. The images for the calibration are drawn at random; the loss of accuracy against the best threshold
of the site is measured on all others, weighted to the prevalence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import numpy.typing as npt
from scipy.special import expit

from cxr_edge.benchmarks.observed import ORIGINAL, held_out, measure_pixels
from cxr_edge.common.dataset import Pixels, read_dataset, read_pixels
from cxr_edge.common.statistics import equal_width_bins, weighted_calibration_error
from cxr_edge.runtime.errors import CalibrationError
from cxr_edge.runtime.predictor import Predictor, load
from cxr_edge.sites.calibration.fit import Fit, Floats, Wish, shipped_threshold
from cxr_edge.sites.calibration.labelled import fit_labelled
from cxr_edge.sites.calibration.unlabelled import fit_unlabelled
from cxr_edge.train.data.appearance import appearance_clusters
from cxr_edge.train.data.perturbations import PERTURBATIONS, perturb

#: Pairs of perturbations, one after the other.
PAIRS = (
    ("gamma 0.7", "noise, sigma 10 levels"), ("contrast 0.7", "blur, sigma 1.5 pixels"),
    ("CLAHE", "border of 8 % black"), ("histogram equalised", "scaled by 0.9"), ("gamma 1.4", "JPEG quality 30"),
)  # fmt: skip
#: Fewest images of each class in a cluster from which a site can be drawn.
LARGE_CLUSTER = 60
PREVALENCES, RARE = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8), (0.01, 0.02, 0.03, 0.05)
UNLABELLED, LABELLED = 100, 60


@dataclass(frozen=True)
class Observed:
    """Log-odds (N,) of each version of the held-out images, their labels and clusters (N,), and log-odds of others."""

    versions: Mapping[str, Floats]
    labels: npt.NDArray[np.int64]
    clusters: npt.NDArray[np.int64]
    others: Mapping[str, Floats]
    strange: Mapping[str, float]


@dataclass(frozen=True)
class Site:
    """Log-odds of the images of a simulated site: normal and pneumonia."""

    name: str
    normal: Floats
    pneumonia: Floats


@dataclass(frozen=True)
class Loss:
    """Points of accuracy lost against the best threshold, and the calibration error, after and before."""

    lost: float
    lost_before: float
    error: float
    error_before: float


@click.command()
@click.argument("data", type=click.Path(exists=True, path_type=Path))
@click.option("-m", "--model", "bundle", type=click.Path(path_type=Path), help="Bundle; by default the packaged model.")
@click.option("--adults", type=click.Path(path_type=Path), help="Radiographs of adults: NORMAL and PNEUMONIA.")
@click.option("--cache", type=click.Path(path_type=Path), required=True, help="NumPy file that keeps the logits.")
@click.option("--sites", default=400, show_default=True, help="Number of sites of each simulation.")
@click.option("--seed", default=0, show_default=True)
def main(data: Path, bundle: Path | None, adults: Path | None, cache: Path, sites: int, seed: int) -> None:
    """Print the tables of docs/new-site.md for the held-out patients of DATA."""
    predictor = load(bundle, engine="onnx", threads=1)
    if not cache.is_file():
        np.savez(cache, **observe(predictor, data, adults))  # type: ignore[arg-type]
    manifest = predictor.manifest
    seen, shipped = read_cache(cache, manifest.temperature), shipped_threshold(manifest)
    random = np.random.default_rng(seed)
    click.echo(gains(seen, shipped, sites, random))
    click.echo(refusals(seen, shipped, sites, random))


def observe(predictor: Predictor, data: Path, adults: Path | None) -> dict[str, npt.NDArray[np.generic]]:
    """Logit and novelty of every version of the held-out images, and of images that do not belong to the task."""
    images = [image for part in ("validation", "hold-out") for image in held_out(predictor, data, part)]
    pixels, labels = read_pixels(images), np.array([image.label for image in images])
    stored: dict[str, npt.NDArray[np.generic]] = {"labels": labels, "clusters": appearance_clusters(pixels, labels)}
    for name, version in _versions(pixels, adults):
        found = measure_pixels(predictor, version)
        stored[f"logit:{name}"] = found.logit
        stored[f"strange:{name}"] = found.novelty > predictor.manifest.novelty_threshold
    return stored


def _versions(pixels: Pixels, adults: Path | None) -> Iterator[tuple[str, Pixels]]:
    yield ORIGINAL, pixels
    for name, change in PERTURBATIONS.items():
        yield name, perturb(pixels, change)
    for first, second in PAIRS:
        yield f"{first} + {second}", perturb(perturb(pixels, PERTURBATIONS[first]), PERTURBATIONS[second])
    yield "other: turned by 90°", np.ascontiguousarray(np.rot90(pixels, axes=(1, 2)))
    if adults:
        yield "other: adults", read_pixels(read_dataset(adults))


def read_cache(cache: Path, temperature: float) -> Observed:
    """Read what `observe` has returned."""
    with np.load(cache) as stored:
        logits = {name.removeprefix("logit:"): stored[name] for name in stored if name.startswith("logit:")}
        log_odds = {name: np.asarray(z, np.float64) / temperature for name, z in logits.items()}
        others = {name: log_odds.pop(name) for name in list(log_odds) if name.startswith("other: ")}
        strange = {name: float(stored[f"strange:{name}"].mean()) for name in logits}
        return Observed(log_odds, stored["labels"], stored["clusters"], others, strange)


def simulated_sites(seen: Observed) -> list[Site]:
    """Perturbations, pairs of them, clusters, and sites whose logits are shifted as a whole or for one class."""
    normal, plain = seen.labels == 0, seen.versions[ORIGINAL]
    sites = [Site(name, z[normal], z[~normal]) for name, z in seen.versions.items()]
    for cluster in np.unique(seen.clusters):
        here = seen.clusters == cluster
        if min((here & normal).sum(), (here & ~normal).sum()) >= LARGE_CLUSTER:
            sites.append(Site(f"appearance cluster {cluster}", plain[here & normal], plain[here & ~normal]))
    a, b = plain[normal], plain[~normal]
    return [
        *sites,
        # On the official split, normal radiographs of a newer acquisition score higher: specificity 0.79.
        Site("normals wider and higher", (a - np.median(a)) * 1.6 - 2.0, b),
        *(Site(f"all logits {shift:+g}", a + shift, b + shift) for shift in (-3.0, -1.5, 1.5, 3.0)),
        Site("logits halved and raised", a / 2 + 1.0, b / 2 + 1.0),
    ]


def gains(seen: Observed, shipped: float, count: int, random: np.random.Generator) -> str:
    """The table of points lost."""
    sites = simulated_sites(seen)

    def row(name: str, prevalences: tuple[float, ...], calibrate: Callable[[Site, float], Loss | None]) -> str:
        losses = []
        for number in range(count):
            prevalence, site = prevalences[number % len(prevalences)], sites[random.integers(len(sites))]
            loss = calibrate(site, prevalence)
            losses += [loss] if loss else []
        return _row(name, count, losses)

    def without(site: Site, prevalence: float, known: tuple[float, float] | None = None) -> Loss | None:
        return _without_labels(site, prevalence, Wish(shipped, known), random)

    def with_labels(site: Site, prevalence: float, told: bool) -> Loss | None:
        wish = Wish(shipped, (prevalence, prevalence) if told else None)
        return _with_labels(site, prevalence, wish, random)

    lines = [
        row(f"{UNLABELLED} unlabelled, prevalence 0.1–0.8", PREVALENCES, without),
        *(row(f"{UNLABELLED} unlabelled, prevalence {p:g}", (p,), without) for p in (0.1, 0.5, 0.8)),
        row(
            f"{LABELLED} labelled, 30 of each class, prevalence 0.1–0.8",
            PREVALENCES,
            lambda s, p: with_labels(s, p, False),
        ),
        row(f"{LABELLED} labelled, and --prevalence", PREVALENCES, lambda s, p: with_labels(s, p, True)),
        *(row(f"{UNLABELLED} unlabelled, prevalence {p:g}", (p,), without) for p in RARE),
    ]
    return "\n".join([
        "| calibration | refused | points lost: median | worst decile | worst | without it: median | worst decile | "
        "calibration error: median | worst decile | without it: median |",
        "|---|---|---|---|---|---|---|---|---|---|",
        *lines,
    ])  # fmt: skip


def _row(name: str, count: int, losses: list[Loss]) -> str:
    if not losses:
        return f"| {name} | 100 % | – | – | – | – | – | – | – | – |"
    lost, before, error, error_before = (
        np.array([getattr(each, field) for each in losses])
        for field in ("lost", "lost_before", "error", "error_before")
    )
    return (
        f"| {name} | {1 - len(losses) / count:.0%} | {np.median(lost):.2f} | {np.quantile(lost, 0.9):.2f} | "
        f"{lost.max():.2f} | {np.median(before):.2f} | {np.quantile(before, 0.9):.2f} | {np.median(error):.3f} | "
        f"{np.quantile(error, 0.9):.3f} | {np.median(error_before):.3f} |"
    )


def _without_labels(site: Site, prevalence: float, wish: Wish, random: np.random.Generator) -> Loss | None:
    positive = int(random.binomial(UNLABELLED, prevalence))
    drawn, rest = _draw(site, UNLABELLED - positive, positive, random)
    try:
        fit = fit_unlabelled(np.concatenate([drawn.normal, drawn.pneumonia]), wish)
    except CalibrationError:
        return None
    return _loss(rest, prevalence, fit, wish)


def _with_labels(site: Site, prevalence: float, wish: Wish, random: np.random.Generator) -> Loss | None:
    drawn, rest = _draw(site, LABELLED // 2, LABELLED // 2, random)
    labels = np.repeat([0, 1], LABELLED // 2)
    try:
        fit = fit_labelled(np.concatenate([drawn.normal, drawn.pneumonia]), labels, wish)
    except CalibrationError:
        return None
    return _loss(rest, prevalence, fit, wish)


def _draw(site: Site, normal: int, pneumonia: int, random: np.random.Generator) -> tuple[Site, Site]:
    """Images for the calibration, and the others. Of a small site at most two thirds are taken."""
    parts = []
    for z, wanted in ((site.normal, normal), (site.pneumonia, pneumonia)):
        order = random.permutation(z)
        parts.append(np.split(order, [min(wanted, 2 * len(z) // 3)]))
    (a, rest_a), (b, rest_b) = parts
    if len(a) + len(b) < normal + pneumonia:  # the smaller class is drawn again, with repetition
        a, b = (np.concatenate([z, random.choice(z, n - len(z))]) for z, n in ((a, normal), (b, pneumonia)))
    return Site(site.name, a, b), Site(site.name, rest_a, rest_b)


def _loss(site: Site, prevalence: float, fit: Fit, wish: Wish) -> Loss:
    z = np.concatenate([site.normal, site.pneumonia])
    labels = np.repeat([0, 1], [len(site.normal), len(site.pneumonia)])
    weights = np.where(labels == 1, prevalence / len(site.pneumonia), (1 - prevalence) / len(site.normal))

    def accuracy(thresholds: Floats) -> Floats:
        return np.asarray([weights @ ((z >= t) == labels) for t in thresholds])

    def error(log_odds: Floats) -> float:
        probability = expit(log_odds)
        return float(weighted_calibration_error(labels, probability, equal_width_bins(probability), weights[None])[0])

    best = accuracy(np.array([*np.unique(z), np.inf])).max()
    lost, before = 100 * (best - accuracy(np.array([fit.threshold, wish.shipped])))
    return Loss(lost, before, error(fit.slope * z + fit.bias), error(z))


def refusals(seen: Observed, shipped: float, count: int, random: np.random.Generator) -> str:
    """The table of images that must not be calibrated on without labels."""
    wish, lines = Wish(shipped), []
    for label, name in enumerate(("normal", "pneumonia")):
        for shift in (0.0, 2.0, 4.0):
            taken = [_is_taken(_one_class(seen, label, shift, random), wish) for _ in range(count)]
            moved = f", of one version the logits moved by up to ±{shift:g} log-odds" if shift else ""
            lines.append(f"| {name} alone, in two versions{moved} | {1 - np.mean(taken):.1%} | – |")
    for name, z in seen.others.items():
        taken = [_is_taken(random.choice(z, UNLABELLED, replace=False), wish) for _ in range(count)]
        strange = f"{seen.strange[name]:.0%}"
        lines.append(f"| {name.removeprefix('other: ')} | {1 - np.mean(taken):.1%} | {strange} |")
    return "\n".join([
        f"\n| {UNLABELLED} unlabelled images | refused by their logits | unlike the training set (limit 20 %) |",
        "|---|---|---|",
        *lines,
    ])  # fmt: skip


def _one_class(seen: Observed, label: int, shift: float, random: np.random.Generator) -> Floats:
    """Images of one class, a part of them in another version."""
    first, second = random.choice(list(seen.versions), 2, replace=False)
    rows = random.permutation(np.flatnonzero(seen.labels == label))[:UNLABELLED]
    part = random.integers(UNLABELLED // 10, UNLABELLED - UNLABELLED // 10)
    moved = seen.versions[second][rows[part:]] + random.uniform(-shift, shift)
    return np.concatenate([seen.versions[first][rows[:part]], moved])


def _is_taken(log_odds: Floats, wish: Wish) -> bool:
    try:
        fit_unlabelled(log_odds, wish)
    except CalibrationError:
        return False
    return True


if __name__ == "__main__":
    main()
