"""The runtime's tests use the packaged model: they need the core, one engine and pytest, and train nothing."""

import shutil
from pathlib import Path

import pytest

from cxr_edge.runtime.predictor import packaged_model


@pytest.fixture(scope="session")
def bundle(tmp_path_factory) -> Path:
    """A copy of the packaged model: model.onnx (fp32) and model.int8.tflite. Tests that change it copy it first."""
    return Path(shutil.copytree(packaged_model(), tmp_path_factory.mktemp("packaged") / "bundle"))
