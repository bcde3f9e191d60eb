"""Work of a network, peaks of the machine, and the limit that follows."""

import cv2
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from cxr_edge.benchmarks.graph.counts import Work, count
from cxr_edge.benchmarks.graph.limit import entropy_floor_ms, least_seconds, limit_of, works_of
from cxr_edge.benchmarks.graph.peaks import Peaks, measure_peaks
from cxr_edge.runtime.bundles.bundle import Bundle
from cxr_edge.runtime.errors import BundleError
from cxr_edge.runtime.predictor import packaged_model

PEAKS = Peaks(fp32=100.0, fp32_by="a", int8=400.0, int8_by="b", bandwidth=50.0, buffer=1)


def a_model(path):
    """A 3×3 convolution, a depthwise one, a 1×1 one, the mean, and a matrix product, with activations between."""
    rng = np.random.default_rng(0)
    shapes = {"w3": (8, 1, 3, 3), "wd": (8, 1, 3, 3), "w1": (4, 8, 1, 1), "m": (4, 2)}
    nodes = [
        helper.make_node("Conv", ["image", "w3"], ["a"], pads=[1, 1, 1, 1], strides=[2, 2]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "wd"], ["c"], pads=[1, 1, 1, 1], group=8),
        helper.make_node("Conv", ["c", "w1"], ["d"]),
        helper.make_node("GlobalAveragePool", ["d"], ["e"]),
        helper.make_node("Flatten", ["e"], ["f"]),
        helper.make_node("MatMul", ["f", "m"], ["out"]),
    ]
    constants = [numpy_helper.from_array(rng.random(s, np.float32), name) for name, s in shapes.items()]
    ends = [
        helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 1, 8, 8]),
        helper.make_tensor_value_info("out", TensorProto.FLOAT, ["N", 2]),
    ]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def test_the_work_of_a_network_is_that_of_a_count_by_hand(tmp_path):
    works = count(a_model(tmp_path / "m.onnx"))
    assert [(w.operator, w.macs) for w in works] == [
        ("Conv", 8 * 4 * 4 * 9),
        ("Conv depthwise", 8 * 4 * 4 * 9),
        ("Conv 1×1", 4 * 4 * 4 * 8),
        ("GlobalAveragePool", 0),
        ("MatMul", 4 * 2),
    ]
    first = works[0]
    assert first.weights == 72 and first.moved == 8 * 8 + 8 * 4 * 4 and first.bytes(4) == 4 * (72 + 64 + 128)


def test_the_packaged_network_has_the_work_of_mobilenetv2():
    works = works_of(Bundle.open(packaged_model()))
    # 300·10⁶ by its paper (Sandler et al. 2018, table 4), with three input channels and another head.
    assert sum(work.macs for work in works) == pytest.approx(300e6, rel=0.03)


def test_the_limit_is_the_higher_of_both_roofs():
    much, wide = Work("a", "Conv", 10**9, 10, 10), Work("b", "Conv", 10, 10**6, 10**6)
    assert least_seconds(much, "fp32", PEAKS) == pytest.approx(1e9 / 100e9)
    assert least_seconds(much, "int8", PEAKS) == pytest.approx(1e9 / 400e9)
    assert least_seconds(wide, "fp32", PEAKS) == pytest.approx(4 * 2e6 / 50e9)
    assert least_seconds(wide, "int8", PEAKS) == pytest.approx(2e6 / 50e9)
    found = limit_of([much, wide], "fp32", PEAKS, 1.5)
    assert found.network_ms == pytest.approx(10.0 + 0.16) and found.decode_ms == 1.5


def test_what_is_no_model_is_refused(tmp_path):
    path = tmp_path / "m.onnx"
    path.write_bytes(b"\x00 no model")
    with pytest.raises(BundleError, match=r"m\.onnx: not a model that onnx can read"):
        count(path)


def test_the_peaks_of_this_machine_are_plausible():
    found = measure_peaks(threads=1, buffer=1_000_000)
    assert 0.5 < found.fp32 < 2000 and 0.5 < found.int8 < 8000 and 0.2 < found.bandwidth < 2000


def test_the_floor_of_decoding_grows_with_the_bits_of_a_file(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (1200, 1200), np.uint8)
    floors = []
    for quality in (20, 100):
        path = tmp_path / f"{quality}.jpeg"
        cv2.imwrite(str(path), noise, [cv2.IMWRITE_JPEG_QUALITY, quality])
        floors.append(entropy_floor_ms([path]))
    assert 0 < 1.5 * floors[0] < floors[1]
    assert entropy_floor_ms([tmp_path / "b.png"]) is None
