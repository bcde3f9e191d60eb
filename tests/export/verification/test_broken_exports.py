"""Exports broken on purpose: `verify` or the runtime refuses each, for the right reason."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from support import forge

from cxr_edge.export.conversion.build import build_bundle
from cxr_edge.export.verification.precision import check_precision
from cxr_edge.runtime import BundleError
from cxr_edge.runtime.bundles.bundle import Bundle, ModelFile, sha256


@pytest.fixture
def copy(bundle, tmp_path):
    """A bundle to break."""
    return shutil.copytree(bundle, tmp_path / "bundle")


@pytest.fixture
def verify(cli, run, phantoms):
    """Verify a bundle against the true run: its rows by file, once it has failed."""

    def call(folder, *options):
        code, out, err = cli("verify", folder, "--data", phantoms, "--run", run, *options, "--format", "json")
        assert code == 1, err
        return {row["path"]: row for row in json.loads(out)["files"]}

    return call


def failed(row):
    return {check["name"] for check in row["checks"] if not check["passed"]}


def normalised_otherwise(network):
    network.get_layer("normalise").offset *= 0.5


def fed_inverted(network):
    """As if 255 − x were fed: what is normalised changes its sign."""
    kernel, bias = network.get_layer("conv1").get_weights()
    network.get_layer("conv1").set_weights([-kernel, bias])


def fed_transposed(network):
    """As if rows and columns of the image were swapped."""
    for layer in network.layers:
        if layer.name.startswith("conv"):
            kernel, bias = layer.get_weights()
            layer.set_weights([kernel.transpose(1, 0, 2, 3), bias])


def export_changed(change, run, folder):
    """Export a changed network as if it were that of `run`: every hash of the bundle is right."""
    import keras

    changed = shutil.copytree(run, folder / "changed")
    network = keras.models.load_model(changed / "model.keras", compile=False)
    change(network)
    network.save(changed / "model.keras")
    record = json.loads((changed / "run.json").read_text())
    true_hash, record["model_sha256"] = record["model_sha256"], sha256(changed / "model.keras")
    (changed / "run.json").write_text(json.dumps(record))
    build_bundle(changed, folder / "bundle", None, ["model.onnx"], 1, step=lambda name: None)
    manifest = Bundle.open(folder / "bundle").manifest
    training = {**manifest.training, "model_sha256": true_hash}
    (folder / "bundle" / "manifest.json").write_text(replace(manifest, training=training).to_json())
    return folder / "bundle"


@pytest.mark.parametrize(
    ("change", "where"), [(normalised_otherwise, "normalise"), (fed_inverted, "conv1"), (fed_transposed, "conv1")]
)
def test_an_image_fed_wrongly_fails_and_the_first_layer_is_named(verify, run, tmp_path, change, where):
    row = verify(export_changed(change, run, tmp_path), "--layers")["model.onnx"]
    assert {"logit_max", "flip_rate"} <= failed(row)
    assert any(where in layer["reference"] for layer in row["layers"]["layers"] if layer["sqnr"] < 80)
    first = next(layer for layer in row["layers"]["layers"] if layer["sqnr"] < 80)
    assert first["name"] == row["layers"]["first_to_leave"] and first["reference"] == where


def test_one_perturbed_layer_breaks_the_gate(verify, copy):
    import onnx
    from onnx import numpy_helper

    model = onnx.load(copy / "model.onnx")
    kernel = max(model.graph.initializer, key=lambda t: numpy_helper.to_array(t).size)
    values = numpy_helper.to_array(kernel)
    noise = np.random.default_rng(0).normal(0, 0.05 * values.std(), values.shape)
    kernel.CopyFrom(numpy_helper.from_array((values + noise).astype(np.float32), kernel.name))
    forge(copy, "model.onnx", model.SerializeToString())
    assert "logit_max" in failed(verify(copy, "--limit", 12)["model.onnx"])


def test_ranges_of_one_image_are_no_calibration(verify, run, phantoms, tmp_path):
    build_bundle(run, tmp_path / "bundle", phantoms, ["model.int8.tflite"], 1, step=lambda name: None)
    row = verify(tmp_path / "bundle", "--limit", 12)["model.int8.tflite"]
    check = next(check for check in row["checks"] if check["name"] == "calibration_images")
    assert check == {"name": "calibration_images", "value": 1, "limit": 30, "passed": False}


def test_a_dynamic_range_file_is_not_int8(verify, copy, run):
    import tensorflow as tf

    from cxr_edge.common.run import Run
    from cxr_edge.export.conversion.graph import deployment_model

    trained = Run.open(run)
    model = deployment_model(trained.network(), trained.temperature, trained.novelty)
    model.export(copy.parent / "saved", verbose=False)
    converter = tf.lite.TFLiteConverter.from_saved_model(str(copy.parent / "saved"))
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    forge(copy, "model.int8.tflite", converter.convert())
    error = verify(copy, "--limit", 4)["model.int8.tflite"]["error"]
    assert "called int8" in error and "floating-point activations" in error


def test_only_convolutions_on_integers_make_int8(bundle, tmp_path):
    from onnxruntime.quantization import quantize_dynamic

    def labelled(path, engine):
        return ModelFile(path.name, engine, "int8", "", 0)

    check_precision(bundle / "model.int8.tflite", labelled(bundle / "model.int8.tflite", "litert"))
    for name in ("model.fp32.tflite", "model.fp16.tflite", "model.onnx"):
        engine = "onnx" if name.endswith("onnx") else "litert"
        with pytest.raises(BundleError, match="called int8"):
            check_precision(bundle / name, labelled(bundle / name, engine))
    quantize_dynamic(bundle / "model.onnx", tmp_path / "dynamic.onnx")
    with pytest.raises(BundleError, match="called int8"):
        check_precision(tmp_path / "dynamic.onnx", labelled(tmp_path / "dynamic.onnx", "onnx"))


def test_changed_and_truncated_files_fail_by_their_hash(cli, verify, copy, xray):
    onnx, tflite = copy / "model.onnx", copy / "model.fp32.tflite"
    onnx.write_bytes(onnx.read_bytes()[:-1] + b"x")
    tflite.write_bytes(tflite.read_bytes()[:5000])
    rows = verify(copy, "--limit", 4)
    assert "sha256 differs" in rows["model.onnx"]["error"] and "cut short" in rows["model.fp32.tflite"]["error"]
    assert rows["model.fp16.onnx"]["error"] is None
    for engine, reason in (("onnx", "sha256 differs"), ("litert", "cut short")):
        code, _, err = cli("predict", "-m", copy, xray, "--engine", engine, "--precision", "fp32")
        assert code == 2 and reason in err


@pytest.mark.parametrize(("name", "engine"), [("model.onnx", "ONNX Runtime"), ("model.fp32.tflite", "LiteRT")])
def test_a_truncated_file_that_the_manifest_vouches_for_does_not_load(verify, copy, name, engine):
    forge(copy, name, (copy / name).read_bytes()[:5000])
    assert f"not a model that {engine} can load" in verify(copy, "--limit", 4)[name]["error"]


def test_cuda_that_fell_back_to_the_cpu_fails(verify, copy, monkeypatch):
    """This build of ONNX Runtime has no CUDA; told that it has, it falls back as one whose CUDA is broken."""
    import onnxruntime

    providers = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: providers)
    rows = verify(copy, "--limit", 4)
    assert "runs on CPUExecutionProvider" in rows["model.onnx"]["error"]
    assert rows["model.fp32.tflite"]["passed"]


def test_a_file_that_the_delegate_leaves_alone_fails(verify, copy):
    """Integer sums: nothing for XNNPACK to take."""
    import tensorflow as tf

    @tf.function(input_signature=[tf.TensorSpec((1, 224, 224, 1), tf.uint8, name="image")])
    def graph(image):
        total = tf.reduce_sum(tf.cast(image, tf.int32), axis=(1, 2, 3))
        score, cell = tf.cast(total, tf.float32), tf.cast(tf.reshape(total, (1, 1, 1)), tf.float32)
        return {"probability": score, "logit": score, "heatmap": cell, "novelty": score}

    module = tf.Module()
    module.graph = graph
    tf.saved_model.save(module, str(copy.parent / "saved"), signatures=graph)
    content = tf.lite.TFLiteConverter.from_saved_model(str(copy.parent / "saved")).convert()
    forge(copy, "model.fp32.tflite", content)
    assert "delegate took no part" in verify(copy, "--limit", 4)["model.fp32.tflite"]["error"]
