"""Integrated gradients in the runtime, on a bundle that holds all files: they need gradient.onnx and ONNX Runtime."""

import json
import shutil

import cv2
import numpy as np
import pytest

from cxr_edge.runtime import Bundle, BundleError, IntegrityError, UsageError, load
from cxr_edge.runtime.explanation.attribution import IntegratedGradients
from cxr_edge.runtime.imaging.image import read_image
from cxr_edge.runtime.imaging.preprocess import preprocess


@pytest.fixture(scope="module")
def gradients(bundle):
    return IntegratedGradients.of_bundle(Bundle.open(bundle))


@pytest.fixture
def without_gradient(bundle, tmp_path):
    """A bundle as it was before there were gradient files."""
    copy = shutil.copytree(bundle, tmp_path / "old")
    manifest = json.loads((copy / "manifest.json").read_text())
    del manifest["gradient"]
    (copy / "manifest.json").write_text(json.dumps(manifest))
    (copy / "gradient.onnx").unlink()
    return copy


@pytest.mark.parametrize("baseline", ["black", "blur"])
def test_contributions_sum_to_the_logit(gradients, xray, baseline):
    pixels = preprocess(read_image(xray))
    rough, fine = (gradients.explain(pixels, steps, baseline) for steps in (1, 256))
    assert rough.steps == 1 and rough.completeness_error > fine.completeness_error
    assert fine.is_complete and fine.sum == pytest.approx(fine.logit - fine.baseline_logit, rel=0.05)


def test_doubled_steps_are_the_trapezoid_rule_of_as_many(gradients, xray, monkeypatch):
    pixels = preprocess(read_image(xray))
    monkeypatch.setattr("cxr_edge.runtime.explanation.attribution.MAX_COMPLETENESS_ERROR", 0.0)
    at_once = gradients.explain(pixels, 8)
    monkeypatch.setattr("cxr_edge.runtime.explanation.attribution.STEPS", 2)
    doubled = gradients.explain(pixels, 9)
    assert at_once.steps == doubled.steps == 8
    np.testing.assert_allclose(doubled.values, at_once.values, atol=1e-5 * np.abs(at_once.values).max())


def test_logits_are_those_of_the_deciding_files(gradients, bundle, xray):
    attribution = gradients.explain(preprocess(read_image(xray)), 2, "black")
    decides = load(bundle, "onnx", "fp32")
    assert attribution.logit == pytest.approx(decides.predict(xray).logit, abs=1e-4)
    assert attribution.baseline_logit == pytest.approx(decides.predict(np.zeros((224, 224), np.uint8)).logit, abs=1e-4)


def test_black_pixels_contribute_nothing_on_a_black_baseline(gradients, xray):
    pixels = preprocess(read_image(xray)).copy()
    pixels[:100] = 0
    values = gradients.explain(pixels, 4, "black").values
    assert values.shape == (224, 224) and values.dtype == np.float32
    assert not values[:100].any() and values[100:].any()


def test_explain_by_integrated_gradients_from_the_command_line(cli, bundle, xray, tmp_path, monkeypatch):
    arguments = ["explain", "-m", bundle, xray, "-o", tmp_path, "--method", "ig", "--format", "json"]
    code, out, err = cli(*arguments)
    row = json.loads(out)[0]
    assert code == 0 and err == ""
    assert row["completeness_error"] < 0.05 and row["attribution"]["steps"] in (32, 64, 128, 256)
    assert cv2.imread(row["picture"]).shape[1] >= 512
    monkeypatch.setattr("cxr_edge.runtime.explanation.attribution.MAX_COMPLETENESS_ERROR", 0.0)
    code, out, err = cli(*arguments, "--max-steps", 1)
    assert code == 0 and "allow more steps" in err


def test_a_bundle_without_it_reads_decides_and_says_how_to_make_it(cli, without_gradient, xray, tmp_path):
    assert cli("predict", "-m", without_gradient, xray)[0] == 0
    code, _, err = cli("explain", "-m", without_gradient, xray, "-o", tmp_path, "--method", "ig")
    assert code == 2 and "cxr-edge export RUN" in err and "--file gradient.onnx" in err
    assert not list(tmp_path.glob("*.png"))


def test_the_gradient_file_is_never_taken_for_one_that_decides(bundle, cli, tmp_path):
    opened = Bundle.open(bundle)
    assert opened.manifest.gradient in opened.manifest.all_files
    assert opened.manifest.gradient not in opened.manifest.files
    assert opened.find("onnx").path == "model.onnx"
    with pytest.raises(BundleError, match="decides nothing"):
        Bundle.open(bundle / "gradient.onnx")
    with pytest.raises(BundleError, match="no gradient file"):
        IntegratedGradients(bundle / "model.onnx")
    assert "gradient.onnx" in cli("inspect", bundle)[1]


def test_a_changed_gradient_file_is_refused(bundle, tmp_path):
    copy = shutil.copytree(bundle, tmp_path / "copy")
    content = bytearray((copy / "gradient.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (copy / "gradient.onnx").write_bytes(content)
    with pytest.raises(IntegrityError, match="sha256"):
        load(copy).integrated_gradients  # noqa: B018


def test_unknown_names_are_usage_errors(gradients, bundle, xray):
    with pytest.raises(UsageError, match="blur, black"):
        gradients.explain(preprocess(read_image(xray)), 1, "white")
    with pytest.raises(UsageError, match="gradcam, ig"):
        load(bundle).explain(xray, method="lime")
