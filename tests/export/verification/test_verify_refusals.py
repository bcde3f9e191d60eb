"""What `verify` refuses before any work, and what can never pass; no training needed."""

import math
import shutil
from dataclasses import replace

import numpy as np
import pytest

from cxr_edge.export.verification.gates import DEFAULTS, Gate, gate_for, is_default_or_stricter
from cxr_edge.export.verification.verify import FileResult, Verification, check_finite, open_for_verification
from cxr_edge.runtime import Bundle, BundleError, UsageError
from cxr_edge.runtime.bundles.bundle import ModelFile
from cxr_edge.runtime.engines import Outputs
from cxr_edge.runtime.files import check_writable
from cxr_edge.runtime.predictor import packaged_model


@pytest.fixture
def copy(tmp_path):
    return shutil.copytree(packaged_model(), tmp_path / "bundle")


def test_a_lone_file_is_refused_at_once(cli, copy):
    code, _, err = cli("verify", copy / "model.onnx", "--data", "absent")
    assert code == 2 and f"cxr-edge verify {copy} --data" in err


def test_a_bundle_without_files_is_refused(copy):
    manifest = Bundle.open(copy).manifest
    (copy / "manifest.json").write_text(replace(manifest, files=()).to_json())
    with pytest.raises(UsageError, match="no model file"):
        open_for_verification(copy)


def test_a_verdict_that_cannot_be_written_is_refused_before_the_work(cli, copy):
    (copy / "parity.json").unlink()
    (copy / "parity.json").mkdir()
    code, _, err = cli("verify", copy, "--data", "absent")
    assert code == 2 and "parity.json: cannot be written" in err
    (copy / "parity.json").rmdir()
    code, _, err = cli("verify", copy, "--data", "absent", "--junit", copy / "model.onnx" / "junit.xml")
    assert code == 2 and "junit.xml: cannot be written" in err


def test_a_probe_leaves_nothing_behind(tmp_path):
    check_writable(tmp_path / "folder" / "file")
    assert list((tmp_path / "folder").iterdir()) == []


def test_a_file_that_was_held_to_no_limit_does_not_pass():
    manifest = Bundle.open(packaged_model()).manifest
    result = FileResult(manifest.files[0], None, ())
    assert not result.passed and "no limit" in result.failures[0]
    assert not Verification(manifest, None, (), None, [], ()).passed


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("output", ["probability", "logit", "heatmap", "novelty", "lungs"])
def test_an_output_that_is_no_number_does_not_pass(output, wrong, tmp_path):
    """fp32 has no limit on heatmap and novelty: NaN there would pass all others."""
    arrays = {name: np.zeros(3, np.float32) for name in ("probability", "logit", "novelty")}
    arrays |= {"heatmap": np.zeros((3, 7, 7), np.float32), "lungs": np.zeros((3, 28, 28), np.float32)}
    sound = Outputs(**arrays)
    check_finite(tmp_path, sound, arrays)
    arrays[output] = arrays[output].copy()
    arrays[output][1, ...] = wrong
    with pytest.raises(BundleError, match=rf"'{output}' of 1 of 3 images"):
        check_finite(tmp_path, Outputs(**arrays), arrays)
    check_finite(tmp_path, Outputs(**arrays), set(arrays) - {output})  # not given, not looked at


@pytest.mark.parametrize(
    ("precision", "changes", "holds"),
    [
        ("fp32", {}, True),
        ("fp32", {"logit_max": 1e-4}, True),
        ("fp32", {"heatmap_iou": 0.5}, True),
        ("fp32", {"logit_max": 2e-3}, False),
        ("fp32", {"logit_max": None}, False),
        ("fp16", {"flip_rate": math.inf}, False),
        ("int8", {"heatmap_rank_correlation": 0.96}, True),
        ("int8", {"heatmap_rank_correlation": 0.94}, False),
        ("int8", {"calibration_images": 1}, False),
    ],
)
def test_a_gate_is_compared_with_the_default(precision, changes, holds):
    assert is_default_or_stricter(replace(DEFAULTS[precision], **changes), precision) is holds
    assert not is_default_or_stricter(Gate(), precision)


def test_a_precision_without_a_gate_is_refused():
    with pytest.raises(BundleError, match=r"model.int4.onnx: found the precision 'int4', which has no gate"):
        gate_for(ModelFile("model.int4.onnx", "onnx", "int4", "", 0), DEFAULTS)
    assert gate_for(ModelFile("model.fp16.engine", "tensorrt", "fp16", "", 0), DEFAULTS) is DEFAULTS["fp16"]
