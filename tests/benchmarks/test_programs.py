"""The programs beside the package, on the packaged model."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cxr_edge.runtime.bundles.bundle import Bundle
from cxr_edge.runtime.predictor import packaged_model

PROGRAMS = Path(__file__).parents[2] / "benchmarks"


def run(program, *arguments):
    pytest.importorskip("ai_edge_litert")
    command = [sys.executable, PROGRAMS / program, *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_threads_are_compared_with_one(images):
    said = run("threads.py", images, "--precision", "int8", "--rounds", "2")
    assert re.search(r"int8\.tflite, 2 files, .* images per second with 1 thread, \d+ with 2; ratio \d", said)


def test_the_front_page_has_parity_beside_time(tmp_path):
    bundle, record = packaged_model(), tmp_path / "bench.json"
    files = {file.path: file for file in Bundle.open(bundle).manifest.files}
    row = {"file": "model.int8.tflite", "bytes": 3_264_460, "stages_ms": {"total": {"p50": 7.25}}}
    content = {
        "machine": {"processor": "A", "features": ["avx2", "avx512_vnni"]},
        "options": {"threads": 1},
        "images": 70,
        "megapixels": 1.277,
        "bundle": {"sha256": {name: file.sha256 for name, file in files.items()}},
        "files": [row | {"cold_start_s": 0.22, "peak_rss_mb": 81.0}],
    }
    record.write_text(json.dumps(content))
    said = run("front_page.py", bundle, record)
    assert "70 files (median 1.28 megapixels)" in said and "with int8 dot products" in said
    assert re.search(r"\| model\.int8\.tflite \| \d+ \| .* \| 7\.2 ms \| 0\.22 s \| 81 MB \| 3\.26 MB \|", said)
    content["bundle"]["sha256"]["model.int8.tflite"] = "0"
    record.write_text(json.dumps(content))
    done = subprocess.run([sys.executable, PROGRAMS / "front_page.py", bundle, record], capture_output=True, text=True)
    assert done.returncode == 1 and "run `cxr-edge verify` on the bundle that" in done.stderr
