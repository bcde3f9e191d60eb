"""Curves of the packaged model, on few points."""

import json

import cv2
import numpy as np
from support import needs_litert

from cxr_edge.benchmarks import modes
from cxr_edge.benchmarks.scale import curves
from cxr_edge.benchmarks.scale.curves import Curve


def test_words_name_the_largest_step():
    curve = Curve("batch", "images in a batch", (1.0, 2.0, 4.0), (8.0, 7.9, 4.0))
    assert curve.words == "batch: 8.00 ms per image at 1, 4.00 at 4 (×0.50); the largest step is from 2 to 4"
    assert "constant at 8.00 ms" in Curve("batch", "x", (1.0, 2.0), (8.0, 8.0)).words


@needs_litert
def test_bench_scale_measures_each_curve(cli, tmp_path, monkeypatch):
    def without_keras(threads):
        raise ImportError(name="keras")

    for name, value in (("BATCHES", (1, 2)), ("MEGAPIXELS", (0.05, 3.0)), ("PER_POINT", 2), ("REPEATS", 2)):
        monkeypatch.setattr(curves, name, value)
    monkeypatch.setattr(curves, "over_networks", without_keras)
    monkeypatch.setattr(modes, "LARGEST_COUNT", 10)
    image = tmp_path / "a.png"
    cv2.imwrite(str(image), np.random.default_rng(0).integers(0, 256, (600, 640), np.uint8))
    code, out, err = cli("bench", image, "--engine", "litert", "--scale", tmp_path / "s", "-o", tmp_path / "s.json")
    assert code == 0 and "cxr-edge[export]" in out, out + err
    found = {curve["name"]: curve for curve in json.loads((tmp_path / "s.json").read_text())["curves"]}
    assert found.keys() == {"images", "threads", "batch", "original"}
    assert found["original"]["ms"][1] > found["original"]["ms"][0], "decoding 3 megapixels takes longer than 0.05"
    assert all(ms > 0 for curve in found.values() for ms in curve["ms"])
    assert (tmp_path / "s" / "scale.png").read_bytes().startswith(b"\x89PNG")
