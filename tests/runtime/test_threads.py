"""One predictor in many threads and processes: each caller gets the answer for its own image."""

import os
import pickle
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from cxr_edge.runtime import EngineError, IntegrityError, load
from cxr_edge.runtime.predictor import packaged_model
from cxr_edge.runtime.quiet import quiet_native_stderr

LIBRARIES = {"litert": "ai_edge_litert", "onnx": "onnxruntime"}
THREADS = 8


@pytest.fixture(params=LIBRARIES)
def engine(request):
    pytest.importorskip(LIBRARIES[request.param])
    return request.param


@pytest.fixture(scope="module")
def images():
    """Sixteen different images of the network's size."""
    return np.random.default_rng(0).integers(0, 256, (16, 224, 224), dtype=np.uint8)


def bits(prediction):
    return (prediction.logit, prediction.probability, prediction.novelty, prediction.heatmap.tobytes())


def test_threads_get_the_answers_of_the_serial_run(engine, images):
    predictor = load(engine=engine, threads=1)
    serial = [bits(predictor.predict(image)) for image in images]
    assert len(set(serial)) == len(images)
    with ThreadPoolExecutor(THREADS) as pool:
        answers = list(pool.map(lambda i: bits(predictor.predict(images[i])), list(range(len(images))) * 12))
    assert answers == serial * 12


def test_batches_of_several_threads_do_not_mix(engine, images):
    predictor = load(engine=engine, threads=1)
    expected = [p.logit for p in predictor.predict_many(images)]
    with ThreadPoolExecutor(4) as pool:
        for logits in pool.map(lambda _: [p.logit for p in predictor.predict_many(images, 5)], range(8)):
            np.testing.assert_allclose(logits, expected, atol=1e-4)  # ONNX Runtime sums other batches otherwise


def test_the_pool_of_interpreters_is_bounded(images):
    pytest.importorskip("ai_edge_litert")
    predictor = load(engine="litert", threads=1)
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(predictor.predict, [*images] * 4))
    assert 1 <= len(predictor.engine._idle) <= os.cpu_count()


def test_interpreters_made_later_run_the_file_that_was_loaded(images, tmp_path):
    pytest.importorskip("ai_edge_litert")
    bundle = shutil.copytree(packaged_model(), tmp_path / "bundle")
    predictor = load(bundle, "litert", threads=1)
    expected = bits(predictor.predict(images[0]))
    (bundle / predictor.file.path).write_bytes(b"another file")
    predictor.engine._idle.clear()
    assert bits(predictor.predict(images[0])) == expected


def test_a_pickled_predictor_decides_alike_and_checks_its_file(engine, images, tmp_path):
    bundle = shutil.copytree(packaged_model(), tmp_path / "bundle")
    predictor = load(bundle, engine, operating_point="screening", threads=1)
    sent = pickle.dumps(predictor)
    received = pickle.loads(sent)
    assert bits(received.predict(images[0])) == bits(predictor.predict(images[0]))
    assert received.operating_point == predictor.operating_point
    (bundle / predictor.file.path).write_bytes(b"another file")
    with pytest.raises(IntegrityError):
        pickle.loads(sent).predict(images[0])


FORKED = """
import os, signal, sys
import numpy as np
from cxr_edge.runtime import load
image = np.random.default_rng(0).integers(0, 256, (224, 224), dtype=np.uint8)
predictor = load(engine=sys.argv[1], threads=4)
expected = predictor.predict(image).logit
if os.fork() == 0:
    signal.alarm(60)  # ends a child that waits for threads that were not forked
    if sys.argv[2] == "use":
        for _ in range(3):
            assert abs(predictor.predict(image).logit - expected) < 1e-4
    sys.exit(7)  # frees what is loaded, unlike os._exit
_, status = os.wait()
assert os.WIFEXITED(status) and os.WEXITSTATUS(status) == 7, status
assert predictor.predict(image).logit == expected
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
@pytest.mark.parametrize("what", ["use", "only exit"])
def test_a_forked_process_decides_and_ends(engine, what):
    done = subprocess.run([sys.executable, "-c", FORKED, engine, what], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_closed_predictor_says_so(engine, images):
    with load(engine=engine) as predictor:
        predictor.predict(images[0])
    for call in (lambda: predictor.predict(images[0]), lambda: predictor.integrated_gradients):
        with pytest.raises(EngineError, match="closed; load the model again"):
            call()
    predictor.close()  # once more does no harm


PROCESS_STATE = """
import os, sys, warnings, threading
import cv2, numpy as np
from cxr_edge.runtime import load
predictor = load(engine=sys.argv[1], threads=1)
image = np.zeros((224, 224), np.uint8)
predictor.predict(image)

def state():
    descriptors = {name: os.readlink(f"/proc/self/fd/{name}") for name in ("0", "1", "2")}
    return descriptors, warnings.filters[:], warnings.showwarning, cv2.getNumThreads(), sys.stderr, dict(os.environ)

before, differences = state(), []

def watch():
    while not done.is_set():
        if state() != before:
            differences.append(state())

done = threading.Event()
watcher = threading.Thread(target=watch)
watcher.start()
threads = [threading.Thread(target=lambda: [predictor.predict(image) for _ in range(20)]) for _ in range(4)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
done.set()
watcher.join()
assert not differences, differences[0]
"""


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs /proc")
def test_deciding_touches_nothing_of_the_process(engine):
    done = subprocess.run([sys.executable, "-c", PROCESS_STATE, engine], capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == "", done.stderr


def test_overlapping_silences_give_standard_error_back(capfd):
    entered, left = threading.Event(), threading.Event()

    def long_block():
        with quiet_native_stderr():
            entered.set()
            left.wait()
            os.write(2, b"hidden, too\n")

    thread = threading.Thread(target=long_block)
    with quiet_native_stderr():
        thread.start()
        entered.wait()
        os.write(2, b"hidden\n")
    left.set()
    thread.join()
    os.write(2, b"seen\n")
    assert capfd.readouterr().err == "seen\n"


def test_a_block_that_fails_shows_what_was_hidden(capfd):
    with pytest.raises(ZeroDivisionError), quiet_native_stderr(), quiet_native_stderr():
        os.write(2, b"the reason\n")
        1 / 0  # noqa: B018
    assert "the reason" in capfd.readouterr().err


TELEMETRY = """
import os
import cxr_edge.runtime, numpy
before = os.listdir("/proc/self/task")
import onnxruntime
started = len(os.listdir("/proc/self/task")) - len(before)
assert started == 0, f"{started} threads that upload"
"""


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs /proc")
def test_onnx_runtime_reports_to_nobody():
    pytest.importorskip("onnxruntime")
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    done = subprocess.run([sys.executable, "-c", TELEMETRY], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
