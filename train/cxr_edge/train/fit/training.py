"""Training, from a folder of radiographs to a run folder: split, fit, write."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from cxr_edge.common.dataset import LabelledImage, contents, fingerprint, read_dataset
from cxr_edge.runtime.bundles.manifest import CONTENTS
from cxr_edge.runtime.errors import CxrEdgeError, UsageError
from cxr_edge.train.data.masks import find_masks, mask_facts
from cxr_edge.train.data.patients import split_by_blocks
from cxr_edge.train.data.strangers import Strangers
from cxr_edge.train.fit.config import Part, TrainConfig
from cxr_edge.train.fit.distribute import Replicas, connect
from cxr_edge.train.fit.tracking import Tracking

if TYPE_CHECKING:
    import keras


def train(
    data: Path, run: Path, config: TrainConfig, *,
    masks: Path | None = None, strangers: Path | None = None, resume: bool = False, tracking: Tracking | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Train a classifier and write the run folder: `model.keras`, `novelty.npz`, `run.json`, `curves.png`.

    The folder is written as `RUN.partial` beside `run` and renamed at the end, so that it is never incomplete.

    Parameters
    ----------
    data
        Kaggle layout. `train` and `val` are pooled and split again by patient; `test` is never opened.
    masks
        Folder of lung masks, {NORMAL,PNEUMONIA}/NAME.png. Not every radiograph needs one. The network then also finds
        the lungs, and evidence outside them is penalised.
    resume
        Continue an interrupted run with the same options and data after its last finished epoch. The result is the same
        as that of an uninterrupted run.
    strangers
        Folder with a subfolder of images for each kind that is unlike the data set (`Strangers.read`).

    Returns
    -------
    The content of `run.json`; empty in a worker that is not the chief.

    Raises
    ------
    DataError
        If the data cannot be used, or the loss becomes NaN.
    UsageError
        If `run` exists and is not a run, or an option is out of range.
    """
    import keras

    from cxr_edge.train.fit.loop import fit
    from cxr_edge.train.fit.record import check_target
    from cxr_edge.train.fit.resume import TrainingState, prepare

    check_target(run)
    if masks is not None and config.mixup:
        raise UsageError("--mixup mixes radiographs, but not their masks; leave --mixup or --masks out")
    if masks is None and config.halves:
        raise UsageError("--halves joins radiographs between their lungs; also name their masks with --masks")
    replicas = connect(config.strategy)
    _check_batch(config, replicas)
    images = read_dataset(data, ("train", "val"))
    drawn = None if masks is None else find_masks(masks, images)
    config = replace(config, lungs=drawn is not None)
    strange = Strangers.read(strangers, config.size, images) if strangers else None
    split = split_by_blocks(images, config.val_fraction, config.holdout_fraction, config.fold)
    network = _build(config, replicas)
    training, validation, holdout = (Part.read([images[i] for i in rows], config.size, drawn) for rows in split)
    facts = _facts(config, images, drawn)
    identity = {**facts["config"], "data": facts["data"]["fingerprint"], "backend": keras.backend.backend()}
    if drawn:
        identity["masks"] = facts["masks"]["fingerprint"]
    if strange:
        facts["strangers"] = strange.facts()
        identity["strangers"] = strange.fingerprint
    partial = run.with_name(run.name + ".partial")
    unfinished = partial / "training"
    if replicas.is_chief:
        prepare(partial, unfinished, identity, resume)
    state = TrainingState(unfinished, identity, resume, replicas.is_chief)
    if not replicas.is_chief:
        with TemporaryDirectory() as own:  # all workers take part in saving a checkpoint
            fit(network, training, validation, config, replicas, state, Path(own) / "best.weights.h5", [])
        return {}
    with _removed_on_error(partial), (tracking or Tracking()).watch(run, unfinished, identity) as trackers:
        fit(network, training, validation, config, replicas, state, unfinished / "best.weights.h5", trackers)
        facts |= {"history": state.history, "seconds": round(state.seconds, 1)}
        plain = config.build()  # in single precision, on one device
        plain.set_weights(network.get_weights())
        return _finish(partial, run, plain, (training, validation, holdout), facts, strange)


def _check_batch(config: TrainConfig, replicas: Replicas) -> None:
    share = replicas.images_parted(config.mixup)
    if config.batch_size % share:
        pairs = ", in pairs for --mixup" if config.mixup else ""
        raise UsageError(
            f"--batch-size {config.batch_size} is divided among {replicas.count} devices{pairs}; choose a multiple of "
            f"{share}"
        )


def _facts(config: TrainConfig, images: Sequence[LabelledImage], masks: Mapping[str, Path] | None) -> dict[str, Any]:
    """Entries of `run.json` about options and data."""
    return {
        # The name only: the folder of the weights depends on the machine.
        "config": asdict(config) | {"weights": Path(config.weights).name},
        "data": {"images": len(images), "fingerprint": fingerprint(images), CONTENTS: contents(images)},
        "masks": mask_facts(masks) if masks else None,
    }


def _build(config: TrainConfig, replicas: Replicas) -> keras.Model:
    """Build the network on all devices, with the random state of the seed."""
    import keras

    keras.utils.set_random_seed(config.seed)
    with replicas.scope(), _precision(config.mixed_precision):
        return config.build(config.weights)


def _finish(
    partial: Path, run: Path, network: keras.Model, parts: tuple[Part, Part, Part], facts: dict[str, Any],
    strangers: Strangers | None,
) -> dict[str, Any]:  # fmt: skip
    """Write the run in its unfinished folder and move it to its place."""
    from cxr_edge.train.fit.record import put_in_place, write_run

    _plot_curves(facts["history"], partial / "curves.png")
    record = write_run(partial, network, *parts, facts, strangers.pixels if strangers else None)
    shutil.rmtree(partial / "training")
    put_in_place(partial, run)
    return record


def _plot_curves(history: Mapping[str, list[float]], path: Path) -> None:
    """Plot loss and AUC of training and validation by epoch."""
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


@contextmanager
def _removed_on_error(partial: Path) -> Iterator[None]:
    """Remove the unfinished run after an error of ours: a resumed run would fail again."""
    try:
        yield
    except CxrEdgeError:
        shutil.rmtree(partial, ignore_errors=True)
        raise


@contextmanager
def _precision(mixed: bool) -> Iterator[None]:
    """If `mixed`, make layers that compute in half precision; their weights stay in single precision."""
    import keras

    if not mixed:
        yield
        return
    on_cpu = all(device.startswith("cpu") for device in keras.distribution.list_devices())
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16" if on_cpu else "mixed_float16")
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)
