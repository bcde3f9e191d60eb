"""The programs beside the package, on the packaged model."""

import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

PROGRAMS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(0)
    for name in ("a.png", "b.png"):
        cv2.imwrite(str(folder / name), random.integers(0, 256, (300, 320), np.uint8))
    return folder


def run(program, *arguments):
    pytest.importorskip("ai_edge_litert")
    command = [sys.executable, PROGRAMS / program, *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_threads_are_compared_with_one(images):
    said = run("threads.py", images, "--precision", "int8", "--rounds", "2")
    assert re.search(r"int8\.tflite, 2 files, .* images per second with 1 thread, \d+ with 2; ratio \d", said)
