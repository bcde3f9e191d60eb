"""ONNX Runtime runs a model on the execution provider that is preferred, or refuses to run it."""

import numpy as np
import pytest

from cxr_edge.runtime import EngineError
from cxr_edge.runtime.engines import onnx
from cxr_edge.runtime.predictor import load, packaged_model

ort = pytest.importorskip("onnxruntime")
MODEL = packaged_model() / "model.onnx"


def test_the_first_available_provider_is_used(monkeypatch):
    available = ort.get_available_providers()
    if len(available) < 2:
        pytest.skip("this ONNX Runtime has one execution provider only")
    image = np.random.default_rng(0).integers(0, 256, (300, 300), np.uint8)
    expected = load(MODEL, "onnx").predict(image)
    preferred = available[0]
    monkeypatch.setattr(onnx, "PROVIDERS", ("MissingExecutionProvider", preferred, "CPUExecutionProvider"))
    predictor = load(MODEL, "onnx")
    assert predictor.engine.backend == preferred.removesuffix("ExecutionProvider")
    assert abs(predictor.predict(image).logit - expected.logit) < 1e-3


def test_a_silent_fallback_is_an_error(monkeypatch):
    """This ONNX Runtime is told to use a provider that it does not have; it warns and takes the CPU."""
    monkeypatch.setattr(onnx, "PROVIDERS", ("NoneExecutionProvider", "CPUExecutionProvider"))
    monkeypatch.setattr(ort, "get_available_providers", lambda: list(onnx.PROVIDERS))
    with pytest.warns(UserWarning, match="NoneExecutionProvider"), pytest.raises(EngineError) as caught:
        onnx.open_session(MODEL, 1)
    assert str(MODEL) in str(caught.value) and "expected" in str(caught.value)
