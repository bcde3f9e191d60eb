"""Converting a network keeps few copies of it at a time."""

import gc
from weakref import WeakSet

import numpy as np
import pytest
from support import Lazy

from cxr_edge.common.run import Novelty
from cxr_edge.export.conversion.graph import deployment_model
from cxr_edge.export.conversion.onnx import onnx_from_keras
from cxr_edge.train.fit.models import build

tf2onnx = Lazy("tf2onnx.optimizer.optimizer_base")

pytestmark = pytest.mark.slow


def test_conversion_drops_the_copies_of_each_pass(monkeypatch):
    """tf2onnx copies the graph for each of some thirty passes. Copies in cycles live until Python searches for them."""
    graphs, most = WeakSet(), []
    optimize = tf2onnx.GraphOptimizerBase.optimize

    def watched(self, graph, iteration):
        graphs.add(graph)
        most.append(len(graphs))
        return optimize(self, graph, iteration)

    monkeypatch.setattr(tf2onnx.GraphOptimizerBase, "optimize", watched)
    channels = 1280
    directions = np.eye(channels, 2, dtype=np.float32)
    novelty = Novelty(np.zeros(channels, np.float32), directions, directions, np.zeros(2, np.float32), 1.0)
    thresholds = gc.get_threshold()
    onnx_from_keras(deployment_model(build("mobilenetv2", "none", 64), 1.0, novelty))
    assert len(most) > 20 and max(most) <= 8
    assert gc.get_threshold() == thresholds and gc.get_freeze_count() == 0
