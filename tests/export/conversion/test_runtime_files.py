"""Every file that an export makes, in the runtime; tests/runtime does the same with the packaged model only."""

import numpy as np
import pytest
from support import assert_complete

from cxr_edge.runtime import EngineError, load

FILES = [("onnx", "fp32"), ("onnx", "fp16"), ("litert", "fp32"), ("litert", "fp16"), ("litert", "int8")]


@pytest.mark.parametrize(("engine", "precision"), FILES)
def test_every_file_decides_and_explains(bundle, xray, engine, precision):
    assert_complete(load(bundle, engine, precision).predict(xray))


def test_many_is_one_by_one_in_fp32(bundle, phantoms):
    images = sorted((phantoms / "test").rglob("*.jpeg"))
    for engine in ("onnx", "litert"):
        predictor = load(bundle, engine, "fp32")
        many = [p.probability for p in predictor.predict_many(images, batch_size=5)]
        np.testing.assert_allclose(many, [predictor.predict(i).probability for i in images], atol=1e-6)


def test_auto_prefers_litert_and_the_most_exact_file(bundle):
    assert load(bundle).file.path == "model.fp32.tflite"
    assert load(bundle, engine="onnx", precision="fp16").file.path == "model.fp16.onnx"
    with pytest.raises(EngineError, match="onnx fp16"):
        load(bundle, "onnx", "int4")
