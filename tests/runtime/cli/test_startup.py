"""`--help` and `import cxr_edge.runtime` load only what they show."""

import subprocess
import sys
from importlib import import_module

import pytest

import cxr_edge.runtime
from cxr_edge.runtime import choices, predictor

HEAVY = {"numpy", "cv2", "simplejpeg", "onnxruntime", "ai_edge_litert", "pydicom", "tensorflow", "keras", "rich"}


def loaded_after(program: str, *arguments: str) -> set[str]:
    """Modules that a fresh Python has loaded after a program."""
    program += "\nimport sys; print('\\n'.join(['MODULES', *sys.modules]))"
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True)
    return set(done.stdout.split("MODULES\n")[1].split())


@pytest.mark.parametrize("command", [(), ("predict",), ("explain",), ("inspect",), ("doctor",)])
def test_help_loads_neither_numpy_nor_opencv(command):
    loaded = loaded_after("from cxr_edge.runtime.cli.main import main; main()", *command, "--help")
    assert not loaded & HEAVY
    ours = {name for name in loaded if name.startswith("cxr_edge.runtime.")}
    assert not ours & {
        f"cxr_edge.runtime.{name}" for name in ("bundles.bundle", "engines", "imaging.image", "predictor", "quiet")
    }


def test_the_package_loads_its_names_when_they_are_used():
    assert not loaded_after("import cxr_edge.runtime") & (HEAVY | {"cxr_edge.runtime.predictor"})
    assert "numpy" in loaded_after("from cxr_edge.runtime import load")
    assert not loaded_after("from cxr_edge.runtime import ImageError") & HEAVY


def test_every_name_of_the_package_is_there():
    for name in cxr_edge.runtime.__all__:
        value = getattr(cxr_edge.runtime, name)
        assert value.__name__ == name and value.__module__.startswith("cxr_edge.runtime.")
        assert name in dir(cxr_edge.runtime)
    scope: dict[str, object] = {}
    exec("from cxr_edge.runtime import *", scope)
    assert scope["load"] is predictor.load
    with pytest.raises(AttributeError, match="no attribute 'loda'"):
        _ = cxr_edge.runtime.loda


def test_every_row_of_the_engines_names_a_class_of_the_protocol():
    for row in choices.ENGINES.values():
        module, _, name = row.implementation.partition(":")
        assert callable(getattr(import_module(module), name).run)
