"""`score report`: its numbers, with and without a reference and labels, and what it refuses."""

import json
import shutil
from dataclasses import asdict
from datetime import datetime, timedelta, timezone

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from archive_files import draw

from cxr_edge.common.drift import Mixture, ks_distance
from cxr_edge.common.reference import Measured, reference_of
from cxr_edge.runtime.bundles.bundle import Bundle
from cxr_edge.runtime.predictor import packaged_model


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Bundle:
    """The packaged model with a reference whose logits have two separate modes."""
    folder = tmp_path_factory.mktemp("referenced") / "bundle"
    shutil.copytree(packaged_model(), folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    random = np.random.default_rng(7)
    labels = (random.random(600) < 0.7).astype(int)
    found = Measured(random.normal(np.where(labels, 6.0, -6.0), 2.0), random.gamma(20, 0.12, 600))
    reference = reference_of(found, labels, [f"p{n}" for n in range(600)], manifest["novelty_threshold"], "hold-out")
    (folder / "manifest.json").write_text(json.dumps(manifest | {"reference": asdict(reference), "schema_version": 2}))
    return Bundle.open(folder)


@pytest.fixture
def scored(run, tmp_path):
    """A result of 40 radiographs with labels, patients, studies and days, one of them broken."""
    start = datetime(2024, 1, 1, tzinfo=timezone.utc)
    for n in range(40):
        draw(tmp_path / "in" / f"{n:02}.jpeg", n)
    (tmp_path / "in" / "07.jpeg").write_bytes(b"\xff\xd8\xff")
    columns = {
        "uri": [f"in/{n:02}.jpeg" for n in range(40)], "label": [("NORMAL", "1", "unknown")[n % 3] for n in range(40)],
        "patient": [f"p{n // 2}" for n in range(40)], "study": [f"s{n // 4}" for n in range(40)],
        "time": [start + timedelta(days=n // 10) for n in range(40)],
    }  # fmt: skip
    pq.write_table(pa.table(columns), tmp_path / "m.parquet")
    run(tmp_path / "m.parquet", target=tmp_path / "out")
    return tmp_path / "out"


def test_counts_are_those_of_the_rows(scored, rows, cli):
    code, out, _ = cli("score", "report", scored, "--format", "json")
    found, expected = json.loads(out), rows(scored)
    good = [row for row in expected if row["error_type"] is None]
    assert code == 0 and found["inputs"] == found["total"]["rows"] == 40 and found["total"]["errors"] == 1
    assert found["total"]["pneumonia"] == sum(row["label"] == "PNEUMONIA" for row in good)
    assert found["total"]["novel"] == sum(not row["in_distribution"] for row in good)
    assert found["studies"][0] == 10 and [t["name"] for t in found["times"]] == [f"2024-01-0{d}" for d in (1, 2, 3, 4)]
    assert sum(part["rows"] for part in found["parts"]) == 40 and found["errors"][0][2] == 1
    assert found["distances"].keys() == {"logit", "novelty", "evidence_in_lungs"}


def test_without_a_reference_there_is_no_drift(scored, cli, tmp_path):
    folder = shutil.copytree(packaged_model(), tmp_path / "bundle")
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"reference": None}))
    code, out, err = cli("score", "report", scored, "-m", folder, "--format", "json")
    found = json.loads(out)
    assert code == 0 and found["distances"] == {} and "no reference" in found["notes"][0], err


def test_figures_are_those_of_evaluate(scored, rows, cli):
    from sklearn.metrics import roc_auc_score

    found = json.loads(cli("score", "report", scored, "--format", "json")[1])
    good = [row for row in rows(scored) if row["error_type"] is None and row["true_label"] != "unknown"]
    labels = [int(row["true_label"] == "1") for row in good]
    assert found["labelled"] == len(good)
    assert found["figures"]["roc_auc"]["value"] == pytest.approx(roc_auc_score(labels, [row["logit"] for row in good]))
    right = [int(row["label"] == "PNEUMONIA") == label for row, label in zip(good, labels, strict=True)]
    assert found["figures"]["accuracy"]["value"] == pytest.approx(np.mean(right))


def test_drift_is_the_distance_from_the_reference(scored, rows, bundle, cli):
    found = json.loads(cli("score", "report", scored, "-m", bundle.folder, "--format", "json")[1])
    values = np.array([row["novelty"] for row in rows(scored) if row["error_type"] is None])
    share = found["pneumonia_in_reference"]
    quantiles = tuple(np.asarray(each.novelty) for each in bundle.manifest.reference.classes)
    drift = found["distances"]["novelty"]
    assert drift["ks"] == pytest.approx(ks_distance(values, Mixture(quantiles, (1 - share, share))))
    assert drift["ks_interval"][0] <= drift["ks"] <= drift["ks_interval"][1] and drift["psi"] > 0.25
    assert set(found["distances"]) == {"logit", "novelty"}


def test_the_page_has_everything_in_itself(scored, bundle, tmp_path, cli):
    (tmp_path / "in" / "11.jpeg").unlink()
    page = tmp_path / "report.html"
    assert cli("score", "report", scored, "-m", bundle.folder, "--page", page)[0] == 0
    html = page.read_text()
    assert "http" not in html.replace("http-equiv", "") and html.count("data:image/jpeg;base64,") >= 8
    assert html.count("data:image/png;base64,") == 3 and "The most novel" in html and "drift of novelty" in html
    bare = tmp_path / "bare.html"
    cli("score", "report", scored, "-m", bundle.folder, "--page", bare, "--no-pictures")
    assert "data:image/jpeg" not in bare.read_text() and "The most novel" not in bare.read_text()


def test_a_picture_is_that_of_the_scored_content(scored, tmp_path):
    from cxr_edge.archive.report import make_report
    from cxr_edge.archive.report_page import _picture

    report = make_report(str(scored))
    first, second = report.novel[:2]
    draw(tmp_path / "in" / first.uri.split("/")[-1], 99)
    assert _picture(first, report.bundle).reason == "the file has changed since it was scored"
    assert _picture(second, report.bundle).picture.startswith(b"\xff\xd8")


def test_what_is_no_result_of_this_model_is_refused(scored, tmp_path, cli):
    code, _, err = cli("score", "report", tmp_path / "nothing")
    assert code == 2 and "found no rows, expected the result of `cxr-edge score`" in err
    (part,) = (scored / "rows").iterdir()
    shutil.copy(part, scored / "rows" / "part-copy.parquet")
    code, _, err = cli("score", "report", scored)
    assert code == 2 and "found several rows of" in err
    (scored / "rows" / "part-copy.parquet").unlink()
    table = pq.read_table(part)
    other = pa.array(["0" * 64] * len(table))
    pq.write_table(table.set_column(table.schema.get_field_index("model_sha256"), "model_sha256", other), part)
    code, _, err = cli("score", "report", scored)
    assert code == 2 and "made by the model 000000000000…" in err
