"""Each architecture through the whole chain: train, export, verify."""

import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

#: Every option that changes the network or its training is in one of them.
OPTIONS = {
    "mobilenetv2": "--alpha 0.35 --size 64 --border-crop 0.1 --loss focal --class-weights",
    "resnet50": "--size 64 --label-smoothing 0.1",
    "cnn": "--size 96 --border-crop 0.05 --mixup 0.2 --class-weights --mixed-precision",
}


@pytest.mark.parametrize("arch", OPTIONS)
def test_what_is_exported_decides_as_what_was_trained(arch, few, tmp_path):
    run, bundle = tmp_path / "run", tmp_path / "bundle"
    common = ("--arch", arch, "--weights", "none", "--epochs", 1, "--batch-size", 8)
    command("train", few, "-o", run, *common, *OPTIONS[arch].split())
    command("export", run, "-o", bundle, "--file", "model.onnx", "--file", "model.fp32.tflite")
    out = command("verify", bundle, "--data", few, "--limit", 12, "--format", "json")
    assert json.loads(out)["passed"] is True


def command(*arguments: object) -> str:
    """Run a command as a process of its own, as users do; -> what it prints. A ResNet50 needs 3 GB to be exported."""
    words = [sys.executable, "-m", "cxr_edge.runtime.cli", *map(str, arguments)]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """Drawn radiographs of few patients."""
    from cxr_edge.train.data.phantom import write_dataset

    folder = tmp_path_factory.mktemp("few")
    list(write_dataset(folder, patients=12, seed=0))
    return folder
