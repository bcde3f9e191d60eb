"""`cxr-edge verify` on real files: sound ones pass, broken ones fail with the right reason."""

import json
import re
import shutil
from xml.etree import ElementTree

import pytest
from support import forge

from cxr_edge.runtime.bundles.bundle import Bundle, sha256

LOOSE = "[fp16]\nprobability_max = 1\nflip_rate = 1\n[int8]\nflip_rate = 1\nauc_drop = 1\nsensitivity_drop = 1\n"


@pytest.fixture
def gates(tmp_path):
    """Limits that only fp32 can break: the small network's other files are not what is tested here."""
    path = tmp_path / "gates.toml"
    path.write_text(LOOSE + "heatmap_rank_correlation = -1\n")
    return path


@pytest.fixture
def copy(bundle, run, tmp_path):
    """A bundle to break, beside its run."""
    shutil.copytree(run, tmp_path / "run")
    return shutil.copytree(bundle, tmp_path / "bundle")


def verdicts(out):
    return {row["path"]: row for row in json.loads(out)["files"]}


def test_a_sound_bundle_passes_and_is_recorded(cli, copy, phantoms, gates):
    code, out, err = cli("verify", copy, "--data", phantoms, "--gates", gates, "--format", "json")
    rows = verdicts(out)
    assert code == 0, err
    assert len(rows) == 6 and all(row["passed"] for row in rows.values())
    for name in ("model.onnx", "model.fp32.tflite"):
        assert rows[name]["logit_max"] <= 1e-3 and set(rows[name]["flips"].values()) == {0}
        assert rows[name]["heatmap_rank_correlation"] >= 0.9999
    assert rows["model.fp32.tflite"]["backend"] == "CPU, XNNPACK delegate"
    pillow, nearest, bilinear = json.loads(out)["preprocessing"]
    assert "Pillow" in pillow["loader"] and pillow["flips"] < pillow["images"] / 5  # a small, unsure network
    # Keras takes the nearest pixel unless told otherwise, and that is the farthest from an area's mean.
    assert 0 < bilinear["pixel_mean"] < nearest["pixel_mean"] > pillow["pixel_mean"] > 0
    assert nearest["probability_max"] > 0
    bundle = Bundle.open(copy)
    assert bundle.verified(bundle.find("onnx")) is True
    code, out, _ = cli("inspect", copy)
    assert "passed" in out


def test_held_out_images_set_no_range(cli, copy, run, phantoms, gates):
    split = json.loads((run / "run.json").read_text())["split"]
    options = ("--data", phantoms, "--gates", gates, "--held-out", "--format", "json")
    code, out, err = cli("verify", copy, *options)
    assert code == 0, err
    assert json.loads(out)["images"] == split["validation_images"] + split["holdout_images"]
    code, _, err = cli("verify", copy, "--data", phantoms / "test", "--held-out")
    assert code == 2 and "held out" in err


def test_a_changed_gradient_fails_though_it_decides_nothing(cli, copy, phantoms, gates):
    gradient = copy / "gradient.onnx"
    gradient.write_bytes(gradient.read_bytes()[:-1] + b"x")
    code, out, _ = cli("verify", copy, "--data", phantoms, "--gates", gates, "--limit", 4)
    assert code == 1 and "FAILED gradient.onnx: IntegrityError" in out


def test_parity_json_is_strict_json(cli, copy, phantoms, gates):
    """On two images DeLong's test has no value, which JSON cannot say as NaN."""
    _, out, _ = cli("verify", copy, "--data", phantoms, "--gates", gates, "--limit", 2, "--format", "json")

    def refuse(constant):
        raise AssertionError(constant)

    for text in (out, (copy / "parity.json").read_text()):
        assert json.loads(text, parse_constant=refuse)["files"][0]["delong_p"] is None


def test_the_table_names_what_failed_and_exits_1(cli, copy, phantoms, tmp_path):
    strict = tmp_path / "strict.toml"
    strict.write_text("[int8]\nheatmap_rank_correlation = 1.01\n")
    code, out, _ = cli("verify", copy, "--data", phantoms, "--gates", strict, "--limit", 20)
    assert code == 1
    assert "FAILED model.int8.tflite: heatmap_rank_correlation" in out and "20 images" in out


