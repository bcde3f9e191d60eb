"""Data parallelism: one network on several devices or hosts, each with its share of every batch."""

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
    """Where a network is trained.

    Attributes
    ----------
    count
        Devices that share each batch, on all hosts together.
    scope
        Within it variables are made for all of them, and `fit` is called.
    model
        Class of the model that is fitted; it is made outside the scope.
    is_chief
        Whether this process writes the run; of several hosts, one does.
    """

    count: int = 1
    scope: Callable[[], AbstractContextManager[Any]] = nullcontext
    model: Callable[..., Any] | None = None
    is_chief: bool = True

    def images_parted(self, mixup: float) -> int:
        """Every batch is a multiple of this: each device takes its share, with mixup in pairs."""
        return self.count * (2 if mixup else 1)


@cache
def connect(strategy: str) -> Replicas:
    """Find the devices, or the other hosts; for several hosts before TensorFlow does anything else.

    Parameters
    ----------
    strategy
        `none`; `mirrored`: all devices of this machine, by `tf.distribute.MirroredStrategy` or, on the JAX backend,
        `keras.distribution.DataParallel`; `multiworker`: all workers that the environment's TF_CONFIG names, by
        `tf.distribute.MultiWorkerMirroredStrategy`.

    Raises
    ------
    UsageError
        If the backend cannot, or TF_CONFIG is missing.
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
            f"--strategy {strategy} does not run on the Keras backend {backend}; set KERAS_BACKEND=tensorflow"
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
            "--strategy multiworker needs the workers in TF_CONFIG, on each host with its own index, as in "
            '{"cluster": {"worker": ["host0:2222", "host1:2222"]}, "task": {"type": "worker", "index": 0}}'
        )
    try:
        strategy = tf.distribute.MultiWorkerMirroredStrategy()
    except (ValueError, RuntimeError) as error:
        raise UsageError(f"the workers of TF_CONFIG cannot be joined: {error}") from error
    task = strategy.cluster_resolver
    is_chief = task.task_type == "chief" or (task.task_type == "worker" and task.task_id == 0)
    return Replicas(strategy.num_replicas_in_sync, strategy.scope, _multiworker_model(), is_chief)


def _multiworker_model() -> Callable[..., Any]:
    """A model that can be fitted by several workers.

    Keras 3.15 averages over workers along axis 0 of what a step returns, and those are scalars: it fails on them
    (https://github.com/keras-team/keras/issues/20585). So they are made vectors of one. It also fails to build a model
    that was made within the scope of the strategy; made outside, its variables within, it trains.
    """
    import keras

    class MultiWorkerModel(keras.Model):
        def train_step(self, data: Any) -> Any:
            return {name: value[None] for name, value in super().train_step(data).items()}

        def test_step(self, data: Any) -> Any:
            return {name: value[None] for name, value in super().test_step(data).items()}

    return MultiWorkerModel
