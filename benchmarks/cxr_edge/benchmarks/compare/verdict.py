"""Verdict on two sides that took turns: their ratio, its interval, and whether it is clear of the limit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cxr_edge.benchmarks.compare.turns import Turns

RESAMPLES = 2000
#: Verdicts. Only `SLOWER` fails.
HELD, SLOWER, UNDECIDED, MACHINE = "held", "slower", "undecided", "machine"
#: Ratio of the slowest to the quickest block of the control, above which the machine is said to have moved.
STEADY = 1.25


@dataclass(frozen=True)
class Interval:
    """A ratio of times with its 95 % interval."""

    ratio: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"×{self.ratio:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True)
class Comparison:
    """The result for one file.

    Attributes
    ----------
    file, other
        Names of the files on this side and on the other one.
    ms
        Median milliseconds from the image file to the decision and heatmap: this side, the other side.
    wall, cpu
        Time of this side divided by that of the other one: by the clock, and by processor time.
    control
        The same ratio for the control, which ran just before each side. It must be about 1.
    drift
        Time of the control in its slowest block divided by that in its quickest: how much the machine moved.
    verdict
        `slower` if the whole interval lies above the limit, `held` if none of it does, `machine` if the control was
        treated differently beside the two sides, else `undecided`.
    flips, max_difference
        Images with different answers, and the largest difference of their probabilities.
    """

    file: str
    other: str
    limit: float
    verdict: str
    ms: tuple[float, float]
    wall: Interval
    cpu: Interval
    control: Interval
    drift: float
    blocks: int
    flips: int
    max_difference: float
    samples_ms: Sequence[Any]
    control_ms: Sequence[Any]

    @property
    def moved(self) -> bool:
        """Whether the speed of the machine changed during the run."""
        return self.drift > STEADY


def compare(file: str, other: str, turns: Turns, limit: float) -> Comparison:
    """Evaluate the turns of one file."""
    wall, control = interval(turns.wall.min(axis=-1)), interval(turns.control)
    by_block = np.median(turns.control, axis=(1, 2))
    here, there = np.median(turns.wall, axis=(0, 1, 3))
    return Comparison(
        file, other, limit, _verdict(wall, control, limit), (float(here), float(there)), wall,
        interval(turns.cpu.min(axis=-1)), control, float(by_block.max() / by_block.min()), len(turns.wall), turns.flips,
        float(np.nanmax(np.abs(np.diff(turns.probability)))), turns.wall.tolist(), turns.control.tolist(),
    )  # fmt: skip


def interval(times: npt.NDArray[np.float64]) -> Interval:
    """Median ratio of paired times, (blocks, rounds, 2), with a bootstrap interval over blocks and their rounds.

    Rounds of one block share their processes, so they are not independent. Blocks are drawn first, then rounds within
    each (Kalibera and Jones, Rigorous benchmarking in reasonable time, ISMM 2013).
    """
    logs = np.log(times[..., 0] / times[..., 1])
    blocks, rounds = logs.shape
    rng = np.random.default_rng(0)
    drawn = rng.integers(0, blocks, (RESAMPLES, blocks, 1)), rng.integers(0, rounds, (RESAMPLES, blocks, rounds))
    low, high = np.quantile(_centre(logs[drawn]), (0.025, 0.975))
    return Interval(*(float(np.exp(value)) for value in (_centre(logs), low, high)))


def _centre(logs: npt.NDArray[np.float64]) -> Any:
    """(…, blocks, rounds) -> (…): median of the medians of the blocks, which one disturbed block cannot move far."""
    return np.median(np.median(logs, axis=-1), axis=-1)


def _verdict(wall: Interval, control: Interval, limit: float) -> str:
    half = 1 + (limit - 1) / 2
    if control.low > half or control.high < 1 / half:
        return MACHINE
    if wall.low > limit:
        return SLOWER
    return HELD if wall.high <= limit else UNDECIDED
