"""Diagrams and gallery of an evaluation, as PNG and JPEG files in memory."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from cxr_edge.common.dataset import CLASSES
from cxr_edge.common.figures import (
    BLUE,
    GREY,
    PROBABILITY_LIMITS,
    RED,
    GalleryImage,
    draw_png,
    encode_jpeg,
    set_probability_scale,
    shrink,
)
from cxr_edge.common.metrics import Cases, ReliabilityBin
from cxr_edge.common.statistics import BINS
from cxr_edge.runtime.explanation.gradcam import overlay
from cxr_edge.runtime.imaging.image import read_image
from cxr_edge.train.evaluation.faithfulness import SHARES

if TYPE_CHECKING:
    from cxr_edge.train.evaluation.evaluate import AtPoint, Evaluation
    from cxr_edge.train.evaluation.faithfulness import Curves, Faithfulness
    from cxr_edge.train.evaluation.randomisation import Randomised

#: Pictures in each group of the gallery.
SHOWN = 3
#: Longer side of a radiograph in the gallery (pixels).
_SIDE = 512
QUALITY = 85
#: Width and height of a diagram (inches).
SIZE = (4.6, 3.9)
#: Title of the diagram of randomised networks.
CASCADE = "Randomised from the head downwards"


def draw_all(evaluation: Evaluation) -> dict[str, bytes]:
    """Draw the diagrams of decisions: title -> PNG file."""
    cases = evaluation.cases
    points = [at for at in evaluation.points if at.triage is None]  # a three-way point lies on no curve
    drawn = {
        "ROC curve": draw_png(lambda axes: _roc(axes, cases, points), *SIZE),
        "Precision and recall": draw_png(lambda axes: _precision_recall(axes, cases, points), *SIZE),
        "Threshold sweep": draw_png(lambda axes: _sweep(axes, cases, points), *SIZE),
        "Reliability": draw_png(lambda axes: _reliability(axes, evaluation.reliability), *SIZE),
    }
    return drawn | {
        f"Confusion matrix, {at.point.name}": draw_png(partial(_confusion, at=at), *SIZE) for at in evaluation.points
    }


def draw_faithfulness(found: Faithfulness) -> dict[str, bytes]:
    """Draw the diagrams of heatmaps: title -> PNG file."""
    drawn = {
        f"{each.way.capitalize()}, {each.substitute}": draw_png(partial(_curves, curves=each), *SIZE)
        for each in found.curves
    }
    return drawn | ({CASCADE: draw_png(partial(_cascade, steps=found.randomised), *SIZE)} if found.randomised else {})


def gallery(evaluation: Evaluation) -> dict[str, list[GalleryImage]]:
    """Heatmaps of the most confident decisions at the default operating point: heading -> up to `SHOWN` patients."""
    cases, threshold = evaluation.cases, evaluation.points[0].point.threshold
    decided = cases.probability >= threshold
    groups = {}
    for heading, truth, call in (
        ("Pneumonia, rightly", 1, True),
        ("Normal, rightly", 0, False),
        ("Normal, taken for pneumonia", 0, True),
        ("Pneumonia, missed", 1, False),
    ):
        rows = np.flatnonzero((cases.labels == truth) & (decided == call))
        rows = rows[np.argsort(-cases.logit[rows] if call else cases.logit[rows], kind="stable")]
        _, first = np.unique(cases.patients[rows], return_index=True)
        groups[heading] = [_show(evaluation, int(row)) for row in rows[np.sort(first)][:SHOWN]]
    return groups


def _show(evaluation: Evaluation, row: int) -> GalleryImage:
    image, point = evaluation.source.images[row], evaluation.points[0].point
    probability = float(evaluation.cases.probability[row])
    decided = CLASSES[int(probability >= point.threshold)]
    gray = shrink(read_image(image.path), _SIDE)
    subject = evaluation.subject
    picture = overlay(gray, evaluation.heatmaps[row], subject.heatmap, subject.input, f"{decided}  p={probability:.3f}")
    return GalleryImage(encode_jpeg(picture, QUALITY), image.path.name, CLASSES[image.label], decided, probability)


def _roc(axes: Any, cases: Cases, points: Sequence[AtPoint]) -> None:
    from sklearn.metrics import auc, roc_curve

    false_positive, true_positive, _ = roc_curve(cases.labels, cases.logit)
    shown = [axes]
    if auc(false_positive, true_positive) > 0.9:  # the corner is of interest, and the middle is free
        corner = axes.inset_axes((0.32, 0.28, 0.62, 0.52), xlim=(-0.01, 0.25), ylim=(0.75, 1.01))
        axes.indicate_inset_zoom(corner)
        corner.tick_params(labelsize=7)
        corner.grid(alpha=0.3)
        shown.append(corner)
    for each in shown:
        each.plot([0, 1], [0, 1], color=GREY, linestyle=":", linewidth=1)
        each.plot(false_positive, true_positive, color=BLUE)
        for at, marker in zip(points, "osD^v" * len(points), strict=False):
            specificity, sensitivity = at.metrics["specificity"].value, at.metrics["sensitivity"].value
            if specificity is not None and sensitivity is not None:
                each.plot(1 - specificity, sensitivity, marker, color=RED, markersize=6, label=at.point.name)
    axes.set(xlabel="1 − specificity", ylabel="sensitivity", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    _finish(axes, "lower right")


def _precision_recall(axes: Any, cases: Cases, points: Sequence[AtPoint]) -> None:
    from sklearn.metrics import precision_recall_curve

    precision, recall, _ = precision_recall_curve(cases.labels, cases.logit)
    share = float(cases.labels.mean())
    axes.axhline(share, color=GREY, linestyle=":", linewidth=1, label=f"share of pneumonia, {share:.2f}")
    axes.plot(recall, precision, color=BLUE)
    for at, marker in zip(points, "osD^v" * len(points), strict=False):
        if at.metrics["precision"].value is not None:
            axes.plot(at.metrics["sensitivity"].value, at.metrics["precision"].value, marker, color=RED, markersize=6)
    floor = min(0.5, float(precision[:-1].min()))
    axes.set(xlabel="sensitivity (recall)", ylabel="precision", xlim=(-0.02, 1.02), ylim=(floor - 0.05, 1.02))
    _finish(axes, "lower left")


def _sweep(axes: Any, cases: Cases, points: Sequence[AtPoint]) -> None:
    thresholds = np.unique(np.clip(cases.probability, *PROBABILITY_LIMITS))
    for label, name, color in ((1, "sensitivity", BLUE), (0, "specificity", GREY)):
        scores = np.sort(cases.probability[cases.labels == label])
        below = np.searchsorted(scores, thresholds) / len(scores)
        axes.plot(thresholds, 1 - below if label else below, color=color, label=name)
    for at in points:
        place = float(np.clip(at.point.threshold, *PROBABILITY_LIMITS))
        axes.axvline(place, color=RED, linewidth=1)
        axes.text(place, 0.03, f" {at.point.name}", color=RED, fontsize=8, rotation=90, ha="right", va="bottom")
    set_probability_scale(axes, "x")
    axes.set(xlabel="threshold on the probability", ylabel="share", ylim=(-0.02, 1.02))
    _finish(axes, "best")


def _reliability(axes: Any, bins: Sequence[ReliabilityBin]) -> None:
    filled = [each for each in bins if each.images]
    counts: npt.NDArray[np.int64] = np.array([each.images for each in bins])
    axes.plot([0, 1], [0, 1], color=GREY, linestyle=":", linewidth=1)
    said, found = [each.said for each in filled], [each.found for each in filled]
    axes.plot(said, found, color=BLUE, linewidth=1, alpha=0.4)
    axes.scatter(said, found, [8 + 24 * np.log10(each.images) for each in filled], color=BLUE)  # area: images
    axes.set(xlabel="mean probability", ylabel="share of pneumonia", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    axes.grid(alpha=0.3)
    images = axes.twinx()
    images.bar((np.arange(BINS) + 0.5) / BINS, counts, 0.9 / BINS, color=GREY, alpha=0.3)
    images.set_yscale("symlog", linthresh=1)
    images.set(ylabel="images (bars)", ylim=(0, 40 * max(int(counts.max()), 1)))


def _confusion(axes: Any, at: AtPoint) -> None:
    counts: npt.NDArray[np.int64] = np.array(
        [
            [at.confusion.true_negative, at.confusion.false_positive],
            [at.confusion.false_negative, at.confusion.true_positive],
        ]
    )
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for row, column in np.ndindex(2, 2):
        axes.text(column, row, f"{counts[row, column]}\n{share[row, column]:.1%}", ha="center", va="center",
                  color="white" if share[row, column] > 0.5 else "black", fontsize=12)  # fmt: skip
    names = [name.capitalize() for name in CLASSES]
    axes.set(xticks=(0, 1), yticks=(0, 1), xticklabels=names, yticklabels=names, xlabel="decided", ylabel="truth")
    axes.set_title(f"pneumonia where p ≥ {at.point.threshold:.3f}", fontsize=10)


def _curves(axes: Any, curves: Curves) -> None:
    for values, name, color in ((curves.heatmap, "order of the heatmap", BLUE), (curves.random, "random order", GREY)):
        axes.plot(SHARES, values.mean(axis=0), color=color, label=name)
        axes.fill_between(SHARES, *np.quantile(values, (0.25, 0.75), axis=0), color=color, alpha=0.15, linewidth=0)
    what = "replaced" if curves.way == "deletion" else "put back"
    axes.set(xlabel=f"share of the pixels {what}", ylabel="probability of pneumonia", xlim=(0, 1), ylim=(-0.02, 1.02))
    _finish(axes, "best")


def _cascade(axes: Any, steps: Sequence[Randomised]) -> None:
    names = [
        "trained",
        *(step.layers.replace("convolutions ", "conv. ").replace("convolution ", "conv. ") for step in steps),
    ]
    axes.axhline(0, color=GREY, linestyle=":", linewidth=1)
    axes.plot(range(len(names)), [1, *(step.correlation for step in steps)], color=BLUE, marker="o", markersize=4)
    for place, step in enumerate(steps, start=1):
        axes.plot([place] * len(step.draws), step.draws, ".", color=GREY, markersize=4)
    axes.set_xticks(range(len(names)), names, rotation=35, ha="right", fontsize=8)
    axes.set(ylabel="rank correlation with the trained network", ylim=(-1.05, 1.05))
    axes.grid(alpha=0.3)


def _finish(axes: Any, place: str) -> None:
    axes.grid(alpha=0.3)
    axes.legend(loc=place, fontsize=8)
