"""`cxr-edge score` from sources to a complete result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from cxr_edge.archive.planning import Plan, make_plan
from cxr_edge.archive.progress import Progress
from cxr_edge.archive.record import begin, check_run
from cxr_edge.archive.scoring import Job
from cxr_edge.archive.sources import find_inputs, probe, select
from cxr_edge.archive.storage import Output
from cxr_edge.runtime.cli.console import interrupted_by_sigterm
from cxr_edge.runtime.cli.journal import Facts

if TYPE_CHECKING:
    from cxr_edge.archive.cluster import Pool


@dataclass(frozen=True)
class Selection:
    """Which inputs are scored; see `select`. `retry_errors` also scores those again whose row is an error."""

    shard: tuple[int, int] = (1, 1)
    sample: float | None = None
    limit: int | None = None
    retry_errors: bool = False


@dataclass(frozen=True)
class Outcome:
    """Numbers of inputs, of rows that this call wrote, and of errors among them."""

    inputs: int
    rows: int
    errors: int


def score_archive(
    sources: Sequence[str], target: str, model: Mapping[str, Any], selection: Selection, pool: Pool, timeout: float
) -> Outcome:
    """Score what has no row yet.

    Parameters
    ----------
    model
        Arguments of `load`, without `threads`.
    timeout
        Seconds for one attempt to read an object.

    Raises
    ------
    UsageError
        If a source cannot be used, or the result was made by another model.
    OutputError
        If the result cannot be written; finished rows are kept.
    """
    from cxr_edge.archive.cluster import remote_facts, score_blocks, started

    output = Output(target)
    inputs = select(find_inputs(sources), selection.shard, selection.sample, selection.limit)
    with ExitStack() as stack:
        if pool.address:
            stack.enter_context(started(pool))
        facts = remote_facts(dict(model), pool) if pool.address else local_facts(model)
        check_run(output, facts)
        plan = make_plan(inputs, output, facts.model_sha256, selection.retry_errors)
        _announce(plan, output)
        writer = begin(output, facts, selection.shard)
        if not plan.blocks:
            writer.release()
            return Outcome(plan.inputs, 0, 0)
        output.remove_leftovers({block.name for block in plan.blocks})
        probe(inputs)
        if not pool.address:
            stack.enter_context(started(pool))
        job = Job(model, facts, writer, pool.threads, timeout, selection.sample)
        outcome = _watched(score_blocks(plan.blocks, job, pool), plan, output)
        writer.release()
        return outcome


def local_facts(model: Mapping[str, Any]) -> Facts:
    """The facts of the model on this machine; raises what `load` raises."""
    from cxr_edge.runtime.predictor import load

    with load(**model, threads=1) as predictor:
        return Facts.of(predictor)


def _announce(plan: Plan, output: Output) -> None:
    """Say what is there already."""
    if plan.done:
        click.echo(f"resuming: {plan.done:,} of {plan.inputs:,} inputs have their row in {output.url}", err=True)
    if plan.changed:
        click.echo(f"{plan.changed:,} inputs have changed or are tried again; their rows will be replaced", err=True)
    if plan.others:
        click.echo(f"{plan.others:,} rows are of inputs that are not among these; they stay", err=True)


def _watched(done: Any, plan: Plan, output: Output) -> Outcome:
    """Wait for all blocks with a progress line; after an interruption say how to continue."""
    sizes = {block.name: block.inputs.num_rows for block in plan.blocks}
    progress = Progress(plan.inputs, plan.done)
    try:
        with interrupted_by_sigterm():
            for each in done:
                progress.add(sizes[each.name], each.rows, each.errors)
    except BaseException:
        click.echo(f"finished rows are kept in {output.url}; run the same command to continue", err=True)
        raise
    finally:
        progress.close()
    return Outcome(plan.inputs, progress.rows, progress.errors)
