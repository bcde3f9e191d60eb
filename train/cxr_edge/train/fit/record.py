"""From a fitted network to a run folder: folded, calibrated, its thresholds chosen, measured, written."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from platform import python_version
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import numpy.typing as npt

from cxr_edge.common.statistics import roc_auc
from cxr_edge.runtime.bundles.bundle import sha256
from cxr_edge.train.data.outliers import outliers
from cxr_edge.train.data.patients import patient_of
from cxr_edge.train.data.perturbations import PERTURBATIONS, perturb
from cxr_edge.train.fit import models
from cxr_edge.train.fit.calibrate import fit_temperature, operating_points, to_probability
from cxr_edge.train.fit.fold import deployable
from cxr_edge.train.fit.geometry import heatmap_geometry
from cxr_edge.train.fit.novelty import fit_novelty

if TYPE_CHECKING:
    from cxr_edge.train.fit.config import Part

#: Images at once where nothing is trained.
PREDICT_BATCH = 64
#: Radiographs on which the heatmap's geometry is measured.
GEOMETRY_IMAGES = 8
#: Training radiographs, at most, on which the main directions of the features are found.
NOVELTY_IMAGES = 2000
#: Outliers of each kind.
OUTLIERS = 100


def write_run(
    folder: Path, network: keras.Model, training: Part, validation: Part, holdout: Part, facts: Mapping[str, Any]
) -> dict[str, Any]:
    """Write `model.keras`, `novelty.npz`, `curves.png` and, last, `run.json`.

    Parameters
    ----------
    network
        As fitted, in single precision.
    facts
        What `run.json` tells beside what is found here: `config`, `data`, `history`, `seconds`.

    Returns
    -------
    The content of `run.json`.
    """
    from rich.console import Console
    from rich.progress import track

    network = deployable(network)
    models.save(network, folder / "model.keras")
    # Built once: each new model would be traced anew at its first prediction.
    observer = keras.Model(network.inputs[0], [network.outputs[0], network.get_layer("pool").output])
    logit, features = observe(observer, validation.pixels)
    temperature = fit_temperature(validation.labels, logit)
    changes = track(PERTURBATIONS.values(), "choosing thresholds", console=Console(stderr=True))
    versions = [(logit, features), *(observe(observer, perturb(validation.pixels, change)) for change in changes)]
    logits, held_out = zip(*versions, strict=True)
    _, known = observe(observer, _some(training.pixels, NOVELTY_IMAGES))
    made = outliers(training.pixels, OUTLIERS, facts["config"]["seed"])
    strange = {kind: observe(observer, images)[1] for kind, images in made.items()}
    fit_novelty(known, np.concatenate(held_out), strange).save(folder / "novelty.npz")
    points = operating_points(validation.labels, *(to_probability(each, temperature) for each in logits))
    measured = {"validation": (validation, to_probability(logit, temperature))}
    if len(holdout.images):  # looked at last: nothing is chosen on it
        measured["holdout"] = (holdout, to_probability(observe(observer, holdout.pixels)[0], temperature))
    height, width = network.input_shape[1:3]
    record = {
        "schema_version": 1,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        **facts,
        "input": {"height": height, "width": width},
        "heatmap": asdict(heatmap_geometry(network, _some(validation.pixels, GEOMETRY_IMAGES))),
        "model_sha256": sha256(folder / "model.keras"),
        "novelty_sha256": sha256(folder / "novelty.npz"),
        "temperature": temperature,
        "operating_points": [asdict(point) for point in points],
        "split": _split(training, validation, holdout),
        "metrics": {
            part: metrics_at(each.labels, probability, points[0].threshold)
            for part, (each, probability) in measured.items()
        },
        "versions": {"python": python_version()}
        | {name: version(name) for name in ("cxr-edge", "keras", keras.backend.backend(), "numpy")},
    }
    plot_curves(facts["history"], folder / "curves.png")
    (folder / "run.json").write_text(json.dumps(record, indent=2) + "\n")
    return record


def observe(
    observer: keras.Model, pixels: npt.NDArray[np.uint8]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """(N, H, W, 1) uint8 -> logits (N,) and pooled features (N, K)."""
    logit, features = observer.predict(pixels, batch_size=PREDICT_BATCH, verbose=0)
    return logit[:, 0], features


def metrics_at(
    labels: npt.NDArray[np.int64], probability: npt.NDArray[np.floating[Any]], threshold: float
) -> dict[str, float]:
    """AUC, and accuracy, sensitivity and specificity at a threshold."""
    positive = probability >= threshold
    return {
        "auc": roc_auc(labels, probability),
        "accuracy": float(np.mean(positive == labels)),
        "sensitivity": float(np.mean(positive[labels == 1])),
        "specificity": float(np.mean(~positive[labels == 0])),
    }


def plot_curves(history: Mapping[str, list[float]], path: Path) -> None:
    """Loss and AUC by epoch, training and validation."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(9, 3.4), layout="constrained")
    for axes, metric in zip(figure.subplots(1, 2), ("loss", "auc"), strict=True):
        for name, label in ((metric, "training"), (f"val_{metric}", "validation")):
            axes.plot(range(1, len(history[name]) + 1), history[name], marker="o", label=label)
        axes.set(xlabel="epoch", ylabel={"loss": "loss", "auc": "ROC AUC"}[metric])
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=120)


def _split(training: Part, validation: Part, holdout: Part) -> dict[str, Any]:
    return {
        "rule": "blocks of consecutive patient numbers",
        "train_images": len(training.images),
        "validation_images": len(validation.images),
        "holdout_images": len(holdout.images),
        "validation_patients": sorted({patient_of(image.path) for image in validation.images}),
        "validation_files": [image.key for image in validation.images],
        "holdout_files": [image.key for image in holdout.images],
    }


def _some(pixels: npt.NDArray[np.uint8], most: int) -> npt.NDArray[np.uint8]:
    """At most so many images, evenly drawn."""
    return pixels[:: -(-len(pixels) // most)]
