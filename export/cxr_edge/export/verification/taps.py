"""Reading every activation of a network: of the trained Keras network, an ONNX file or a TFLite file.

Files run with kernels that keep intermediate tensors: ONNX Runtime with every tensor as an output, which prevents
fusion, and LiteRT without its delegate. Quantised tensors are read dequantised.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from cxr_edge.runtime.engines.onnx import WIDE_SUMS
from cxr_edge.runtime.quiet import quiet_native_stderr

if TYPE_CHECKING:
    import keras
    import onnx
    import onnxruntime as ort

Array = npt.NDArray[np.floating[Any]]
#: Operators that pass values on, or only round them. They do not count as layers.
PASSING = {
    "cast", "dequantize", "dequantizelinear", "dropout", "expand_dims", "flatten", "identity", "inputlayer", "quantize",
    "quantizelinear", "reshape", "squeeze", "transpose", "unsqueeze",
}  # fmt: skip


@dataclass(frozen=True)
class Tensor:
    """An activation: its name, the operator that computes it, and the activations that it is computed from."""

    name: str
    operator: str
    inputs: tuple[str, ...]


class Tap(Protocol):
    """A network whose activations can be read."""

    @property
    def tensors(self) -> Sequence[Tensor]:
        """In the order of the graph."""

    def run(self, image: npt.NDArray[np.uint8]) -> Mapping[str, Array]:
        """All activations of one image, (1, H, W, 1) uint8: name -> (1, …) float."""


def open_tap(path: Path) -> Tap | None:
    """The tap of a model file; None for a format whose tensors cannot be read (TensorRT)."""
    if path.suffix == ".onnx":
        return OnnxTap(path)
    return LiteRTTap(path) if path.suffix == ".tflite" else None


def open_with_outputs(
    model: onnx.ModelProto, tensors: Iterable[str], options: ort.SessionOptions
) -> ort.InferenceSession:
    """Open an ONNX model in ONNX Runtime on the CPU, with more of its tensors as outputs. Changes the model."""
    import onnx
    import onnxruntime as ort

    present = {output.name for output in model.graph.output}
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in tensors if name not in present)
    options.log_severity_level = 3
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


class KerasTap:
    """Reads the layers of the trained network."""

    def __init__(self, network: keras.Model) -> None:
        import keras

        layers = [layer for layer in network.layers if type(layer).__name__.lower() not in PASSING]
        self.tensors = [Tensor(layer.name, type(layer).__name__, ()) for layer in layers]
        self._network = keras.Model(network.inputs[0], [layer.output for layer in layers])

    def run(self, image: npt.NDArray[np.uint8]) -> Mapping[str, Array]:
        """See `Tap.run`."""
        values = self._network(image.astype(np.float32), training=False)
        return {tensor.name: np.asarray(value) for tensor, value in zip(self.tensors, values, strict=True)}


class OnnxTap:
    """Reads an ONNX file; a tensor that is quantised and dequantised is read after dequantisation."""

    def __init__(self, path: Path) -> None:
        import onnx
        import onnxruntime as ort

        model = onnx.load(path)
        operators = [(n.op_type, tuple(n.input), tuple(n.output)) for n in model.graph.node]
        self.tensors, source = _activations(operators, {model.graph.input[0].name})
        self._read = {tensor.name: tensor.name for tensor in self.tensors}
        for kind, _, outputs in operators:
            if kind == "DequantizeLinear" and source.get(outputs[0]) in self._read:
                self._read[source[outputs[0]]] = outputs[0]
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.add_session_config_entry(*WIDE_SUMS)
        self._session = open_with_outputs(model, self._read.values(), options)
        self._input = model.graph.input[0].name

    def run(self, image: npt.NDArray[np.uint8]) -> Mapping[str, Array]:
        """See `Tap.run`."""
        values = self._session.run(list(self._read.values()), {self._input: image})
        return dict(zip(self._read, values, strict=True))


class LiteRTTap:
    """Reads a TFLite file; integer tensors are read dequantised."""

    def __init__(self, path: Path) -> None:
        from ai_edge_litert.interpreter import Interpreter, OpResolverType

        plain = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES  # a delegate hides its tensors
        with quiet_native_stderr():
            self._interpreter = Interpreter(
                str(path), experimental_op_resolver_type=plain, experimental_preserve_all_tensors=True
            )
            self._interpreter.allocate_tensors()
        details = {d["index"]: d for d in self._interpreter.get_tensor_details()}
        self._input = self._interpreter.get_input_details()[0]["index"]
        # Names need not be unique; indices are.
        name = {index: f"{d['name']} #{index}" for index, d in details.items()}
        operators = [
            (op["op_name"], tuple(name.get(i, "") for i in op["inputs"]), tuple(name[i] for i in op["outputs"]))
            for op in self._interpreter._get_ops_details()
        ]
        self.tensors, _ = _activations(operators, {name[self._input]})
        wanted = {tensor.name for tensor in self.tensors}
        self._details = {name[index]: d for index, d in details.items() if name[index] in wanted}

    def run(self, image: npt.NDArray[np.uint8]) -> Mapping[str, Array]:
        """See `Tap.run`."""
        self._interpreter.set_tensor(self._input, image)
        self._interpreter.invoke()
        return {
            name: _dequantised(self._interpreter.get_tensor(d["index"]), *d["quantization"])
            for name, d in self._details.items()
        }


def _dequantised(values: npt.NDArray[Any], scale: float, zero_point: int) -> Array:
    if np.issubdtype(values.dtype, np.integer) and scale:
        return (values.astype(np.float32) - zero_point) * np.float32(scale)
    return values.astype(np.float32)


def _activations(
    operators: Sequence[tuple[str, tuple[str, ...], tuple[str, ...]]], inputs: set[str]
) -> tuple[list[Tensor], dict[str, str]]:
    """The tensors that depend on the image, without those that are only passed on.

    Takes the operators (kind, inputs, outputs) in the order of the graph. Also returns, for the name of each tensor
    that depends on the image, the name of the tensor whose value it has.
    """
    tensors, source = [], {name: name for name in inputs}
    for kind, taken, given in operators:
        origins = tuple(dict.fromkeys(source[name] for name in taken if name in source))
        if not origins:  # made of constants
            continue
        if kind.lower() in PASSING:
            source[given[0]] = origins[0]
            continue
        for name in given:
            source[name] = name
            tensors.append(Tensor(name, kind, origins))
    return tensors, source