def test_every_output_tells_the_same_verdict(cli, copy, phantoms, tmp_path, monkeypatch):
    """A strict gate for one file, and one whose content was changed: JUnit, Markdown, GitHub's summary and the page."""
    strict = tmp_path / "strict.toml"
    strict.write_text(LOOSE + "heatmap_rank_correlation = 1.01\n")
    onnx = copy / "model.onnx"
    onnx.write_bytes(onnx.read_bytes()[:-1] + b"x")
    summary = tmp_path / "summary.md"
    summary.write_text("of another step\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    files = {
        "junit": tmp_path / "a" / "junit.xml",
        "markdown": tmp_path / "a" / "table.md",
        "report": tmp_path / "p.html",
    }
    options = [word for name, path in files.items() for word in (f"--{name}", path)]
    code, out, err = cli("verify", copy, "--data", phantoms, "--gates", strict, "--limit", 12, *options)
    assert code == 1, err

    suites = {suite.get("name"): suite for suite in ElementTree.parse(files["junit"]).getroot()}
    assert len(suites) == 6
    assert suites["model.onnx"].find("testcase/error").get("type") == "IntegrityError"
    int8 = {case.get("name"): case.find("failure") for case in suites["model.int8.tflite"]}
    assert {name for name, failure in int8.items() if failure is not None} == {"heatmap_rank_correlation"}
    assert "limit 1.01" in int8["heatmap_rank_correlation"].get("message") and "flip_rate" in int8
    assert suites["model.int8.tflite"].get("failures") == "1" and suites["model.fp16.onnx"].get("failures") == "0"

    table = files["markdown"].read_text()
    assert summary.read_text() == "of another step\n" + table
    rows = [line for line in table.splitlines() if line.startswith("|")]
    # An escaped bar is no border of a cell.
    assert len(rows) == 8 and len({row.replace("\\|", "").count("|") for row in rows}) == 1
    for said in (table, out):
        assert "heatmap_rank_correlation is" in said and "sha256 differs" in said

    page = files["report"].read_text()
    assert "heatmap_rank_correlation" in page and "sha256 differs" in page
    # It can be sent as it is: no picture, style or script from elsewhere.
    assert set(re.findall(r'(?:src|href)="([^:"]*)', page)) == {"data"}


def test_flipped_images_are_shown_by_both_sides(cli, copy, phantoms, tmp_path):
    """A network whose decisions are turned round: every image is flipped."""
    import onnx
    from onnx import numpy_helper

    model = onnx.load(copy / "model.onnx")
    temperature = next(node for node in model.graph.node if node.output[0] == "probability")
    scaled = next(node for node in model.graph.node if node.output[0] == temperature.input[0])
    constant = next(t for t in model.graph.initializer if t.name in scaled.input)
    constant.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(constant), constant.name))
    forge(copy, "model.onnx", model.SerializeToString())
    code, out, _ = cli("verify", copy, "--data", phantoms, "--limit", 20, "--report", tmp_path / "page.html",
                       "--format", "json")  # fmt: skip
    row = verdicts(out)["model.onnx"]
    assert code == 1 and len(row["flipped"]) >= max(row["flips"].values()) > 0
    for flip in row["flipped"]:
        assert flip["file"] == pytest.approx(1 - flip["reference"], abs=1e-4)
        for threshold in flip["thresholds"].values():
            assert (flip["file"] >= threshold) != (flip["reference"] >= threshold)
    assert any((phantoms / split / row["flipped"][0]["image"]).is_file() for split in ("train", "val", "test"))
    page = (tmp_path / "page.html").read_text()
    shown = page.split("Flipped images")[1].split("model.onnx:")[1].split("<h3>")[0]
    assert shown.count("data:image/jpeg") == 2 * min(12, len(row["flipped"]))
    assert row["flipped"][0]["image"] in shown


def test_parity_json_records_data_and_gates_and_less_than_all_is_a_warning(cli, copy, phantoms, gates):
    def said(*options):
        cli("verify", copy, "--data", phantoms, "--run", copy.parent / "run", *options)
        bundle = Bundle.open(copy)
        return bundle.parity, bundle.warning(bundle.find("onnx", "fp32"))

    record, warned = said("--limit", 4)
    assert record["complete"] is False and record["data"]["images"] == 4 < record["data"]["available"]
    assert "4 images only" in warned
    record, warned = said("--gates", gates)  # fp32's gate is the default one
    assert record["complete"] is True and record["data"]["images"] == record["data"]["available"]
    assert record["data"]["fingerprint"] == record["data_fingerprint"] and warned is None
    rows = {row["path"]: row for row in record["files"]}
    assert rows["model.onnx"]["default_gates"] is True and rows["model.onnx"]["gate"]["logit_max"] == 1e-3
    assert rows["model.int8.onnx"]["default_gates"] is False and rows["model.int8.onnx"]["gate"]["flip_rate"] == 1
    record, warned = said("--held-out")
    assert record["complete"] is True and record["data"]["held_out"] is True and warned is None


def test_a_run_without_its_network_is_named(cli, copy, phantoms):
    (copy.parent / "run" / "model.keras").unlink()
    code, _, err = cli("verify", copy, "--data", phantoms)
    assert code == 2 and "model.keras: missing" in err


def test_another_run_is_not_the_reference(cli, copy, phantoms, run, tmp_path):
    other = shutil.copytree(run, tmp_path / "other")
    record = json.loads((other / "run.json").read_text())
    (other / "model.keras").write_bytes(b"another network")
    code, _, err = cli("verify", copy, "--data", phantoms, "--run", other)
    assert code == 2 and "model.keras: its sha256 is not the one in run.json" in err
    record["model_sha256"] = sha256(other / "model.keras")
    (other / "run.json").write_text(json.dumps(record))
    code, _, err = cli("verify", copy, "--data", phantoms, "--run", other)
    assert code == 2 and "exported from" in err
    shutil.rmtree(tmp_path / "run")
    code, _, err = cli("verify", copy, "--data", phantoms)
    assert code == 2 and "--run" in err
