"""`predict -o`: interrupted at any moment and by anything, the same command goes on, and only with the same model."""

import csv
import fcntl
import json
import os
import resource
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
from soak.kill_batch import draw, soak, without_times
from support import needs_native_speed

from cxr_edge.runtime.cli.batch import COLUMNS, write_batch
from cxr_edge.runtime.cli.journal import Facts, Journal, stamp_of
from cxr_edge.runtime.engines import available_engines
from cxr_edge.runtime.predictor import load

COMMAND = [sys.executable, "-m", "cxr_edge.runtime.cli", "predict"]


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> list[str]:
    """50 drawn images, a broken file, and the first image again."""
    return draw(tmp_path_factory.mktemp("batch") / "images", 50, seed=0)


@pytest.fixture(scope="module")
def expected(images):
    """The rows of these images, decided one batch after another without a file."""
    predictor = load()
    return [
        {"path": path} | ({} if isinstance(result, Exception) else without_times(result.to_dict()))
        for path, result in zip(images, predictor.predict_many(images), strict=True)
    ]


@pytest.fixture
def interrupted(images, tmp_path):
    """The journal of a batch that stopped after some rows, because the disk was full."""
    output = tmp_path / "out.jsonl"
    limit = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (20_000, 20_000))
    done = subprocess.run([*COMMAND, *images, "-o", output], stderr=subprocess.PIPE, text=True, preexec_fn=limit)
    journal = tmp_path / "out.jsonl.partial"
    assert done.returncode == 2 and not output.exists()
    assert f"{journal}: cannot be written" in done.stderr and "run the same command to continue" in done.stderr
    rows = [json.loads(line)["row"] for line in journal.read_bytes().splitlines()[1:]]
    assert 5 < len(rows) < 50
    return journal, rows


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def plain(rows: list[dict]) -> list[dict]:
    """Rows without what differs from run to run, and without messages."""
    return [{key: value for key, value in row.items() if key not in ("timings_ms", "error")} for row in rows]


def test_a_row_for_each_input_in_the_order_given(cli, images, expected, tmp_path):
    code, out, err = cli("predict", *images, "-o", tmp_path / "out.jsonl")
    rows = rows_of(tmp_path / "out.jsonl")
    assert code == 3 and out == "" and "broken.png" in err
    assert plain(rows) == expected and rows[0] == rows[-1]
    assert [row["path"] for row in rows if "error" in row] == [images[-2]]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.jsonl", "out.jsonl.run.json"]


def test_every_format_says_the_same(cli, images, tmp_path):
    few = [*images[:2], images[-2], images[0]]
    for name, options in (("a.jsonl", ()), ("a.csv", ()), ("a.json", ()), ("other", ("--format", "csv"))):
        assert cli("predict", *few, "-o", tmp_path / name, *options)[0] == 3
    lines = rows_of(tmp_path / "a.jsonl")
    assert plain(json.loads((tmp_path / "a.json").read_text())) == plain(lines)
    table = list(csv.DictReader((tmp_path / "a.csv").open()))
    assert (tmp_path / "other").read_text() == (tmp_path / "a.csv").read_text()
    assert tuple(table[0]) == COLUMNS
    # A field that Prediction.to_dict() gains must be given a column.
    scalars = {key for key, value in lines[0].items() if not isinstance(value, dict | list)}
    assert scalars | {"error"} == set(COLUMNS)
    assert [float(row["probability"] or -1) for row in table] == [row.get("probability", -1) for row in lines]
    assert [row["error"] for row in table if row["error"]] == [
        f"ImageError: {row['error']['message']}" for row in lines if "error" in row
    ]


def test_what_made_a_result_stands_beside_it(cli, images, tmp_path):
    cli("predict", images[0], "-o", tmp_path / "out.csv", "--operating-point", "screening")
    record = json.loads((tmp_path / "out.csv.run.json").read_text())
    predictor = load(operating_point="screening")
    assert (
        record["model_sha256"] == predictor.file.sha256 and record["threshold"] == predictor.operating_point.threshold
    )
    assert (record["operating_point"], record["engine"]) == ("screening", predictor.file.engine)
    assert (record["rows"], record["failed"], record["format"], record["result"]) == (1, 0, "csv", "out.csv")
    assert {"bundle", "precision", "cxr_edge", "schema_version"} <= record.keys()


def test_a_full_disk_keeps_what_is_done(cli, images, expected, interrupted):
    journal, rows = interrupted
    output = journal.with_suffix("")
    code, _, err = cli("predict", *images, "-o", output)
    assert code == 3 and f"resuming: {len(rows)} of {len(images) - 1}" in err
    assert plain(rows_of(output)) == expected
    assert rows_of(output)[: len(rows)] == rows, "rows that were kept were decided again"
    assert not journal.exists()


