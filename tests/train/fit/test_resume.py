"""Interrupted, resumed, and run again: the same network."""

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
from support import Lazy

from cxr_edge.runtime import UsageError
from cxr_edge.runtime.errors import CxrEdgeWarning
from cxr_edge.train.fit.config import Part, TrainConfig
from cxr_edge.train.fit.distribute import Replicas
from cxr_edge.train.fit.training import train

keras = Lazy("keras")
loop = Lazy("cxr_edge.train.fit.loop")
resume_module = Lazy("cxr_edge.train.fit.resume")

pytestmark = pytest.mark.slow

CONFIG = TrainConfig("cnn", "none", size=64, epochs=2, batch_size=8, learning_rate=3e-3, val_fraction=0.2)
COMMAND = ["--arch", "cnn", "--weights", "none", "--size", "64", "--epochs", "2", "--batch-size", "8"]
COMMAND += ["--learning-rate", "3e-3", "--val-fraction", "0.2"]


def weights(run):
    return keras.models.load_model(run / "model.keras", compile=False).get_weights()


def assert_equal(one, other):
    first, second = (json.loads((run / "run.json").read_text()) for run in (one, other))
    for what in ("history", "metrics", "temperature", "operating_points"):
        assert first[what] == second[what], what
    for a, b in zip(weights(one), weights(other), strict=True):
        np.testing.assert_array_equal(a, b)


def in_new_process(data, run, *options):
    """Train in a process of its own: what a process has computed before can change the order of TensorFlow's sums."""
    command = [sys.executable, "-m", "cxr_edge.runtime.cli", "train", data, "-o", run, *COMMAND, *options]
    return subprocess.run(command, check=True, capture_output=True, text=True)


@pytest.fixture(scope="module")
def whole(phantoms, tmp_path_factory):
    """A run that nothing interrupted."""
    run = tmp_path_factory.mktemp("whole") / "run"
    in_new_process(phantoms, run)
    return run


@pytest.fixture(scope="module")
def killed(phantoms, tmp_path_factory):
    """What a run leaves that was killed after its first epoch."""
    run = tmp_path_factory.mktemp("killed") / "run"
    command = [sys.executable, "-m", "cxr_edge.runtime.cli", "train", phantoms, "-o", run, *COMMAND]
    partial = run.with_name("run.partial")
    process = subprocess.Popen(command, stderr=subprocess.PIPE)
    while not (partial / "training" / "state.json").exists():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not run.exists()
    return run


def test_the_same_command_gives_the_same_network_again(whole, phantoms, tmp_path):
    in_new_process(phantoms, tmp_path / "run")
    assert_equal(whole, tmp_path / "run")


def test_a_killed_run_is_resumed_only_as_it_was_begun(killed, phantoms, tmp_path):
    for changed in (replace(CONFIG, learning_rate=1e-3), replace(CONFIG, loss="focal")):
        with pytest.raises(UsageError, match=r"was started with (learning_rate 0\.003|loss 'bce') instead of"):
            train(phantoms, killed, changed, resume=True)
    assert (killed.with_name("run.partial") / "training" / "state.json").exists()


def test_a_killed_run_resumed_ends_like_one_that_was_not(killed, whole, phantoms):
    err = in_new_process(phantoms, killed, "--resume").stderr
    assert "training 1/2" not in err and "training 2/2" in err
    assert_equal(whole, killed)
    assert not killed.with_name("run.partial").exists()


@pytest.mark.parametrize("epoch", [1, 2])
def test_a_run_of_two_phases_resumes_between_and_within_them(epoch, tmp_path):
    """Head, then fine-tuning; interrupted where an epoch begins."""
    pixels = np.random.default_rng(0).integers(0, 256, (24, 64, 64, 1), dtype=np.uint8)
    part = Part([], pixels, np.arange(24) % 2)
    config = TrainConfig("cnn", "pretrained", size=64, epochs=2, batch_size=8, learning_rate=1e-3)

    class Interrupt(keras.callbacks.Callback):
        def on_epoch_begin(self, at, logs=None):
            if at == epoch:
                raise KeyboardInterrupt

    def go(folder, resume=False, *trackers):
        folder.mkdir(exist_ok=True)
        keras.utils.set_random_seed(0)
        network, state = config.build(), resume_module.TrainingState(folder, {}, resume)
        loop.fit(network, part, part, config, Replicas(), state, folder / "best.weights.h5", list(trackers))
        return network, state

    with pytest.raises(KeyboardInterrupt):
        go(tmp_path / "resumed", False, Interrupt())
    (whole, expected), (resumed, state) = go(tmp_path / "whole"), go(tmp_path / "resumed", True)
    assert state.history == expected.history and state.epochs == 3
    for a, b in zip(whole.get_weights(), resumed.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_an_interrupted_run_that_is_begun_anew_says_how_to_resume(phantoms, tmp_path):
    folder = tmp_path / "run.partial" / "training"
    with pytest.warns(CxrEdgeWarning, match="nothing to resume; training starts"):
        resume_module.prepare(tmp_path / "run.partial", folder, {"seed": 0}, resume=True)
    (folder / resume_module.STATE).write_text(json.dumps({"identity": {"seed": 0}, "history": {"loss": [1.0, 0.5]}}))
    with pytest.warns(CxrEdgeWarning, match="finished 2 epochs.*Add --resume"):
        resume_module.prepare(tmp_path / "run.partial", folder, {"seed": 0}, resume=False)
    assert not list(folder.iterdir())
