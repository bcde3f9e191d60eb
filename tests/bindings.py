"""NVIDIA's own Python bindings, of several releases, on a machine without GPU, CUDA or compiler.

The wheels with the full bindings (builder and runtime, 1.2 MB each) need TensorRT's libraries (1 to 2 GB) just to be
imported. They take from them a few C functions, which nothing calls before an object is made. So each library that they
look for becomes a link to the bindings themselves, functions are bound as late as possible, and the few names that must
exist at once are renamed to one of the C library. What is checked, names and signatures, is left as NVIDIA compiled it.
"""

import ast
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import pytest

#: TensorRT (JetPack 6.1 and 6.2, 7.1, 7.2, 7.2.2) -> its bindings' distribution, and a release of cuda-bindings.
RELEASES = {
    "10.3.0": ("tensorrt-cu12-bindings", "12.9.9"),
    "10.13.3.9": ("tensorrt-cu13-bindings", "13.5.0"),
    "10.16.1.11": ("tensorrt-cu13-bindings", "13.5.0"),
    "11.4.0.106": ("tensorrt-cu13-bindings", "13.5.0"),
}
LIBRARIES = ("nvinfer", "nvinfer_plugin", "nvonnxparser")
# What the metapackage `tensorrt` does, with functions bound as late as possible.
PACKAGE = """import os, sys
sys.setdlopenflags(os.RTLD_LAZY)
from tensorrt_bindings import *
from tensorrt_bindings import __version__
"""
TENSORRT_STUBS = """import tensorrt, sys
if __name__ == "__main__":
    from mypy.stubgen import main
    main(["--inspect-mode", "-q", "-m", "tensorrt_bindings", "-m", "tensorrt_bindings.tensorrt", "-o", sys.argv[1]])
"""
CUDA_STUBS = """import inspect, sys
from cuda.bindings import runtime
print("from typing import Any")
for name, value in vars(runtime).items():
    if hasattr(value, "__members__"):
        print(f"class {name}:", *(f"    {member}: {name}" for member in value.__members__), "    ...", sep="\\n")
    elif name.startswith("cuda") and callable(value) and not inspect.isclass(value):
        print(f"def {name}({', '.join(inspect.signature(value).parameters)}) -> Any: ...")
"""


def bindings(release: str) -> Path:
    """A folder to import `tensorrt` and `cuda.bindings` from, their stubs in its `stubs`; kept between runs."""
    if sys.platform != "linux":
        pytest.skip("NVIDIA's bindings are unpacked on Linux")
    python = f"cp{sys.version_info.major}{sys.version_info.minor}"
    folder = Path(tempfile.gettempdir()) / "cxr-edge-bindings" / f"{release}-{python}"
    if not folder.is_dir():
        folder.parent.mkdir(exist_ok=True)
        partial = Path(tempfile.mkdtemp(dir=folder.parent))
        try:
            _fetch(release, partial)
            _unbind(partial, release.split(".")[0])
            _write_stubs(partial)
            partial.rename(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return folder


def _fetch(release: str, folder: Path) -> None:
    tensorrt, cuda = RELEASES[release]
    wanted = (f"{tensorrt}=={release}", f"cuda-bindings=={cuda}", "cuda-pathfinder")
    options = ("--quiet", "--no-deps", "--only-binary", ":all:", "--timeout", "10", "--retries", "1")
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", folder / "wheels", *wanted]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    if done.returncode:
        pytest.skip(f"no bindings of TensorRT {release} from PyPI: {done.stderr.strip().splitlines()[-1]}")
    for wheel in (folder / "wheels").glob("*.whl"):
        zipfile.ZipFile(wheel).extractall(folder)
    shutil.rmtree(folder / "wheels")


def _unbind(folder: Path, major: str) -> None:
    (folder / "tensorrt").mkdir()
    (folder / "tensorrt" / "__init__.py").write_text(PACKAGE)
    library = folder / "tensorrt_bindings" / "tensorrt.so"
    for name in LIBRARIES:
        library.with_name(f"lib{name}.so.{major}").symlink_to(library.name)
    while (done := python(folder, "-c", "import tensorrt")).returncode:
        missing = re.search(r"undefined symbol: (\w+)", done.stderr)
        assert missing, done.stderr
        symbol = b"\0%b\0" % missing[1].encode()
        library.write_bytes(library.read_bytes().replace(symbol, b"\0getpid".ljust(len(symbol), b"\0")))


def _write_stubs(folder: Path) -> None:
    script = folder / "write_stubs.py"
    script.write_text(TENSORRT_STUBS)
    done = python(folder, script, folder / "stubs")
    assert done.returncode == 0, done.stderr
    stub = folder / "stubs" / "tensorrt_bindings" / "tensorrt.pyi"
    stub.write_text(_sound(stub.read_text()))
    (folder / "stubs" / "tensorrt").mkdir()
    (folder / "stubs" / "tensorrt" / "__init__.pyi").write_text("from tensorrt_bindings import *\n__version__: str\n")
    (folder / "stubs" / "cuda" / "bindings").mkdir(parents=True)
    done = python(folder, "-c", CUDA_STUBS)
    assert done.returncode == 0, done.stderr
    (folder / "stubs" / "cuda" / "bindings" / "runtime.pyi").write_text(done.stdout)


def _sound(stub: str) -> str:
    """Make sense of what cannot be said in, or was said wrongly by, the docstrings that a stub was made of."""
    stub = re.sub(r"^bool: .*", "", stub, flags=re.MULTILINE)  # hides the type in every signature
    stub = stub.replace("typing.SupportsInt", "int")  # what may be given, not what our overrides are given
    lines = stub.replace("class Dims:", "class Dims:\n    def __iter__(self): ...  # by __getitem__").splitlines()
    while True:
        try:
            ast.parse("\n".join(lines))
        except SyntaxError as error:  # leave the signature out: to use that name is then an error
            lines[error.lineno - 1] = re.sub(r"\S.*", "...", lines[error.lineno - 1])
        else:
            return "\n".join(lines)


def python(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run this Python with the bindings of `folder` installed, so to say."""
    path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=120,
    )