@pytest.mark.skipif(len(set(available_engines()) & {"onnx", "litert"}) < 2, reason="needs two engines")
def test_another_engine_is_an_error_that_names_it(cli, images, interrupted):
    journal, _ = interrupted
    before = journal.read_bytes()
    other = {"litert": "onnx", "onnx": "litert"}[load().file.engine]
    code, _, err = cli("predict", *images, "-o", journal.with_suffix(""), "--engine", other)
    assert code == 2 and journal.read_bytes() == before
    for fact in ("model", "model_sha256", "engine", "precision"):
        assert f"{fact} " in err
    assert f"now {other}" in err and f"delete {journal}" in err


def test_another_operating_point_is_an_error_that_names_it(cli, images, interrupted):
    journal, _ = interrupted
    code, _, err = cli("predict", *images, "-o", journal.with_suffix(""), "--operating-point", "screening")
    assert code == 2 and "operating_point balanced, now screening; threshold 0.5" in err


def test_another_release_is_an_error_that_names_it(cli, images, interrupted):
    journal, _ = interrupted
    lines = journal.read_bytes().splitlines(keepends=True)
    header = json.loads(lines[0])
    header["run"]["cxr_edge"] = "0.0.1"
    journal.write_bytes(b"".join([json.dumps(header).encode() + b"\n", *lines[1:]]))
    code, _, err = cli("predict", *images, "-o", journal.with_suffix(""))
    assert code == 2 and "cxr_edge 0.0.1, now " in err


@pytest.mark.parametrize(
    "first", [b'{"path": "a.png", "label": "NORMAL"}\n', b"[[1]]\n", b'{"run": 3}\n', b"\0\0\0", b"notes of my own"]
)
def test_what_is_no_journal_is_left_alone(cli, images, tmp_path, first):
    journal = tmp_path / "out.jsonl.partial"
    journal.write_bytes(first)
    code, _, err = cli("predict", images[0], "-o", tmp_path / "out.jsonl")
    assert code == 2 and "its first line" in err and "Delete it" in err
    assert journal.read_bytes() == first


def test_files_that_are_no_longer_asked_for_are_left_out(cli, images, expected, interrupted):
    journal, rows = interrupted
    asked = [images[3], images[45], images[1]]
    assert cli("predict", *asked, "-o", journal.with_suffix(""))[0] == 0
    result = rows_of(journal.with_suffix(""))
    assert plain(result) == [expected[3], expected[45], expected[1]]
    assert result[0] == rows[3] and result[2] == rows[1]


def test_failures_are_tried_again(cli, tmp_path, images):
    names = [tmp_path / "a.png", tmp_path / "b.png"]
    names[0].write_bytes(b"broken")
    facts = Facts.of(load())
    with Journal(tmp_path / "out.jsonl.partial", facts) as journal:
        row = {"path": str(names[0]), "error": {"type": "ImageError", "message": "broken"}}
        journal.append(row, stamp_of(str(names[0])))
    status = names[0].stat()
    names[0].write_bytes(Path(images[0]).read_bytes())
    os.utime(names[0], ns=(status.st_atime_ns, status.st_mtime_ns))  # repaired, however its times were kept
    names[1].write_bytes(Path(images[1]).read_bytes())
    code, _, _ = cli("predict", *names, "-o", tmp_path / "out.jsonl")
    assert code == 0 and [("label" in row) for row in rows_of(tmp_path / "out.jsonl")] == [True, True]


def test_a_file_that_changed_is_done_again(cli, tmp_path, images, expected):
    image = tmp_path / "a.png"
    image.write_bytes(Path(images[0]).read_bytes())
    with Journal(tmp_path / "out.jsonl.partial", Facts.of(load())) as journal:
        journal.append({"path": str(image), "label": "OF THE FILE BEFORE"}, stamp_of(str(image)))
    image.write_bytes(Path(images[1]).read_bytes())
    os.utime(image, ns=(1, 1))
    cli("predict", image, "-o", tmp_path / "out.jsonl")
    assert rows_of(tmp_path / "out.jsonl")[0]["probability"] == expected[1]["probability"]


@pytest.mark.parametrize(
    "damage",
    [
        b"garbage\n",
        b"{}\n",
        b'{"stamp": [1, 2], "row": {"label": "NORMAL"}}\n',
        b'{"stamp": null, "row": {"path": 3, "label": "NORMAL"}}\n',
        b"[" * 100_000 + b"\n",
        b"\0" * 500 + b"\n",
        b'"\xff\xfe"\n',
    ],
)
def test_damaged_lines_are_dropped_and_said(cli, images, expected, interrupted, damage):
    journal, rows = interrupted
    lines = journal.read_bytes().splitlines(keepends=True)
    lines[3] = damage  # the row of the third image
    journal.write_bytes(b"".join(lines))
    code, _, err = cli("predict", *images, "-o", journal.with_suffix(""))
    assert code == 3 and f"{journal}: 1 lines are not rows" in err
    assert f"resuming: {len(rows) - 1} of" in err
    assert plain(rows_of(journal.with_suffix(""))) == expected


