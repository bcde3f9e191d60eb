"""`bench --baseline` and `--budget`: on made records, and once on a real one."""

import json
import shutil

import cv2
import numpy as np
import pytest

from cxr_edge.benchmarks.compare import against
from cxr_edge.benchmarks.compare.turns import Plan
from cxr_edge.benchmarks.regression import (
    Timings,
    check_budget,
    check_slowdown,
    differences,
    load_baseline,
    load_budget,
)
from cxr_edge.runtime.bundles.bundle import Bundle
from cxr_edge.runtime.errors import UsageError
from cxr_edge.runtime.predictor import packaged_model


def a_record(seed=0, threads=1, spread=0.1, samples=130, **median_ms):
    """A record of files that take so long, the noise of each round common to all."""
    rng = np.random.default_rng(seed)
    noise = rng.lognormal(sigma=spread, size=samples)
    totals = {name: ms * noise * rng.lognormal(sigma=0.01, size=samples) for name, ms in median_ms.items()}
    files = [
        {"file": name, "bytes": 3_000_000, "samples_ms": {"total": list(t)}, "stages_ms": {"total": {"p50": 10.0}}}
        for name, t in totals.items()
    ]
    options = {"threads": threads}
    return {"schema_version": 1, "machine": {"processor": "A"}, "options": options, "images": 9, "files": files}


def slowdowns(now, before, limit=1.25):
    return {c.file: c for c in check_slowdown(Timings.of(now), Timings.of(before), limit)}


def test_a_file_that_got_slower_fails_and_the_others_hold():
    found = slowdowns(a_record(1, fp32=10, int8=9), a_record(2, fp32=10, int8=6))
    assert found["fp32"].passed and not found["int8"].passed
    assert found["int8"].value == pytest.approx(1.5, rel=0.1)
    assert found["int8"].interval[0] < found["int8"].value < found["int8"].interval[1]
    assert str(found["int8"]).startswith("int8: ×1.5") and "allowed ×1.25" in str(found["int8"])


def test_a_slower_machine_shows_as_no_change_against_the_first_file():
    found = slowdowns(a_record(1, fp32=20, int8=12), a_record(2, fp32=10, int8=6))
    assert not found["fp32"].passed and not found["int8"].passed
    beside = found["int8"].against_first
    assert beside["ratio"] == pytest.approx(1, abs=0.01)
    assert beside["high"] - beside["low"] < 0.02, "the noise that both files shared should have cancelled"
    assert found["fp32"].against_first is None


def test_the_control_shows_a_slower_machine():
    before, now = a_record(1, fp32=10), a_record(2, fp32=20)
    assert slowdowns(now, before)["fp32"].control is None
    control = np.random.default_rng(3).lognormal(sigma=0.02, size=130)
    before["control_ms"], now["control_ms"] = list(control), list(2 * control)
    check = slowdowns(now, before)["fp32"]
    assert check.control["ratio"] == pytest.approx(2) and "the control ×2.00" in str(check)


def a_baseline_of(folder, **changes):
    """The record of a bundle, as `bench -o` writes it."""
    files = {file.path: file.sha256 for file in Bundle.open(folder).manifest.files}
    bundle = {"folder": str(folder), "sha256": files}
    return a_record(fp32=1) | {"created": "2026-01-02", "bundle": bundle, "revision": "abc"} | changes


def test_a_baseline_knows_whether_its_bundle_can_run_again(tmp_path):
    path, folder = tmp_path / "bench.json", tmp_path / "bundle"
    shutil.copytree(packaged_model(), folder)
    path.write_text(json.dumps(a_baseline_of(folder)))
    found = load_baseline(path)
    assert found.side.bundle == folder and found.revision == "abc" and found.why_not == ""

    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"] = manifest["files"][:1]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    found = load_baseline(path)
    assert (
        found.side is None and "absolute figure of 2026-01-02" in found.warning and "has changed since" in found.warning
    )
    shutil.rmtree(folder)
    assert "is not at" in load_baseline(path).warning
    path.write_text(json.dumps(a_record(fp32=1)))
    assert "does not say where its bundle is" in load_baseline(path).warning


