"""What a worker writes: one row for each input, equal to `predict`, whatever happened before."""

import json
import os
import resource
import shutil
import signal
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from archive_files import draw

from cxr_edge.runtime import load
from cxr_edge.runtime.errors import EngineError, OutputError, UsageError
from cxr_edge.runtime.predictor import Predictor


@pytest.fixture(scope="module")
def predictor():
    return load(threads=2)


def test_rows_equal_those_of_predict_bit_for_bit(run, rows, drawn, predictor, tmp_path):
    plan, done = run(drawn, target=tmp_path / "out")
    found = rows(tmp_path / "out")
    assert plan.inputs == len(found) == 140 and sum(each.rows for each in done) == 140
    assert [row["uri"] for row in found] == sorted(str(path) for path in drawn.rglob("*.jpeg"))
    for row in found:
        expected = predictor.predict(row["uri"])
        same = ("label", "probability", "logit", "novelty", "in_distribution", "unlike", "threshold")
        assert all(row[name] == getattr(expected, name) for name in same)
        assert row["heatmap"] == expected.heatmap.ravel().tolist()
        assert row["error_type"] is None and row["decode_ms"] > 0


def test_a_second_call_has_nothing_to_do_and_changes_nothing(run, drawn, tmp_path):
    run(drawn, target=tmp_path)
    before = {path: path.read_bytes() for path in (tmp_path / "rows").iterdir()}
    plan, _ = run(drawn, target=tmp_path)
    assert (plan.blocks, plan.done) == ((), 140)
    assert {path: path.read_bytes() for path in (tmp_path / "rows").iterdir()} == before


def test_an_interrupted_run_goes_on_with_the_same_blocks(run, rows, drawn, tmp_path):
    whole, _ = run(drawn, target=tmp_path / "whole")
    run(drawn, target=tmp_path / "out", blocks=1)
    plan, _ = run(drawn, target=tmp_path / "out")
    assert plan.done == 128 and [b.name for b in plan.blocks] == [b.name for b in whole.blocks[1:]]
    assert len(rows(tmp_path / "out")) == 140


def test_new_changed_and_vanished_inputs(run, rows, tmp_path):
    source, out = tmp_path / "in", tmp_path / "out"
    for seed in range(10):
        draw(source / f"{seed}.jpeg", seed)
    run(source, target=out)
    first = rows(out)
    draw(source / "3.jpeg", 77)
    draw(source / "new.jpeg", 78)
    (source / "5.jpeg").unlink()
    plan, _ = run(source, target=out)
    found = rows(out)
    assert (plan.done, plan.changed, plan.others) == (8, 1, 1) and len(found) == 11
    assert found[3]["sha256"] != first[3]["sha256"] and found[5] == first[5]
    assert [row for n, row in enumerate(found[:10]) if n != 3] == [row for n, row in enumerate(first) if n != 3]


def test_inputs_that_break_are_rows_with_errors_and_can_be_tried_again(run, rows, tmp_path):
    from cxr_edge.archive.run import Selection

    source, out = tmp_path / "in", tmp_path / "out"
    good = draw(source / "a.jpeg", 1)
    (source / "b.jpeg").write_bytes(good.read_bytes()[:500])
    (source / "c.jpeg").symlink_to(draw(tmp_path / "away.jpeg", 2))
    (tmp_path / "list.txt").write_text("in/a.jpeg\nin/b.jpeg\n# a comment\nin/c.jpeg\nin/missing.jpeg\n")
    (tmp_path / "away.jpeg").unlink()
    run(tmp_path / "list.txt", target=out)
    found = rows(out)
    assert [row["error_type"] for row in found] == [None, "ImageError", "ImageError", "ImageError"]
    assert (
        found[1]["error_message"].startswith(str(source / "b.jpeg")) and found[1]["sha256"] and not found[2]["sha256"]
    )
    assert all(row["logit"] is None and row["heatmap"] is None for row in found[1:])
    draw(tmp_path / "away.jpeg", 2)
    assert run(tmp_path / "list.txt", target=out)[0].blocks == ()
    plan, _ = run(tmp_path / "list.txt", target=out, selection=Selection(retry_errors=True))
    assert plan.changed == 3
    assert [row["error_type"] for row in rows(out)] == [None, "ImageError", None, "ImageError"]


