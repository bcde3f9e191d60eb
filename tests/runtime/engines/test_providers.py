"""ONNX Runtime's execution providers, on the packaged model."""

import numpy as np
import pytest

from cxr_edge.runtime import EngineError
from cxr_edge.runtime.bundles.bundle import InputContract
from cxr_edge.runtime.engines import onnx
from cxr_edge.runtime.predictor import packaged_model

onnxruntime = pytest.importorskip("onnxruntime")
MODEL = packaged_model() / "model.onnx"


@pytest.mark.parametrize("provider", onnx.PROVIDERS)
def test_every_provider_decides_as_the_cpu_does(provider, monkeypatch):
    if provider not in onnxruntime.get_available_providers():
        pytest.skip(f"this build of ONNX Runtime has no {provider}")
    images = np.random.default_rng(0).integers(0, 256, (3, 224, 224, 1), np.uint8)
    monkeypatch.setattr(onnx, "PROVIDERS", {"CPUExecutionProvider": ""})
    expected = onnx.OnnxEngine(MODEL, InputContract()).run(images)
    monkeypatch.setattr(onnx, "PROVIDERS", {provider: ""})
    engine = onnx.OnnxEngine(MODEL, InputContract())
    assert engine.backend == provider.removesuffix("ExecutionProvider")
    np.testing.assert_allclose(engine.run(images).logit, expected.logit, atol=1e-3)


@pytest.mark.parametrize("provider", [provider for provider in onnx.PROVIDERS if provider != "CPUExecutionProvider"])
def test_a_provider_that_falls_back_to_the_cpu_is_an_error(provider, monkeypatch):
    """This build lacks the provider. Told that it has it, ONNX Runtime falls back silently."""
    if provider in onnxruntime.get_available_providers():
        pytest.skip(f"this build of ONNX Runtime has {provider}")
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [provider, "CPUExecutionProvider"])
    with pytest.raises(EngineError, match="runs on CPUExecutionProvider") as caught:
        onnx.open_session(MODEL, threads=1)
    assert provider in str(caught.value) and onnx.PROVIDERS[provider] in str(caught.value)
