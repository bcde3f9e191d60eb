"""Data-parallel training on several devices or hosts, each with a share of every batch."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any

from cxr_edge.runtime.errors import UsageError

STRATEGIES = ("none", "mirrored", "multiworker")


@dataclass(frozen=True)
class Replicas:
    """The devices on which a network is trained.

    Attributes
    ----------
    count
        Number of devices that share each batch, on all hosts together.
    scope
        Context in which variables are created on all devices and `fit` is called.
    model
        Class of the fitted model, which is created outside the scope.
    is_chief
        Whether this process writes the run; exactly one host does.
    """

    count: int = 1
    scope: Callable[[], AbstractContextManager[Any]] = nullcontext
    model: Callable[..., Any] | None = None
    is_chief: bool = True

    def images_parted(self, mixup: float) -> int:
        """The batch size must be a multiple of this: each device takes an equal share, in pairs for mixup."""
        return self.count * (2 if mixup else 1)


@cache
def connect(strategy: str) -> Replicas:
    """Find the devices or hosts. For several hosts, call it before any other use of TensorFlow.

    Parameters
    ----------
    strategy
        `none`; `mirrored`: all devices of this machine, by `tf.distribute.MirroredStrategy` or, on the JAX backend,
        `keras.distribution.DataParallel`; `multiworker`: all workers that the environment's TF_CONFIG names, by
        `tf.distribute.MultiWorkerMirroredStrategy`.

    Raises
    ------
    UsageError
        If the backend does not support the strategy, or TF_CONFIG is missing or wrong.
    """
    if strategy == "none":
        return Replicas()
    import keras

    backend = keras.backend.backend()
    if strategy == "mirrored" and backend == "jax":
        parallel = keras.distribution.DataParallel(auto_shard_dataset=False)
        return Replicas(len(keras.distribution.list_devices()), parallel.scope)
    if backend != "tensorflow":
        raise UsageError(
            f"--strategy {strategy} is not supported by the Keras backend {backend}; set KERAS_BACKEND=tensorflow"
        )
    return _mirrored() if strategy == "mirrored" else _multiworker()


def _mirrored() -> Replicas:
    import tensorflow as tf

    devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    strategy = tf.distribute.MirroredStrategy([device.name for device in devices])
    return Replicas(strategy.num_replicas_in_sync, strategy.scope)


def _multiworker() -> Replicas:
    import tensorflow as tf

    if "TF_CONFIG" not in os.environ:
        raise UsageError(
            "--strategy multiworker: TF_CONFIG is not set; set it on each host, with the index of that host, as in "
            '{"cluster": {"worker": ["host0:2222", "host1:2222"]}, "task": {"type": "worker", "index": 0}}'
        )
    try:
        strategy = tf.distribute.MultiWorkerMirroredStrategy()
    except (ValueError, RuntimeError) as error:
        raise UsageError(f"TF_CONFIG: the workers cannot be connected ({error}); check their addresses") from error
    task = strategy.cluster_resolver
    is_chief = task.task_type == "chief" or (task.task_type == "worker" and task.task_id == 0)
    return Replicas(strategy.num_replicas_in_sync, strategy.scope, _multiworker_model(), is_chief)


def _multiworker_model() -> Callable[..., Any]:
    """A model class that several workers can fit.

    Keras 3.15 averages the results of a step over workers along axis 0 and fails on scalars
    (https://github.com/keras-team/keras/issues/20585), so this class returns vectors of length 1. Keras also fails to
    build a model that was created within the scope of the strategy. It must be created outside, its variables within.
    """
    import keras

    class MultiWorkerModel(keras.Model):
        def train_step(self, data: Any) -> Any:
            return {name: value[None] for name, value in super().train_step(data).items()}

        def test_step(self, data: Any) -> Any:
            return {name: value[None] for name, value in super().test_step(data).items()}

    return MultiWorkerModel