def test_a_last_line_cut_short_is_done_again(cli, images, expected, interrupted):
    journal, rows = interrupted
    whole = journal.read_bytes()
    for cut in (1, 100, len(whole) - 20):  # the last one cuts the first line
        journal.write_bytes(whole[:-cut])
        code, _, err = cli("predict", *images, "-o", journal.with_suffix(""))
        assert code == 3 and "warning" not in err
        assert (f"resuming: {len(rows) - 1} of" in err) == (cut < 1000)
        assert plain(rows_of(journal.with_suffix(""))) == expected


def test_an_engine_that_fails_midway_keeps_the_rows(cli, images, expected, tmp_path, monkeypatch):
    from cxr_edge.runtime.predictor import Predictor

    whole = Predictor.predict_many

    def fails(self, sources, *args):
        for number, result in enumerate(whole(self, sources, *args)):
            if number == 40:
                raise MemoryError
            yield result

    with monkeypatch.context() as patch:
        patch.setattr(Predictor, "predict_many", fails)
        code, _, err = cli("predict", *images, "-o", tmp_path / "out.jsonl")
    assert code == 2 and "40 of 51 images are done" in err and "not enough memory" in err
    assert cli("predict", *images, "-o", tmp_path / "out.jsonl")[0] == 3
    assert plain(rows_of(tmp_path / "out.jsonl")) == expected


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_keeps_what_is_done_and_says_how_to_go_on(images, expected, tmp_path, number, code):
    output, journal = tmp_path / "out.jsonl", tmp_path / "out.jsonl.partial"
    copies = []
    for copy in range(40):  # enough to be still running
        (tmp_path / f"{copy:02}").symlink_to(Path(images[0]).parent)
        copies.append(tmp_path / f"{copy:02}")
    # A shell starts background jobs with SIGINT ignored, and their children inherit that.
    heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    command = [*COMMAND, *copies, "-o", output]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=heed) as process:
        while not (journal.exists() and journal.stat().st_size > 2000):
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(number)
        message = process.stderr.read()
    assert process.returncode == code and not output.exists()
    assert f"kept in {journal}; run the same command to continue" in message and "Traceback" not in message
    done = subprocess.run([*COMMAND, *copies[:2], "-o", output], stderr=subprocess.PIPE, text=True)
    assert done.returncode == 3 and "resuming: " in done.stderr
    assert [row.get("probability") for row in rows_of(output)] == [row.get("probability") for row in expected[:-1]] * 2


@pytest.mark.slow
def test_killed_at_random_moments_it_loses_and_repeats_nothing(tmp_path):
    counts = soak(tmp_path, kills=6, images=100, seed=int(time.time()))
    assert counts.kills == 6 and counts.batches >= 1 and counts.rows_kept > 0


def test_a_second_process_is_refused(cli, images, tmp_path):
    with Journal(tmp_path / "out.jsonl.partial", Facts.of(load())):
        done = subprocess.run([*COMMAND, images[0], "-o", tmp_path / "out.jsonl"], stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2 and "another cxr-edge is writing to it" in done.stderr
    assert cli("predict", images[0], "-o", tmp_path / "out.jsonl")[0] == 0


def test_a_journal_that_was_removed_while_waiting_for_it_is_made_anew(tmp_path, monkeypatch):
    path, facts = tmp_path / "out.jsonl.partial", Facts.of(load())
    lock, removed = fcntl.flock, []

    def slow(stream, flags):
        if not removed:
            path.unlink()  # by the process that held it before, which ended just now
            removed.append(path)
        lock(stream, flags)

    monkeypatch.setattr(fcntl, "flock", slow)
    with Journal(path, facts) as journal:
        journal.append({"path": "a", "label": "NORMAL"}, None)
    assert removed and len(path.read_text().splitlines()) == 2


def test_places_that_cannot_be_meant_are_refused(cli, images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    image = tmp_path / "image.png"
    image.write_bytes(Path(images[0]).read_bytes())
    os.mkfifo(tmp_path / "pipe")
    for target, reason in (
        (".", "is a folder"),
        (tmp_path, "is a folder"),
        ("new/", "is a folder"),
        ("pipe", "not an ordinary file"),
        ("image.png", "one of the images"),
        ("image.png/out.jsonl", "cannot be written"),
        ("x" * 250, "cannot be written"),
    ):
        code, _, err = cli("predict", image, "-o", target)
        assert code == 2 and reason in err and str(target) in err, target
    assert cli("predict", image, "-o", "out", "--format", "table")[0] == 2
    code, _, err = cli("explain", image, "-o", image)
    assert code == 2 and "is a file" in err
    assert image.read_bytes() == Path(images[0]).read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["image.png", "pipe"]


@pytest.mark.skipif(not Path("/sys/kernel").is_dir(), reason="needs a folder that even root cannot write to")
def test_a_read_only_folder_is_said(cli, images):
    code, _, err = cli("predict", images[0], "-o", "/sys/kernel/out.jsonl")
    assert code == 2 and "/sys/kernel/out.jsonl.partial: cannot be written (Permission denied)" in err


def test_a_disk_that_is_full_at_the_end_keeps_the_journal(images, tmp_path):
    facts = Facts.of(load())
    output = tmp_path / "out.jsonl"
    with Journal(tmp_path / "out.jsonl.partial", facts) as journal:
        journal.append({"path": images[0], "label": "NORMAL", "text": "x" * 5000}, stamp_of(images[0]))
    limit = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (5500, 5500))
    command = [*COMMAND, *[images[0]] * 3, "-o", output]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, preexec_fn=limit)
    assert done.returncode == 2 and f"{output}: cannot be written (File too large)" in done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.jsonl.partial"]
    assert subprocess.run(command).returncode == 0 and len(rows_of(output)) == 3


