"""The output `lungs` of every format against the layer of the Keras network."""

import json
from dataclasses import asdict, replace

import cv2
import numpy as np
import pytest
from support import Lazy

from cxr_edge.common.run import Novelty
from cxr_edge.common.statistics import dice
from cxr_edge.export.conversion import mediapipe, onnx, quantize, tflite
from cxr_edge.export.conversion.formats import BY_NAME
from cxr_edge.export.conversion.gradient import gradient_model
from cxr_edge.export.conversion.graph import deployment_model
from cxr_edge.export.verification.reference import Reference
from cxr_edge.runtime import BundleError, load
from cxr_edge.runtime.bundles.bundle import (
    HeatmapGeometry,
    InputContract,
    LungGrid,
    Manifest,
    ModelFile,
    OperatingPoint,
)
from cxr_edge.runtime.bundles.facts import PLACEHOLDER
from cxr_edge.runtime.engines.litert import LiteRTEngine
from cxr_edge.runtime.engines.onnx import WIDE_SUMS, OnnxEngine
from cxr_edge.train.fit.models import build

fold = Lazy("cxr_edge.train.fit.fold")

pytestmark = pytest.mark.slow
SIDE, GRID = 64, LungGrid(8, 8)
CONTRACT = InputContract(SIDE, SIDE)
FACTS = Manifest(
    "cnn", "2026", CONTRACT, HeatmapGeometry(32.0, 15.5), (OperatingPoint("balanced", 0.5, "x"),), 1.0, lungs=GRID
)
NOVELTY = Novelty(
    np.zeros(128, np.float32), np.eye(128, 8, dtype=np.float32), np.ones((128, 1), np.float32),
    np.ones(1, np.float32), 1.0,
)  # fmt: skip


@pytest.fixture(scope="module")
def pixels():
    """Smooth random pictures, (40, 64, 64, 1) uint8."""
    coarse = np.random.default_rng(0).uniform(0, 255, (40, 6, 6)).astype(np.float32)
    fine = [cv2.resize(picture, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC) for picture in coarse]
    return np.clip(fine, 0, 255).astype(np.uint8)[..., np.newaxis]


@pytest.fixture(scope="module")
def network(pixels):
    """An untrained network; the logits of its lungs are spread around 0, so that half of all tiles are lungs."""
    import keras

    keras.utils.set_random_seed(0)
    network = fold.deployable(build("cnn", "none", SIDE, lungs=True))
    last = network.get_layer("lungs")
    logits = np.asarray(network(pixels.astype(np.float32))[1])
    kernel, bias = last.get_weights()
    scale = 4 / logits.std()
    last.set_weights([kernel * scale, (bias - np.median(logits)) * scale])
    return network


@pytest.fixture(scope="module")
def reference(network, pixels):
    return Reference(network, 1.0, NOVELTY).run(pixels)


def facts_of(path, engine, precision):
    return replace(FACTS, files=(ModelFile(path.name, engine, precision, PLACEHOLDER, 0),))


def write(path, network, precision, pixels):
    """Write a file with its facts inside, as `export` does."""
    steps = quantize.FULL if path.suffix == ".tflite" or precision == "symmetric" else onnx.REDUCED
    if precision in ("int8", "symmetric"):
        finest, kept = quantize.finest_integer_map(network), quantize.float_layers(network)
        network = quantize.round_weights(network, pixels, steps)
    model = deployment_model(network, 1.0, NOVELTY)
    if path.suffix == ".tflite":
        content = tflite.tflite_from_keras(model, "fp16" if precision == "fp16" else "fp32")
        content = tflite.to_int8(content, pixels, kept) if precision == "int8" else content
        facts = facts_of(path, "litert", precision)
        tflite.write_tflite(content, path, json.dumps(asdict(facts)), FACTS.classes)
    else:
        graph = onnx.onnx_from_keras(model)
        if precision == "fp16":
            graph = onnx.to_fp16(graph)
        elif precision != "fp32":
            graph = onnx.to_int8(graph, pixels, finest, precision == "symmetric")
        onnx.write_onnx(graph, path, json.dumps(asdict(facts_of(path, "onnx", precision))))
    return path


@pytest.mark.parametrize(
    ("name", "precision", "largest", "least_dice"),
    [
        ("model.onnx", "fp32", 1e-4, 0.9999),
        ("model.onnx", "fp16", 0.005, 0.99),
        ("model.tflite", "fp32", 1e-4, 0.9999),
        ("model.tflite", "fp16", 0.005, 0.99),
        ("model.onnx", "int8", 0.3, 0.97),
        ("model.int8.symmetric.onnx", "symmetric", 0.3, 0.97),
        ("model.tflite", "int8", 0.3, 0.97),
    ],
)
def test_every_format_finds_the_lungs_of_keras(
    network, pixels, reference, tmp_path, name, precision, largest, least_dice
):
    path = write(tmp_path / name, network, precision, pixels)
    row = BY_NAME.get(name)
    engine = (row and row.open_engine) or (OnnxEngine if path.suffix == ".onnx" else LiteRTEngine)
    outputs = engine(path, CONTRACT, 1, GRID).run(pixels)
    assert outputs.lungs.shape == reference.lungs.shape == (40, 8, 8) and outputs.lungs.dtype == np.float32
    assert 0.3 < (reference.lungs >= 0.5).mean() < 0.7
    assert np.abs(outputs.lungs - reference.lungs).max() <= largest
    assert dice(outputs.lungs >= 0.5, reference.lungs >= 0.5).mean() >= least_dice
    np.testing.assert_allclose(outputs.logit, reference.logit, atol=0.1)
    # The same file in a bundle that does not declare its lungs runs as one without them.
    assert engine(path, CONTRACT, 1, None).run(pixels[:1]).lungs is None


