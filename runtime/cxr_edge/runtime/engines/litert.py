"""The engine that runs TFLite files with LiteRT and its XNNPACK delegate."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import BoundedSemaphore
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from cxr_edge.runtime.bundles.bundle import InputContract, LungGrid
from cxr_edge.runtime.engines.base import OUTPUTS, Outputs, check_signature, given_outputs
from cxr_edge.runtime.errors import BundleError, EngineError, MissingExtraError
from cxr_edge.runtime.quiet import quiet_native_stderr


class Signature(NamedTuple):
    """A loaded TFLite file: the interpreter, which must stay alive, and the call that maps inputs to outputs."""

    interpreter: Any
    run: Any


class LiteRTEngine:
    """A TFLite file in LiteRT, on the CPU.

    An interpreter holds the tensors of one image. Two threads that shared it would silently get each other's results.
    Therefore each call borrows its own interpreter. Calls run in parallel on up to one interpreter per core, and
    further calls wait. An interpreter needs about 14 MB. The first one is created when the file is loaded, the others
    on demand. All are created from the same bytes, even if the file changes later.
    """

    backend = "CPU, XNNPACK delegate"

    def __init__(self, path: Path, contract: InputContract, threads: int = 1, lungs: LungGrid | None = None) -> None:
        self._path, self._contract, self._threads, self._lungs = path, contract, threads, lungs
        self._content = path.read_bytes()
        with quiet_native_stderr():  # LiteRT prints a greeting with the first interpreter of a process
            self._idle = deque([self._open()])
        self._permits = BoundedSemaphore(os.cpu_count() or 1)

    def run(self, images: npt.NDArray[np.uint8]) -> Outputs:
        """See `Engine.run`. Images run one at a time, because another batch size would rebuild the delegate."""
        with self._borrowed() as signature:
            rows = [signature.run(**{self._contract.name: image[np.newaxis]}) for image in images]
        given = given_outputs(rows[0], self._lungs)
        return Outputs.concatenate([Outputs(**{name: row[name] for name in given}) for row in rows])

    def _open(self) -> Signature:
        return open_signature(self._path, self._content, self._contract, self._threads, self._lungs)

    @contextmanager
    def _borrowed(self) -> Iterator[Signature]:
        """Borrow an interpreter that no other thread uses; wait while all are in use."""
        with self._permits:
            try:
                signature = self._idle.pop()  # operations of a deque are atomic
            except IndexError:
                signature = self._open()
            try:
                yield signature
            finally:
                self._idle.append(signature)


def open_signature(
    path: Path, content: bytes, contract: InputContract, threads: int, lungs: LungGrid | None = None,
    needed: Collection[str] = OUTPUTS,
) -> Signature:  # fmt: skip
    """Load the content of a TFLite file; errors name it `path`.

    Raises
    ------
    BundleError, EngineError, MissingExtraError
        If the file cannot be loaded or does not match the manifest, or if XNNPACK or LiteRT is missing.
    """
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ModuleNotFoundError as error:
        raise MissingExtraError("tflite", error.name) from error
    try:
        interpreter = Interpreter(model_content=content, num_threads=threads)
        interpreter.allocate_tensors()
        # Access outputs by name, because the converter reorders them.
        run = interpreter.get_signature_runner()
        operators = {operator["op_name"] for operator in interpreter._get_ops_details()}
        inputs = run.get_input_details()
        outputs = {name: tuple(int(n) for n in d["shape"]) for name, d in run.get_output_details().items()}
    except (RuntimeError, ValueError) as error:  # includes UnicodeDecodeError for names in a damaged file
        raise BundleError(f"{path}: not a model that LiteRT can load ({error}); copy the file again") from error
    # Without its delegate LiteRT silently runs reference kernels, which are several times slower.
    if "DELEGATE" not in operators:
        raise EngineError(f"{path}: the XNNPACK delegate took no part of the graph; install another ai-edge-litert")
    name, details = next(iter(inputs.items()))
    dtype, shape = np.dtype(details["dtype"]).name, tuple(int(n) for n in details["shape"])
    check_signature(path, contract, name, dtype, shape, outputs, lungs, needed)
    return Signature(interpreter, run)