def test_standard_input_in_a_batch(images, expected, tmp_path):
    command = [*COMMAND, "-", images[1], "-", "-o", tmp_path / "out.jsonl"]
    done = subprocess.run(command, input=Path(images[0]).read_bytes(), capture_output=True)
    assert done.returncode == 0 and done.stdout == b""
    rows = rows_of(tmp_path / "out.jsonl")
    assert [row["path"] for row in rows] == ["-", images[1], "-"]
    assert [row["probability"] for row in rows] == [expected[i]["probability"] for i in (0, 1, 0)]


def test_a_name_that_is_not_utf_8(images, tmp_path):
    folder = os.fsencode(tmp_path)
    name = folder + b'/\xe9 "x",\n.png'
    Path(os.fsdecode(name)).write_bytes(Path(images[0]).read_bytes())
    for suffix in (b"csv", b"jsonl"):
        assert subprocess.run([*COMMAND, name, "-o", folder + b"/out." + suffix]).returncode == 0
    with (tmp_path / "out.csv").open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        assert os.fsencode(next(csv.DictReader(file))["path"]) == name
    assert os.fsencode(rows_of(tmp_path / "out.jsonl")[0]["path"]) == name
    assert subprocess.run([*COMMAND, name], capture_output=True).returncode == 0


@pytest.mark.slow
@needs_native_speed
def test_going_on_takes_linear_time(tmp_path):
    def seconds(count: int) -> float:
        """Processor time to go on with a batch whose rows are all there."""
        folder = tmp_path / str(count)
        folder.mkdir()
        (folder / "image").touch()
        images = []
        for number in range(count):
            (folder / f"{number}.png").symlink_to(folder / "image")
            images.append(str(folder / f"{number}.png"))
        facts = Facts("b", "m", "0" * 64, "onnx", "fp32", "balanced", 0.5, "0")
        with Journal(folder / "out.jsonl.partial", facts) as journal:
            stamp = stamp_of(images[0])
            for image in images:
                journal.append({"path": image, "label": "NORMAL"}, stamp)
        start = time.process_time()
        assert write_batch(lambda todo: [{}][: len(todo)], facts, images, folder / "out.jsonl") == 0
        assert len(rows_of(folder / "out.jsonl")) == count
        return time.process_time() - start

    # Four times the rows: 4 times as long, or 16 times if each row were looked for among all.
    assert seconds(16_000) < 8 * seconds(4_000)


def test_no_picture_of_explain_replaces_another(cli, images, tmp_path):
    for name in ("a.png", "a-2.png"):
        (tmp_path / name).write_bytes(Path(images[0]).read_bytes())
    asked = [tmp_path / "a.png", tmp_path / "a.png", tmp_path / "a-2.png"]
    _, out, _ = cli("explain", *asked, "-o", tmp_path / "pictures", "--format", "jsonl")
    pictures = [json.loads(line)["picture"] for line in out.splitlines()]
    assert len(set(pictures)) == 3 and all(Path(picture).is_file() for picture in pictures)


def test_other_threads_do_not_touch_signal_handlers(tmp_path):
    from concurrent.futures import ThreadPoolExecutor

    facts = Facts("b", "m", "0" * 64, "onnx", "fp32", "balanced", 0.5, "0")
    image = tmp_path / "a.png"
    cv2.imwrite(str(image), np.zeros((64, 64), np.uint8))
    with ThreadPoolExecutor(1) as pool:
        decide = partial(map, lambda path: {"path": path, "label": "NORMAL"})
        assert pool.submit(write_batch, decide, facts, [str(image)], tmp_path / "out.jsonl").result() == 0
