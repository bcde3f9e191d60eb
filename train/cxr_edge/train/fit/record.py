"""Writing the run folder of a fitted network: fold, calibrate, choose thresholds, measure."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from functools import partial
from importlib.metadata import version
from pathlib import Path
from platform import python_version
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import numpy.typing as npt

from cxr_edge.common.dataset import Pixels
from cxr_edge.common.network import keras_runner
from cxr_edge.common.reference import measure, reference_of
from cxr_edge.common.run import NETWORK, NOVELTY, RECORD, SCHEMA_VERSION, Floats, Novelty
from cxr_edge.common.statistics import roc_auc, to_probability
from cxr_edge.runtime.bundles.bundle import HeatmapGeometry, InputContract, Reference, sha256
from cxr_edge.runtime.engines import Outputs
from cxr_edge.runtime.errors import UsageError
from cxr_edge.train.data.batches import spread
from cxr_edge.train.data.outliers import outliers
from cxr_edge.train.data.patients import patient_of
from cxr_edge.train.data.perturbations import PERTURBATIONS, perturb
from cxr_edge.train.fit import models
from cxr_edge.train.fit.calibrate import fit_temperature, operating_points
from cxr_edge.train.fit.fold import deployable
from cxr_edge.train.fit.geometry import GEOMETRY_IMAGES, heatmap_geometry
from cxr_edge.train.fit.novelty import LAYERS, fit_novelty

if TYPE_CHECKING:
    from cxr_edge.train.fit.config import Part

#: Batch size of predictions.
PREDICT_BATCH = 64
#: Largest number of training radiographs from which the main directions of the features are computed.
NOVELTY_IMAGES = 2000
#: Number of outliers of each kind.
OUTLIERS = 100


@dataclass(frozen=True)
class Observation:
    """The network's output for N images: logits (N,) and features (N, F) for `Novelty`, float32."""

    logit: Floats
    features: Floats


Observer = Callable[[Pixels], Observation]


def check_target(run: Path) -> None:
    """Check that a run may be written there.

    Raises
    ------
    UsageError
        If the folder exists and is not a run.
    """
    if run.exists() and not (run / RECORD).is_file() and (not run.is_dir() or any(run.iterdir())):
        raise UsageError(f"{run}: exists and is not a run; choose another folder with -o")


def put_in_place(written: Path, run: Path) -> None:
    """Rename a folder that `write_run` has written to `run`; an earlier run there is removed."""
    shutil.rmtree(run, ignore_errors=True)
    written.rename(run)


