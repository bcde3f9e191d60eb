"""Faults on a Ray cluster: each round kills a worker, a node and the driver of `cxr-edge score`, and starts it anew.

::

    python -m cxr_edge.benchmarks.archive.faults chest_xray --limit 1500 --rounds 20

The cluster is Ray's own cluster utility: a head without processors and three nodes, on this machine. After each round,
each input must have exactly one row, by one model.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import click

#: Seconds until a round is given up, and Ray's object store on each node (bytes).
PATIENCE, STORE = 900.0, 80 << 20
NODES = 3


@click.command()
@click.argument("source")
@click.option("--limit", default=1500, show_default=True, help="Number of inputs of a round.")
@click.option("--rounds", default=20, show_default=True)
@click.option("--seed", default=0, show_default=True, help="Moments of the faults.")
@click.option("--work", type=click.Path(path_type=Path), default=Path("build/faults"), show_default=True)
def main(source: str, limit: int, rounds: int, seed: int, work: Path) -> None:
    """Print one JSON line for each round; exit with 1 if an input has not exactly one row."""
    from ray.cluster_utils import Cluster

    chance = random.Random(seed)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": STORE})
    try:
        for _ in range(NODES):
            cluster.add_node(num_cpus=1, object_store_memory=STORE)
        failed = 0
        for number in range(rounds):
            found = _round(cluster, source, limit, work / str(number), chance)
            click.echo(json.dumps({"round": number} | found))
            failed += not found["exactly_once"]
            shutil.rmtree(work / str(number))
    finally:
        cluster.shutdown()
    sys.exit(1 if failed else 0)


def _round(cluster: Any, source: str, limit: int, out: Path, chance: random.Random) -> dict[str, Any]:
    shutil.rmtree(out, ignore_errors=True)
    start, faults = monotonic(), []
    driver = _driver(cluster, source, limit, out)
    _wait_for_parts(out, 1)
    for fault in ("worker", "node", "driver"):
        sleep(chance.uniform(0.0, 2.0))
        faults.append(f"{fault} at {len(_parts(out))} files")
        if fault == "worker":
            _kill_worker(chance)
        elif fault == "node":
            cluster.remove_node(chance.choice(cluster.list_all_nodes()[1:]), allow_graceful=False)
        else:
            os.killpg(driver.pid, signal.SIGKILL)
            driver.wait()
    cluster.add_node(num_cpus=1, object_store_memory=STORE)
    again = _driver(cluster, source, limit, out)
    code = again.wait(PATIENCE)
    return {"code": code, "faults": faults, "seconds": round(monotonic() - start), **_check(out, limit)}


def _driver(cluster: Any, source: str, limit: int, out: Path) -> subprocess.Popen[bytes]:
    """The command in a session of its own, so that it can be killed with all its processes but not the cluster."""
    command = [sys.executable, "-m", "cxr_edge.runtime.cli", "score", source, "-o", str(out)]
    command += ["--limit", str(limit), "--address", cluster.address, "--workers", str(NODES)]
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.with_suffix(".log").open("ab") as log:
        return subprocess.Popen(command, start_new_session=True, stdout=log, stderr=log)


def _parts(out: Path) -> list[Path]:
    return list((out / "rows").glob("*.parquet"))


def _wait_for_parts(out: Path, count: int) -> None:
    end = monotonic() + PATIENCE
    while len(_parts(out)) < count:
        if monotonic() > end:
            raise TimeoutError(f"{out}: no rows after {PATIENCE:g} s; see {out.with_suffix('.log')}")
        sleep(0.1)


def _kill_worker(chance: random.Random) -> None:
    """Kill one worker process of the run with SIGKILL, if there is one."""
    import psutil

    processes = psutil.Process().children(recursive=True)  # the cluster is ours; others may run on this machine
    workers = [p for p in processes if p.is_running() and "MapWorker" in " ".join(p.cmdline())]
    if workers:
        chance.choice(workers).kill()


def _check(out: Path, limit: int) -> dict[str, Any]:
    """Whether each input has exactly one row, and all are of one model."""
    import pyarrow.parquet as pq

    table = pq.read_table(out / "rows", columns=["uri", "model_sha256", "operating_point", "error_type"])
    rows, inputs = table.num_rows, len(set(table["uri"].to_pylist()))
    models = set(zip(table["model_sha256"].to_pylist(), table["operating_point"].to_pylist(), strict=True))
    errors = rows - table["error_type"].null_count
    right = rows == inputs == limit and len(models) == 1 and not errors
    return {"rows": rows, "inputs": inputs, "models": len(models), "errors": errors, "exactly_once": right}


if __name__ == "__main__":
    main()
