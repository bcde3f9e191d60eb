"""The wheel in a bare environment: what a device installs, and nothing more."""

import json
import os
import re
import subprocess
import sys
import venv
from pathlib import Path

import pytest
from support import ROOT

pytestmark = pytest.mark.slow

#: Why a test of the runtime may be skipped with core, LiteRT and pytest.
SKIPPED_HERE = (
    "ONNX Runtime is not installed|the engine onnx is not installed|litert is installed|real radiographs"
    "|root may read everything|needs two engines"
    r"|could not import '(pydicom|gdcm|onnxruntime|model_signing|cryptography\S*|jsonschema|cyclonedx\S*)'"
)


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """An environment with the built wheel, core and [tflite]; -> its python."""
    folder = tmp_path_factory.mktemp("bare")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    venv.create(folder / "venv", with_pip=True)
    python = folder / "venv" / "bin" / "python"
    (wheel,) = folder.glob("*.whl")
    install = [python, "-m", "pip", "install", "-q", "-c", ROOT / "constraints.txt", f"{wheel}[tflite]"]
    subprocess.run(install, check=True, capture_output=True)
    return python


def run(python, *arguments, check=True):
    return subprocess.run(
        [python, *map(str, arguments)], check=check, capture_output=True, text=True, cwd=python.parent
    )


def test_only_the_runtime_is_installed(bare):
    listed = json.loads(run(bare, "-m", "pip", "list", "--format", "json").stdout)
    names = {entry["name"].lower().replace("_", "-") for entry in listed}
    assert {"cxr-edge", "numpy", "opencv-python-headless", "click", "ai-edge-litert"} <= names
    assert not names & {"tensorflow", "keras", "torch", "onnx", "onnxruntime", "scipy", "matplotlib", "rich"}


def test_the_runtimes_own_tests_pass(bare):
    """On a device: clone, `pip install '.[tflite]' pytest`, `pytest tests/runtime`."""
    install = [bare, "-m", "pip", "install", "-q", "-c", ROOT / "constraints.txt", "pytest"]
    subprocess.run(install, check=True, capture_output=True)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [bare, "-m", "pytest", "tests/runtime", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) > 60
    skipped = re.findall(r"^SKIPPED \[\d+\] (.*)$", done.stdout, re.MULTILINE)
    assert [line for line in skipped if not re.search(SKIPPED_HERE, line)] == []


def test_every_module_of_the_runtime_imports(bare):
    modules = [
        ".".join(path.relative_to(ROOT / "runtime").with_suffix("").parts)
        for path in sorted((ROOT / "runtime").rglob("*.py"))
    ]
    assert len(modules) > 15
    run(bare, "-c", "import importlib, sys\nfor name in sys.argv[1:]: importlib.import_module(name)", *modules)


def test_it_decides_explains_and_says_what_is_missing(bare, bundle, xray, tmp_path):
    cxr_edge = bare.with_name("cxr-edge")
    row = json.loads(run(cxr_edge, "predict", "-m", bundle, xray, "--format", "jsonl").stdout)
    assert row["label"] in ("NORMAL", "PNEUMONIA")
    run(cxr_edge, "explain", "-m", bundle, xray, "-o", tmp_path / "pictures")
    assert Path(tmp_path / "pictures" / f"{xray.stem}.png").stat().st_size > 10_000
    assert run(cxr_edge, "doctor", "-m", bundle).returncode == 0
    helped = run(cxr_edge, "--help").stdout
    assert "[needs cxr-edge[train]]" in helped and "[needs cxr-edge[bench]]" in helped
    for command, extra in (("train", "train"), ("verify", "export"), ("demo", "demo"), ("score", "archive")):
        output = [tmp_path, "-o", "x"]
        arguments = {"train": output, "verify": [bundle, "--data", tmp_path], "demo": [], "score": output}[command]
        done = run(cxr_edge, command, *arguments, check=False)
        assert done.returncode == 2, done
        assert f"pip install 'cxr-edge[{extra}]'" in done.stderr and "Traceback" not in done.stderr
    done = run(cxr_edge, "predict", "-m", bundle, xray, "--engine", "onnx", check=False)
    assert done.returncode == 2 and "cxr-edge[onnx]" in done.stderr
    done = run(cxr_edge, "predict", "-m", bundle / "model.onnx", xray, check=False)
    assert done.returncode == 2 and "cxr-edge[onnx]" in done.stderr
