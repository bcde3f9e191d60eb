"""Scalars that are added to the image get axes, and nothing else changes."""

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from cxr_edge.export.conversion.onnx import give_scalars_axes


def a_graph():
    """Cast, add a scalar, clip between two scalars."""
    nodes = [
        helper.make_node("Cast", ["image"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["pixels", "offset"], ["centred"]),
        helper.make_node("Clip", ["centred", "low", "high"], ["out"]),
    ]
    scalars = [numpy_helper.from_array(np.float32(v), n) for n, v in (("offset", -127.5), ("low", 0), ("high", 6))]
    shape = ["N", 4, 4, 1]
    ends = [
        helper.make_tensor_value_info(n, k, shape)
        for n, k in (("image", TensorProto.UINT8), ("out", TensorProto.FLOAT))
    ]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], scalars)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_the_offset_gets_axes_and_the_outputs_keep_their_bits():
    image = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 1), np.uint8)
    model = a_graph()

    def run():
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        return session.run(None, {"image": image})[0]

    before = run()
    give_scalars_axes(model)
    assert {t.name: tuple(t.dims) for t in model.graph.initializer} == {"offset": (1, 1, 1, 1), "low": (), "high": ()}
    onnx.checker.check_model(model, full_check=True)
    np.testing.assert_array_equal(run(), before)


def test_a_scalar_with_another_use_stays():
    model = a_graph()
    model.graph.node[2].input[1] = "offset"
    give_scalars_axes(model)
    assert all(not tensor.dims for tensor in model.graph.initializer)


def test_a_scalar_beside_a_vector_stays():
    model = a_graph()
    for value in (*model.graph.input, *model.graph.output):
        del value.type.tensor_type.shape.dim[1:]
    give_scalars_axes(model)
    assert all(not tensor.dims for tensor in model.graph.initializer)
