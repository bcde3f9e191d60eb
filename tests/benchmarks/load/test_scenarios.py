"""MLPerf's scenarios: the summaries of the load generator, and a short real run where it is installed."""

import time

import pytest

from cxr_edge.benchmarks.load import scenarios
from cxr_edge.benchmarks.load.scenarios import largest_rate, read_summary, run_scenario
from cxr_edge.runtime.errors import EngineError, MissingExtraError

SINGLE = """\
Scenario : SingleStream
90.0th percentile latency (ns) : 5043400
Result is : VALID
Early Stopping Result:
 * Early stopping 90.0th percentile estimate: 5107000
 * Early stopping 99.0th percentile estimate: 11178100
99.00 percentile latency (ns)   : 9178100
"""


class Sleeper:
    """A predictor that takes five milliseconds."""

    def predict(self, image):
        time.sleep(0.005)


def test_the_estimate_of_early_stopping_is_the_result():
    found = read_summary("single stream", SINGLE, 60, None)
    assert (found.value, found.unit, found.valid, found.official) == (pytest.approx(5.107), "ms (p90)", True, False)
    assert found.p99_ms == pytest.approx(9.1781)
    assert read_summary("single stream", SINGLE.replace("VALID", "INVALID"), 600, None).valid is False
    assert read_summary("single stream", SINGLE, 600, None).official


def test_a_summary_without_result_is_an_error():
    with pytest.raises(EngineError, match=r"no result for offline; run longer \(--seconds 20\)"):
        read_summary("offline", SINGLE, 10, None)


def test_without_the_load_generator_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "mlperf_loadgen", None)
    with pytest.raises(MissingExtraError, match=r"cxr-edge\[load\]"):
        run_scenario("offline", Sleeper(), ["a"], 1, 1, 100)


def test_the_search_ends_at_the_largest_valid_rate(monkeypatch):
    def run(name, predictor, images, workers, seconds, rate, bound_ms):
        summary = f"Scheduled samples per second : {rate}\nResult is : {'VALID' if rate <= 70 else 'INVALID'}\n"
        return read_summary(name, summary, seconds, bound_ms)

    monkeypatch.setattr(scenarios, "run_scenario", run)
    assert 70 / 1.1 <= largest_rate(Sleeper(), ["a"], 1, 1, 20, 100).value <= 70
    assert 70 / 1.1 <= largest_rate(Sleeper(), ["a"], 1, 1, 200, 100).value <= 70
    assert largest_rate(Sleeper(), ["a"], 1, 1, 5000, 100) is None


def test_the_load_generator_runs_each_scenario():
    pytest.importorskip("mlperf_loadgen")
    single = run_scenario("single stream", Sleeper(), ["a", "b"], 1, 1, 200)
    assert single.value >= 5
    offline = run_scenario("offline", Sleeper(), ["a", "b"], 2, 1, 300)
    assert 1 < offline.value <= 400
    server = run_scenario("server", Sleeper(), ["a", "b"], 2, 1, 30, 1000)
    assert server.bound_ms == 1000 and 10 < server.value < 60
