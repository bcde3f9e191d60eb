"""Several workers, several devices, another backend: real processes."""

import json
import os
import socket
import subprocess
import sys

import numpy as np
import pytest

from cxr_edge.common.run import Run

pytestmark = pytest.mark.slow

COMMAND = ["--arch", "cnn", "--weights", "none", "--size", "64", "--epochs", "1", "--batch-size", "8"]
COMMAND += ["--learning-rate", "3e-3", "--val-fraction", "0.2"]
#: The command line, which also leaves the weights that a process ends with.
WORKER = """
import sys
import numpy as np
from cxr_edge.runtime.cli.main import main
from cxr_edge.train.fit.distribute import connect

connect("multiworker")
from cxr_edge.train.fit import loop

inner = loop.fit

def fit(network, *rest):
    inner(network, *rest)
    np.savez(weights, *network.get_weights())

loop.fit, weights = fit, sys.argv.pop()
sys.exit(main())
"""


def free_ports(count):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def test_two_workers_train_one_network(phantoms, tmp_path):
    cluster = {"worker": [f"127.0.0.1:{port}" for port in free_ports(2)]}
    workers = []
    for index in (0, 1):
        config = json.dumps({"cluster": cluster, "task": {"type": "worker", "index": index}})
        command = [sys.executable, "-c", WORKER, "train", phantoms, "-o", tmp_path / f"run{index}", *COMMAND]
        command += ["--strategy", "multiworker", tmp_path / f"weights{index}.npz"]
        environment = os.environ | {"TF_CONFIG": config, "CUDA_VISIBLE_DEVICES": ""}
        workers.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
    said = [worker.communicate()[1] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], said
    assert "the chief writes the run" in said[1]
    chief, other = (np.load(tmp_path / f"weights{index}.npz") for index in (0, 1))
    for name in chief:
        np.testing.assert_array_equal(chief[name], other[name])
    assert Run.open(tmp_path / "run0").record["config"]["strategy"] == "multiworker"
    assert not list(tmp_path.glob("run1*"))


def test_multiworker_without_workers_says_what_to_set(phantoms, tmp_path, cli):
    code, _, err = cli("train", phantoms, "-o", tmp_path / "run", *COMMAND, "--strategy", "multiworker")
    assert code == 2 and "TF_CONFIG" in err


def test_on_jax_over_two_devices_then_exported_by_tensorflow(phantoms, tmp_path, cli):
    run, bundle = tmp_path / "run", tmp_path / "bundle"
    command = [sys.executable, "-m", "cxr_edge.runtime.cli", "train", phantoms, "-o", run, *COMMAND]
    flags = {"KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    done = subprocess.run(
        [*command, "--strategy", "mirrored"], env=os.environ | flags, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "jax" in Run.open(run).record["versions"]
    code, _, err = cli("export", run, "-o", bundle, "--precision", "fp32")
    assert code == 0, err
    code, out, err = cli("verify", bundle, "--data", phantoms, "--limit", 20)
    assert code == 0, out + err
