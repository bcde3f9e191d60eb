"""`doctor` on machines that lack something, or have it from elsewhere."""

import json
import sys
from types import ModuleType

import pytest

from cxr_edge.runtime.cli import doctor


def rows_of(cli, *options):
    code, out, _ = cli("doctor", "--format", "json", *options)
    return code, {row["check"]: row for row in json.loads(out)}


def test_opencv_and_the_jpeg_decoder_are_found_by_import(cli):
    code, rows = rows_of(cli)
    assert code == 0 and rows["opencv"]["state"] == rows["JPEG decoder"]["state"] == "ok"
    import cv2

    assert rows["opencv"]["detail"].startswith(f"{cv2.__version__}, from opencv")


def test_opencv_from_elsewhere_is_ok(cli, monkeypatch):
    monkeypatch.setattr(doctor, "packages_distributions", dict)  # as with JetPack's package
    code, rows = rows_of(cli)
    assert code == 0 and "a package that pip does not know" in rows["opencv"]["detail"]


@pytest.mark.parametrize(("module", "check"), [("cv2", "opencv"), ("simplejpeg", "JPEG decoder")])
def test_a_package_that_does_not_import_is_a_failed_row(cli, monkeypatch, module, check):
    monkeypatch.setitem(sys.modules, module, None)
    code, rows = rows_of(cli, "-m", "some-bundle")
    assert code == 1 and rows[check]["state"] == "failed"
    assert doctor.PACKAGES[module][1].startswith("pip install") and doctor.PACKAGES[module][1] in rows[check]["detail"]


def test_without_numpy_there_are_rows_all_the_same(tmp_path):
    import subprocess

    program = "import sys; sys.modules['numpy'] = None; from cxr_edge.runtime.cli.main import main; sys.exit(main())"
    command = [sys.executable, "-c", program, "doctor", "--format", "json"]
    done = subprocess.run(command, capture_output=True, text=True)
    rows = {row["check"]: row["state"] for row in json.loads(done.stdout)}
    assert done.returncode == 1 and rows["numpy"] == rows["engines"] == "failed", done


@pytest.mark.parametrize(("providers", "advises"), [(["CPU"], True), (["CUDA", "CPU"], False)])
@pytest.mark.slow
def test_on_a_jetson_it_names_the_way_to_the_gpu(cli, monkeypatch, tmp_path, providers, advises):
    library = ModuleType("onnxruntime")
    library.get_available_providers = lambda: [f"{name}ExecutionProvider" for name in providers]
    monkeypatch.setitem(sys.modules, "onnxruntime", library)
    monkeypatch.setattr("cxr_edge.runtime.engines.missing_extra", lambda engine: None if engine == "onnx" else "x")
    assert "Jetson" not in rows_of(cli)[1]["engine onnx"]["detail"]
    (tmp_path / "nv_tegra_release").touch()
    monkeypatch.setattr(doctor, "JETSON", tmp_path / "nv_tegra_release")
    assert ("Jetson index" in rows_of(cli)[1]["engine onnx"]["detail"]) is advises
