"""Blocks on Ray Data: a pool of workers on this machine, or on a cluster."""

from __future__ import annotations

import logging
import os
import pickle
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from cxr_edge.archive.planning import Block
from cxr_edge.archive.scoring import Done, Job, Worker
from cxr_edge.runtime.cli.journal import Facts
from cxr_edge.runtime.errors import CxrEdgeError, EngineError

#: Memory of Ray's object store on this machine (bytes). Only names of inputs pass through it, no images.
OBJECT_STORE = 256 << 20
#: How often Ray is started on this machine. It gives up if one of its processes needs 15 s to load its modules.
STARTS = 2
#: Seconds in which the head of a cluster must accept a connection.
CONNECT_SECONDS = 10.0


@dataclass(frozen=True)
class Pool:
    """Resources of a run.

    Attributes
    ----------
    address
        Address of a Ray cluster, `auto` for the one of this machine; None starts Ray here for this run.
    workers
        Number of workers; None means as many as the processors allow.
    threads
        Processors of each worker.
    gpus
        GPUs of each worker; fractions share one.
    """

    address: str | None = None
    workers: int | None = None
    threads: int = 1
    gpus: float = 0.0

    @property
    def local_workers(self) -> int:
        """Number of workers on this machine alone."""
        return self.workers or max(1, (os.cpu_count() or 1) // self.threads)


@contextmanager
def started(pool: Pool) -> Iterator[None]:
    """Join the cluster, or start Ray on this machine and stop it in the end.

    Raises
    ------
    EngineError
        If Ray does not start, or there is no cluster at the address.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    if ray.is_initialized():  # by a program that uses this module
        yield
        return
    _start(pool)
    try:
        yield
    finally:
        ray.shutdown()


def _start(pool: Pool) -> None:
    import ray

    if pool.address:
        _refuse_if_nobody_listens(pool.address)
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    cpus = pool.local_workers * pool.threads
    here = {"num_cpus": cpus, "include_dashboard": False, "object_store_memory": OBJECT_STORE}
    for attempt in range(1, STARTS + 1):
        try:
            ray.init(**({"address": pool.address} if pool.address else here), **quiet)
            return
        except Exception as error:  # Ray raises exceptions of many kinds here
            ray.shutdown()
            if attempt < STARTS and not pool.address:
                continue
            where = f"no Ray cluster at {pool.address}" if pool.address else "Ray did not start on this machine"
            raise EngineError(
                f"{where} ({type(error).__name__}: {error}); check address, memory and load, and try again"
            ) from error


def _refuse_if_nobody_listens(address: str) -> None:
    """Ray itself tries a wrong address for minutes."""
    host, separator, port = address.rpartition("://")[2].rpartition(":")
    if not separator:  # such as auto
        return
    try:
        with socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS):
            return
    except (OSError, ValueError) as error:
        raise EngineError(
            f"no Ray cluster at {address} ({error}); expected HOST:PORT of its head, such as 10.0.0.7:6379: look at "
            "what `ray start --head` printed there, and whether a firewall is between"
        ) from error


def remote_facts(model: dict[str, Any], pool: Pool) -> Facts:
    """The facts of the model as a worker sees them: the driver of a cluster may have neither engine nor GPU."""
    import ray

    def facts() -> bytes:
        from cxr_edge.runtime.predictor import load

        return _caught(lambda: Facts.of(load(**model, threads=1)))

    task = ray.remote(num_cpus=pool.threads, num_gpus=pool.gpus, max_retries=2)(facts)
    found = _opened(ray.get(task.remote()))
    assert isinstance(found, Facts)
    return found


def score_blocks(blocks: Sequence[Block], job: Job, pool: Pool) -> Iterator[Done]:
    """Score blocks on the workers, in any order.

    A worker or a node that dies loses only the blocks that it was working on; Ray starts them again elsewhere.

    Raises
    ------
    CxrEdgeError
        The first error of a worker that concerns more than one input.
    """
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    workers = pool.workers or _workers_of_cluster(pool)
    data = ray.data.from_items([{"block": pickle.dumps(b)} for b in blocks], override_num_blocks=len(blocks))
    done = data.map_batches(
        _Actor, fn_constructor_args=(job,), batch_size=1, batch_format="numpy", zero_copy_batch=True,
        compute=ray.data.ActorPoolStrategy(size=min(workers, len(blocks))),
        num_cpus=pool.threads, num_gpus=pool.gpus or None,
    )  # fmt: skip
    for row in done.iter_rows():
        found = _opened(row["done"])
        assert isinstance(found, Done)
        yield found


class _Actor:
    """A worker as Ray Data calls it. Expected errors are returned, because Ray would retry or wrap what is raised."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._worker: Worker | None = None

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        return {"done": np.array([_caught(lambda: self._score(pickle.loads(batch["block"][0])))], object)}

    def _score(self, block: Block) -> Done:
        self._worker = self._worker or Worker(self._job)
        return self._worker.score(block)


def _workers_of_cluster(pool: Pool) -> int:
    import ray

    have = ray.cluster_resources()
    by_cpu = have.get("CPU", 1) // pool.threads
    return max(1, int(min(by_cpu, have.get("GPU", 0) // pool.gpus) if pool.gpus else by_cpu))


def _caught(call: Any) -> bytes:
    """The pickled result of a call, or its error as type and message; some exceptions cannot be pickled."""
    try:
        return pickle.dumps(call())
    except CxrEdgeError as error:
        return pickle.dumps((type(error), str(error)))


def _opened(content: bytes) -> object:
    """The result of `_caught`; raises its error."""
    found = pickle.loads(content)
    if isinstance(found, tuple):
        kind, message = found
        error = kind.__new__(kind)
        Exception.__init__(error, message)
        raise error
    return found
