"""The model under evaluation: a run, a bundle or a model file behind one interface."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cxr_edge.common.backend import import_keras_quietly
from cxr_edge.common.dataset import Pixels
from cxr_edge.common.run import NETWORK, RECORD, Run
from cxr_edge.runtime.bundles.bundle import MANIFEST, HeatmapGeometry, InputContract, OperatingPoint
from cxr_edge.runtime.engines import Outputs
from cxr_edge.runtime.errors import BundleError
from cxr_edge.runtime.imaging.preprocess import chunks
from cxr_edge.runtime.predictor import load
from cxr_edge.train.fit.calibrate import to_probability

if TYPE_CHECKING:
    import keras

    from cxr_edge.common.run import Novelty

#: Batch size; limits the memory of feature maps.
BATCH = 64

Runner = Callable[[Pixels], Outputs]


@dataclass(frozen=True)
class Subject:
    """A model under evaluation.

    Attributes
    ----------
    path, name, backend
        Its place, its architecture, and what runs it.
    input, heatmap
        Its input contract, and the places of the cells of its heatmap.
    operating_points, temperature
        Thresholds on sigmoid(logit / temperature); the first is the default.
    novelty_threshold
        An image with more novelty is out of distribution.
    trained_on
        Fingerprint of the train and val images that it was trained on; None if it is not known.
    trained
        The run folder; None for a bundle.
    network
        The trained network of a run; None for a bundle. `run` reads its current weights each time.
    """

    path: Path
    name: str
    backend: str
    input: InputContract
    heatmap: HeatmapGeometry
    operating_points: tuple[OperatingPoint, ...]
    temperature: float
    novelty_threshold: float
    trained_on: str | None
    trained: Run | None
    network: keras.Model | None
    _runner: Runner

    @property
    def kind(self) -> str:
        """`run` or `bundle`."""
        return "bundle" if self.trained is None else "run"

    def run(self, pixels: Pixels) -> Outputs:
        """Decide and explain (N, H, W, 1) uint8 in [0, 255], N ≥ 1."""
        return Outputs.concatenate([self._runner(np.stack(chunk)) for chunk in chunks(pixels, BATCH)])


def open_subject(path: Path) -> Subject:
    """Open a run folder, a bundle folder or a lone model file.

    Raises
    ------
    BundleError, IntegrityError
        If it is none of these, or its content is not valid.
    EngineError, MissingExtraError
        If no installed engine can run the bundle.
    """
    if (path / RECORD).is_file():
        return _open_run(path)
    if path.is_dir() and not (path / MANIFEST).is_file():
        raise BundleError(f"{path}: found neither {RECORD} of a run nor {MANIFEST} of a bundle; name one of the two")
    predictor = load(path, threads=os.cpu_count())
    manifest = predictor.manifest
    return Subject(
        path=path,
        name=manifest.name,
        backend=f"{predictor.file.path} in {predictor.file.engine} ({predictor.engine.backend})",
        input=manifest.input,
        heatmap=manifest.heatmap,
        operating_points=manifest.operating_points,
        temperature=manifest.temperature,
        novelty_threshold=manifest.novelty_threshold,
        trained_on=manifest.training.get("data", {}).get("fingerprint"),
        trained=None,
        network=None,
        _runner=predictor.engine.run,
    )


def _open_run(folder: Path) -> Subject:
    run = Run.open(folder)
    import_keras_quietly()
    import keras

    network, novelty = run.network(), run.novelty
    return Subject(
        path=folder,
        name=run.arch,
        backend=f"{NETWORK} in Keras ({keras.backend.backend()})",
        input=run.input,
        heatmap=run.geometry,
        operating_points=run.operating_points,
        temperature=run.temperature,
        novelty_threshold=novelty.threshold,
        trained_on=run.fingerprint,
        trained=run,
        network=network,
        _runner=_keras_runner(network, run.temperature, novelty),
    )


def _keras_runner(network: keras.Model, temperature: float, novelty: Novelty) -> Runner:
    """Run the trained network, with Grad-CAM (Selvaraju et al. 2017) in the closed form that its head allows.

    With A the last feature map, W1 the hidden layer and w2 the last: map = ReLU(A W1 · (w2 ⊙ 1[hidden > 0])) / cells.
    """
    import keras

    hidden, last = network.get_layer("hidden"), network.get_layer("logit")
    tapped = [network.get_layer(name).output for name in novelty.layers]
    decoded = network.outputs[1:]
    maps = keras.Model(network.inputs[0], [*network.outputs, *tapped, network.get_layer("pool").input])

    def run(pixels: Pixels) -> Outputs:
        kernel, bias = hidden.get_weights()
        weight = last.get_weights()[0][:, 0]
        logit, *seen = maps.predict_on_batch(pixels.astype(np.float32))
        lungs, seen = seen[: len(decoded)], seen[len(decoded) :]
        features = seen[-1]
        count, height, width, channels = features.shape
        per_cell = (features.reshape(-1, channels) @ kernel).reshape(count, height, width, -1)  # one large product
        active = per_cell.mean(axis=(1, 2)) + bias > 0
        heat = np.maximum(np.einsum("nhwk,nk->nhw", per_cell, active * weight), 0)
        heatmap = (heat / (height * width)).astype(np.float32)
        means = np.concatenate([each.mean(axis=(1, 2)) for each in seen], axis=1)
        unlike = novelty.beyond(means) if novelty.names else None
        found = to_probability(lungs[0][..., 0], 1.0) if lungs else None
        probability = to_probability(logit[:, 0], temperature)
        return Outputs(probability, logit[:, 0], heatmap, novelty.of(means), unlike, found)

    return run
