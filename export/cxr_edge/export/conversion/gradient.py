"""gradient.onnx: d logit / d image as an ordinary forward graph, by reverse mode over the exported ONNX graph.

The graphs of TensorFlow's autodiff do not convert: tf2onnx writes operators such as ReluGrad that no engine supports.
Therefore each operator of the exported graph has a rule here, which builds its gradient from standard operators.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from cxr_edge.runtime.errors import BundleError

if TYPE_CHECKING:
    import onnx


def gradient_model(model: onnx.ModelProto) -> onnx.ModelProto:
    """Derive the gradient graph of a deployment graph.

    Parameters
    ----------
    model
        fp32 ONNX of `onnx_from_keras`: `image` -> `logit`. Its other outputs are left out.

    Returns
    -------
    Graph `image` (N, H, W, 1) float32 -> `gradient` (N, H, W, 1) float32 and `logit` (N,) float32. The image is float
    because points between two images are not integers. Forward and backward pass share the weights.

    Raises
    ------
    BundleError
        If an operator between image and logit has no rule.
    """
    import onnx

    path = onnx.utils.Extractor(model).extract_model(["image"], ["logit"])
    graph = path.graph
    image = graph.input[0]
    image.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    back = _Backward(onnx.shape_inference.infer_shapes(path).graph, graph)
    forward = list(graph.node)
    reached = {image.name}  # all that depends on the image; the rest is constant
    for node in forward:
        if reached.intersection(node.input):
            reached.update(node.output)
    gradients = {"logit": back("ConstantOfShape", back("Shape", "logit"), value=_one())}
    for node in reversed(forward):
        if node.output[0] not in gradients:
            continue
        for index, name in enumerate(node.input):
            if name in reached:
                share = _rule(node)(back, node, gradients[node.output[0]], index)
                gradients[name] = back("Add", gradients[name], share) if name in gradients else share
    graph.node.add(op_type="Identity", input=[gradients[image.name]], output=["gradient"])
    gradient = graph.output.add()
    gradient.CopyFrom(image)
    gradient.name = "gradient"
    del graph.value_info[:]
    graph.name = f"{model.graph.name}_gradient"
    onnx.checker.check_model(path, full_check=True)
    return path


class _Backward:
    """Appends the backward pass to a graph. A call with an operator and its inputs returns the name of the output."""

    def __init__(self, inferred: onnx.GraphProto, graph: onnx.GraphProto) -> None:
        from onnx import numpy_helper

        self._graph = graph
        self._constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
        values = (*inferred.value_info, *inferred.input, *inferred.output)
        self._shapes = {v.name: [d.dim_value or d.dim_param for d in v.type.tensor_type.shape.dim] for v in values}

    def __call__(self, op_type: str, *inputs: str, **attributes: Any) -> str:
        from onnx import helper

        name = f"gradient/{len(self._graph.node)}"
        self._graph.node.append(helper.make_node(op_type, inputs, [name], name=name, **attributes))
        return name

    def shape(self, name: str) -> list[Any]:
        """Shape of a tensor; the batch axis is a name."""
        return list(self._constants[name].shape) if name in self._constants else self._shapes[name]

    def value(self, name: str) -> npt.NDArray[Any]:
        """Value of a constant."""
        return self._constants[name]

    def constant(self, values: Any) -> str:
        """Store a constant as float32 or int64, and return its name."""
        from onnx import numpy_helper

        array = np.asarray(values)
        array = array.astype(np.float32 if array.dtype.kind == "f" else np.int64)
        name = f"gradient/constant/{len(self._graph.initializer)}"
        self._graph.initializer.append(numpy_helper.from_array(array, name))
        return name


#: (backward pass, node, gradient of its first output, which input) -> name of that input's gradient.
Rule = Callable[[_Backward, "onnx.NodeProto", str, int], str]


def _rule(node: onnx.NodeProto) -> Rule:
    try:
        return RULES[node.op_type]
    except KeyError:
        raise _unsupported(node, "no rule for this operator") from None


def _unsupported(node: onnx.NodeProto, why: str) -> BundleError:
    return BundleError(
        f"no gradient through {node.op_type} ({node.output[0]}): {why}; "
        "add a rule to export/conversion/gradient.py, or export the other files by name with --file"
    )


def _pass(back: _Backward, node: onnx.NodeProto, gradient: str, index: int) -> str:
    return gradient


def _same_shape(back: _Backward, node: onnx.NodeProto, index: int) -> None:
    if back.shape(node.input[index]) != back.shape(node.output[0]):
        raise _unsupported(node, "its operand is broadcast, which has no rule")


def _add(back: _Backward, node: onnx.NodeProto, gradient: str, index: int) -> str:
    _same_shape(back, node, index)
    return gradient


def _sub(back: _Backward, node: onnx.NodeProto, gradient: str, index: int) -> str:
    _same_shape(back, node, index)
    return back("Neg", gradient) if index else gradient


def _mul(back: _Backward, node: onnx.NodeProto, gradient: str, index: int) -> str:
    _same_shape(back, node, index)
    return back("Mul", gradient, node.input[1 - index])


def _div(back: _Backward, node: onnx.NodeProto, gradient: str, index: int) -> str:
    if index:
        raise _unsupported(node, "division by a value that depends on the image has no rule")
    _same_shape(back, node, index)
    return back("Div", gradient, node.input[1])


def _relu(back: _Backward, node: onnx.NodeProto, gradient: str, index: int) -> str:
    return _where(back, back("Greater", node.output[0], back.constant(0.0)), gradient)


def _clip(back: _Backward, node: onnx.NodeProto, gradient: str, index: int) -> str:
    output, low, high = node.output[0], node.input[1], node.input[2]
    return _where(back, back("And", back("Greater", output, low), back("Less", output, high)), gradient)


def _where(back: _Backward, inside: str, gradient: str) -> str:
    """Mask the gradient by the output of the activation, which can then stay fused with the convolution."""
    return back("Mul", gradient, back("Cast", inside, to=1))  # 1: float32; Where and Sign are slower


def _conv(back: _Backward, node: onnx.NodeProto, gradient: str, index: int) -> str:
    """A transposed convolution with the same weights: ConvTranspose reads (M, C/g, kh, kw) as (in, out/g, …)."""
    attributes = _attributes(node)
    if index or attributes.get("auto_pad", b"NOTSET") != b"NOTSET":
        raise _unsupported(node, "weights that depend on the image and auto_pad have no rule")
    kernel = back.shape(node.input[1])[2:]
    axes = len(kernel)
    strides, dilations = attributes.get("strides", [1] * axes), attributes.get("dilations", [1] * axes)
    pads = attributes.get("pads", [0] * 2 * axes)
    # Pixels at the end that no stride reaches; without output_padding, ConvTranspose would omit them.
    sizes = zip(back.shape(node.input[0])[2:], back.shape(node.output[0])[2:], strict=True)
    left_over = [
        size - ((out - 1) * strides[i] + dilations[i] * (kernel[i] - 1) + 1 - pads[i] - pads[i + axes])
        for i, (size, out) in enumerate(sizes)
    ]
    return back(
        "ConvTranspose", gradient, node.input[1], strides=strides, dilations=dilations, pads=pads,
        group=attributes.get("group", 1), kernel_shape=kernel, output_padding=left_over,
    )  # fmt: skip


def _max_pool(back: _Backward, node: onnx.NodeProto, gradient: str, index: int) -> str:
    """The gradient of each maximum goes to its position; windows may overlap."""
    indices = f"{node.output[0]}/indices"
    node.output.append(indices)  # positions in the flattened input
    flat = back.constant([-1])
    source = node.input[0]
    zeros = back("ConstantOfShape", back("Reshape", back("Size", source), flat))
    positions, values = back("Reshape", indices, flat), back("Reshape", gradient, flat)
    scattered = back("ScatterElements", zeros, positions, values, axis=0, reduction="add")
    return back("Reshape", scattered, back("Shape", source))


def _pad(back: _Backward, node: onnx.NodeProto, gradient: str, index: int) -> str:
    if _attributes(node).get("mode", b"constant") != b"constant":
        raise _unsupported(node, "only constant padding has a rule")
    return back("Pad", gradient, back.constant(-back.value(node.input[1])))


def _global_average_pool(back: _Backward, node: onnx.NodeProto, gradient: str, index: int) -> str:
    return _spread(back, node, gradient, range(2, len(back.shape(node.input[0]))))


def _reduce_mean(back: _Backward, node: onnx.NodeProto, gradient: str, index: int) -> str:
    attributes = _attributes(node)
    if not attributes.get("keepdims", 1):
        gradient = back("Unsqueeze", gradient, back.constant(attributes["axes"]))
    return _spread(back, node, gradient, attributes["axes"])


def _spread(back: _Backward, node: onnx.NodeProto, gradient: str, axes: Sequence[int]) -> str:
    """The gradient of a mean over `axes`: an equal share for each cell."""
    sizes = back.shape(node.input[0])
    share = back("Mul", gradient, back.constant(1.0 / np.prod([sizes[axis] for axis in axes])))
    return back("Expand", share, back("Shape", node.input[0]))


def _mat_mul(back: _Backward, node: onnx.NodeProto, gradient: str, index: int) -> str:
    if index or len(back.shape(node.input[1])) != 2:
        raise _unsupported(node, "only a product with a constant matrix on the right has a rule")
    return back("MatMul", gradient, back("Transpose", node.input[1], perm=[1, 0]))


def _gemm(back: _Backward, node: onnx.NodeProto, gradient: str, index: int) -> str:
    attributes = _attributes(node)
    if index or attributes.get("transA", 0):
        raise _unsupported(node, "only a product with a constant matrix on the right has a rule")
    transposed = 1 - attributes.get("transB", 0)
    return back("Gemm", gradient, node.input[1], alpha=attributes.get("alpha", 1.0), transB=transposed)


def _reshape(back: _Backward, node: onnx.NodeProto, gradient: str, index: int) -> str:
    return back("Reshape", gradient, back("Shape", node.input[0]))


def _transpose(back: _Backward, node: onnx.NodeProto, gradient: str, index: int) -> str:
    return back("Transpose", gradient, perm=np.argsort(_attributes(node)["perm"]).tolist())


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    from onnx import helper

    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def _one() -> onnx.TensorProto:
    from onnx import numpy_helper

    return numpy_helper.from_array(np.ones(1, np.float32))


RULES: dict[str, Rule] = {
    "Add": _add,
    "Cast": _pass,
    "Clip": _clip,
    "Conv": _conv,
    "Div": _div,
    "Flatten": _reshape,
    "Gemm": _gemm,
    "GlobalAveragePool": _global_average_pool,
    "Identity": _pass,
    "MatMul": _mat_mul,
    "MaxPool": _max_pool,
    "Mul": _mul,
    "Pad": _pad,
    "ReduceMean": _reduce_mean,
    "Relu": _relu,
    "Reshape": _reshape,
    "Squeeze": _reshape,
    "Sub": _sub,
    "Transpose": _transpose,
    "Unsqueeze": _reshape,
}
