"""Load on `cxr-edge serve`: equal answers, throughput, overload, liveness, memory, time to ready.

    python -m cxr_edge.benchmarks.service_load chest_xray/train --images 1000 --clients 16 --seconds 300

Clients, service and the bare predictor share the same cores. Exit code 1 if a limit does not hold.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from cxr_edge.runtime.cli.console import table
from cxr_edge.runtime.imaging.folders import find_images
from cxr_edge.runtime.predictor import load
from cxr_edge.serve.settings import Limits, default_workers

#: Limits of the table: a share, milliseconds, megabytes, seconds.
LEAST_SHARE, LONGEST_LIVENESS, MOST_GROWTH_MB, LONGEST_START = 0.85, 50.0, 20.0, 1.0
#: Seconds after which memory has settled.
WARM_UP = 10.0


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    what: str
    measured: str
    limit: str
    holds: bool


class Client:
    """A connection that is kept open; a plain one, so that it takes little of the time that it measures."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._connection: socket.socket | None = None

    def post(self, image: bytes) -> tuple[int, bytes]:
        """Send an image; return status and body of the answer."""
        head = f"POST /v1/predict HTTP/1.1\r\nHost: x\r\nContent-Length: {len(image)}\r\n\r\n"
        return self._ask(head.encode() + image)

    def live(self) -> int:
        """Status of the liveness probe."""
        return self._ask(b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n")[0]

    def _ask(self, request: bytes) -> tuple[int, bytes]:
        if self._connection is None:
            self._connection = socket.create_connection(("127.0.0.1", self._port), timeout=60)
            self._connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            self._connection.sendall(request)
            head, body = self._answer(self._connection)
        except OSError:
            self.close()
            raise
        if b"connection: close" in head.lower():
            self.close()
        return int(head[9:12]), body

    @staticmethod
    def _answer(connection: socket.socket) -> tuple[bytes, bytes]:
        received = b""
        while b"\r\n\r\n" not in received:
            received += _some(connection)
        head, _, body = received.partition(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
        while len(body) < length:
            body += _some(connection)
        return head, body

    def close(self) -> None:
        """Close the connection; the next request opens another."""
        if self._connection:
            self._connection.close()
        self._connection = None


def _some(connection: socket.socket) -> bytes:
    if data := connection.recv(65536):
        return data
    raise ConnectionResetError("the service closed the connection")


@contextmanager
def serving(*options: object) -> Iterator[tuple[int, psutil.Process, float]]:
    """Run the service: its port, its process, and the seconds until it was ready."""
    command = [sys.executable, "-m", "cxr_edge.runtime.cli", "serve", "--port", "0", *map(str, options)]
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout
        address = process.stdout.readline()
        if not (match := re.search(r":(\d+)/", address)):
            raise SystemExit(f"the service did not start: {' '.join(command)}")
        port = int(match[1])
        _wait_until_ready(port)
        seconds = time.perf_counter() - start
        try:
            yield port, psutil.Process(process.pid), seconds
        finally:
            process.send_signal(signal.SIGTERM)


def _wait_until_ready(port: int) -> None:
    while True:
        client = Client(port)
        with suppress(OSError):
            if client._ask(b"GET /v2/health/ready HTTP/1.1\r\nHost: x\r\n\r\n")[0] == 200:
                return
        client.close()
        time.sleep(0.01)


def measure_start(options: Sequence[object], count: int = 5) -> Row:
    """The time from the start of the process until it is ready."""
    times = []
    for _ in range(count):
        with serving(*options) as (_, _, seconds):
            times.append(seconds)
    middle = float(np.median(times))
    measured = f"{middle:.2f} s (median of {count}; {min(times):.2f} to {max(times):.2f})"
    return Row("time from `cxr-edge serve` to ready", measured, f"≤ {LONGEST_START} s", middle <= LONGEST_START)


def each(clients: int, port: int, images: Sequence[bytes]) -> tuple[list[tuple[int, bytes]], float]:
    """Send each image once, with this many clients: the answers in order, and the seconds it took."""
    local = threading.local()

    def send(image: bytes) -> tuple[int, bytes]:
        if not hasattr(local, "client"):
            local.client = Client(port)
        status, body = local.client.post(image)
        while status == 503:  # more clients than places in the queue
            time.sleep(0.01)
            status, body = local.client.post(image)
        return status, body

    start = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        answers = list(pool.map(send, images))
    return answers, time.perf_counter() - start


def measure_equality(port: int, images: Sequence[bytes], clients: int) -> Row:
    """Whether every served answer is that of the bare predictor, for its own image."""
    answers, _ = each(clients, port, images)
    with load(threads=1) as predictor:
        wrong = sum(_row(body) != _expected(predictor, image) for image, (_, body) in zip(images, answers, strict=True))
    what = f"answers against `Predictor.predict`, {len(images):,} images, {clients} clients"
    return Row(what, f"{wrong} differ", "bit-equal", wrong == 0)


def _row(body: bytes) -> dict[str, Any]:
    (row,) = json.loads(body)["predictions"]
    return {name: value for name, value in row.items() if name not in ("path", "timings_ms")}


def _expected(predictor: Any, image: bytes) -> dict[str, Any]:
    row = predictor.predict(image).to_dict()
    del row["heatmap"], row["timings_ms"]
    return dict(row)


@dataclass(frozen=True)
class Pass:
    """One pass over the images: images a second, and milliseconds of processor time for each."""

    rate: float
    milliseconds: float


def measure_throughput(
    port: int, process: psutil.Process, images: Sequence[bytes], workers: int, rounds: int = 5
) -> tuple[list[Row], float]:
    """Compare the service with the bare predictor in threads, in turns; return its images a second, too.

    The processor time counts that of the service, its workers and the clients. It says what the rates would be on cores
    that nobody else uses.
    """
    family = [process, *process.children()]
    with load(threads=1) as predictor, ThreadPoolExecutor(workers) as pool:

        def run_bare() -> None:
            list(pool.map(predictor.predict, images))

        def run_served() -> None:
            each(4 * workers, port, images)

        run_bare()
        run_served()
        passes = [(_time(run_bare, [], len(images)), _time(run_served, family, len(images))) for _ in range(rounds)]
    share = float(np.median([served.rate / bare.rate for bare, served in passes]))
    cost = float(np.median([bare.milliseconds / served.milliseconds for bare, served in passes]))
    rates, times = (
        [float(np.median([getattr(one[side], name) for one in passes])) for side in (0, 1)]
        for name in ("rate", "milliseconds")
    )
    limit = f"≥ {LEAST_SHARE} ×"
    return [
        Row(
            "throughput against the bare `Predictor` in threads",
            f"{share:.2f} × ({rates[1]:.0f} against {rates[0]:.0f} images a second)",
            limit,
            share >= LEAST_SHARE,
        ),
        Row(
            "… by processor time",
            f"{cost:.2f} × ({times[1]:.1f} against {times[0]:.1f} ms)",
            limit,
            cost >= LEAST_SHARE,
        ),
    ], rates[1]


def _time(run: Callable[[], None], family: Sequence[psutil.Process], count: int) -> Pass:
    def used() -> float:
        return time.process_time() + sum(sum(each.cpu_times()[:2]) for each in family)

    start, before = time.perf_counter(), used()
    run()
    return Pass(count / (time.perf_counter() - start), 1e3 * (used() - before) / count)


@dataclass
class Record:
    """What happened under load."""

    statuses: Counter[int] = field(default_factory=Counter)
    accepted: list[float] = field(default_factory=list)
    liveness: list[float] = field(default_factory=list)
    memory: list[tuple[float, float]] = field(default_factory=list)


def measure_overload(
    port: int, process: psutil.Process, images: Sequence[bytes], rate: float, seconds: float, limits: Limits
) -> list[Row]:
    """Send `rate` images a second, whatever the answers are."""
    record, end = Record(), time.perf_counter() + seconds
    watchers = [
        threading.Thread(target=_probe, args=(port, record, end)),
        threading.Thread(target=_weigh, args=(process, record, end)),
    ]
    for watcher in watchers:
        watcher.start()
    _send_steadily(port, images, rate, end, record)
    for watcher in watchers:
        watcher.join()
    return _judge(record, limits, rate, seconds)


def _send_steadily(port: int, images: Sequence[bytes], rate: float, end: float, record: Record) -> None:
    """Each of many clients takes the next moment of the schedule, so that slow answers do not lower the rate."""
    start, lock = time.perf_counter(), threading.Lock()
    moments = ((start + number / rate, image) for number, image in enumerate(cycle(images)))

    def work() -> None:
        client = Client(port)
        while True:
            with lock:
                moment, image = next(moments)
            if moment >= end:
                return
            time.sleep(max(0.0, moment - time.perf_counter()))
            begin = time.perf_counter()
            try:
                status, _ = client.post(image)
            except OSError:
                status = 0
            with lock:
                record.statuses[status] += 1
                if status == 200:
                    record.accepted.append(time.perf_counter() - begin)

    threads = [threading.Thread(target=work) for _ in range(96)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _probe(port: int, record: Record, end: float) -> None:
    """Ask for liveness from a process of its own, which does not wait for the other clients."""
    code = (
        "import sys, time\nfrom cxr_edge.benchmarks.service_load import Client\nclient = Client(int(sys.argv[1]))\n"
        "end = time.monotonic() + float(sys.argv[2])\nwhile time.monotonic() < end:\n start = time.perf_counter()\n"
        " assert client.live() == 200\n print(time.perf_counter() - start)\n time.sleep(0.02)"
    )
    command = [sys.executable, "-c", code, str(port), str(end - time.perf_counter())]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    record.liveness += [float(line) for line in done.stdout.split()]


def _weigh(process: psutil.Process, record: Record, end: float) -> None:
    """Resident memory of the service and its workers, every half second."""
    while time.perf_counter() < end:
        family = [process, *process.children()]
        record.memory.append((time.perf_counter(), sum(each.memory_info().rss for each in family) / 1e6))
        time.sleep(0.5)


def _judge(record: Record, limits: Limits, rate: float, seconds: float) -> list[Row]:
    others = {status: count for status, count in record.statuses.items() if status not in (200, 503)}
    accepted = record.statuses[200] / seconds
    bound = 3 * limits.queue * limits.workers / accepted
    late, alive = np.quantile(record.accepted, 0.99), 1e3 * np.quantile(record.liveness, [0.5, 0.99, 1])
    begin = record.memory[0][0] + min(WARM_UP, seconds / 3)
    settled = [mb for moment, mb in record.memory if moment >= begin]
    growth = max(settled) - settled[0]
    what = f"{seconds:.0f} s at {rate:.0f} images a second, twice the capacity"
    return [
        Row(f"{what}: answers", f"{dict(record.statuses)}", "only 200 and 503", not others),
        Row(
            "… p99 of accepted ones",
            f"{late:.2f} s",
            f"≤ {bound:.2f} s (3 × queue × service time)",
            bool(late <= bound),
        ),
        Row(
            "… memory",
            f"{settled[0]:.0f} MB, growth {growth:.1f} MB",
            f"≤ {MOST_GROWTH_MB} MB",
            growth <= MOST_GROWTH_MB,
        ),
        Row(
            "… liveness",
            f"median {alive[0]:.1f}, p99 {alive[1]:.1f}, largest {alive[2]:.1f} ms",
            f"≤ {LONGEST_LIVENESS:.0f} ms",
            bool(alive[2] <= LONGEST_LIVENESS),
        ),
    ]


def measure(options: argparse.Namespace) -> list[Row]:
    """Run all measurements."""
    paths = find_images(options.folder)
    images = [path.read_bytes() for path in islice(cycle(paths), options.images)]
    limits = Limits(options.workers)
    arguments = ("--workers", limits.workers)
    rows = [measure_start(arguments)]
    with serving(*arguments) as (port, process, _):
        rows.append(measure_equality(port, images, options.clients))
        compared, capacity = measure_throughput(port, process, images[:400], limits.workers)
        rows += compared
        if options.seconds:
            rows += measure_overload(port, process, images, 2 * capacity, options.seconds, limits)
    return rows


def main() -> int:
    """Measure, print the table, and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder of images")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=60, help="duration of the overload; 0 leaves it out")
    parser.add_argument("--workers", type=int, default=default_workers())
    parser.add_argument("-o", "--output", type=Path, help="write the rows as JSON to this file")
    options = parser.parse_args()
    os.environ.pop("CXR_EDGE_TOKEN", None)
    rows = measure(options)
    print(table([vars(row) for row in rows]))
    if options.output:
        options.output.write_text(json.dumps([vars(row) for row in rows], indent=2, default=bool) + "\n")
    return 0 if all(row.holds for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
