"""The command `monitor`: what it reads, refuses and says."""

import csv
import json
import shutil
from dataclasses import asdict

import numpy as np
import pytest

from cxr_edge.common.reference import Measured, reference_of
from cxr_edge.runtime import DataError
from cxr_edge.runtime.bundles.bundle import Bundle
from cxr_edge.runtime.cli.batch import COLUMNS
from cxr_edge.runtime.predictor import packaged_model
from cxr_edge.sites.monitoring.decisions import read_decisions
from cxr_edge.sites.monitoring.windows import by_count, by_day


def numbers(random, size, shift=0.0, sick=0.7, novelty=0.0):
    """Numbers of images as a network could give them, and their labels."""
    labels = (random.random(size) < sick).astype(int)
    evidence = np.where((labels == 1) | (random.random(size) < 0.2), random.beta(30, 0.5, size), np.nan)
    logit = random.normal(np.where(labels, 6.0, -6.0) + shift, 2.0)
    return labels, Measured(logit, random.gamma(20, 0.12, size) + novelty, evidence, random.random(size) < 0.99)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Bundle:
    """The packaged model with the reference of 600 drawn images."""
    folder = tmp_path_factory.mktemp("monitored") / "bundle"
    shutil.copytree(packaged_model(), folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    labels, found = numbers(np.random.default_rng(7), 600)
    patients = [f"p{n}" for n in range(len(labels))]
    reference = reference_of(found, labels, patients, manifest["novelty_threshold"], "hold-out")
    (folder / "manifest.json").write_text(json.dumps(manifest | {"reference": asdict(reference), "schema_version": 2}))
    return Bundle.open(folder)


def rows_of(bundle, seed, size=200, **shift):
    """Rows as `predict` writes them."""
    manifest, found = bundle.manifest, numbers(np.random.default_rng(seed), size, **shift)[1]
    point = manifest.operating_points[0]
    rows = []
    for n in range(size):
        probability = 1 / (1 + float(np.exp(-found.logit[n] / manifest.temperature)))
        novel = bool(found.novelty[n] > manifest.novelty_threshold)
        rows.append({
            "path": f"image{seed}-{n}.png", "label": manifest.answers(point)[point.answer(probability)],
            "probability": probability, "logit": float(found.logit[n]), "operating_point": point.name,
            "threshold": point.threshold, "rule_out": None, "novelty": float(found.novelty[n]),
            "in_distribution": not novel, "unlike": "adult" if novel else None,
            "lungs_found": "both" if found.whole_lungs[n] else "cut off",
            "evidence_in_lungs": None if np.isnan(found.evidence[n]) else float(found.evidence[n]),
        })  # fmt: skip
    return rows


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_nothing_moved(bundle, tmp_path, cli):
    rows = [row for seed in range(3) for row in rows_of(bundle, seed)]
    code, out, _ = cli("monitor", write(tmp_path / "d.jsonl", rows), "-m", bundle.folder, "--format", "json")
    found = json.loads(out)
    assert code == 0 and found["moved"] is False
    assert [window["name"] for window in found["windows"]] == ["1–200", "201–400", "401–600"]
    window = found["windows"][0]
    positive = sum(row["label"] == "PNEUMONIA" for row in rows[:200])
    assert window["positive"]["count"] == positive and window["positive"]["low"] < positive / 200
    assert set(window["p_values"]) == {"logit", "novelty", "evidence_in_lungs", "novel", "lungs_missed"}


def test_a_shift_exits_with_1_and_says_what_to_do(bundle, tmp_path, cli):
    rows = rows_of(bundle, 1) + rows_of(bundle, 2, shift=3.0)
    page = tmp_path / "course.html"
    code, out, _ = cli("monitor", write(tmp_path / "d.jsonl", rows), "-m", bundle.folder, "--report", page)
    assert code == 1 and "201–400: logit moved" in out and "cxr-edge calibrate" in out and "something moved" in out
    assert "1–200: logit moved" not in out
    html = page.read_text()
    assert "Something moved." in html and html.count("data:image/png;base64,") == 6 and "http" not in html


def test_novel_images_are_named_with_their_kinds(bundle, tmp_path, cli):
    rows = rows_of(bundle, 1)
    limit = bundle.manifest.novelty_threshold
    for n in range(15):
        rows[n] |= {"novelty": limit + 1 + n, "in_distribution": False, "unlike": "adult" if n % 3 else "turned"}
    code, out, _ = cli("monitor", write(tmp_path / "d.jsonl", rows), "-m", bundle.folder, "--format", "json")
    window = json.loads(out)["windows"][0]
    novel = next(each for each in window["moved"] if each["test"] == "novel")
    assert code == 1 and window["kinds"] == {"adult": 10, "turned": 5}
    assert novel["images"] == [f"image1-{n}.png" for n in range(14, 4, -1)]


@pytest.mark.slow
def test_more_positives_are_a_note_but_no_alarm(bundle, tmp_path, cli):
    rows = rows_of(bundle, 1, sick=0.3) + rows_of(bundle, 2, sick=0.8)
    code, out, _ = cli("monitor", write(tmp_path / "d.jsonl", rows), "-m", bundle.folder, "--format", "json")
    first, second = json.loads(out)["windows"]
    assert code == 0 and first["notes"] == [] and "share of positives differs" in second["notes"][0]


def test_a_known_prevalence_makes_the_same_rows_an_alarm(bundle, tmp_path, cli):
    file = write(tmp_path / "d.jsonl", rows_of(bundle, 2, sick=0.8))
    assert cli("monitor", file, "-m", bundle.folder)[0] == 0
    assert cli("monitor", file, "-m", bundle.folder, "--prevalence", "0.2..0.4")[0] == 1
    code, _, error = cli("monitor", file, "-m", bundle.folder, "--prevalence", "0.6..0.4")
    assert code == 2 and "such as 0.2..0.5" in error


def test_csv_and_json_say_the_same_as_json_lines(bundle, tmp_path):
    rows = rows_of(bundle, 3, 60)
    with (tmp_path / "d.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    (tmp_path / "d.json").write_text(json.dumps(rows))
    files = [write(tmp_path / "d.jsonl", rows), tmp_path / "d.json", tmp_path / "d.csv"]
    lines, array, table = (read_decisions([file], bundle).rows for file in files)
    assert repr(lines) == repr(array) == repr(table) and len(lines) == 60


def test_what_is_left_out_is_said(bundle, tmp_path, cli):
    rows = rows_of(bundle, 4, 230)
    failed = {"path": "x.png", "error": {"type": "ImageError", "message": "broken"}}
    file = write(tmp_path / "d.jsonl", [failed, *rows])
    file.write_text(file.read_text() + '{"path": "half')
    code, out, _ = cli("monitor", file, "-m", bundle.folder, "--format", "json")
    notes = " ".join(json.loads(out)["notes"])
    assert code == 0
    for said in ("1 rows are errors", "1 lines are no decisions", "30 rows at the end", "FILE.run.json"):
        assert said in notes


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"operating_point": "site"}, "row 1: found the operating point site at {threshold:.6f}"),
        ({"threshold": 0.4}, "at 0.400000, expected one of: balanced at {threshold:.6f}"),
        ({"probability": 0.3}, "found the probability 0.3000, expected"),
    ],
)
def test_rows_of_another_model_are_refused(bundle, tmp_path, change, says):
    rows = [row | change for row in rows_of(bundle, 5, 60)]
    with pytest.raises(DataError, match=says.format(threshold=bundle.manifest.operating_points[0].threshold)):
        read_decisions([write(tmp_path / "d.jsonl", rows)], bundle)


