"""From a folder of radiographs to a run: split, fit, calibrate, choose the thresholds, save."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from platform import python_version
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from cxr_edge.runtime.bundle import sha256
from cxr_edge.runtime.dataset import LabelledImage, fingerprint, read_dataset, read_pixels
from cxr_edge.runtime.errors import UsageError
from cxr_edge.train.calibrate import fit_temperature, operating_points, to_probability
from cxr_edge.train.patients import patient_of, split_by_blocks

if TYPE_CHECKING:
    import keras

#: Images at once where nothing is trained.
PREDICT_BATCH = 64
#: Radiographs on which the heatmap's geometry is measured.
GEOMETRY_IMAGES = 8
#: Training radiographs, at most, on which the main directions of the features are found.
NOVELTY_IMAGES = 2000
#: Of the average of weights, a step; it spans about the last 50.
EMA_MOMENTUM = 0.98


@dataclass(frozen=True)
class TrainConfig:
    """What a run is made of; the defaults of `cxr-edge train`."""

    arch: str = "mobilenetv2"
    weights: str = "imagenet"
    epochs: int = 6
    head_epochs: int = 1
    batch_size: int = 32
    learning_rate: float = 1e-4
    val_fraction: float = 0.15
    holdout_fraction: float = 0.1
    fold: int = 0
    seed: int = 0


@dataclass(frozen=True)
class Part:
    """One side of the split, in memory: pixels (N, H, W, 1) uint8, labels (N,) int."""

    images: Sequence[LabelledImage]
    pixels: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]


def train(data: Path, run: Path, config: TrainConfig) -> dict[str, Any]:
    """Train a classifier and write the run folder: `model.keras`, `novelty.npz`, `run.json`, `curves.png`.

    The folder appears whole, at the end: it is written beside `run` and renamed.

    Parameters
    ----------
    data
        Kaggle layout; `train` and `val` are pooled and split anew by patient, `test` is never opened.

    Returns
    -------
    The content of `run.json`.

    Raises
    ------
    DataError
        If the data cannot be used, or the loss becomes NaN.
    UsageError
        If `run` exists and is no run, or an option is out of range.
    """
    import keras
    from rich.console import Console
    from rich.progress import track

    from cxr_edge.train import models
    from cxr_edge.train.fold import deployable
    from cxr_edge.train.geometry import heatmap_geometry
    from cxr_edge.train.novelty import fit_novelty
    from cxr_edge.train.shift import PERTURBATIONS, perturb

    if run.exists() and not (run / "run.json").is_file() and (not run.is_dir() or any(run.iterdir())):
        raise UsageError(f"{run}: exists and is not a run; choose another folder for -o")
    images = read_dataset(data, ("train", "val"))
    parts = split_by_blocks(images, config.val_fraction, config.holdout_fraction, config.fold)
    keras.utils.set_random_seed(config.seed)
    network = models.build(config.arch, config.weights)
    height, width = network.input_shape[1:3]
    training, validation, holdout = (_part([images[i] for i in rows], height, width) for rows in parts)

    partial = run.with_name(run.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    start = perf_counter()
    history = fit(network, training, validation, config, partial / "best.weights.h5")
    seconds = perf_counter() - start
    network = deployable(network)
    models.save(network, partial / "model.keras")

    # Built once: each new model would be traced anew at its first prediction.
    observer = keras.Model(network.inputs[0], [network.outputs[0], network.get_layer("pool").output])
    logit, features = observe(observer, validation.pixels)
    temperature = fit_temperature(validation.labels, logit)
    changes = track(PERTURBATIONS.values(), "choosing thresholds", console=Console(stderr=True))
    versions = [(logit, features), *(observe(observer, perturb(validation.pixels, change)) for change in changes)]
    logits, held_out = zip(*versions, strict=True)
    _, known = observe(observer, training.pixels[:: -(-len(training.images) // NOVELTY_IMAGES)])
    fit_novelty(known, np.concatenate(held_out)).save(partial / "novelty.npz")
    points = operating_points(validation.labels, *(to_probability(each, temperature) for each in logits))
    measured = {"validation": (validation, to_probability(logit, temperature))}
    if len(holdout.images):  # looked at last: nothing is chosen on it
        measured["holdout"] = (holdout, to_probability(observe(observer, holdout.pixels)[0], temperature))
    record = {
        "schema_version": 1,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        # By name: where the weights lie is this machine's business.
        "config": asdict(config) | {"weights": Path(config.weights).name},
        "input": {"height": height, "width": width},
        "heatmap": asdict(
            heatmap_geometry(network, validation.pixels[:: -(-len(validation.images) // GEOMETRY_IMAGES)])
        ),
        "model_sha256": sha256(partial / "model.keras"),
        "novelty_sha256": sha256(partial / "novelty.npz"),
        "temperature": temperature,
        "operating_points": [asdict(point) for point in points],
        "data": {"images": len(images), "fingerprint": fingerprint(images)},
        "split": {
            "rule": "blocks of consecutive patient numbers",
            "train_images": len(training.images),
            "validation_images": len(validation.images),
            "holdout_images": len(holdout.images),
            "validation_patients": sorted({patient_of(image.path) for image in validation.images}),
            "validation_files": [image.key for image in validation.images],
            "holdout_files": [image.key for image in holdout.images],
        },
        "metrics": {
            part: metrics_at(each.labels, probability, points[0].threshold)
            for part, (each, probability) in measured.items()
        },
        "history": history,
        "seconds": round(seconds, 1),
        "versions": {"python": python_version()}
        | {name: version(name) for name in ("cxr-edge", "keras", keras.backend.backend(), "numpy")},
    }
    plot_curves(history, partial / "curves.png")
    (partial / "best.weights.h5").unlink()
    (partial / "run.json").write_text(json.dumps(record, indent=2) + "\n")
    shutil.rmtree(run, ignore_errors=True)
    partial.rename(run)
    return record


def fit(
    network: keras.Model, training: Part, validation: Part, config: TrainConfig, checkpoint: Path
) -> dict[str, list[float]]:
    """Fit in place and leave the network with its best weights by validation loss.

    From pretrained weights the head is trained first, on a frozen backbone; then everything but the batch norms, whose
    statistics small batches would spoil. From scratch everything is trained at once.
    """
    import keras

    from cxr_edge.train.augment import augmentation
    from cxr_edge.train.callbacks import EpochProgress, KeepFreedMemory, StopOnNaN
    from cxr_edge.train.dataset import RadiographBatches

    augmented = keras.Sequential([network.input, augmentation(config.seed), network])
    batches = RadiographBatches(training.pixels, training.labels, config.batch_size, config.seed)
    held_out = RadiographBatches(validation.pixels, validation.labels, PREDICT_BATCH, config.seed)
    history: dict[str, list[float]] = {}

    def phase(name: str, epochs: int, rate: float, *callbacks: keras.callbacks.Callback) -> None:
        augmented.compile(
            # Averaged weights (Polyak 1992) are what is validated and kept: they ride out the noise of small batches.
            keras.optimizers.Adam(rate, use_ema=True, ema_momentum=EMA_MOMENTUM),
            keras.losses.BinaryCrossentropy(from_logits=True),
            metrics=[keras.metrics.AUC(from_logits=True, num_thresholds=1000, name="auc")],
        )
        swap = keras.callbacks.SwapEMAWeights(swap_on_epoch=True)
        extra = [KeepFreedMemory(), StopOnNaN(), swap, EpochProgress(name), *callbacks]
        log = augmented.fit(batches, validation_data=held_out, epochs=epochs, callbacks=extra, verbose=0).history
        for metric, values in log.items():
            history.setdefault(metric, []).extend(float(value) for value in values)

    if config.weights != "none":
        set_trainable(network, head_only=True)
        phase("head", config.head_epochs, 10 * config.learning_rate)
        set_trainable(network, head_only=False)
    phase(
        "fine-tuning" if config.weights != "none" else "training",
        config.epochs,
        config.learning_rate,
        keras.callbacks.ModelCheckpoint(checkpoint, monitor="val_loss", save_best_only=True, save_weights_only=True),
        keras.callbacks.ReduceLROnPlateau(monitor="val_loss", factor=0.3, patience=1, min_lr=1e-6),
        keras.callbacks.EarlyStopping(monitor="val_loss", patience=4),
    )
    augmented.load_weights(checkpoint)
    return history


def set_trainable(network: keras.Model, *, head_only: bool) -> None:
    """Freeze all but the head, or only the batch norms."""
    import keras

    head = {"hidden", "logit"}
    for layer in network.layers:
        frozen = layer.name not in head if head_only else isinstance(layer, keras.layers.BatchNormalization)
        layer.trainable = not frozen


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
    from sklearn.metrics import roc_auc_score

    positive = probability >= threshold
    return {
        "auc": float(roc_auc_score(labels, probability)),
        "accuracy": float(np.mean(positive == labels)),
        "sensitivity": float(np.mean(positive[labels == 1])),
        "specificity": float(np.mean(~positive[labels == 0])),
    }


def plot_curves(history: dict[str, list[float]], path: Path) -> None:
    """Loss and AUC by epoch, training and validation."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.4), layout="constrained")
    for axes, metric in zip(figure.subplots(1, 2), ("loss", "auc"), strict=True):
        for name, label in ((metric, "training (augmented)"), (f"val_{metric}", "validation")):
            axes.plot(range(1, len(history[name]) + 1), history[name], marker="o", label=label)
        axes.set(xlabel="epoch", ylabel={"loss": "binary cross-entropy", "auc": "ROC AUC"}[metric])
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=120)


def _part(images: list[LabelledImage], height: int, width: int) -> Part:
    labels = np.array([image.label for image in images], np.int64)
    return Part(images, read_pixels(images, height, width), labels)
