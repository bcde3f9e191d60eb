"""Drawn radiographs and the packaged model: these tests need [archive], one engine and pytest, and train nothing."""

import os
from pathlib import Path

import pytest
from archive_files import draw
from support import needs_archive

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")


def pytest_collection_modifyitems(items):
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(needs_archive)


@pytest.fixture(scope="session")
def drawn(tmp_path_factory) -> Path:
    """140 radiographs in two folders, and a file that is none."""
    folder = tmp_path_factory.mktemp("archive")
    for seed in range(140):
        draw(folder / f"{seed % 2}" / f"{seed:04}.jpeg", seed)
    (folder / "notes.txt").write_text("nothing to see")
    return folder


@pytest.fixture
def options() -> dict:
    """Arguments of `load` for the packaged model, by the first engine that is here."""
    from cxr_edge.runtime.choices import MAX_PIXELS

    names = ("bundle", "operating_point", "trusted")
    return dict.fromkeys(names) | {"engine": "auto", "precision": "auto", "max_pixels": MAX_PIXELS}


@pytest.fixture
def run(options):
    """Score sources into a folder in this process, without Ray, as a worker does."""
    from cxr_edge.archive.planning import make_plan
    from cxr_edge.archive.record import begin
    from cxr_edge.archive.run import Selection, local_facts
    from cxr_edge.archive.scoring import Job, Worker
    from cxr_edge.archive.sources import find_inputs, select
    from cxr_edge.archive.storage import Output

    def score(*sources, target, threads=2, blocks=None, timeout=20.0, selection=None):
        selection = selection or Selection()
        output, facts = Output(str(target)), local_facts(options)
        inputs = select(find_inputs([str(s) for s in sources]), selection.shard, selection.sample, selection.limit)
        writer = begin(output, facts, selection.shard)
        plan = make_plan(inputs, output, facts.model_sha256, selection.retry_errors)
        worker = Worker(Job(options, facts, writer, threads, timeout, selection.sample))
        done = [worker.score(block) for block in plan.blocks[:blocks]]
        writer.release()
        return plan, done

    return score


@pytest.fixture
def rows():
    """The rows of a result as dictionaries, sorted by URI."""
    import pyarrow.parquet as pq

    return lambda target: sorted(pq.read_table(f"{target}/rows").to_pylist(), key=lambda row: row["uri"])
