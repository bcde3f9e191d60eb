"""The model under evaluation: a run, a bundle or a model file behind one interface."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cxr_edge.common.backend import import_keras_quietly
from cxr_edge.common.dataset import Pixels
from cxr_edge.common.network import Runner, keras_runner
from cxr_edge.common.run import NETWORK, RECORD, Run
from cxr_edge.runtime.bundles.bundle import MANIFEST, HeatmapGeometry, InputContract, OperatingPoint
from cxr_edge.runtime.engines import Outputs
from cxr_edge.runtime.errors import BundleError
from cxr_edge.runtime.imaging.preprocess import chunks
from cxr_edge.runtime.predictor import load

if TYPE_CHECKING:
    import keras

#: Batch size; limits the memory of feature maps.
BATCH = 64


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
        _runner=keras_runner(network, run.temperature, novelty),
    )
