"""The evaluation report: a self-contained HTML page, `metrics.json`, and tables for the terminal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cxr_edge.common.metrics import LEVEL, RESAMPLES, Estimate
from cxr_edge.common.pages import render_page
from cxr_edge.common.statistics import BINS
from cxr_edge.runtime.errors import UsageError
from cxr_edge.runtime.files import write_atomically
from cxr_edge.train.evaluation.crossfit import FIGURES, worst_of
from cxr_edge.train.evaluation.faithfulness import BLUR_SIGMA, BORDER, Faithfulness
from cxr_edge.train.evaluation.figures import CASCADE, draw_all, draw_faithfulness, gallery

if TYPE_CHECKING:
    from cxr_edge.train.evaluation.evaluate import Evaluation
    from cxr_edge.train.evaluation.evidence import Evidence
    from cxr_edge.train.evaluation.shift import Shift

TRIAGE = {
    "unsure": "unsure",
    "missed": "pneumonia among those ruled out",
    "false_alarms": "normal among those ruled in",
}
PAGE, METRICS = "report.html", "metrics.json"
TITLES = {
    "accuracy": "accuracy",
    "precision": "precision",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
    "f1": "F1",
    "roc_auc": "ROC-AUC",
    "pr_auc": "PR-AUC",
    "brier": "Brier score",
    "ece": "calibration error (ECE)",
    "ece_equal_mass": "ECE, bins of equal mass",
}


def check_target(report: Path) -> None:
    """Check, before hours of work, that the report can be written.

    Raises
    ------
    UsageError
        If `report` or one of its parents is a file.
    """
    for place in (report, *report.parents):
        if place.exists():
            if not place.is_dir():
                raise UsageError(f"{place}: is a file; name a folder with -o")
            return


def write_report(evaluation: Evaluation, report: Path) -> None:
    """Write `report.html` and `metrics.json`, each atomically."""
    page, metrics = render(evaluation), json.dumps(evaluation.to_dict(), indent=2, allow_nan=False)
    write_atomically(report / METRICS, metrics + "\n")
    write_atomically(report / PAGE, page)


def render(evaluation: Evaluation) -> str:
    """Render the page with embedded pictures."""
    curves = evaluation.subject.path / "curves.png"
    return render_page(
        "cxr_edge.train",
        "evaluation.html.j2",
        evaluation=evaluation,
        curves=curves.read_bytes() if evaluation.subject.kind == "run" and curves.is_file() else None,
        diagrams=draw_all(evaluation),
        cascade=CASCADE,
        heatmap_diagrams=draw_faithfulness(evaluation.faithfulness) if evaluation.faithfulness else {},
        gallery=gallery(evaluation),
        titles=TITLES,
        triage_titles=TRIAGE,
        figures=FIGURES,
        worst_of=worst_of,
        resamples=RESAMPLES,
        level=LEVEL,
        bins=BINS,
        border=BORDER,
        blur_sigma=BLUR_SIGMA,
    )


def rows(evaluation: Evaluation) -> list[dict[str, Any]]:
    """The table for the terminal: a row for each figure, a column for each operating point."""
    table: list[dict[str, Any]] = [
        {"metric": "threshold"} | {at.point.name: f"{at.point.threshold:.4f}" for at in evaluation.points}
    ]
    three_way = [at for at in evaluation.points if at.triage]
    if three_way:
        table.append({"metric": "unsure from"} | {at.point.name: f"{at.point.rule_out:.4f}" for at in three_way})
    for name, title in TRIAGE.items() if three_way else ():
        table.append({"metric": title} | {at.point.name: interval(getattr(at.triage, name)) for at in three_way})
    for name in evaluation.points[0].metrics:
        table.append({"metric": TITLES[name]} | {at.point.name: interval(at.metrics[name]) for at in evaluation.points})
    for name, estimate in evaluation.scores.items():
        table.append({"metric": TITLES[name]} | {at.point.name: interval(estimate) for at in evaluation.points})
    return table


def shift_rows(shift: Shift) -> list[dict[str, Any]]:
    """The table for the terminal about other hospitals: the worst perturbation, and each appearance cluster."""
    worst = shift.worst_calibration
    table: list[dict[str, Any]] = [{"shift": f"worst calibration: {worst.name}", TITLES["ece"]: interval(worst.ece)}]
    for each in shift.clusters:
        row = {TITLES[name]: interval(each.metrics[name]) for name in FIGURES}
        table.append({"shift": f"cluster {each.cluster + 1} left out, {each.images} images"} | row)
    return table


def heatmap_rows(found: Faithfulness) -> list[dict[str, Any]]:
    """The table for the terminal about heatmaps: each figure beside its value by chance."""
    table = [
        {"heatmap": f"{each.way}, area ({each.substitute})", "found": interval(each.heatmap_area)}
        | {"by chance": interval(each.random_area)}
        for each in found.curves
    ]
    for each in found.randomised:
        table.append({"heatmap": f"rank correlation, random from {each.layers}", "found": f"{each.correlation:.4f}"})
    rightly, area = found.borders[-1], {"by chance": f"{found.border_area:.4f}"}
    for name, share in (("", rightly.share), (", cropped", rightly.cropped)):
        table.append({"heatmap": f"energy in the border, pneumonia found{name}", "found": interval(share)} | area)
    return table


def evidence_rows(found: Evidence) -> list[dict[str, Any]]:
    """The table for the terminal about the place of the evidence."""
    rows = [
        {"truth": each.truth, "decided": each.decided, "images": each.images, "in the lungs": interval(each.in_lungs)}
        | {"in their hull": interval(each.in_hull), "hottest point in the hull": interval(each.peak_in_hull)}
        for each in found.places
    ]
    area = {"truth": "share of the image", "in the lungs": f"{found.lung_area:.4f}"}
    return [*rows, area | {"in their hull": f"{found.hull_area:.4f}"}]


def joined_rows(found: Evidence) -> list[dict[str, Any]]:
    """The table for the terminal about radiographs joined of two halves."""
    return [
        {
            "joined halves: pneumonia on": each.pneumonia,
            "images": each.images,
            "called pneumonia": interval(each.called),
            "evidence on that side": interval(each.evidence),
            "most of it there": interval(each.most),
        }
        for each in found.joined
    ]


def interval(estimate: Estimate) -> str:
    """A figure with its interval as text."""
    if estimate.value is None:
        return "-"
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:.4f}"
    return f"{estimate.value:.4f} ({estimate.low:.4f}–{estimate.high:.4f})"
