"""How Keras and its backend are imported."""

import os
import platform
import subprocess
import sys

import pytest

VARIABLE = "TF_ENABLE_ONEDNN_OPTS"


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="only x86 CPUs have the variable set")
@pytest.mark.parametrize(("outside", "expected"), [(None, True), ("0", False)])
def test_tensorflow_uses_onednn_unless_told_otherwise(outside, expected):
    environment = {name: value for name, value in os.environ.items() if name != VARIABLE}
    environment["KERAS_BACKEND"] = "tensorflow"
    if outside:
        environment[VARIABLE] = outside
    # TensorFlow rewrites a convolution to one of oneDNN's kernels when it optimises a graph.
    program = """
from cxr_edge.common.backend import import_keras_quietly
import_keras_quietly()
import tensorflow as tf
from tensorflow.core.protobuf.config_pb2 import RunMetadata, RunOptions
with tf.Graph().as_default(), tf.compat.v1.Session() as session:
    y = tf.nn.conv2d(tf.random.normal((1, 8, 8, 3)), tf.ones((3, 3, 3, 4)), 1, "SAME")
    metadata = RunMetadata()
    session.run(y, options=RunOptions(output_partition_graphs=True), run_metadata=metadata)
    print(any("Mkl" in node.op for graph in metadata.partition_graphs for node in graph.node))
"""
    command = [sys.executable, "-c", program]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == str(expected)
