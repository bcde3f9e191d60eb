"""An interrupted run goes on where its last finished epoch ended."""

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

STATE = "state.json"


class TrainingState(keras.callbacks.Callback):
    """Saves after each epoch all that the rest of a training depends on, and restores it.

    That is: the variables of network, augmentation (its random states) and optimizer (with averages and learning rate);
    the metrics so far; and what callbacks and batches count. As the last callback it sees what the others made of an
    epoch.

    Parameters
    ----------
    folder
        Where the state lies.
    identity
        What the run is made of; only a run of the same may go on from here.
    resume
        Begin where the state that lies there ends; it is ignored otherwise.
    writes
        False in a worker that leaves writing to the chief.

    Attributes
    ----------
    history
        Metric -> one value for each finished epoch.
    stopped
        Whether a callback ended the training early.
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
        """Since the training began, without the time between an interruption and its resumption."""
        return perf_counter() - self._start

    @property
    def epochs(self) -> int:
        """How many are finished."""
        return len(self.history.get("loss", ()))

    def follow(self, begin: int, *objects: Any) -> TrainingState:
        """Save and restore what these callbacks and batches count, in a phase that begins with an epoch."""
        self._begin, self._followed = begin, objects
        return self

    def on_train_begin(self, logs: Any = None) -> None:
        """Restore, if this phase was interrupted; after the other callbacks have reset themselves."""
        if self._saved is None or self._begin >= self.epochs:
            return
        with np.load(self._folder / self._saved["variables"]) as stored:
            for variable, value in zip(self._variables(), stored.values(), strict=True):
                variable.assign(value)
        for each, counts in zip(self._followed, self._saved["counts"], strict=True):
            vars(each).update(counts)
        self._saved = None

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Save: the variables first, then the file that names them, so that a kill leaves one state or the other."""
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
            "counts": [_counts(each) for each in self._followed],
            "variables": variables.name,
        }
        write_atomically(self._folder / STATE, json.dumps(state, indent=2))
        for old in self._folder.glob("epoch-*.npz"):
            if old != variables:
                old.unlink()

    def _variables(self) -> list[Any]:
        return [*self.model.variables, *self.model.optimizer.variables]


def _counts(stateful: Any) -> dict[str, Any]:
    """Plain numbers and flags that an object keeps: the best loss, epochs to wait, whose weights the network holds."""
    return {name: value for name, value in vars(stateful).items() if isinstance(value, (bool, int, float, type(None)))}


def read_state(folder: Path) -> dict[str, Any] | None:
    """What an interrupted run left, if anything."""
    path = folder / STATE
    return json.loads(path.read_bytes()) if path.is_file() else None


def prepare(partial: Path, unfinished: Path, identity: Mapping[str, Any], resume: bool) -> None:
    """Make the folder of a run that is not finished ready: as it is to resume, else empty.

    Parameters
    ----------
    unfinished
        The folder within it that holds the state.

    Raises
    ------
    UsageError
        If the run to resume is one of other options or data.
    """
    saved = read_state(unfinished)
    if saved and resume:
        _check_same(partial, saved["identity"], identity)
        return
    if resume:
        _warn(f"{partial}: nothing to resume, so training begins anew")
    elif saved and saved["identity"] == identity:
        _warn(
            f"{partial}: an interrupted run of these very options had finished {len(saved['history']['loss'])} epochs; "
            "training begins anew. To go on from an interrupted run, add --resume"
        )
    shutil.rmtree(partial, ignore_errors=True)
    unfinished.mkdir(parents=True)


def _check_same(partial: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    changed = [
        f"{name} {before.get(name)!r} instead of {value!r}" for name, value in now.items() if before.get(name) != value
    ]
    if changed:
        raise UsageError(
            f"{partial}: was begun with {', '.join(changed)}; resume with the same, or begin anew without --resume"
        )


def _warn(message: str) -> None:
    warnings.warn(message, CxrEdgeWarning, stacklevel=3)
