"""What can be known of the TensorRT builder without a GPU: it is held to NVIDIA's bindings of each release."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from bindings import RELEASES, bindings, python
from support import ROOT

from cxr_edge.export.conversion.tensorrt import source_onnx, timing_cache, trtexec
from cxr_edge.export.verification.overflow import LARGEST, Magnitude, activation_magnitudes, check_overflow
from cxr_edge.runtime import Bundle
from cxr_edge.runtime.bundles.bundle import InputContract
from cxr_edge.runtime.engines.tensorrt import PlanOptions, Target
from cxr_edge.runtime.errors import EngineError

pytestmark = pytest.mark.slow

OURS = (
    ROOT / "runtime" / "cxr_edge" / "runtime" / "engines" / "tensorrt.py",
    ROOT / "export" / "cxr_edge" / "export" / "conversion" / "tensorrt.py",
)
MYPY = """[mypy]
mypy_path = {stubs}:{root}/runtime:{root}/export
cache_dir = {stubs}/../../mypy
namespace_packages = true
explicit_package_bases = true
ignore_missing_imports = true
follow_imports = silent
check_untyped_defs = true
[mypy-tensorrt_bindings.*,cuda.*]
ignore_errors = true
[mypy-numpy.*,cv2.*,rich.*]
follow_imports = skip
"""
#: Mistakes that the check must find, and the name that it must complain of.
MISTAKES = {
    "create_optimization_profile()": "create_profile()",
    "HardwareCompatibilityLevel.AMPERE_PLUS": "HardwareCompatibilityLevel.HOPPER_PLUS",
    'trt.BuilderFlag.__members__["FP16"]': "trt.BuilderFlag.FP16",
    "config.progress_monitor =": "config.monitor =",
    "engine.num_io_tensors": "engine.num_bindings",
    "execute_async_v3(int(stream))": "execute_async_v2(int(stream))",
    "cudaMallocHost(size)": "cudaMallocHost(size, 0, 0)",
    "set_tensor_address(name, int(device))": 'set_tensor_address(int(device), "name")',
    "cudart.cudaStreamDestroy": "cudart.cudaStreamFree",
}
LIVE = """
import numpy as np, tensorrt as trt
from rich.progress import Progress
from cxr_edge.export.conversion import tensorrt as ours
from cxr_edge.runtime.engines.tensorrt import this_target
from cxr_edge.runtime.errors import EngineError

