import json

import cv2
import numpy as np
import pytest

from cxr_edge.benchmarks.heatmap_cost import without_heatmap
from cxr_edge.benchmarks.statistics import median_ratio, percentiles, ratio_of_medians


def test_percentiles_need_their_samples():
    assert percentiles(range(19)) == {}
    assert percentiles(range(20)).keys() == {"p50"}
    assert percentiles(range(661)).keys() == {"p50", "p90", "p95"}
    assert percentiles(range(1001)) == {"p50": 500, "p90": 900, "p95": 950, "p99": 990}


def test_ratio_of_paired_samples_ignores_common_noise():
    noise = np.random.default_rng(0).uniform(1, 50, 200)
    found = median_ratio(2 * noise, noise)
    assert found == {"ratio": pytest.approx(2), "low": pytest.approx(2), "high": pytest.approx(2)}


def test_the_interval_of_two_runs_holds_their_true_ratio():
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(100):
        before, now = rng.lognormal(sigma=0.3, size=(2, 130))
        found = ratio_of_medians(2 * now, before)
        held += found["low"] <= 2 <= found["high"]
    assert 88 <= held <= 100  # of 95 %; medians of few samples have slightly wide percentile intervals


def test_bench_measures_every_file_and_keeps_raw_samples(cli, bundle, run, phantoms, tmp_path):
    output = tmp_path / "bench.json"
    arguments = ["bench", phantoms / "test", "-m", bundle, "--samples", 20, "--keras", run, "-o", output]
    code, out, err = cli(*arguments)
    assert code == 0, err
    record = json.loads(output.read_text())
    assert len(record["files"]) == 6 and "model.int8.tflite" in out and "Keras' example" in out
    for row in record["files"]:
        assert all(len(samples) == 20 for samples in row["samples_ms"].values())
        assert 0 < row["stages_ms"]["decode"]["p50"] < row["stages_ms"]["total"]["p50"]
        assert "p90" not in row["stages_ms"]["total"]
        assert 0.02 < row["cold_start_s"] < 60 and 20 < row["peak_rss_mb"] < 1000
        assert row["heatmap_cost"]["low"] <= row["heatmap_cost"]["ratio"] <= row["heatmap_cost"]["high"]
    assert record["files"][0]["total_against_first"]["ratio"] == 1
    assert [peer["name"] for peer in record["keras"]["peers"]] == ["Keras' example", "Keras, one pass"]
    assert all(peer["times_slower"]["ratio"] > 1 for peer in record["keras"]["peers"])
    assert record["machine"]["cores"] >= 1


@pytest.mark.parametrize("name", ["model.onnx", "model.fp32.tflite", "model.int8.tflite"])
def test_a_file_without_heatmap_decides_the_same(bundle, xray, tmp_path, name):
    from cxr_edge.benchmarks.heatmap_cost import _runner
    from cxr_edge.runtime import load
    from cxr_edge.runtime.imaging.image import read_image
    from cxr_edge.runtime.imaging.preprocess import preprocess

    without_heatmap(bundle / name, tmp_path / name)
    pixels = preprocess(read_image(xray))[np.newaxis]
    outputs = _runner(tmp_path / name, threads=1)(pixels)
    expected = load(bundle / name).engine.run(pixels)
    kept = [getattr(expected, output) for output in expected.given if output != "heatmap"]
    assert len(outputs) == len(kept)
    found = sorted(float(np.ravel(o)[0]) for o in outputs)
    np.testing.assert_allclose(found, sorted(float(np.ravel(o)[0]) for o in kept), atol=1e-6)


def test_the_peers_decide_as_we_do(bundle, run, xray):
    from cxr_edge.benchmarks.peers.keras import keras_peers
    from cxr_edge.runtime import load

    # On an image of the network's size, where Keras' loader has nothing to resize.
    image = xray.parents[3] / "square.png"
    cv2.imwrite(str(image), cv2.resize(cv2.imread(str(xray), 0), (224, 224)))
    ours = load(bundle, "onnx", "fp32").predict(image)
    for peer in keras_peers(run).values():
        probability, heatmap = peer(image)
        assert probability == pytest.approx(ours.probability, abs=1e-4)
        np.testing.assert_allclose(heatmap, ours.heatmap, atol=1e-4 * max(ours.heatmap.max(), 1e-3))


def test_bench_needs_images(cli, bundle, tmp_path):
    code, _, err = cli("bench", tmp_path, "-m", bundle)
    assert code == 2 and "no image files" in err


@pytest.mark.slow
def test_the_demo_runs_the_chain_and_its_page_stands_alone(cli, tmp_path):
    code, out, err = cli("demo", "-o", tmp_path / "demo", "--patients", 12, "--epochs", 1)
    assert code == 0, err
    page = (tmp_path / "demo" / "report.html").read_text()
    assert page.count("<figure>") == 12 and "data:image/png;base64," in page and "http" not in page.split("<body>")[-1]
    assert "report.html" in out and "next: cxr-edge" in err
    assert err.splitlines()[-1].startswith("page: cxr-edge serve -m") and "http://127.0.0.1:8000/" in err
    made = {p.name for p in (tmp_path / "demo").iterdir()}
    assert made == {"phantoms", "run", "bundle", "pictures", "bench.json", "report.html"}
    again = tmp_path / "other" / "phantoms"
    again.mkdir(parents=True)
    (again / "precious.txt").touch()
    code, _, err = cli("demo", "-o", tmp_path / "other")
    assert code == 2 and "not drawn by the demo" in err and (again / "precious.txt").exists()
