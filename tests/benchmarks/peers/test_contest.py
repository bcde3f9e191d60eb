"""Peers: their parity, and what is said of those that are not installed."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from support import needs_litert

from cxr_edge.benchmarks.peers.bare import bare
from cxr_edge.benchmarks.peers.contest import quickest_equal
from cxr_edge.benchmarks.peers.keras import decider
from cxr_edge.benchmarks.peers.litert_tool import benchmark_model
from cxr_edge.runtime import load
from cxr_edge.runtime.errors import EngineError
from cxr_edge.runtime.predictor import packaged_model
from cxr_edge.train.fit.models import build

#: Runs the command in a process of its own, without openvino.
WITHOUT_OPENVINO = "import sys; sys.modules['openvino'] = None; from cxr_edge.runtime.cli.main import main; main()"


def test_bench_peers_compares_in_turns_with_parity(bundle, run, phantoms, tmp_path):
    images, output = tmp_path / "images", tmp_path / "peers.json"
    shutil.copytree(phantoms / "test", images)
    arguments = ["bench", images, "-m", bundle, "--peers", "--keras", run, "-o", output]
    done = subprocess.run([sys.executable, "-c", WITHOUT_OPENVINO, *arguments], capture_output=True, text=True)
    out, err = done.stdout, done.stderr
    assert done.returncode == 0 and "times ours" in out and "pip install openvino" in out, out + err
    record = json.loads(output.read_text())
    rows = {row["name"]: row for row in record["rows"]}
    assert rows["model.onnx"]["flips"] == 0 and rows["model.onnx"]["max_difference"] < 1e-3
    assert {"Keras predict", "Keras tf.function", "Pillow + tf2onnx + ONNX Runtime"} < rows.keys()
    assert all(len(row["samples_ms"]) == record["images"] for row in rows.values())
    assert rows["Keras, one pass, GradientTape"]["times_slower"]["ratio"] > 1
    assert record["bare"]["ratio"] > 0.5


def test_peers_compute_no_lungs():
    network = build("cnn", "none", size=64, lungs=True)
    alone = decider(network)
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 1)).astype(np.float32)
    assert len(network.outputs) == 2 and len(alone.outputs) == 1
    assert not [layer for layer in alone.layers if layer.name.startswith("lungs")]
    np.testing.assert_allclose(alone.predict(images, verbose=0), network.predict(images, verbose=0)[0], atol=1e-6)


def test_a_quick_peer_that_differs_more_is_not_equal():
    def row(name, ms, flips, difference, ours=False):
        return {"name": name, "median_ms": ms, "flips": flips, "max_difference": difference, "ours": ours}

    ours = [row("a", 6.0, 1, 0.05, ours=True), row("b", 9.0, 0, 0.0, ours=True)]
    rows = [*ours, row("plain int8", 4.0, 1, 0.17), row("onnx", 11.0, 0, 0.03), row("keras", 80.0, 0, 0.0)]
    assert quickest_equal(rows)["name"] == "onnx"
    assert quickest_equal([*ours, row("wrong", 1.0, 9, 0.9)]) is None


def test_a_run_of_another_bundle_is_refused(cli, run, xray):
    code, _, err = cli("bench", xray, "--peers", "--keras", run)
    assert code == 2 and "name the run of this bundle with --keras" in err


def test_peers_need_the_run(cli, tmp_path):
    np.save(tmp_path / "a.npy", np.zeros(1))
    (tmp_path / "a.png").write_bytes(b"")
    code, _, err = cli("bench", tmp_path / "a.png", "--peers")
    assert code == 2 and "--peers needs the trained network; name its run: --keras" in err


@needs_litert
def test_bare_calls_give_the_same_outputs(tmp_path):
    import cv2

    path = tmp_path / "a.jpeg"
    cv2.imwrite(str(path), np.random.default_rng(0).integers(0, 256, (300, 320), np.uint8))
    predictor = load(None, "litert", "int8", threads=1)
    _, outputs = bare(predictor, 1)(path)
    assert float(outputs["probability"][0]) == predictor.predict(path).probability


@needs_litert
def test_the_benchmark_program_of_litert_is_asked():
    found = benchmark_model(packaged_model() / "model.int8.tflite", threads=1, runs=3)
    assert found["num_threads"] == 1 and found["latency"]


@needs_litert
def test_its_failure_is_told(tmp_path):
    (tmp_path / "no.tflite").write_bytes(b"no model")
    with pytest.raises(EngineError, match=r"no\.tflite: found exit code"):
        benchmark_model(tmp_path / "no.tflite", threads=1)
