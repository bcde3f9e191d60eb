"""Keras callbacks for progress, memory, and stopping on NaN."""

from __future__ import annotations

import ctypes
import math
from contextlib import suppress
from typing import Any

import keras
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from cxr_edge.runtime.errors import DataError

# Constants of <malloc.h>.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


class EpochProgress(keras.callbacks.Callback):
    """Show a progress bar for each epoch, and its metrics at the end, on standard error."""

    def __init__(self, phase: str) -> None:
        super().__init__()
        self._phase = phase
        self._console = Console(stderr=True)

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Open the bar of the epoch."""
        self._progress = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
            TextColumn("loss {task.fields[loss]:.4f}"), console=self._console, transient=True,
            disable=not self._console.is_terminal,  # a log file gets one line per epoch and no bars
        )  # fmt: skip
        name = f"{self._phase} {epoch + 1}/{self.params['epochs']}"
        self._task = self._progress.add_task(name, total=self.params["steps"], loss=math.nan)
        self._progress.start()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Move the bar."""
        self._progress.update(self._task, completed=batch + 1, loss=float((logs or {}).get("loss", math.nan)))

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Replace the bar with a line of metrics."""
        self._progress.stop()
        values = "  ".join(f"{name} {float(value):.4g}" for name, value in (logs or {}).items())
        self._console.print(f"{self._phase} {epoch + 1}/{self.params['epochs']}  {values}", highlight=False)


class KeepFreedMemory(keras.callbacks.Callback):
    """Call `keep_freed_memory` in each epoch, after `fit` has created its generator data set."""

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Call it with the first batch of the epoch."""
        if batch == 0:
            keep_freed_memory()


class StopOnNaN(keras.callbacks.Callback):
    """Raise an error as soon as the loss is NaN or infinite."""

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Check the running loss."""
        if not math.isfinite(float((logs or {}).get("loss", 0.0))):
            raise DataError(f"the loss became NaN in step {batch + 1}; lower --learning-rate")


def keep_freed_memory() -> None:
    """Let malloc keep freed memory instead of returning it to the kernel. Without glibc, do nothing.

    Keras wraps every PyDataset in TensorFlow's generator data set, which lowers the trim threshold to 128 KB. Each step
    then allocates a gigabyte of pages again. Measured on 2 cores with MobileNetV2 and batch size 32: 4.1 s per step
    before, 1.3 to 2.0 s after.
    """
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
        libc.mallopt(M_MMAP_MAX, 0)