typed = ours.is_strongly_typed(trt)
assert ours._network_flags(False) == 0 and ours._network_flags(True) == 1 << int(
    trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
assert typed or isinstance(trt.BuilderFlag.__members__["FP16"], trt.BuilderFlag)
assert tuple(trt.Dims((1, 224, 224, 1))) == (1, 224, 224, 1)
assert np.dtype(trt.nptype(trt.uint8)).name == "uint8" and trt.Logger(trt.Logger.ERROR)
bars = Progress(disable=True)
monitor = ours._monitor(bars)
assert isinstance(monitor, trt.IProgressMonitor)
monitor.phase_start("build", None, 3)
monitor.phase_start("time", "build", 9)
assert monitor.step_complete("time", 0) and len(bars.tasks) == 2 and bars.tasks[1].completed == 1
monitor.phase_finish("time")
assert [task.description for task in bars.tasks] == ["build"]
def interrupt(*a, **k): raise KeyboardInterrupt
bars.update = interrupt
assert not monitor.step_complete("build", 1) and monitor.interrupted
try:
    print(typed, this_target())
except EngineError as error:
    print(typed, error)
"""
HERE = Target("10.3.0", "Orin (nvgpu)", "8.7", "Linux aarch64")


def mypy(folder: Path, config: Path, files) -> str:
    config.write_text(MYPY.format(stubs=folder / "stubs", root=ROOT))
    command = [sys.executable, "-m", "mypy", "--config-file", config, "--no-error-summary", *files]
    return subprocess.run(command, capture_output=True, text=True, cwd=config.parent).stdout


@pytest.mark.parametrize("release", RELEASES)
def test_every_name_and_call_exists_in_the_bindings(release, tmp_path):
    assert mypy(bindings(release), tmp_path / "mypy.ini", OURS) == ""


def test_that_check_finds_what_does_not_exist(tmp_path):
    sources = "".join(path.read_text() for path in OURS)
    assert all(sources.count(right) >= 1 for right in MISTAKES)
    copies = []
    for number, path in enumerate(OURS):
        text = path.read_text()
        for right, wrong in MISTAKES.items():
            text = text.replace(right, wrong)
        copies.append(tmp_path / f"copy{number}.py")
        copies[-1].write_text(text)
    found = mypy(bindings("11.4.0.106"), tmp_path / "mypy.ini", copies)
    lines = {line.split(":")[1] for line in found.splitlines() if "error" in line}
    assert len(lines) == len(MISTAKES), found
    for name in ("create_profile", "HOPPER_PLUS", "FP16", "num_bindings", "execute_async_v2", "cudaStreamFree"):
        assert f'"{name}"' in found, found


@pytest.mark.parametrize(("release", "typed"), [*zip(RELEASES, (False, True, True, True), strict=True)])
def test_each_release_takes_its_route_and_shows_its_progress(release, typed):
    done = python(bindings(release), "-c", LIVE)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(typed))
    assert "Target(" in done.stdout or "needs an NVIDIA GPU" in done.stdout


def test_the_command_says_that_there_is_no_gpu(bundle):
    main = "from cxr_edge.runtime.cli.main import main; raise SystemExit(main())"
    done = python(bindings("11.4.0.106"), "-c", main, "export", bundle, "--format", "tensorrt")
    if "building" in done.stderr:
        pytest.skip("there is a GPU")
    assert done.returncode == 2 and "needs an NVIDIA GPU" in done.stderr and "Traceback" not in done.stderr


def test_the_source_is_the_onnx_file_of_the_route(bundle, tmp_path):
    opened = Bundle.open(bundle)
    assert source_onnx(opened, typed=True).path == "model.fp16.onnx"
    assert source_onnx(opened, typed=False).path == "model.onnx"
    with pytest.raises(EngineError, match="no fp16 ONNX"):
        source_onnx(Bundle.open(bundle / "model.onnx"), typed=True)


@pytest.mark.parametrize("name", ["model.onnx", "model.fp16.onnx"])
def test_pixels_are_cast_before_anything_else(bundle, name):
    """TensorRT takes uint8 at the network's input only, and only into a cast to a float type."""
    import onnx

    model = onnx.load(bundle / name)
    users = [node for node in model.graph.node if model.graph.input[0].name in node.input]
    assert [node.op_type for node in users] == ["Cast"]
    assert users[0].attribute[0].i in (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)


def test_the_equal_trtexec_line():
    options = PlanOptions(8, version_compatible=True, hardware_compatible=True)
    words = trtexec(Path("b/model.onnx"), Path("b/m.engine"), Path("c.timing"), InputContract(), options, typed=False)
    assert words == (
        *("trtexec", "--onnx=b/model.onnx", "--saveEngine=b/m.engine", "--fp16"),
        *("--minShapes=image:1x224x224x1", "--optShapes=image:8x224x224x1", "--maxShapes=image:8x224x224x1"),
        *("--memPoolSize=workspace:1024", "--timingCacheFile=c.timing"),
        *("--versionCompatible", "--hardwareCompatibilityLevel=ampere+"),
    )
    words = trtexec(Path("a"), Path("b"), Path("c"), InputContract(), PlanOptions(), typed=True)
    assert "--stronglyTyped" in words and not {"--fp16", "--versionCompatible"} & {*words}


def test_the_timing_cache_belongs_to_release_and_gpu(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = timing_cache(HERE)
    assert path == tmp_path / "cxr-edge" / "tensorrt-10.3.0-orin-nvgpu-8-7.timing"
    assert timing_cache(Target("10.4.0", *("Orin (nvgpu)", "8.7", "Linux aarch64"))) != path


def test_activations_of_the_exported_network_fit(bundle, phantoms):
    magnitudes = check_overflow(Bundle.open(bundle), phantoms, 5)
    assert [m.largest for m in magnitudes] == sorted((m.largest for m in magnitudes), reverse=True)
    assert not any(m.overflows for m in magnitudes[:10])
    assert {"logit", "heatmap", "probability"} <= {m.tensor for m in magnitudes}
    assert max(m.largest for m in magnitudes if m.operator == "Cast") == pytest.approx(255, abs=30)


def test_an_activation_that_half_precision_cannot_hold_is_found(bundle, tmp_path):
    import onnx

    model = onnx.load(bundle / "model.onnx")
    first = _first(model, "Conv")
    bias = next(t for t in model.graph.initializer if t.name == first.input[2])
    bias.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias) - 7e4, bias.name))
    onnx.save(model, tmp_path / "changed.onnx")
    found = activation_magnitudes(tmp_path / "changed.onnx", np.zeros((1, 224, 224, 1), np.uint8))
    # Not the first of the list: what is so far from all training images may be even larger, its novelty for one.
    changed = next(m for m in found if m.tensor in first.output)
    assert changed.operator == "Conv" and changed.largest > LARGEST and changed.overflows


def test_where_half_precision_ends():
    assert Magnitude("t", "Conv", float("nan")).overflows and Magnitude("t", "Conv", float("inf")).overflows
    assert Magnitude("t", "Conv", 20_000.0).overflows and not Magnitude("t", "Conv", 16_000.0).overflows


def _first(model, operator):
    return next(node for node in model.graph.node if node.op_type == operator)