@pytest.mark.slow
def test_the_baselines_bundle_runs_again_in_turns(cli, tmp_path, monkeypatch):
    monkeypatch.setattr(against, "PLAN", Plan(2, 3))
    image, first, again = tmp_path / "a.png", tmp_path / "first.json", tmp_path / "again.json"
    cv2.imwrite(str(image), np.random.default_rng(0).integers(0, 256, (300, 320), np.uint8))
    options = ["--engine", "litert", "--samples", 20, "--no-cold", "--no-heatmap", "--max-slowdown", 100]
    measure = ["bench", image, *options]
    code, _, err = cli(*measure, "-o", first)
    assert code == 0, err
    record = json.loads(first.read_text())
    # Its absolute figures would fail; they do not count, because the bundle is where it was.
    record["files"][0]["samples_ms"]["total"] = [ms / 1e5 for ms in record["files"][0]["samples_ms"]["total"]]
    record["revision"] = "0" * 40
    first.write_text(json.dumps(record))
    code, out, err = cli(*measure, "--baseline", first, "-o", again)
    assert code == 0 and "held: model.int8.tflite: ×" in out and "only its files are compared" in err, out + err
    assert json.loads(again.read_text())["comparisons"][0]["verdict"] == "held"
    # A file of the baseline that is gone fails, although those that are left hold.
    first.write_text(json.dumps(record | {"files": [*record["files"], record["files"][0] | {"file": "gone.tflite"}]}))
    code, out, err = cli(*measure, "--baseline", first)
    assert code == 1 and "held: model.int8.tflite" in out, out + err
    assert "FAILED: gone.tflite: slowdown was not measured" in out, out + err
    record["bundle"]["folder"] = str(tmp_path / "gone")
    first.write_text(json.dumps(record))
    code, out, err = cli(*measure, "--baseline", first)
    assert code == 1 and "FAILED: model.int8.tflite" in out and "the baseline is an absolute figure" in err, out + err


def test_a_busy_machine_fails_nothing():
    now = a_record(1, fp32=10)
    samples = np.array(now["files"][0]["samples_ms"]["total"])
    now["files"][0]["samples_ms"]["total"] = list(samples * np.where(np.arange(130) % 4, 5, 1))
    check = slowdowns(now, a_record(2, fp32=10))["fp32"]
    assert check.interval[0] > 3 and check.fastest == pytest.approx(1, rel=0.2) and check.passed


def test_a_slowdown_that_is_not_sure_passes():
    # Half of the rounds stalled: the median could be anything in between.
    check = slowdowns(a_record(1, spread=2, samples=20, fp32=14), a_record(2, spread=2, samples=20, fp32=10))["fp32"]
    assert check.value > 1.25 > check.interval[0] and check.passed


def test_a_file_of_the_baseline_must_be_measured_and_another_first_file_does_not_confuse():
    found = slowdowns(a_record(new=1, int8=6), a_record(fp32=10, int8=6))
    assert found.keys() == {"fp32", "int8"}
    assert not found["fp32"].passed and str(found["fp32"]) == "fp32: slowdown was not measured"
    assert found["int8"].passed and found["int8"].against_first is None


def test_other_conditions_are_told():
    before, now = Timings.of(a_record(fp32=1)), Timings.of(a_record(threads=4, fp32=1))
    assert differences(now, before) == ["threads: 1 in the baseline, 4 now"]
    assert differences(now, now) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r | {"schema_version": 99}, "schema_version 99"),
        (lambda r: r["files"], "TypeError"),
        (lambda r: r | {"files": []}, "a time is missing"),
        (lambda r: r | {"files": [{"file": "a"}]}, "samples_ms"),
        (lambda r: r | {"files": [{"file": "a", "samples_ms": {"total": [1.0, 0.0]}}]}, "not positive"),
        (lambda r: r | {"machine": None}, "TypeError"),
    ],
)
def test_what_is_no_record_is_refused(tmp_path, change, message):
    path = tmp_path / "bench.json"
    path.write_text(json.dumps(a_record(fp32=1)))
    assert load_baseline(path).timings.totals_ms["fp32"].shape == (130,)
    path.write_text(json.dumps(change(a_record(fp32=1))))
    with pytest.raises(UsageError, match=message):
        load_baseline(path)


