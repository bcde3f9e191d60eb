import csv
import io
import json
import os
import subprocess
import sys

import cv2
import pytest

from cxr_edge.runtime.choices import ENGINES
from cxr_edge.runtime.engines import available_engines


@pytest.fixture
def mixed(tmp_path, xray):
    """A folder of two radiographs and a broken file."""
    folder = tmp_path / "mixed"
    folder.mkdir()
    for name in ("a.jpeg", "c.jpeg"):
        (folder / name).write_bytes(xray.read_bytes())
    (folder / "b.jpeg").write_bytes(b"broken")
    return folder


def test_help_lists_every_command_with_examples(cli):
    code, out, _ = cli("--help")
    assert code == 0
    for command in ("demo", "train", "export", "verify", "predict", "explain", "bench", "inspect", "doctor"):
        assert f"\n  {command} " in out


@pytest.mark.parametrize("command", ["predict", "explain", "inspect", "doctor"])
def test_a_command_explains_itself(cli, command):
    code, text, _ = cli(command, "--help")
    assert code == 0 and "Usage" in text


def test_predict_one(cli, bundle, xray):
    code, out, err = cli("predict", "-m", bundle, xray)
    assert code == 0 and "probability" in out and err == ""


def test_jsonl_holds_a_row_for_each_image_and_exit_3(cli, bundle, mixed):
    code, out, err = cli("predict", "-m", bundle, mixed, "--format", "jsonl")
    rows = [json.loads(line) for line in out.splitlines()]
    assert code == 3
    assert [("error" in row) for row in rows] == [False, True, False]
    assert rows[1]["error"]["type"] == "ImageError" and "b.jpeg" in err
    assert {"path", "label", "probability", "threshold", "in_distribution"} <= rows[0].keys()


def test_csv_and_json_parse(cli, bundle, mixed):
    _, out, _ = cli("predict", "-m", bundle, mixed, "--format", "csv")
    assert len(list(csv.DictReader(io.StringIO(out)))) == 3
    _, out, _ = cli("predict", "-m", bundle, mixed, "--format", "json")
    assert len(json.loads(out)) == 3


def test_a_bad_input_alone_is_exit_2(cli, bundle, tmp_path):
    code, _, err = cli("predict", "-m", bundle, tmp_path / "absent.jpeg")
    assert code == 2 and "absent.jpeg" in err
    assert cli("predict", "-m", tmp_path, "x.jpeg")[0] == 2
    assert cli("predict")[0] == 2
    assert cli("predict", "-m", bundle, tmp_path)[0] == 2  # an empty folder


def test_standard_input(bundle, xray):
    command = [sys.executable, "-m", "cxr_edge.runtime.cli", "predict", "-m", bundle, "-", "--format", "jsonl"]
    done = subprocess.run(command, input=xray.read_bytes(), capture_output=True, check=True)
    assert json.loads(done.stdout)["path"] == "-" and done.stderr == b""


def test_explain_writes_a_picture_for_each_image(cli, bundle, mixed, tmp_path):
    code, out, _ = cli("explain", "-m", bundle, mixed, mixed / "a.jpeg", "-o", tmp_path / "pictures")
    assert code == 3 and "picture" in out
    names = sorted(p.name for p in (tmp_path / "pictures").iterdir())
    assert names == ["a-2.png", "a.png", "c.png"]
    assert cv2.imread(str(tmp_path / "pictures" / "a.png")) is not None


def test_inspect_shows_facts_and_finds_changes(cli, bundle, tmp_path):
    import shutil

    code, out, _ = cli("inspect", bundle)
    assert code == 0 and "model.int8.tflite" in out and "balanced" in out
    copy = shutil.copytree(bundle, tmp_path / "copy")
    (copy / "model.onnx").write_bytes(b"x")
    code, out, err = cli("inspect", copy, "--format", "json")
    assert code == 1 and "cut short" in err
    assert json.loads(out)["checks"][0]["content"] == "changed"


def test_doctor_runs_every_file(cli, bundle):
    code, out, _ = cli("doctor", "-m", bundle, "--format", "json")
    rows = {row["check"]: row for row in json.loads(out)}
    assert code == 0
    paths = {"onnx": "model.onnx", "litert": "model.int8.tflite", "tensorrt": None}
    for engine, path in paths.items():
        if engine not in available_engines():
            assert rows[f"engine {engine}"]["state"] == "absent"
            assert f"cxr-edge[{ENGINES[engine].extra}]" in rows[f"engine {engine}"]["detail"]
        elif path:
            assert rows[path]["state"] == "ok"


def test_the_command_line_needs_no_training_framework(bundle, xray):
    program = (
        "import sys; from cxr_edge.runtime.cli.main import main; main();"
        "print(sorted({'tensorflow', 'keras', 'onnx', 'sklearn', 'scipy', 'matplotlib', 'rich'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", program, "predict", "-m", str(bundle), str(xray)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ)
    assert done.stdout.splitlines()[-1] == "[]"
