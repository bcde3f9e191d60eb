"""The command `cxr-edge doctor`, which shows what can run on this machine."""

from __future__ import annotations

import platform
import sys
from contextlib import redirect_stdout
from importlib import import_module
from importlib.metadata import packages_distributions, version
from os import cpu_count
from pathlib import Path

import click

from cxr_edge.runtime.choices import ENGINES
from cxr_edge.runtime.cli.console import Row, emit, output_format
from cxr_edge.runtime.errors import EXIT_CHECK_FAILED, CxrEdgeError, MissingDecoderError

#: Module -> (check, command that installs it). The provider differs: JetPack and Linux distributions have their own
#: packages of OpenCV.
PACKAGES = {
    "numpy": ("numpy", "pip install numpy"),
    "cv2": ("opencv", "pip install opencv-python-headless"),
    "simplejpeg": ("JPEG decoder", "pip install simplejpeg"),
}
#: This file exists in NVIDIA's system image for Jetsons.
JETSON = Path("/etc/nv_tegra_release")
#: cxr-edge[onnx-gpu] cannot be installed on JetPack 6: PyPI has no onnxruntime-gpu for its Python 3.10 on aarch64.
JETSON_GPU = "on the GPU: JetPack's own TensorRT, or onnxruntime-gpu from NVIDIA's Jetson index (docs/jetson.md)"
INSTALL_DICOM = "pip install 'cxr-edge[dicom]'"


@click.command()
@click.option("-m", "--model", "bundle", type=click.Path(), help="Also run each file of this bundle once.")
@output_format("table", "json", "csv")
def doctor(bundle: str | None, format: str) -> None:
    """Show what can run on this machine and what to install; exit 1 if no engine runs."""
    engines = _engine_rows()
    rows: list[Row] = [
        _row("machine", "ok", f"{platform.system()} {platform.machine()}, {cpu_count()} cores"),
        _row("python", "ok", platform.python_version()),
        _row("cxr-edge", "ok", version("cxr-edge")),
        *(_package_row(module) for module in PACKAGES),
        *engines,
    ]
    if not _failed(rows):
        rows += _dicom_rows()
        rows += _bundle_rows(bundle) if bundle else []
    emit(rows, format)
    if _failed(rows) or all(row["state"] != "ok" for row in engines):
        click.get_current_context().exit(EXIT_CHECK_FAILED)


def _row(check: str, state: str, detail: str) -> Row:
    return {"check": check, "state": state, "detail": detail}


def _failed(rows: list[Row]) -> bool:
    return any(row["state"] == "failed" for row in rows)


def _package_row(module: str) -> Row:
    """Check a core module by importing it, because other packages than pip's may provide it."""
    check, command = PACKAGES[module]
    try:
        with redirect_stdout(sys.stderr):  # without numpy, OpenCV prints to standard output
            found = import_module(module)
    except Exception as error:  # a broken native library may raise anything
        return _row(check, "failed", f"{module} does not import ({error}); run: {command}")
    owners = sorted(set(packages_distributions().get(module, ())))
    origin = ", ".join(owners) or "a package that pip does not know"
    return _row(check, "ok", f"{getattr(found, '__version__', 'unknown version')}, from {origin}")


def _engine_rows() -> list[Row]:
    try:
        import_module("cxr_edge.runtime.engines")
    except ImportError as error:  # without numpy
        return [_row("engines", "failed", f"not checked: {error}")]
    return [_engine_row(engine) for engine in ENGINES]


def _engine_row(engine: str) -> Row:
    """Check an engine; a missing engine is not a failure, but one that cannot be imported is."""
    from cxr_edge.runtime.engines import missing_extra

    on_jetson = f"; {JETSON_GPU}" if engine == "onnx" and JETSON.is_file() else ""
    if extra := missing_extra(engine):
        return _row(f"engine {engine}", "absent", f"pip install 'cxr-edge[{extra}]'{on_jetson}")
    library = ENGINES[engine].library
    try:
        module = import_module(library)
    except Exception as error:  # a broken native library may raise anything
        return _row(f"engine {engine}", "failed", f"{library} does not import: {error}")
    detail = f"{library} {getattr(module, '__version__', '')}".strip()
    if engine == "onnx":
        providers = [p.removesuffix("ExecutionProvider") for p in module.get_available_providers()]
        detail += f", {', '.join(providers)}{'' if 'CUDA' in providers else on_jetson}"
    return _row(f"engine {engine}", "ok", detail)


def _dicom_rows() -> list[Row]:
    """Open a small file of each transfer syntax; one row for all that open, and one for each that does not."""
    from cxr_edge.runtime.imaging.dicom_pixels import SYNTAXES
    from cxr_edge.runtime.imaging.dicom_samples import SAMPLES

    states = {SYNTAXES[syntax][0]: _dicom_state(syntax) for syntax in SAMPLES}
    opened = [name for name, (state, _) in states.items() if state == "ok"]
    if not opened and all(state == "absent" for state, _ in states.values()):
        return [_row("DICOM", "absent", INSTALL_DICOM)]
    return [
        _row("DICOM", "ok" if opened else "failed", f"opens {', '.join(opened) or 'nothing'}"),
        *(_row(f"DICOM {name}", *state) for name, state in states.items() if name not in opened),
    ]


def _dicom_state(syntax: str) -> tuple[str, str]:
    """State and detail of one transfer syntax; it is ok only if the pixels are correct."""
    from cxr_edge.runtime.imaging.dicom import decode_dicom
    from cxr_edge.runtime.imaging.dicom_samples import is_sample, sample

    try:
        right = is_sample(decode_dicom(sample(syntax), "sample"))
    except MissingDecoderError:
        return "absent", INSTALL_DICOM
    except CxrEdgeError as error:
        return "failed", str(error)
    return ("ok", "") if right else ("failed", f"wrong pixels; reinstall its decoders: {INSTALL_DICOM}")


def _bundle_rows(path: str) -> list[Row]:
    """Load each file of a bundle whose engine is installed, and run it on a blank image."""
    import numpy as np

    from cxr_edge.runtime.bundles.bundle import Bundle
    from cxr_edge.runtime.engines import missing_extra
    from cxr_edge.runtime.predictor import load

    blank = np.zeros((224, 224), np.uint8)
    rows = []
    for file in Bundle.open(path).manifest.files:
        if missing_extra(file.engine):
            continue
        try:
            predictor = load(path, file.engine, file.precision)
            predictor.predict(blank)
            rows.append(_row(file.path, "ok", f"runs on {predictor.engine.backend}"))
        except CxrEdgeError as error:
            rows.append(_row(file.path, "failed", str(error)))
    return rows
