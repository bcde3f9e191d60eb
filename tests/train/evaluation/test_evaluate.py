import json
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest

from cxr_edge.common.dataset import read_dataset, read_pixels
from cxr_edge.common.network import keras_runner
from cxr_edge.common.run import Novelty, Run
from cxr_edge.export.verification.reference import Reference
from cxr_edge.runtime import BundleError, DataError, UsageError, load
from cxr_edge.runtime.bundles.bundle import sha256
from cxr_edge.train.data.perturbations import PERTURBATIONS
from cxr_edge.train.data.phantom import write_dataset
from cxr_edge.train.evaluation.evaluate import choose_images
from cxr_edge.train.evaluation.evidence import without_surroundings
from cxr_edge.train.evaluation.subject import open_subject


class Page(HTMLParser):
    """Which pictures a page shows, and whether it asks for anything outside itself."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.pictures: dict[str, str] = {}
        self.outside: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        named = dict(attrs)
        source = named.get("src") or named.get("href")
        if source and not source.startswith("data:"):
            self.outside.append(source)
        elif tag == "img":
            self.pictures[named["alt"]] = source


def test_a_run_is_evaluated_on_its_holdout_unless_told_otherwise(run, phantoms, tmp_path, cli):
    code, _, err = cli("evaluate", run, phantoms, "-o", tmp_path / "report", "--no-shift", "--no-faithfulness")
    assert code == 0 and "chose nothing" in err
    record, found = (json.loads(p.read_text()) for p in (run / "run.json", tmp_path / "report" / "metrics.json"))
    assert found["data"]["images"] == record["split"]["holdout_images"] and found["data"]["split"] == "holdout"
    assert found["metrics"]["roc_auc"]["value"] == pytest.approx(record["metrics"]["holdout"]["auc"])
    assert found["shift"] is None and found["faithfulness"] is None
    text = (tmp_path / "report" / "report.html").read_text()
    threshold, share = found["novelty"]["threshold"], found["novelty"]["in_distribution"]
    assert threshold == Novelty.load(run / "novelty.npz").threshold and share["low"] <= share["value"] <= share["high"]
    assert f"novelty up to {threshold:.3f}" in text and f"{share['value']:.4f}" in text
    assert "These patients chose nothing" in text and "look at the lungs" not in text


def test_a_run_is_evaluated_on_what_chose_its_thresholds(run, phantoms, tmp_path, cli):
    options = ("--split", "validation", "--format", "json")
    code, out, err = cli("evaluate", run, phantoms, "-o", tmp_path / "report", *options)
    assert code == 0
    record, found = json.loads((run / "run.json").read_text()), json.loads(out)
    assert found == json.loads((tmp_path / "report" / "metrics.json").read_text()) and found["schema_version"] == 1
    assert (
        found["data"]["images"] == record["split"]["validation_images"] and found["data"]["seen_in_training"] is False
    )
    assert found["data"]["patients"] == len(record["split"]["validation_patients"])
    assert "chose epoch, temperature and thresholds" in err
    expected = record["metrics"]["validation"]
    default = found["operating_points"][0]
    assert found["metrics"]["roc_auc"]["value"] == pytest.approx(expected["auc"])
    for name in ("accuracy", "sensitivity", "specificity"):
        assert default["metrics"][name]["value"] == pytest.approx(expected[name])
    # The same figures by two formulas, which are equal up to rounding.
    assert default["report"]["NORMAL"]["recall"] == pytest.approx(default["metrics"]["specificity"], abs=1e-12)
    assert default["report"]["PNEUMONIA"]["precision"] == pytest.approx(default["metrics"]["precision"], abs=1e-12)
    assert sum(each["images"] for each in found["calibration"]["reliability"]) == found["data"]["images"]
    assert [p["name"] for p in found["operating_points"]] == ["balanced", "screening", "confirm", "triage"]
    assert found["operating_points"][1]["metrics"]["sensitivity"]["value"] >= 0.98
    assert found["operating_points"][2]["metrics"]["specificity"]["value"] >= 0.98
    triage = found["operating_points"][3]
    assert triage["rule_out"] <= triage["threshold"]
    assert 0 <= triage["triage"]["unsure"]["value"] <= 1 and default["triage"] is None
    decided = sum(triage["confusion"].values())
    assert decided == round((1 - triage["triage"]["unsure"]["value"]) * found["data"]["images"])
    shares = {proxy["name"]: proxy["ece"]["value"] for proxy in found["shift"]["proxies"] if proxy["kind"] != "stratum"}
    assert shares[found["shift"]["worst_calibration"]] == max(shares.values())
    assert shares["as they are"] == pytest.approx(found["metrics"]["ece"]["value"])
    assert {*PERTURBATIONS, "bacteria against normal"} <= {proxy["name"] for proxy in found["shift"]["proxies"]}
    unchanged = found["shift"]["proxies"][0]
    assert unchanged["auc"] == pytest.approx(expected["auc"])
    assert found["faithfulness"]["borders"][0]["images"] == found["data"]["images"]
    assert {p.name for p in (tmp_path / "report").iterdir()} == {"report.html", "metrics.json"}

    page = Page(text := (tmp_path / "report" / "report.html").read_text())
    assert not page.outside
    assert "pneumonia among those ruled out" in text and "Confusion matrix, triage" in page.pictures
    assert ("One appearance cluster left out" in text) == bool(found["shift"]["clusters"])
    assert {"Loss and AUC by epoch", "ROC curve", "Reliability", "Threshold sweep", "Confusion matrix, confirm"} <= set(
        page.pictures
    )
    assert any(alt.startswith("Heatmap over ") for alt in page.pictures)
    assert "Proxies for another hospital" in text and f"{found['metrics']['roc_auc']['value']:.4f}" in text


def test_heatmaps_are_put_to_the_test(run, phantoms, tmp_path, cli):
    shutil.copytree(run, tmp_path / "run")
    record = json.loads((run / "run.json").read_text())
    # Everything speaks for pneumonia and all is decided so, however little so small a network has learned.
    network = open_subject(run).network
    last = network.get_layer("logit")
    last.set_weights([abs(last.get_weights()[0]), last.get_weights()[1]])
    network.save(tmp_path / "run" / "model.keras")
    record["model_sha256"] = sha256(tmp_path / "run" / "model.keras")
    for point in record["operating_points"]:
        point |= {"threshold": 0.0, "rule_out": None}
    (tmp_path / "run" / "run.json").write_text(json.dumps(record))
    code, out, _ = cli("evaluate", tmp_path / "run", phantoms / "test", "-o", tmp_path / "report", "--no-shift")
    assert code == 0
    found = json.loads((tmp_path / "report" / "metrics.json").read_text())["faithfulness"]
    assert found["sample"] > 0
    assert [(c["way"], c["substitute"]) for c in found["curves"]] == [("deletion", "blurred"), ("insertion", "blurred")]
    assert all(len(curve["heatmap"]) == len(found["shares"]) for curve in found["curves"])
    assert len(found["randomised"]) == 6 and found["borders"][0]["share"]["value"] <= 1
    page = Page(text := (tmp_path / "report" / "report.html").read_text())
    assert {"Deletion, blurred", "Insertion, blurred", "Randomised from the head downwards"} <= set(page.pictures)
    assert "Energy in the border" in text
    assert re.search(r"^energy in the border, pneumonia found +0\.\d+ .*0\.3543", out, re.MULTILINE)


def test_a_bundle_is_evaluated_on_all_images_and_told_what_it_was_trained_on(bundle, phantoms, tmp_path, cli):
    code, out, err = cli("evaluate", bundle, phantoms, "-o", tmp_path / "all", "--no-shift")
    assert code == 0 and "flatter" in err
    found = json.loads((tmp_path / "all" / "metrics.json").read_text())
    assert found["data"]["images"] == len(read_dataset(phantoms)) and found["data"]["seen_in_training"] is True
    assert found["shift"] is None
    assert "The network was trained on images among these" in (tmp_path / "all" / "report.html").read_text()
    balanced = found["operating_points"][0]
    accuracy = balanced["metrics"]["accuracy"]
    line = f"{accuracy['value']:.4f} ({accuracy['low']:.4f}–{accuracy['high']:.4f})"
    assert re.search(rf"^accuracy +{re.escape(line)}", out, re.MULTILINE)

    images = read_dataset(phantoms)
    predictions = list(load(bundle).predict_many(image.path for image in images))
    wanted = [p.label == "PNEUMONIA" for p in predictions]
    assert found["novelty"]["in_distribution"]["value"] == np.mean([p.in_distribution for p in predictions])
    truth = np.array([image.label for image in images])
    assert balanced["confusion"]["true_positive"] == np.sum(np.array(wanted) & (truth == 1))
    assert balanced["confusion"]["false_positive"] == np.sum(np.array(wanted) & (truth == 0))


def test_a_lone_file_is_evaluated_on_a_test_split(bundle, phantoms, tmp_path, cli):
    code, _, err = cli("evaluate", bundle / "model.onnx", phantoms / "test", "-o", tmp_path / "test", "--no-shift")
    assert code == 0 and "not known" in err
    found = json.loads((tmp_path / "test" / "metrics.json").read_text())
    assert found["data"]["seen_in_training"] is None and "model.onnx" in found["model"]["backend"]


def test_heatmaps_of_a_run_are_those_of_autodiff(run, phantoms):
    pixels = read_pixels(read_dataset(phantoms, ("test",)))
    opened = Run.open(run)
    network = opened.network()
    last = network.get_layer("logit")
    last.kernel.assign(abs(last.get_weights()[0]))  # everything speaks for pneumonia: no map is empty
    reference = Reference(network, opened.temperature, opened.novelty).run(pixels)
    outputs = keras_runner(network, opened.temperature, Novelty.load(run / "novelty.npz"))(pixels)
    np.testing.assert_allclose(outputs.logit, reference.logit, atol=1e-4)
    np.testing.assert_allclose(outputs.probability, reference.probability, atol=1e-5)
    np.testing.assert_allclose(outputs.heatmap, reference.heatmap, atol=1e-4)
    np.testing.assert_allclose(outputs.novelty, reference.novelty, rtol=1e-4)
    assert reference.heatmap.max() > 0.01


def test_images_are_chosen_honestly(run, bundle, phantoms):
    trained, exported = open_subject(run), open_subject(bundle)
    record = json.loads((run / "run.json").read_text())["split"]
    for split, part in ((None, "holdout"), ("holdout", "holdout"), ("validation", "validation")):
        source = choose_images(trained, phantoms, split)
        assert [image.key for image in source.images] == record[f"{part}_files"] and source.split == part
        assert source.seen is False
    everything = choose_images(trained, phantoms, "all")
    assert len(everything.images) == len(read_dataset(phantoms)) and everything.seen
    test = choose_images(trained, phantoms / "test", None)
    assert len(test.images) == len(read_dataset(phantoms / "test")) and test.seen is None
    for split in ("holdout", "validation"):
        with pytest.raises(DataError, match=f"none of the {split} images"):
            choose_images(trained, phantoms / "test", split)
        with pytest.raises(UsageError, match="evaluate the run"):
            choose_images(exported, phantoms, split)


def test_a_run_without_a_holdout_is_evaluated_on_its_validation_images(run, phantoms, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    record = json.loads((run / "run.json").read_text())
    del record["split"]["holdout_files"], record["split"]["holdout_images"], record["metrics"]["holdout"]
    (tmp_path / "run" / "run.json").write_text(json.dumps(record))
    old = open_subject(tmp_path / "run")
    assert choose_images(old, phantoms, None).split == "validation"
    with pytest.raises(UsageError, match="without a hold-out"):
        choose_images(old, phantoms, "holdout")


def test_held_out_names_in_a_test_split_are_other_images(run, phantoms, tmp_path):
    shutil.copytree(phantoms / "train", tmp_path / "test")
    assert len(choose_images(open_subject(run), tmp_path, None).images) == len(read_dataset(phantoms / "train"))


@pytest.mark.parametrize("what", ["nowhere", "empty folder", "no model", "changed", "no network", "not JSON", "part"])
def test_a_wrong_model_is_refused(what, run, phantoms, tmp_path, cli):
    model = tmp_path / "model"
    if what in ("changed", "no network", "not JSON", "part"):
        shutil.copytree(run, model)
    if what == "empty folder":
        model.mkdir()
    elif what == "no model":
        model = tmp_path / "model.onnx"
        model.write_bytes(b"no model")
    elif what == "changed":
        (model / "model.keras").write_bytes(b"other")
    elif what == "no network":
        (model / "model.keras").unlink()
    elif what == "not JSON":
        (model / "run.json").write_text("{")
    elif what == "part":
        record = json.loads((model / "run.json").read_text())
        del record["temperature"]
        (model / "run.json").write_text(json.dumps(record))
    with pytest.raises(BundleError):
        open_subject(model)
    code, out, err = cli("evaluate", model, phantoms, "-o", tmp_path / "report")
    assert code == 2 and not out and err.startswith("error: ")
    assert not (tmp_path / "report").exists()


@pytest.mark.parametrize("what", ["no data", "broken image", "report is a file"])
def test_nothing_is_half_written(what, bundle, phantoms, tmp_path, cli):
    data, report = tmp_path / "data", tmp_path / "report"
    if what != "no data":
        shutil.copytree(phantoms / "test", data)
    if what == "broken image":
        next((data / "NORMAL").iterdir()).write_bytes(b"broken")
    if what == "report is a file":
        report.write_text("mine")
    code, out, err = cli("evaluate", bundle, data, "-o", report, "--no-shift")
    assert code == 2 and not out and "error: " in err
    assert report.read_text() == "mine" if what == "report is a file" else not report.exists()


@pytest.fixture(scope="module")
def masks(tmp_path_factory):
    """The lung masks of the session's phantoms."""
    folder = tmp_path_factory.mktemp("masks")
    list(write_dataset(folder / "data", patients=30, seed=0, masks=folder / "lungs"))
    return folder / "lungs"