def test_products_of_the_symmetric_file_are_added_in_32_bits(network, pixels, tmp_path):
    """Only a CPU without VNNI gives other outputs without it."""
    path = write(tmp_path / "model.int8.symmetric.onnx", network, "symmetric", pixels)
    engine = BY_NAME[path.name].open_engine(path, CONTRACT, 1, GRID)
    name, value = WIDE_SUMS
    assert engine._session.get_session_options().get_session_config_entry(name) == value


def test_a_lone_file_tells_of_the_lungs(network, pixels, tmp_path):
    predictor = load(write(tmp_path / "model.onnx", network, "fp32", pixels))
    prediction = predictor.predict(pixels[0, ..., 0])
    assert prediction.lungs.shape == (8, 8)
    assert prediction.lungs_found in ("both", "one", "none", "cut off")
    row = json.loads(json.dumps(prediction.to_dict()))
    assert row["lungs_found"] == prediction.lungs_found and row["evidence_in_lungs"] == prediction.evidence_in_lungs
    for one, again in zip(predictor.predict_many([p[..., 0] for p in pixels[:5]]), pixels[:5], strict=True):
        np.testing.assert_allclose(one.lungs, predictor.predict(again[..., 0]).lungs, atol=1e-6)
    plain, explained = explain_without_lungs(predictor, pixels[0]), predictor.explain(pixels[0, ..., 0])
    assert explained.picture.shape[0] == plain.picture.shape[0] + 24  # one more line in the caption
    assert plain.prediction.lungs is None and plain.prediction.to_dict()["lungs_found"] is None


def explain_without_lungs(predictor, pixels):
    from cxr_edge.runtime.predictor import Predictor

    bundle = replace(predictor.bundle, manifest=replace(predictor.manifest, lungs=None))
    engine = OnnxEngine(bundle.folder / predictor.file.path, CONTRACT)
    return Predictor(bundle, predictor.file, engine, predictor.operating_point, 1).explain(pixels[..., 0])


@pytest.mark.parametrize("name", ["model.onnx", "model.tflite"])
def test_lungs_of_another_size_are_refused(network, pixels, tmp_path, name):
    path = write(tmp_path / name, network, "fp32", pixels)
    engine = OnnxEngine if path.suffix == ".onnx" else LiteRTEngine
    with pytest.raises(BundleError, match=r"'lungs' \(.*8, 8\), the manifest says 'lungs' \(N, 28, 28\); export"):
        engine(path, CONTRACT, lungs=LungGrid(28, 28))


def test_the_weights_of_the_decoder_are_rounded_too(network, pixels):
    """Keras sorts the decoder's layers between those of the head."""
    rounded = quantize.round_weights(network, pixels[:8])
    decoder = [layer for layer in rounded.layers if layer.name.startswith("lungs") and layer.weights]
    assert len(decoder) == 8
    for layer in decoder:
        kernel = layer.get_weights()[0]
        columns = kernel.reshape(-1, kernel.shape[2] if "depthwise" in layer.name else kernel.shape[3])
        steps = columns / np.abs(columns).max(axis=0) * quantize.FULL
        np.testing.assert_allclose(steps, steps.round(), atol=1e-3)
    for name in ("hidden", "logit"):
        np.testing.assert_array_equal(
            rounded.get_layer(name).get_weights()[0], network.get_layer(name).get_weights()[0]
        )


def test_the_backbone_runs_once(network):
    graph = onnx.onnx_from_keras(deployment_model(network, 1.0, NOVELTY)).graph
    plain = onnx.onnx_from_keras(deployment_model(build("cnn", "none", SIDE), 1.0, NOVELTY)).graph
    assert {o.name for o in graph.output} - {o.name for o in plain.output} == {"lungs"}
    convolutions, others = ([n.op_type for n in g.node].count("Conv") for g in (graph, plain))
    assert convolutions - others == 8


def test_gradient_and_mediapipe_leave_the_lungs_out(network):
    gradient = gradient_model(onnx.onnx_from_keras(deployment_model(network, 1.0, NOVELTY)))
    assert {output.name for output in gradient.graph.output} == {"gradient", "logit"}
    assert not [node for node in gradient.graph.node if "lungs" in node.name]
    classifier = mediapipe.classifier_model(deployment_model(network, 1.0, NOVELTY, "float32"))
    assert list(classifier.output) == ["scores"]
    assert b"lungs" not in tflite.tflite_from_keras(classifier)
