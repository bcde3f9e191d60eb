"""Leave one appearance cluster out: calibration and threshold are fitted on the other clusters and measured on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cxr_edge.common.metrics import Cases, Estimate, decision_metrics, score_metrics
from cxr_edge.common.statistics import Floats, Labels, to_probability
from cxr_edge.train.fit.calibrate import fit_temperature, operating_points

#: The figures of a cluster. Of the last one the highest is the worst, of the others the lowest.
FIGURES = ("roc_auc", "sensitivity", "specificity", "ece")


@dataclass(frozen=True)
class LeftOut:
    """The figures of a network on one cluster, whose images chose neither temperature nor threshold.

    Attributes
    ----------
    cluster
        Number of the cluster, from 0.
    images, pneumonia
        Number of its images, and of those with pneumonia.
    temperature, threshold
        Fitted on the other clusters; the threshold is that of `balanced`.
    metrics
        Name of each of `FIGURES` -> its value and interval, on the original images of the cluster.
    """

    cluster: int
    images: int
    pneumonia: int
    temperature: float
    threshold: float
    metrics: dict[str, Estimate]


def leave_clusters_out(
    labels: Labels, versions: Sequence[Floats], patients: npt.NDArray[np.str_], clusters: npt.NDArray[np.int64]
) -> tuple[LeftOut, ...]:
    """Measure a network on each cluster, with temperature and threshold of the others.

    Parameters
    ----------
    labels, patients, clusters
        (N,) int in {0, 1}, (N,) str, and (N,) int: the cluster of each image. Each cluster must have both classes.
    versions
        (N,) logits of each version of the images: original, then perturbed. The threshold is chosen on all of them.

    Returns
    -------
    One entry for each cluster; none if there is only one cluster.
    """
    names = np.unique(clusters).tolist()
    if len(names) < 2:
        return ()
    return tuple(_leave_out(labels, versions, patients, clusters == name, name) for name in names)


def worst_of(clusters: Sequence[LeftOut], figure: str) -> LeftOut:
    """The cluster with the worst value of one of `FIGURES`."""
    sign = -1 if figure == "ece" else 1
    return min(clusters, key=lambda each: sign * (each.metrics[figure].value or 0))


def _leave_out(
    labels: Labels,
    versions: Sequence[Floats],
    patients: npt.NDArray[np.str_],
    inside: npt.NDArray[np.bool_],
    name: int,
) -> LeftOut:
    others = labels[~inside]
    temperature = fit_temperature(others, versions[0][~inside])
    balanced = operating_points(others, *(to_probability(logit[~inside], temperature) for logit in versions))[0]
    logit = versions[0][inside]
    cases = Cases(labels[inside], logit, to_probability(logit, temperature), patients[inside])
    found = score_metrics(cases) | decision_metrics(cases, balanced.threshold)
    return LeftOut(
        cluster=name,
        images=len(logit),
        pneumonia=int(cases.labels.sum()),
        temperature=temperature,
        threshold=balanced.threshold,
        metrics={figure: found[figure] for figure in FIGURES},
    )
