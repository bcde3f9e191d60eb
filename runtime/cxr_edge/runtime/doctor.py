"""`cxr-edge doctor`: what can run on this machine."""

from __future__ import annotations

import platform
from importlib import import_module
from importlib.metadata import version
from os import cpu_count

import click

from cxr_edge.runtime.bundle import Bundle
from cxr_edge.runtime.console import Row, emit, output_format
from cxr_edge.runtime.engines import ENGINES, available_engines, missing_extra
from cxr_edge.runtime.errors import EXIT_CHECK_FAILED, CxrEdgeError, MissingDecoderError
from cxr_edge.runtime.predictor import load

INSTALL_DICOM = "pip install 'cxr-edge[dicom]'"


@click.command()
@click.option("-m", "--model", "bundle", type=click.Path(), help="Also run each file of this bundle once.")
@output_format("table", "json", "csv")
def doctor(bundle: str | None, format: str) -> None:
    """Show what can run on this machine and what to install for the rest; exit 1 if no engine runs."""
    rows: list[Row] = [
        _row("machine", "ok", f"{platform.system()} {platform.machine()}, {cpu_count()} cores"),
        _row("python", "ok", platform.python_version()),
        *(_row(package, "ok", version(package)) for package in ("cxr-edge", "numpy", "opencv-python-headless")),
        *(_engine_row(engine) for engine in ENGINES),
        *_dicom_rows(),
    ]
    if bundle:
        rows += _bundle_rows(bundle)
    emit(rows, format)
    if not available_engines() or any(row["state"] == "failed" for row in rows):
        click.get_current_context().exit(EXIT_CHECK_FAILED)


def _row(check: str, state: str, detail: str) -> Row:
    return {"check": check, "state": state, "detail": detail}


def _engine_row(engine: str) -> Row:
    """An engine that is absent is no failure; one that is installed and does not import is."""
    if extra := missing_extra(engine):
        return _row(f"engine {engine}", "absent", f"pip install 'cxr-edge[{extra}]'")
    library = ENGINES[engine][1]
    try:
        module = import_module(library)
    except Exception as error:  # a broken native library raises what its loader raises
        return _row(f"engine {engine}", "failed", f"{library} does not import: {error}")
    detail = f"{library} {getattr(module, '__version__', '')}".strip()
    if engine == "onnx":
        detail += f", {', '.join(p.removesuffix('ExecutionProvider') for p in module.get_available_providers())}"
    return _row(f"engine {engine}", "ok", detail)


def _dicom_rows() -> list[Row]:
    """What opens, found by opening a small file of each transfer syntax; a row more for each that does not."""
    from cxr_edge.runtime.dicom_pixels import SYNTAXES
    from cxr_edge.runtime.dicom_samples import SAMPLES

    states = {SYNTAXES[syntax][0]: _dicom_state(syntax) for syntax in SAMPLES}
    opened = [name for name, (state, _) in states.items() if state == "ok"]
    if not opened and all(state == "absent" for state, _ in states.values()):
        return [_row("DICOM", "absent", INSTALL_DICOM)]
    return [
        _row("DICOM", "ok" if opened else "failed", f"opens {', '.join(opened) or 'nothing'}"),
        *(_row(f"DICOM {name}", *state) for name, state in states.items() if name not in opened),
    ]


def _dicom_state(syntax: str) -> tuple[str, str]:
    """State and detail of one transfer syntax; it is ok only if the pixels are right."""
    from cxr_edge.runtime.dicom import decode_dicom
    from cxr_edge.runtime.dicom_samples import is_sample, sample

    try:
        right = is_sample(decode_dicom(sample(syntax), "sample"))
    except MissingDecoderError:
        return "absent", INSTALL_DICOM
    except CxrEdgeError as error:
        return "failed", str(error)
    return ("ok", "") if right else ("failed", f"wrong pixels; reinstall its decoders: {INSTALL_DICOM}")


def _bundle_rows(path: str) -> list[Row]:
    """Load each file of a bundle that has its engine here, and decide on a blank image."""
    import numpy as np

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
