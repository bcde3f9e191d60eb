"""Selection of engines, which share one protocol and import their libraries only when opened."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec

from cxr_edge.runtime.bundles.bundle import Bundle, ModelFile
from cxr_edge.runtime.choices import ENGINES
from cxr_edge.runtime.engines.base import Engine, Outputs
from cxr_edge.runtime.errors import EngineError, MissingExtraError, UsageError

__all__ = ["Engine", "Outputs", "available_engines", "missing_extra", "open_engine", "select"]


def missing_extra(engine: str) -> str | None:
    """The extra that must be installed before `engine` can run; None if its library is installed."""
    return None if find_spec(ENGINES[engine].library) else ENGINES[engine].extra


def available_engines() -> list[str]:
    """Engines whose library is installed, in order of preference."""
    return [name for name in ENGINES if missing_extra(name) is None]


def select(bundle: Bundle, engine: str = "auto", precision: str = "auto") -> ModelFile:
    """Choose the file of a bundle that will run here.

    Raises
    ------
    EngineError, MissingExtraError
        If the engine is not installed, or if the bundle has no file for it.
    UsageError
        If the engine is unknown.
    """
    if engine != "auto" and engine not in ENGINES:
        raise UsageError(f"unknown engine {engine!r}; expected one of: {', '.join(ENGINES)}")
    if engine != "auto" and (extra := missing_extra(engine)):
        raise MissingExtraError(extra, ENGINES[engine].library)
    candidates = available_engines() if engine == "auto" else [engine]
    if not candidates:
        raise MissingExtraError("tflite", "an inference engine")
    for name in candidates:
        if file := bundle.find(name, precision):
            return file
    held = ", ".join(f"{f.engine} {f.precision}" for f in bundle.manifest.files) or "no model file"
    extras = sorted({extra for f in bundle.manifest.files if (extra := missing_extra(f.engine))})
    remedy = "".join(f"; run: pip install 'cxr-edge[{extra}]'" for extra in extras if engine == "auto")
    raise EngineError(
        f"no file for engine {' or '.join(candidates)}, precision {precision}; {bundle.folder} has: {held}{remedy}"
    )


def open_engine(bundle: Bundle, file: ModelFile, threads: int = 1) -> Engine:
    """Check a file of a bundle and load it into its engine."""
    module, _, name = ENGINES[file.engine].implementation.partition(":")
    engine: Engine = getattr(import_module(module), name)(
        bundle.check(file), bundle.manifest.input, threads, bundle.manifest.lungs
    )
    return engine
