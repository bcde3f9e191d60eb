"""Saving the state of a training after each epoch, and resuming from it."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import keras
import numpy as np

from cxr_edge.runtime.errors import CxrEdgeWarning, UsageError
from cxr_edge.runtime.files import write_atomically
from cxr_edge.train.data.batches import RadiographBatches

STATE = "state.json"
#: The attributes that change from epoch to epoch, by class. Keras has no public interface for them: if a release
#: renames one, saving fails with an AttributeError. The learning rate is a variable of the optimizer.
COUNTERS: Mapping[type, Sequence[str]] = {
    RadiographBatches: ("epoch",),
    keras.callbacks.SwapEMAWeights: ("_ema_weights_in_model",),
    keras.callbacks.ModelCheckpoint: ("best",),
    keras.callbacks.ReduceLROnPlateau: ("best", "wait", "cooldown_counter"),
    keras.callbacks.EarlyStopping: ("best", "wait"),
}


class TrainingState(keras.callbacks.Callback):
    """Saves after each epoch everything that the rest of the training depends on, and restores it.

    The state is: the variables of the network, of the augmentation (its random states) and of the optimizer (with
    averages and learning rate); the metrics so far; and the `COUNTERS` of callbacks and batches. It must be the last
    callback, so that it sees the effect of the others on an epoch.

    Parameters
    ----------
    folder
        Where the state is saved.
    identity
        Options and data of the run; a run can only be resumed with the same ones.
    resume
        Resume from the saved state. Otherwise a saved state is ignored.
    writes
        False in a worker that is not the chief.

    Attributes
    ----------
    history
        Metric -> one value for each finished epoch.
    stopped
        Whether a callback stopped the training early.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any], resume: bool, writes: bool = True) -> None:
        super().__init__()
        self._folder, self._identity, self._writes = folder, identity, writes
        self._followed: Sequence[Any] = ()
        self._begin = 0
        saved = read_state(folder) if resume else None
        self.history: dict[str, list[float]] = saved["history"] if saved else {}
        self.stopped: bool = saved["stopped"] if saved else False
        self._saved = saved
        self._start = perf_counter() - (saved["seconds"] if saved else 0)

    @property
    def seconds(self) -> float:
        """Duration of the training, without the time between an interruption and its resumption."""
        return perf_counter() - self._start

    @property
    def epochs(self) -> int:
        """Number of finished epochs."""
        return len(self.history.get("loss", ()))

    def follow(self, begin: int, *objects: Any) -> TrainingState:
        """Save and restore the counters of these callbacks and batches, in a phase that begins with epoch `begin`."""
        self._begin, self._followed = begin, objects
        return self

    def on_train_begin(self, logs: Any = None) -> None:
        """Restore the state if this phase was interrupted. The other callbacks have reset themselves by then."""
        if self._saved is None or self._begin >= self.epochs:
            return
        with np.load(self._folder / self._saved["variables"]) as stored:
            for variable, value in zip(self._variables(), stored.values(), strict=True):
                variable.assign(value)
        for each, counts in zip(self._followed, self._saved["counts"], strict=True):
            for name in COUNTERS[type(each)]:
                setattr(each, name, counts[name])
        self._saved = None

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Save the variables, then the file that names them: if the process is killed, one state is complete."""
        for name, value in (logs or {}).items():
            self.history.setdefault(name, []).append(float(value))
        self.stopped = bool(self.model.stop_training)
        if not self._writes:
            return
        variables = self._folder / f"epoch-{epoch + 1}.npz"
        np.savez(variables, *map(keras.ops.convert_to_numpy, self._variables()))
        state = {
            "identity": self._identity,
            "history": self.history,
            "stopped": self.stopped,
            "seconds": self.seconds,
            "counts": [{name: getattr(each, name) for name in COUNTERS[type(each)]} for each in self._followed],
            "variables": variables.name,
        }
        write_atomically(self._folder / STATE, json.dumps(state, indent=2))
        for old in self._folder.glob("epoch-*.npz"):
            if old != variables:
                old.unlink()

    def _variables(self) -> list[Any]:
        return [*self.model.variables, *self.model.optimizer.variables]


def read_state(folder: Path) -> dict[str, Any] | None:
    """Read the state of an interrupted run; None if there is none."""
    path = folder / STATE
    return json.loads(path.read_bytes()) if path.is_file() else None


def prepare(partial: Path, unfinished: Path, identity: Mapping[str, Any], resume: bool) -> None:
    """Prepare the folder of an unfinished run: keep it to resume, otherwise empty it.

    Parameters
    ----------
    unfinished
        The folder within it that holds the state.

    Raises
    ------
    UsageError
        If the run to resume has other options or data.
    """
    saved = read_state(unfinished)
    if saved and resume:
        _check_same(partial, saved["identity"], identity)
        return
    if resume:
        _warn(f"{partial}: there is nothing to resume; training starts from the beginning")
    elif saved and saved["identity"] == identity:
        _warn(
            f"{partial}: an interrupted run with the same options has finished {len(saved['history']['loss'])} epochs; "
            "training starts from the beginning. Add --resume to continue an interrupted run"
        )
    shutil.rmtree(partial, ignore_errors=True)
    unfinished.mkdir(parents=True)


def _check_same(partial: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    changed = [
        f"{name} {before.get(name)!r} instead of {value!r}" for name, value in now.items() if before.get(name) != value
    ]
    if changed:
        raise UsageError(
            f"{partial}: the run was started with {', '.join(changed)}; resume with the same options and data, or "
            "start again without --resume"
        )


def _warn(message: str) -> None:
    warnings.warn(message, CxrEdgeWarning, stacklevel=3)