def test_shards_have_each_input_once_and_may_share_a_folder(run, rows, drawn, tmp_path):
    from cxr_edge.archive.run import Selection

    sizes = [run(drawn, target=tmp_path, selection=Selection(shard=(i, 3)))[0].inputs for i in (1, 2, 3)]
    assert sum(sizes) == 140 and min(sizes) > 25
    assert len({row["uri"] for row in rows(tmp_path)}) == len(rows(tmp_path)) == 140


def test_sample_and_limit_select_the_same_each_time(drawn):
    from cxr_edge.archive.sources import find_inputs, select

    inputs = find_inputs([str(drawn)])
    half = select(inputs, (1, 1), 0.5, None)
    assert half == select(inputs, (1, 1), 0.5, None) and 45 < half.num_rows < 95
    assert set(select(inputs, (1, 1), 0.2, None)["uri"].to_pylist()) < set(half["uri"].to_pylist())
    assert select(inputs, (1, 1), 0.5, 7) == half.slice(0, 7)


def test_a_result_of_another_model_is_refused(run, options, drawn, tmp_path):
    from cxr_edge.archive.record import begin
    from cxr_edge.archive.run import local_facts
    from cxr_edge.archive.storage import Output

    run(drawn, target=tmp_path, blocks=1)
    other = local_facts(options | {"operating_point": "screening"})
    with pytest.raises(UsageError, match=r"operating_point balanced, now screening.*name another OUT"):
        begin(Output(str(tmp_path)), other, (1, 1))
    with pytest.raises(UsageError, match=r"model_sha256 [0-9a-f]+…, now 0000"):
        begin(Output(str(tmp_path)), replace(local_facts(options), model_sha256="0" * 64), (1, 1))


def test_a_worker_with_another_model_stops(options, tmp_path):
    from cxr_edge.archive.record import begin
    from cxr_edge.archive.run import local_facts
    from cxr_edge.archive.scoring import Job, Worker
    from cxr_edge.archive.storage import Output

    facts = local_facts(options)
    job = Job(options, replace(facts, model_sha256="0" * 64), begin(Output(str(tmp_path)), facts, (1, 1)))
    with pytest.raises(EngineError, match="another model than the driver: model_sha256"):
        Worker(job)


def test_a_worker_of_a_killed_driver_writes_nothing_more(run, options, drawn, tmp_path):
    from cxr_edge.archive.planning import make_plan
    from cxr_edge.archive.record import begin
    from cxr_edge.archive.run import local_facts
    from cxr_edge.archive.scoring import Job, Worker
    from cxr_edge.archive.sources import find_inputs
    from cxr_edge.archive.storage import Output

    output, facts = Output(str(tmp_path)), local_facts(options)
    stale = Worker(Job(options, facts, begin(output, facts, (1, 1))))
    block = make_plan(find_inputs([str(drawn)]), output, facts.model_sha256).blocks[0]
    begin(output, facts, (1, 1))
    with pytest.raises(OutputError, match="another `cxr-edge score` writes to it now"):
        stale.score(block)
    left = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {"run.json", "writer-1-of-1.json", f"{block.name}.attempts"}


