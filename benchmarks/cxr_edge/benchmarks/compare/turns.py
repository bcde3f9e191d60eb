"""Measurement of two sides in turns: fresh processes, random order, and the control beside each side."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cxr_edge.benchmarks.compare.process import Answering, started
from cxr_edge.benchmarks.compare.sides import Side

HERE = Path(__file__).parent
#: Rounds of new processes that are not counted.
WARM_UP = 2
#: Predictions of one image in a turn. The quickest of them counts: other processes lengthen a sample, but never shorten
#: it (Chen and Revels, Robust benchmarking in noisy environments, 2016).
REPEATS = 3


@dataclass(frozen=True)
class Turns:
    """Raw times in milliseconds; the axis of the sides has this side, then the other one.

    Attributes
    ----------
    wall, cpu
        (blocks, rounds, 2, REPEATS) float64: time of a prediction from the image file, and processor time of its
        process.
    control
        (blocks, rounds, 2) float64: time of the control just before the turn of that side.
    probability
        (images, 2) float64.
    flips
        Number of images for which the sides gave different answers.
    """

    wall: npt.NDArray[np.float64]
    cpu: npt.NDArray[np.float64]
    control: npt.NDArray[np.float64]
    probability: npt.NDArray[np.float64]
    flips: int

    def joined(self, more: Turns) -> Turns:
        """These blocks and those of a later run."""
        wall, cpu, control = (
            np.concatenate([getattr(turns, name) for turns in (self, more)]) for name in ("wall", "cpu", "control")
        )
        return Turns(wall, cpu, control, more.probability, max(self.flips, more.flips))


@dataclass(frozen=True)
class Plan:
    """How much is measured: blocks with processes of their own, and rounds of each; one image in a round."""

    blocks: int
    rounds: int

    def times(self, factor: int) -> Plan:
        """A longer run."""
        return Plan(self.blocks * factor, self.rounds)


def take_turns(
    sides: Sequence[Side],
    files: Sequence[tuple[str, str]],
    images: Sequence[Path],
    threads: int,
    plan: Plan,
    seed: int,
    tick: Callable[[], None],
) -> Turns:
    """Measure two sides; `files` has engine and precision of each.

    Processes differ in the layout of their memory, which alone changes times (Mytkowicz et al., Producing wrong data
    without doing anything obviously wrong, ASPLOS 2009). Therefore each block starts new processes.
    """
    rng = random.Random(seed)
    answers: list[list[list[dict[str, Any]]]] = []
    for _ in range(plan.blocks):
        with ExitStack() as stack:
            # The side that starts first differs from block to block.
            order = rng.sample((0, 1), 2)
            opened = {side: stack.enter_context(_side(sides[side], *files[side], threads)) for side in order}
            ask = stack.enter_context(control())
            answers.append(_block([opened[0], opened[1]], ask, images, plan.rounds, rng, len(answers)))
        tick()
    return _collect(answers, len(images))


@contextmanager
def control() -> Iterator[Callable[[], float]]:
    """Start the control; yield a function that returns the milliseconds of its fixed work."""
    with started("control", HERE / "control_program.py", (), sys.executable) as process:
        yield lambda: float(process.ask(""))


@contextmanager
def _side(side: Side, engine: str, precision: str, threads: int) -> Iterator[Answering]:
    arguments = (str(side.bundle), engine, precision, str(threads))
    with started(side.name, HERE / "side_program.py", arguments, side.python, side.path) as process:
        side.check_code(json.loads(process.greeting)["code"])
        yield process


def _block(
    sides: Sequence[Answering], ask: Callable[[], float], images: Sequence[Path], rounds: int, rng: random.Random,
    block: int,
) -> list[list[dict[str, Any]]]:  # fmt: skip
    found = []
    for round_ in range(-WARM_UP, rounds):
        image = (block * rounds + round_) % len(images)
        row: list[dict[str, Any]] = [{}, {}]
        for side in rng.sample((0, 1), 2):
            beside = ask()
            asked = [json.loads(sides[side].ask(str(images[image].resolve()))) for _ in range(REPEATS)]
            row[side] = asked[-1] | {"control": beside, "image": image}
            row[side] |= {key: [answer[key] for answer in asked] for key in ("ms", "cpu_ms")}
        if round_ >= 0:
            found.append(row)
    return found


def _collect(answers: list[list[list[dict[str, Any]]]], images: int) -> Turns:
    def values(key: str) -> npt.NDArray[np.float64]:
        return np.array([[[side[key] for side in row] for row in block] for block in answers], np.float64)

    probability, differing = np.full((images, 2), np.nan), set()
    for row in (row for block in answers for row in block):
        probability[row[0]["image"]] = [side["probability"] for side in row]
        if row[0]["label"] != row[1]["label"]:
            differing.add(row[0]["image"])
    return Turns(values("ms"), values("cpu_ms"), values("control"), probability, len(differing))