def test_the_limits_of_a_file_go_over_those_of_all():
    budget = {"all": {"total_p50_ms": 10, "size_mb": 2.9}, "int8": {"total_p50_ms": 9.9}}
    found = {(c.file, c.name): c.passed for c in check_budget(a_record(fp32=10, int8=10), budget)}
    assert found == {
        ("fp32", "total_p50_ms"): True,
        ("fp32", "size_mb"): False,
        ("int8", "total_p50_ms"): False,
        ("int8", "size_mb"): False,
    }


def test_a_limit_on_what_was_not_measured_fails_and_says_what_it_needs():
    budget = {"all": {"total_p95_ms": 1e9, "cold_start_s": 1e9}, "gone": {"size_mb": float("nan")}}
    checks = check_budget(a_record(fp32=10), budget)
    assert not any(c.passed for c in checks) and {c.file for c in checks} == {"fp32", "gone"}
    assert [str(c) for c in checks[:2]] == [
        "fp32: total_p95_ms was not measured; it needs --samples 130",
        "fp32: cold_start_s was not measured; it needs --cold",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[all]\ntotal_p96_ms = 1", "unknown key 'total_p96_ms'"),
        ("[all]\nsize_mb = '3'", "must be a number"),
        ("size_mb = 3", "outside of a table"),
        ("[model.onnx]\nsize_mb = 3", "must be quoted"),
        ("[all", "TOML"),
    ],
)
def test_a_budget_that_means_nothing_is_refused(tmp_path, text, message):
    path = tmp_path / "budget.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=message):
        load_budget(path)


def test_bench_holds_a_bundle_to_its_own_record_and_budget(cli, bundle, phantoms, tmp_path):
    first, again, budget = tmp_path / "first.json", tmp_path / "again.json", tmp_path / "budget.toml"
    measure = ["bench", phantoms / "test", "-m", bundle, "--samples", 20, "--no-cold", "--no-heatmap"]
    code, out, err = cli(*measure, "-o", first)
    assert code == 0 and "limits" not in out, err
    # Limits far beyond what a busy machine does to a median: ×8 was seen.
    budget.write_text('[all]\ntotal_p50_ms = 1e5\n["model.onnx"]\nsize_mb = 10\n')
    compare = [*measure, "--max-slowdown", 100, "-o", again]
    record = json.loads(first.read_text())
    record["bundle"]["folder"] = str(tmp_path / "gone")  # so that the absolute figures are compared
    first.write_text(json.dumps(record))
    code, out, err = cli(*compare, "--baseline", first, "--budget", budget)
    assert code == 0 and "13 limits of baseline and budget, 0 failed" in out, out + err
    assert err.count("warning") == 1 and "absolute figure" in err

    slow = next(row for row in record["files"] if row["file"] == "model.int8.tflite")
    slow["samples_ms"]["total"] = [ms / 1e5 for ms in slow["samples_ms"]["total"]]
    record["machine"]["processor"] = "another"
    first.write_text(json.dumps(record))
    code, out, err = cli(*compare, "--baseline", first, "--format", "json")
    assert code == 1 and "FAILED: model.int8.tflite: ×" in err and "6 limits of baseline and budget, 1 failed" in err
    assert "warning" in err and "processor: another in the baseline" in err
    assert json.loads(out) == json.loads(again.read_text())
    assert [c["file"] for c in json.loads(out)["checks"] if not c["passed"]] == ["model.int8.tflite"]


@pytest.mark.parametrize("option", ["--baseline", "--budget"])
def test_bad_input_is_said_before_anything_is_measured(cli, bundle, phantoms, tmp_path, option):
    output = tmp_path / "bench.json"
    code, _, err = cli("bench", phantoms / "test", "-m", bundle, option, tmp_path / "none", "-o", output)
    assert code == 2 and "none: " in err and not output.exists()