def test_a_full_disk_leaves_no_part_of_a_file(run, rows, drawn, tmp_path):
    run(drawn, target=tmp_path, blocks=1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))  # writing beyond it fails like a full disk
        with pytest.raises(OutputError, match=r"part-000001-.*cannot be written.*free disk space"):
            run(drawn, target=tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert len(rows(tmp_path)) == 128 and len(list((tmp_path / "rows").iterdir())) == 1
    run(drawn, target=tmp_path)
    assert len(rows(tmp_path)) == 140


def test_four_readers_see_the_same_rows(run, rows, drawn, tmp_path):
    duckdb, polars, pandas = (pytest.importorskip(name) for name in ("duckdb", "polars", "pandas"))
    run(drawn, target=tmp_path)
    folder = f"{tmp_path}/rows"
    (tmp_path / "rows2").mkdir()
    expected = [(row["uri"], row["logit"], tuple(row["heatmap"])) for row in rows(tmp_path)]

    def keys(found):
        return sorted((uri, logit, tuple(float(v) for v in heatmap)) for uri, logit, heatmap in found)

    assert keys(duckdb.sql(f"SELECT uri, logit, heatmap FROM '{folder}/*.parquet'").fetchall()) == expected
    assert keys(polars.read_parquet(folder).select("uri", "logit", "heatmap").rows()) == expected
    assert keys(pandas.read_parquet(folder)[["uri", "logit", "heatmap"]].itertuples(index=False)) == expected


def test_the_files_say_their_schema_and_what_made_them(run, drawn, tmp_path):
    from cxr_edge.archive.schema import ROWS

    run(drawn, target=tmp_path, blocks=1)
    (file,) = (tmp_path / "rows").iterdir()
    schema = pq.read_schema(file)
    assert schema.equals(ROWS) and schema.field("heatmap").type == pa.list_(pa.float32(), 49)
    assert schema.metadata[b"cxr_edge.schema_version"] == b"1"
    facts = json.loads(schema.metadata[b"cxr_edge.run"])
    assert facts == json.loads((tmp_path / "run.json").read_text())["facts"] and len(facts["model_sha256"]) == 64


def test_no_file_can_grow_beyond_256_mb():
    from cxr_edge.archive.planning import MOST, rows_per_file
    from cxr_edge.archive.schema import MAX_MESSAGE

    longest = 4096 + 4 * MAX_MESSAGE + 2048  # URI, message in UTF-8, all other columns; uncompressed
    assert MOST * longest < 256 << 20
    assert [rows_per_file(n) for n in (1, 5232, 100_000, 1_000_000, 100_000_000)] == [128, 128, 1563, 15625, 16384]


def test_rows_without_a_record_are_refused(run, drawn, tmp_path):
    run(drawn, target=tmp_path, blocks=1)
    (tmp_path / "run.json").unlink()
    with pytest.raises(UsageError, match=r"found rows but no run\.json"):
        run(drawn, target=tmp_path)
    shutil.rmtree(tmp_path / "rows")
    run(drawn, target=tmp_path, blocks=1)


class CrashingPredictor(Predictor):
    """It ends the process on one content, as a decoder with a defect does."""

    def predict(self, image, name=None):
        if image.startswith(b"crash"):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().predict(image, name)


def test_an_image_that_ends_the_process_becomes_a_row(rows, options, tmp_path):
    """The first two attempts are those of a worker process; this test only counts them."""
    from cxr_edge.archive.planning import make_plan
    from cxr_edge.archive.record import begin
    from cxr_edge.archive.run import local_facts
    from cxr_edge.archive.scoring import Job, Worker
    from cxr_edge.archive.sources import find_inputs
    from cxr_edge.archive.storage import Output

    for name in "ac":
        draw(tmp_path / "in" / f"{name}.jpeg", 1)
    (tmp_path / "in" / "b.jpeg").write_bytes(b"crash")
    output, facts = Output(str(tmp_path / "out")), local_facts(options)
    (block,) = make_plan(find_inputs([str(tmp_path / "in")]), output, facts.model_sha256).blocks
    worker = Worker(Job(options, facts, begin(output, facts, (1, 1))))
    worker.predictor.__class__ = CrashingPredictor
    assert [worker._attempt(block), worker._attempt(block)] == [1, 2]
    worker.score(block)
    first, second, third = rows(tmp_path / "out")
    assert first["logit"] == third["logit"] is not None
    assert second["error_type"] == "ImageError" and "ended the process" in second["error_message"]
    assert not output.read("writing", f"{block.name}.attempts")
