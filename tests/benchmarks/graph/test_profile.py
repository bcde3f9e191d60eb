"""Profiles of the packaged files by the profilers of their engines."""

import json

import cv2
import numpy as np
import pytest
from support import needs_litert, needs_onnx

from cxr_edge.benchmarks.graph import profile as module
from cxr_edge.benchmarks.graph.counts import count, count_by_name
from cxr_edge.benchmarks.graph.limit import works_of
from cxr_edge.benchmarks.graph.peaks import Peaks
from cxr_edge.benchmarks.graph.profile import Operator, by_kind, causes, profile
from cxr_edge.runtime.bundles.bundle import Bundle
from cxr_edge.runtime.predictor import packaged_model

PEAKS = Peaks(fp32=100.0, fp32_by="a", int8=400.0, int8_by="b", bandwidth=50.0, buffer=1)
IMAGE = np.random.default_rng(0).integers(0, 256, (1, 224, 224, 1), np.uint8)


@pytest.mark.parametrize(
    ("engine", "precision"),
    [pytest.param("onnx", "fp32", marks=needs_onnx), pytest.param("litert", "int8", marks=needs_litert)],
)
def test_each_product_has_its_work_and_its_time(monkeypatch, engine, precision):
    monkeypatch.setattr(module, "RUNS", 5)
    bundle = Bundle.open(packaged_model())
    file = bundle.find(engine, precision)
    operators = profile(bundle, file, IMAGE, 1, PEAKS)
    known = [operator for operator in operators if operator.macs]
    assert len({operator.name for operator in known}) == len(known)
    # 52 convolutions of MobileNetV2, 10 of the lungs, the filter before them (one or two), and the head.
    assert len(known) in (66, 67)
    # TFLite files compute the first filter with fewer products.
    assert sum(o.macs for o in known) == pytest.approx(sum(w.macs for w in works_of(bundle)), rel=0.01)
    assert all(operator.ms >= 0 for operator in operators)
    products_ms, total = sum(o.ms for o in known), sum(o.ms for o in operators)
    assert 0.5 * total < products_ms <= total, "convolutions take most of the time of this network"
    if engine == "litert":
        by_channel = [o for o in known if "DWConv" in o.kind]
        assert by_channel and all("depthwise" in o.name or "smooth" in o.name for o in by_channel)


@needs_onnx
def test_operators_of_a_network_with_branches_are_found_by_their_names():
    bundle = Bundle.open(packaged_model())
    path = bundle.folder / bundle.find("onnx", "fp32").path
    works = count_by_name(path)
    assert len({id(work) for work in works.values()}) == len([w for w in count(path) if w.macs])
    # ONNX Runtime gives a fused convolution the name of its activation.
    fused = works["mobilenetv2_1/backbone_1/block_6_depthwise_relu_1/Relu6:0"]
    assert fused.operator == "Conv depthwise" and fused.macs == 192 * 14 * 14 * 9


def test_groups_and_causes_add_up():
    convolutions = [Operator("a", "Conv", 3.0, 1.0, 10, 1.0), Operator("b", "Conv", 1.0, 0.5, 10, 1.0)]
    operators = [*convolutions, Operator("c", "Add", 1.0)]
    first, second = by_kind(operators)
    assert (first["kind"], first["count"], first["ms"], first["share"]) == ("Conv", 2, 4.0, 0.8)
    assert (second["kind"], second["count"], second["ms"], second["share"]) == ("Add", 1, 1.0, 0.2)
    assert [(row["kind"], row["beyond_ms"]) for row in causes(operators)] == [("Conv", 2.5), ("Add", 1.0)]


@pytest.mark.slow
@needs_onnx
@needs_litert
def test_bench_profile_writes_tables_and_pictures(cli, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "RUNS", 3)
    cv2.imwrite(str(tmp_path / "a.png"), IMAGE[0])
    code, out, err = cli("bench", tmp_path / "a.png", "--profile", tmp_path / "p", "-o", tmp_path / "profile.json")
    assert code == 0 and "largest distances from the limit" in out and "DWConv" in out, out + err
    record = json.loads((tmp_path / "profile.json").read_text())
    assert [file["file"] for file in record["files"]] == ["model.onnx", "model.int8.tflite"]
    for file in record["files"]:
        assert (tmp_path / "p" / f"{file['file']}.png").read_bytes().startswith(b"\x89PNG")
    code, _, err = cli("bench", tmp_path / "a.png", "--profile", tmp_path / "p", "--against", packaged_model())
    assert code == 2 and "found --against and --profile, expected at most one" in err