def test_mixed_operating_points_are_refused(bundle, tmp_path):
    rows, point = rows_of(bundle, 5, 60), bundle.manifest.operating_points[1]
    rows[7] |= {"operating_point": point.name, "threshold": point.threshold}
    with pytest.raises(DataError, match=r"several operating points: balanced \(59 rows\), screening \(1 rows\)"):
        read_decisions([write(tmp_path / "d.jsonl", rows)], bundle)


def test_the_sha256_of_the_model_is_compared(bundle, tmp_path):
    file = write(tmp_path / "d.jsonl", rows_of(bundle, 5, 60))
    facts = tmp_path / "d.jsonl.run.json"
    assert not read_decisions([file], bundle).checked
    facts.write_text(json.dumps({"model_sha256": bundle.manifest.files[0].sha256}))
    assert read_decisions([file], bundle).checked
    facts.write_text(json.dumps({"model_sha256": "0" * 64}))
    with pytest.raises(DataError, match="its model has the sha256 000000000000"):
        read_decisions([file], bundle)
    facts.write_text("{}")
    with pytest.raises(DataError, match="found no model_sha256"):
        read_decisions([file], bundle)


def test_files_without_decisions_are_refused(bundle, tmp_path, cli):
    empty = write(tmp_path / "empty.jsonl", [])
    few = write(tmp_path / "few.jsonl", rows_of(bundle, 6, 20))
    for file, says in (
        (empty, "found no row"),
        (tmp_path / "none.jsonl", "cannot be read"),
        (few, "found 20 decisions"),
    ):
        code, _, error = cli("monitor", file, "-m", bundle.folder)
        assert code == 2 and says in error


def test_a_bundle_without_a_reference_is_refused(bundle, tmp_path, cli):
    folder = tmp_path / "old"
    shutil.copytree(bundle.folder, folder)
    facts = json.loads((folder / "manifest.json").read_text())
    del facts["reference"]
    (folder / "manifest.json").write_text(json.dumps(facts))
    code, _, error = cli("monitor", write(tmp_path / "d.jsonl", rows_of(bundle, 6, 60)), "-m", folder)
    assert code == 2 and "found no `reference`" in error


def test_windows_by_count_and_by_day(bundle, tmp_path):
    rows = rows_of(bundle, 8, 190)
    plain = read_decisions([write(tmp_path / "plain.jsonl", rows)], bundle).rows
    with pytest.raises(DataError, match="190 of 190 rows without a time"):
        by_day(plain)
    windows, left = by_count(plain, 60)
    assert ([w.name for w in windows], left) == (["1–60", "61–120", "121–180"], 10)
    days = [*["2026-03-01"] * 60, *["2026-03-02"] * 30, *["2026-03-03"] * 80, *["2026-03-04"] * 20]
    for row, day in zip(rows, days, strict=True):
        row["time"] = f"{day}T08:15:00"
    timed = read_decisions([write(tmp_path / "timed.jsonl", rows)], bundle).rows
    windows, left = by_day(timed[::-1])
    assert ([w.name for w in windows], left) == (["2026-03-01", "2026-03-02 – 2026-03-03"], 20)