def test_the_place_of_the_evidence_is_measured_with_masks(run, phantoms, masks, tmp_path, cli):
    options = ("--no-shift", "--no-faithfulness", "--masks", masks)
    code, out, _ = cli("evaluate", run, phantoms, "-o", tmp_path / "report", *options)
    found = json.loads((tmp_path / "report" / "metrics.json").read_text())["evidence"]
    assert code == 0 and "hottest point in the hull" in out
    record = json.loads((run / "run.json").read_text())
    assert found["images"] == record["split"]["holdout_images"] and found["dice"] is None
    assert 0.1 < found["lung_area"] < found["hull_area"] < 0.6
    assert sum(place["images"] for place in found["places"]) == found["images"]
    for place in found["places"]:
        if place["images"] > place["empty"]:
            assert 0 <= place["in_lungs"]["value"] <= place["in_hull"]["value"] <= 1
    assert 0 <= found["kept"]["value"] <= 1
    left, right, neither = found["joined"]
    decided = {(place["truth"], place["decided"]): place["images"] for place in found["places"]}
    assert left["images"] == right["images"] == decided["PNEUMONIA", "PNEUMONIA"] > 0
    assert neither["images"] == decided["NORMAL", "NORMAL"] and neither["evidence"]["value"] is None
    assert "joined halves" in out
    page = (tmp_path / "report" / "report.html").read_text()
    assert "Does the evidence lie in the lungs?" in page and "follow a pneumonia to either side?" in page


def test_masks_of_other_images_are_refused(run, phantoms, masks, tmp_path, cli):
    held_out = json.loads((run / "run.json").read_text())["split"]["holdout_files"]
    few = shutil.copytree(masks, tmp_path / "few")
    for key in held_out:
        (few / key).with_suffix(".png").unlink()
    code, _, err = cli("evaluate", run, phantoms, "-o", tmp_path / "report", "--masks", few)
    assert code == 2 and "found no mask of the" in err and not (tmp_path / "report").exists()


def test_surroundings_are_replaced_by_the_mean_inside():
    pixels = np.full((1, 4, 4, 1), 200, np.uint8)
    pixels[0, :2] = 10
    hull = np.zeros((1, 4, 4), bool)
    hull[0, 1:3] = True
    alone = without_surroundings(pixels, hull)[0, :, :, 0]
    np.testing.assert_array_equal(alone[:, 0], [105, 10, 200, 105])
