"""Interval and verdict, on drawn times whose truth is known."""

import numpy as np
import pytest

from cxr_edge.benchmarks.compare.turns import REPEATS, Turns
from cxr_edge.benchmarks.compare.verdict import compare, interval


def drawn(ratio=1.0, seed=0, blocks=8, rounds=16, noise=0.1, between=0.01, control=1.0, load=None):
    """Turns of two sides: noise of each sample, noise that both sides of a block share, and layout of a process."""
    rng = np.random.default_rng(seed)
    shared = rng.lognormal(sigma=0.3, size=(blocks, rounds, 1, 1))
    layout = rng.lognormal(sigma=between, size=(blocks, 1, 2, 1))
    waits = 1 + rng.exponential(noise, size=(blocks, rounds, 2, REPEATS))
    wall = 8 * shared * layout * waits * np.array([ratio, 1.0])[:, np.newaxis]
    beside = 1.5 * rng.lognormal(sigma=0.02, size=(blocks, rounds, 2)) * np.array([control, 1.0])
    if load is not None:
        beside *= np.linspace(1, load, blocks)[:, np.newaxis, np.newaxis]
    return Turns(wall, wall, beside, np.array([[0.2, 0.25]]), 0)


def verdict(limit=1.05, **settings):
    return compare("a", "b", drawn(**settings), limit).verdict


@pytest.mark.slow
def test_equal_sides_never_fail_and_a_tenth_is_caught():
    equal = [verdict(seed=seed) for seed in range(200)]
    assert "slower" not in equal and equal.count("held") > 150
    slower = [verdict(seed=seed, ratio=1.1) for seed in range(200)]
    assert slower.count("slower") > 190 and "held" not in slower


def test_with_much_noise_the_verdict_is_open_and_not_wrong():
    found = [verdict(seed=seed, noise=2.0, blocks=3) for seed in range(100)]
    assert found.count("slower") <= 2 and found.count("undecided") > 50


def test_the_interval_contains_the_truth_though_processes_differ():
    held = 0
    for seed in range(200):
        found = interval(drawn(ratio=1.2, seed=seed, between=0.03).wall.min(axis=-1))
        held += found.low <= 1.2 <= found.high
    assert held > 176  # of 95 %; a median of few blocks has a rough interval


def test_a_faster_side_holds():
    assert verdict(ratio=0.8) == "held"


def test_where_the_control_differs_there_is_no_verdict():
    assert verdict(ratio=1.2, control=1.2) == "machine"
    assert verdict(ratio=1.2, control=0.8) == "machine"
    assert verdict(ratio=1.2, control=1.01) == "slower"


def test_a_machine_that_moves_is_said_and_does_not_change_the_verdict():
    found = compare("a", "b", drawn(ratio=1.2, load=2.0), 1.05)
    assert found.moved and found.verdict == "slower" and found.drift == pytest.approx(2, rel=0.1)
    assert not compare("a", "b", drawn(), 1.05).moved


def test_the_difference_of_the_answers_is_reported():
    assert compare("a", "b", drawn(), 1.05).max_difference == pytest.approx(0.05)
