"""The cost model and the simulation agree with what can be computed by hand."""

import pytest

from cxr_edge.benchmarks.archive.cost import Machine, Stages, Store, Trouble, estimate, simulate, tail


def test_the_slowest_stage_is_the_bottleneck():
    machine = Machine("m", cores=10, network=10.0, price=1.0)
    found = estimate(
        3_600_000, Stages(cpu=0.01, megabytes=1.0, row=200), machine, 2, Store(requests=500.0, latency=0.04)
    )
    assert (found.cpu, found.network, found.requests, found.latency) == pytest.approx((0.5, 0.4, 2.0, 0.25))
    assert (found.hours, found.bottleneck) == (found.requests, "requests")
    assert found.dollars == pytest.approx(2 * 2 * 1.0 + 3.6 * 0.4)


def test_without_trouble_nothing_is_lost_and_workers_are_busy():
    calm = Trouble(slow=0, spread=0, failures=0)
    assert simulate(1000, 10, 6.0, calm, 0) == pytest.approx((600.0, 0.0))


def test_failures_lose_work_and_slow_workers_make_a_tail():
    calm = tail(200, 20, 60.0, Trouble(slow=0, failures=0), runs=30)
    failing = tail(200, 20, 60.0, Trouble(slow=0, failures=3.0), runs=30)
    slow = tail(200, 20, 60.0, Trouble(slow=0.2, failures=0), runs=30)
    assert calm["lost"] == slow["lost"] == 0 < failing["lost"] < 0.1
    assert calm["median"] < failing["median"] and calm["p99"] < slow["p99"]
