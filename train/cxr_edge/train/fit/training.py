"""From a folder of radiographs to a run: split, fit, write."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from cxr_edge.common.dataset import fingerprint, read_dataset
from cxr_edge.runtime.errors import CxrEdgeError, UsageError
from cxr_edge.train.data.patients import split_by_blocks
from cxr_edge.train.fit.config import Part, TrainConfig
from cxr_edge.train.fit.distribute import Replicas, connect
from cxr_edge.train.fit.tracking import Tracking


def train(
    data: Path, run: Path, config: TrainConfig, *, resume: bool = False, tracking: Tracking | None = None
) -> dict[str, Any]:
    """Train a classifier and write the run folder: `model.keras`, `novelty.npz`, `run.json`, `curves.png`.

    The folder appears whole, at the end: it is written beside `run`, in `RUN.partial`, and renamed.

    Parameters
    ----------
    data
        Kaggle layout; `train` and `val` are pooled and split anew by patient, `test` is never opened.
    resume
        Go on from the last finished epoch of a run of the same options and data that was interrupted. The result is
        that of an uninterrupted one.

    Returns
    -------
    The content of `run.json`; empty in a worker that is not the chief.

    Raises
    ------
    DataError
        If the data cannot be used, or the loss becomes NaN.
    UsageError
        If `run` exists and is no run, or an option is out of range.
    """
    import keras

    from cxr_edge.train.fit.loop import fit
    from cxr_edge.train.fit.record import write_run
    from cxr_edge.train.fit.resume import TrainingState, prepare

    if run.exists() and not (run / "run.json").is_file() and (not run.is_dir() or any(run.iterdir())):
        raise UsageError(f"{run}: exists and is not a run; choose another folder for -o")
    replicas = connect(config.strategy)
    _check_batch(config, replicas)
    images = read_dataset(data, ("train", "val"))
    parts = split_by_blocks(images, config.val_fraction, config.holdout_fraction, config.fold)
    keras.utils.set_random_seed(config.seed)
    with replicas.scope(), _precision(config.mixed_precision):
        network = config.build(config.weights)
    training, validation, holdout = (Part.read([images[i] for i in rows], config.size) for rows in parts)

    facts: dict[str, Any] = {
        # By name: where the weights lie is this machine's business.
        "config": asdict(config) | {"weights": Path(config.weights).name},
        "data": {"images": len(images), "fingerprint": fingerprint(images)},
    }
    identity = {**facts["config"], "data": facts["data"]["fingerprint"], "backend": keras.backend.backend()}
    partial = run.with_name(run.name + ".partial")
    unfinished = partial / "training"
    if replicas.is_chief:
        prepare(partial, unfinished, identity, resume)
    state = TrainingState(unfinished, identity, resume, replicas.is_chief)
    if not replicas.is_chief:
        with TemporaryDirectory() as own:  # saving takes all workers together
            fit(network, training, validation, config, replicas, state, Path(own) / "best.weights.h5", [])
        return {}
    try:
        with (tracking or Tracking()).watch(run, unfinished, identity) as trackers:
            fit(network, training, validation, config, replicas, state, unfinished / "best.weights.h5", trackers)
            plain = config.build()  # in single precision, on one device
            plain.set_weights(network.get_weights())
            facts |= {"history": state.history, "seconds": round(state.seconds, 1)}
            record = write_run(partial, plain, training, validation, holdout, facts)
            shutil.rmtree(unfinished)
            shutil.rmtree(run, ignore_errors=True)
            partial.rename(run)
    except CxrEdgeError:  # to go on from there would end the same
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return record


def _check_batch(config: TrainConfig, replicas: Replicas) -> None:
    share = replicas.images_parted(config.mixup)
    if config.batch_size % share:
        pairs = ", in pairs for --mixup" if config.mixup else ""
        raise UsageError(
            f"--batch-size {config.batch_size} is parted among {replicas.count} devices{pairs}: take a multiple of "
            f"{share}"
        )


@contextmanager
def _precision(mixed: bool) -> Iterator[None]:
    """Compute in half precision in layers made within, if asked; weights stay in single precision."""
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
