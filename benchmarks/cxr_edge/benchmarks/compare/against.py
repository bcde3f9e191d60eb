"""`bench --against`: each file of a bundle against its counterpart on another side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cxr_edge.benchmarks.compare.sides import Side
from cxr_edge.benchmarks.compare.turns import Plan, Turns, take_turns
from cxr_edge.benchmarks.compare.verdict import HELD, SLOWER, Comparison, compare
from cxr_edge.runtime.bundles.bundle import Bundle, ModelFile
from cxr_edge.runtime.engines import missing_extra
from cxr_edge.runtime.errors import EngineError

#: The first run.
PLAN = Plan(blocks=8, rounds=16)
#: The second run has this many times the blocks of the first.
LONGER = 2
#: Function of the stage, the number of finished steps, and the total.
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Pair:
    """A file and its counterpart of the same engine and precision."""

    here: ModelFile
    there: ModelFile


def pairs(here: Side, there: Side, engine: str) -> tuple[list[Pair], list[str]]:
    """Find the files that both sides have and that can run here; also say why the others are left out.

    Raises
    ------
    EngineError
        If there is none.
    """
    other, found, left_out = Bundle.open(there.bundle), [], []
    for file in Bundle.open(here.bundle).manifest.files:
        if engine not in ("all", file.engine):
            continue
        if extra := missing_extra(file.engine):
            left_out.append(f"{file.path}: needs pip install 'cxr-edge[{extra}]'")
        elif counterpart := other.find(file.engine, file.precision):
            found.append(Pair(file, counterpart))
        else:
            left_out.append(f"{file.path}: {there.name} has no file for {file.engine} in {file.precision}")
    if not found:
        raise EngineError(
            f"{here.bundle} and {there.name} have no file in common that runs here with engine {engine} "
            f"({'; '.join(left_out) or 'the bundle has none for it'}); install the engine, or choose another"
        )
    return found, left_out


def against(
    here: Side, there: Side, files: Sequence[Pair], images: Sequence[Path], threads: int, limit: float,
    progress: Progress, plan: Plan | None = None,
) -> list[Comparison]:  # fmt: skip
    """Compare each pair; repeat once with more blocks where the first run does not decide."""
    return [_compare(here, there, pair, images, threads, limit, progress, plan or PLAN) for pair in files]


def _compare(
    here: Side, there: Side, pair: Pair, images: Sequence[Path], threads: int, limit: float, progress: Progress,
    plan: Plan,
) -> Comparison:  # fmt: skip
    names = [(file.engine, file.precision) for file in (pair.here, pair.there)]

    def run(plan: Plan, stage: str, seed: int) -> Turns:
        done = 0

        def tick() -> None:
            nonlocal done
            done += 1
            progress(f"{stage}, {pair.here.path}", done, plan.blocks)

        return take_turns((here, there), names, images, threads, plan, seed, tick)

    turns = run(plan, "in turns", 0)
    found = compare(pair.here.path, pair.there.path, turns, limit)
    if found.verdict in (HELD, SLOWER):
        return found
    longer = turns.joined(run(plan.times(LONGER), "longer run", 1))
    return compare(pair.here.path, pair.there.path, longer, limit)
