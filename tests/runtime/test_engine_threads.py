"""The number of threads that is asked for is the number that the engine computes on."""

import subprocess
import sys
from pathlib import Path

import pytest

LIBRARIES = {"litert": "ai_edge_litert", "onnx": "onnxruntime"}
#: Counts the threads of a fresh process before and after an engine computes; it works on its caller's thread, too.
COUNT = """
import os, sys
import numpy as np
from cxr_edge.runtime import load
engine, threads = sys.argv[1], int(sys.argv[2])
image = np.zeros((224, 224), np.uint8)
load(engine=engine, threads=1).predict(image)  # what the libraries start once, whatever is asked for
before = len(os.listdir("/proc/self/task"))
predictor = load(engine=engine, threads=threads)
predictor.predict(image)
print(1 + len(os.listdir("/proc/self/task")) - before)
"""


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs /proc")
@pytest.mark.parametrize("threads", [1, 2, 3, 5])
@pytest.mark.parametrize("engine", LIBRARIES)
def test_an_engine_computes_on_as_many_threads_as_asked_for(engine, threads):
    pytest.importorskip(LIBRARIES[engine])
    command = [sys.executable, "-c", COUNT, engine, str(threads)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == threads
