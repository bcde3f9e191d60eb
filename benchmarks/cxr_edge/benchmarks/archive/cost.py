"""Time and bottleneck of `cxr-edge score` for millions of radiographs, from measured stages and assumed machines.

::

    python -m cxr_edge.benchmarks.archive.cost OUT

OUT is a result of `cxr-edge score`: its rows have the time and the size of each stage. What is measured and what is
assumed is printed apart. The simulation distributes 1,000 files over workers, some of which are slow or fail.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import quantiles
from typing import Any

import click
import numpy as np

from cxr_edge.runtime.cli.console import table

#: Numbers of radiographs.
SIZES = (1_000_000, 10_000_000, 100_000_000)


@dataclass(frozen=True)
class Stages:
    """What one radiograph costs.

    Attributes
    ----------
    cpu
        Seconds of one core: decode, preprocess, inference and hashing.
    megabytes
        Size of its file.
    row
        Bytes of its row in Parquet.
    """

    cpu: float
    megabytes: float
    row: float


@dataclass(frozen=True)
class Machine:
    """A machine of a cloud: cores, network in Gbit/s, and the dollars of an hour."""

    name: str
    cores: int
    network: float
    price: float


@dataclass(frozen=True)
class Store:
    """An object store: requests per second, seconds until the first byte, and dollars for a million requests."""

    requests: float = 5_500.0
    latency: float = 0.05
    price: float = 0.4


#: Assumed, not measured: list prices and published limits of a large cloud; they change.
MACHINES = (
    (Machine("c7i.4xlarge", 16, 12.5, 0.714), 1),
    (Machine("c7i.4xlarge", 16, 12.5, 0.714), 16),
    (Machine("c7i.16xlarge", 64, 25.0, 2.856), 32),
)
#: Threads that read in each worker.
READERS = 8


@dataclass(frozen=True)
class Estimate:
    """Hours for a number of radiographs by what limits them, and dollars."""

    cpu: float
    network: float
    requests: float
    latency: float
    dollars: float

    @property
    def hours(self) -> float:
        """The time of the slowest; the stages overlap."""
        return max(self.cpu, self.network, self.requests, self.latency)

    @property
    def bottleneck(self) -> str:
        """Name of the slowest."""
        return max(("cpu", "network", "requests", "latency"), key=lambda name: getattr(self, name))


def estimate(images: int, stages: Stages, machine: Machine, count: int, store: Store) -> Estimate:
    """Hours on `count` machines with a worker of one thread on each core."""
    cores = machine.cores * count
    hours = [
        images * stages.cpu / cores,
        images * stages.megabytes * 8e-3 / (machine.network * count),
        images / store.requests,
        images * store.latency / (cores * READERS),
    ]
    cpu, network, requests, latency = (seconds / 3600 for seconds in hours)
    slowest = max(cpu, network, requests, latency)
    dollars = slowest * count * machine.price + images / 1e6 * store.price
    return Estimate(cpu, network, requests, latency, dollars)


@dataclass(frozen=True)
class Trouble:
    """What happens to workers.

    Attributes
    ----------
    slow, factor
        Share of the workers that are slow, and how much longer they take.
    spread
        Standard deviation of the logarithm of a file's time.
    failures
        Failures of a worker in an hour; it loses the file it works on and returns after `restart` seconds.
    """

    slow: float = 0.05
    factor: float = 4.0
    spread: float = 0.2
    failures: float = 0.05
    restart: float = 60.0


def simulate(files: int, workers: int, seconds: float, trouble: Trouble, seed: int) -> tuple[float, float]:
    """Distribute files over workers, each taking the next one when it is free.

    Parameters
    ----------
    seconds
        Median time of a file on a good worker.

    Returns
    -------
    Seconds until the last file is done, and the share of the work that was lost and repeated.
    """
    random = np.random.default_rng(seed)
    pace = np.where(random.random(workers) < trouble.slow, trouble.factor, 1.0)
    waiting = list(np.exp(random.normal(np.log(seconds), trouble.spread, files)))
    # (time, worker, the file that it gives back because it failed)
    events: list[tuple[float, int, float | None]] = [(0.0, worker, None) for worker in range(workers)]
    idle: list[int] = []
    end = lost = worked = 0.0
    while events:
        now, worker, returned = heapq.heappop(events)
        if returned is not None:
            waiting.append(returned)
            heapq.heappush(events, (now + trouble.restart, worker, None))
            if idle:
                heapq.heappush(events, (now, idle.pop(), None))
        elif not waiting:
            idle.append(worker)
        else:
            file = waiting.pop()
            needs = file * pace[worker]
            fails = random.exponential(3600 / trouble.failures) if trouble.failures else np.inf
            took = min(needs, fails)
            worked, lost = worked + took, lost + (took if fails < needs else 0.0)
            end = max(end, now + took)
            heapq.heappush(events, (now + took, worker, file if fails < needs else None))
    return end, lost / max(worked, 1e-9)


def tail(files: int, workers: int, seconds: float, trouble: Trouble, runs: int = 200) -> dict[str, float]:
    """Duration relative to that of good workers without failures: median and 99th percentile, and the work lost."""
    ideal = files * seconds / workers
    found = [simulate(files, workers, seconds, trouble, seed) for seed in range(runs)]
    cuts = quantiles([end / ideal for end, _ in found], n=100)
    return {"median": cuts[49], "p99": cuts[98], "lost": float(np.mean([lost for _, lost in found]))}


def measured(target: str) -> Stages:
    """The mean stages of a result."""
    import pyarrow.parquet as pq

    from cxr_edge.archive.storage import ROWS_FOLDER, Output

    output = Output(target)
    sizes = [output.filesystem.size(output.path(ROWS_FOLDER, name)) for name in output.parts()]
    columns = ["bytes", "decode_ms", "preprocess_ms", "inference_ms"]
    rows = pq.read_table(output.path(ROWS_FOLDER), filesystem=output.filesystem, columns=columns)
    size, *stages = (float(np.nanmean(rows[name].to_numpy())) for name in columns)
    return Stages(sum(stages) / 1e3, size / 1e6, sum(sizes) / rows.num_rows)


@click.command()
@click.argument("target", metavar="OUT")
@click.option("--cpu", type=float, help="Seconds of one core for a radiograph, instead of the measured ones.")
@click.option("--megabytes", type=float, help="Size of a radiograph, instead of the measured one.")
def main(target: str, cpu: float | None, megabytes: float | None) -> None:
    """Print the cost model and the simulation."""
    found = measured(target)
    stages = Stages(cpu or found.cpu, megabytes or found.megabytes, found.row)
    click.echo(f"{'given' if cpu or megabytes else 'measured'}: {stages}\nassumed: {Store()}, {Trouble()}\n")
    click.echo(table(list(_estimates(stages))))
    click.echo()
    click.echo(table(list(_tails((64, 256, 512), stages.cpu * SIZES[1] / 1000))))


def _estimates(stages: Stages) -> Iterator[dict[str, Any]]:
    for images in SIZES:
        for machine, count in MACHINES:
            e = estimate(images, stages, machine, count, Store())
            names = {"images": f"{images:,}", "machines": f"{count} × {machine.name}"}
            hours = {name: round(getattr(e, name), 2) for name in ("cpu", "network", "requests", "latency")}
            yield (
                names | hours | {"hours": round(e.hours, 2), "bottleneck": e.bottleneck, "dollars": round(e.dollars, 1)}
            )


def _tails(workers: Sequence[int], seconds: float) -> Iterator[dict[str, Any]]:
    troubles = {
        "none": Trouble(slow=0, spread=0.2, failures=0), "slow workers": Trouble(failures=0),
        "failures": Trouble(slow=0), "both": Trouble(),
    }  # fmt: skip
    for count in workers:
        for name, trouble in troubles.items():
            found = tail(1000, count, seconds, trouble)
            yield {"workers": count, "trouble": name} | {key: round(value, 3) for key, value in found.items()}


if __name__ == "__main__":
    main()
