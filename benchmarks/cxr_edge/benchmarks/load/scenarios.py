"""MLPerf Inference's scenarios on our predictor, driven by its own load generator.

Single stream: one image after another; the result is the early-stopping estimate of the 90th percentile. Offline: all
images at once; the result is the throughput. Server: Poisson arrivals; the result is the largest rate at which the
99th percentile stays within a bound. An official run lasts 600 seconds (MLPerf Inference rules, section 3).
"""

from __future__ import annotations

import queue
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Thread
from typing import Any

from cxr_edge.runtime.errors import EngineError, MissingExtraError
from cxr_edge.runtime.predictor import Predictor

OFFICIAL_SECONDS = 600
SCENARIOS = ("single stream", "offline", "server")
#: Lines of the summary that hold the result, with their unit as a factor of it.
RESULTS = {
    "single stream": (r"Early stopping 90\S* percentile estimate: (\d+)", 1e-6),
    "offline": (r"Samples per second: ([\d.]+)", 1.0),
    "server": (r"Scheduled samples per second : ([\d.]+)", 1.0),
}
UNITS = {"single stream": "ms (p90)", "offline": "images/s", "server": "images/s"}
#: Ratio of the highest rate that failed to the highest that was valid, at which the search for the rate ends.
SEARCH_RATIO = 1.1


@dataclass(frozen=True)
class Load:
    """The result of one run.

    Attributes
    ----------
    value, unit
        The metric of the scenario.
    valid
        Whether the load generator calls the run valid: duration, count, and early stopping.
    official
        Whether it was as long as the rules demand.
    p99_ms
        99th percentile of the latency; None where the load generator does not report it.
    """

    scenario: str
    value: float
    unit: str
    valid: bool
    official: bool
    seconds: float
    p99_ms: float | None
    bound_ms: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Fields of the JSON output."""
        return asdict(self)


def run_scenario(
    name: str, predictor: Predictor, images: Sequence[Path], workers: int, seconds: float, rate: float,
    bound_ms: float | None = None,
) -> Load:  # fmt: skip
    """Run a scenario once.

    Parameters
    ----------
    workers
        Threads that share the predictor.
    rate
        Images per second: of the arrivals in `server`, an estimate for the others.

    Raises
    ------
    EngineError, MissingExtraError
        If the load generator is not installed or reports no result.
    """
    lg = _load_generator()
    settings = _settings(lg, name, seconds, rate, bound_ms)
    with tempfile.TemporaryDirectory() as folder, _workers(lg, predictor, images, workers) as put:
        logs = lg.LogSettings()
        logs.log_output.outdir = folder
        sut = lg.ConstructSUT(lambda samples: [put((s.id, s.index)) for s in samples], lambda: None)
        library = lg.ConstructQSL(len(images), len(images), lambda _: None, lambda _: None)
        lg.StartTestWithLogSettings(sut, library, settings, logs)
        lg.DestroyQSL(library)
        lg.DestroySUT(sut)
        summary = (Path(folder) / "mlperf_log_summary.txt").read_text()
    return read_summary(name, summary, seconds, bound_ms)


def largest_rate(
    predictor: Predictor, images: Sequence[Path], workers: int, seconds: float, start: float, bound_ms: float
) -> Load | None:
    """The largest Poisson rate that is valid, up to 10 %; None if even a tenth of `start` is not."""
    good, bad, best = 0.0, None, None
    rate = start
    while bad is None or bad > SEARCH_RATIO * max(good, start / 10):
        found = run_scenario("server", predictor, images, workers, seconds, rate, bound_ms)
        good, bad, best = (rate, bad, found) if found.valid else (good, rate, best)
        rate = rate * 1.3 if bad is None else (good + bad) / 2
    return best


def read_summary(name: str, summary: str, seconds: float, bound_ms: float | None) -> Load:
    """Read the summary of the load generator; EngineError if it has no result."""
    pattern, factor = RESULTS[name]
    result = re.search(pattern, summary)
    if result is None:
        raise EngineError(
            f"the load generator reports no result for {name}; run longer (--seconds {2 * seconds:.0f}). It said:\n"
            + summary[:500]
        )
    p99 = re.search(r"99\.00 percentile latency \(ns\)\s+: (\d+)", summary)
    return Load(
        name, float(result[1]) * factor, UNITS[name], "Result is : VALID" in summary, seconds >= OFFICIAL_SECONDS,
        seconds, float(p99[1]) * 1e-6 if p99 else None, bound_ms,
    )  # fmt: skip


def _settings(lg: Any, name: str, seconds: float, rate: float, bound_ms: float | None) -> Any:
    settings = lg.TestSettings()
    settings.mode = lg.TestMode.PerformanceOnly
    settings.min_duration_ms = int(1e3 * seconds)
    if name == "single stream":
        settings.scenario = lg.TestScenario.SingleStream
        settings.single_stream_expected_latency_ns = int(1e9 / rate)
    elif name == "offline":
        settings.scenario = lg.TestScenario.Offline
        settings.offline_expected_qps = rate
    else:
        settings.scenario = lg.TestScenario.Server
        settings.server_target_qps = rate
        settings.server_target_latency_ns = int(1e6 * (bound_ms or 100))
        settings.server_target_latency_percentile = 0.99
    settings.min_query_count = 1 if name == "offline" else 64
    return settings


@contextmanager
def _workers(lg: Any, predictor: Predictor, images: Sequence[Path], count: int) -> Iterator[Callable[[Any], None]]:
    """Threads that predict the samples of a queue; yield the function that adds one."""
    waiting: queue.SimpleQueue[tuple[int, int] | None] = queue.SimpleQueue()

    def work() -> None:
        while (sample := waiting.get()) is not None:
            predictor.predict(images[sample[1]])
            lg.QuerySamplesComplete([lg.QuerySampleResponse(sample[0], 0, 0)])

    threads = [Thread(target=work, daemon=True) for _ in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield waiting.put
    finally:
        for _ in threads:
            waiting.put(None)
        for thread in threads:
            thread.join()


def _load_generator() -> Any:
    try:
        import mlperf_loadgen
    except ModuleNotFoundError as error:
        raise MissingExtraError("load", error.name) from error
    return mlperf_loadgen