def write_run(
    folder: Path, network: keras.Model, training: Part, validation: Part, holdout: Part, facts: Mapping[str, Any],
    strangers: Mapping[str, Pixels] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Write `model.keras`, `novelty.npz` and, last, `run.json`.

    Parameters
    ----------
    network
        The fitted network, in single precision.
    facts
        The entries of `run.json` that are known before: `config`, `data`, `history`, `seconds`.
    strangers
        Kind -> (N, H, W, 1) uint8 in [0, 255]: real outliers, in addition to those that are made.

    Returns
    -------
    The content of `run.json`.
    """
    network = deployable(network)
    models.save(network, folder / NETWORK)
    layers = LAYERS[facts["config"]["arch"]]
    observe = partial(_observe, _observer(network, layers))
    versions = _observe_versions(observe, validation.pixels)
    last = network.get_layer("pool").output.shape[-1]
    strange = _observe_outliers(observe, training.pixels, strangers or {}, facts["config"]["seed"])
    known = _observe_training(observe, training.pixels, facts["config"]["seed"])
    novelty = fit_novelty(known, [each.features for each in versions], strange, layers, last)
    novelty.save(folder / NOVELTY)
    temperature = fit_temperature(validation.labels, versions[0].logit)
    probabilities = [to_probability(each.logit, temperature) for each in versions]
    points = operating_points(validation.labels, *probabilities)
    metrics = {"validation": metrics_at(validation.labels, probabilities[0], points[0].threshold)}
    if len(holdout.images):  # last: nothing is chosen on the hold-out
        probability = to_probability(observe(holdout.pixels).logit, temperature)
        metrics["holdout"] = metrics_at(holdout.labels, probability, points[0].threshold)
    contract = InputContract(*network.input_shape[1:3])
    geometry = heatmap_geometry(network, spread(validation.pixels, GEOMETRY_IMAGES))
    record = {
        "schema_version": SCHEMA_VERSION,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        **facts,
        "input": {"height": contract.height, "width": contract.width},
        "heatmap": asdict(geometry),
        "lungs": _lung_grid(network),
        "model_sha256": sha256(folder / NETWORK),
        "novelty_sha256": sha256(folder / NOVELTY),
        "temperature": temperature,
        "operating_points": [asdict(point) for point in points],
        "reference": asdict(_reference(network, novelty, geometry, contract, validation, holdout)),
        "split": _split(training, validation, holdout),
        "metrics": metrics,
        "versions": _versions(),
    }
    (folder / RECORD).write_text(json.dumps(record, indent=2) + "\n")
    return record


def _observer(network: keras.Model, layers: Sequence[str]) -> keras.Model:
    """Image -> logit and features. One model, because Keras traces each new one again."""
    means = [keras.ops.mean(network.get_layer(name).output, axis=(1, 2)) for name in layers]
    features = keras.ops.concatenate([*means, network.get_layer("pool").output], axis=1)
    return keras.Model(network.inputs[0], [network.outputs[0], features])


def _observe(model: keras.Model, pixels: Pixels) -> Observation:
    logit, features = model.predict(pixels, batch_size=PREDICT_BATCH, verbose=0)
    return Observation(logit[:, 0], features)


def _observe_versions(observe: Observer, pixels: Pixels) -> list[Observation]:
    """The original images first, then each perturbation of them."""
    from rich.console import Console
    from rich.progress import track

    changes = track(PERTURBATIONS.values(), "choosing thresholds", console=Console(stderr=True))
    return [observe(pixels), *(observe(perturb(pixels, change)) for change in changes)]


def _observe_training(observe: Observer, training: Pixels, seed: int) -> Floats:
    """Features of training radiographs, and of the same ones after a perturbation at random."""
    random = np.random.default_rng(seed)
    originals, changes = spread(training, NOVELTY_IMAGES), list(PERTURBATIONS.values())
    changed = np.concatenate(
        [perturb(image[np.newaxis], changes[random.integers(len(changes))]) for image in originals]
    )
    return np.concatenate([observe(originals).features, observe(changed).features])


def _observe_outliers(
    observe: Observer, training: Pixels, strangers: Mapping[str, Pixels], seed: int
) -> dict[str, Floats]:
    """Features of each kind of outlier: made ones, and `strangers`."""
    images = {**outliers(training, OUTLIERS, seed), **strangers}
    return {kind: observe(pixels).features for kind, pixels in images.items()}


def _reference(
    network: keras.Model, novelty: Novelty, geometry: HeatmapGeometry, contract: InputContract, validation: Part,
    holdout: Part,
) -> Reference:  # fmt: skip
    """What the runtime would say about the hold-out, on which nothing was chosen; about validation if there is none."""
    name, part = ("hold-out", holdout) if len(holdout.images) else ("validation", validation)
    run = keras_runner(network, 1.0, novelty)
    batches = np.arange(PREDICT_BATCH, len(part.pixels), PREDICT_BATCH)
    outputs = Outputs.concatenate([run(pixels) for pixels in np.split(part.pixels, batches)])
    patients = [patient_of(image.path) for image in part.images]
    return reference_of(measure(outputs, geometry, contract), part.labels, patients, novelty.threshold, name)


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


def _lung_grid(network: keras.Model) -> dict[str, int] | None:
    """Size of the map of the lungs; None if the network does not find them."""
    if len(network.outputs) == 1:
        return None
    _, height, width, _ = network.outputs[1].shape
    return {"height": height, "width": width}


def _versions() -> dict[str, str]:
    packages = ("cxr-edge", "keras", keras.backend.backend(), "numpy")
    return {"python": python_version()} | {name: version(name) for name in packages}
