"""A run of `cxr-edge train`, read from its folder: the contract between training and export."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from cxr_edge.runtime.bundle import HeatmapGeometry, OperatingPoint, sha256
from cxr_edge.runtime.engines import Outputs
from cxr_edge.runtime.errors import BundleError, IntegrityError

if TYPE_CHECKING:
    import keras

SCHEMA_VERSION = 1
#: Images that the Keras network sees at once.
BATCH = 32


@dataclass(frozen=True)
class Run:
    """A trained network and the facts about it (`run.json`)."""

    folder: Path
    record: Mapping[str, Any]

    @classmethod
    def open(cls, folder: Path) -> Run:
        """Read a run and check that its network is the one that was trained.

        Raises
        ------
        BundleError, IntegrityError
            If the folder is no run, of another schema, or its network was changed.
        """
        try:
            record = json.loads((folder / "run.json").read_bytes())
        except FileNotFoundError as error:
            raise BundleError(
                f"{folder}: no run (run.json not found); make one with `cxr-edge train DATA -o {folder}`"
            ) from error
        except ValueError as error:
            raise BundleError(f"{folder / 'run.json'}: not JSON ({error})") from error
        found = record.get("schema_version") if isinstance(record, dict) else None
        if found != SCHEMA_VERSION:
            raise BundleError(
                f"{folder / 'run.json'}: found schema_version {found}, expected {SCHEMA_VERSION}; "
                "train again with this cxr-edge"
            )
        for name, key in (("model.keras", "model_sha256"), ("novelty.npz", "novelty_sha256")):
            if not (folder / name).is_file():
                raise BundleError(f"{folder / name}: missing; copy the whole run again, or train again")
            if sha256(folder / name) != record.get(key):
                raise IntegrityError(f"{folder / name}: is not the network that run.json tells of; train again")
        return cls(folder, record)

    @property
    def temperature(self) -> float:
        """Of the probability: sigmoid(logit / temperature)."""
        return float(self.record["temperature"])

    @property
    def geometry(self) -> HeatmapGeometry:
        """Where the heatmap's cells lie."""
        return HeatmapGeometry(**self.record["heatmap"])

    @property
    def operating_points(self) -> tuple[OperatingPoint, ...]:
        """Thresholds chosen in training."""
        return tuple(OperatingPoint(**point) for point in self.record["operating_points"])

    @property
    def held_out(self) -> frozenset[str]:
        """`CLASS/name` of every image of the patients that were held out of training."""
        split = self.record["split"]
        return frozenset((*split["validation_files"], *split["holdout_files"]))

    @property
    def novelty(self) -> Novelty:
        """How unlike the training set an image is."""
        with np.load(self.folder / "novelty.npz") as stored:
            arrays = {name: stored[name] for name in ("mean", "basis", "kinds", "reach")}
            return Novelty(**arrays, threshold=float(stored["threshold"]))

    def network(self) -> keras.Model:
        """Load the trained network."""
        import keras

        return keras.models.load_model(self.folder / "model.keras", compile=False)


@dataclass(frozen=True)
class Novelty:
    """What `cxr_edge.train.novelty` found: mean (K,), basis (K, D), kinds (K, M), reach (M,), float32; threshold."""

    mean: npt.NDArray[np.float32]
    basis: npt.NDArray[np.float32]
    kinds: npt.NDArray[np.float32]
    reach: npt.NDArray[np.float32]
    threshold: float


class Reference:
    """What the trained network itself says, by Keras and autodiff: the standard that every exported file is held to.

    It shares no line with the deployment graph. Grad-CAM is the textbook one (Selvaraju et al. 2017), by GradientTape.
    """

    def __init__(self, network: keras.Model, temperature: float, novelty: Novelty) -> None:
        import keras

        pool = network.get_layer("pool")
        self._backbone = keras.Model(network.inputs[0], pool.input)
        self._head = keras.Model(pool.input, network.outputs[0])
        self._temperature = temperature
        self._novelty = novelty

    def run(self, images: npt.NDArray[np.uint8], progress: Callable[[int], None] = lambda done: None) -> Outputs:
        """Decide and explain (N, H, W, 1) uint8; `progress` is told how many images are done."""
        parts = []
        for start in range(0, len(images), BATCH):
            parts.append(self._run_batch(images[start : start + BATCH]))
            progress(min(start + BATCH, len(images)))
        return Outputs.concatenate(parts)

    def _run_batch(self, images: npt.NDArray[np.uint8]) -> Outputs:
        import tensorflow as tf

        features = self._backbone(images.astype(np.float32), training=False)
        with tf.GradientTape() as tape:
            tape.watch(features)
            logit = self._head(features, training=False)[:, 0]
        weights = tf.reduce_mean(tape.gradient(logit, features), axis=(1, 2), keepdims=True)
        heatmap = tf.nn.relu(tf.reduce_sum(weights * features, axis=-1)).numpy()
        probability = 1 / (1 + np.exp(-logit.numpy().astype(np.float64) / self._temperature))
        return Outputs(probability.astype(np.float32), logit.numpy(), heatmap, self._novelty_of(features.numpy()))

    def _novelty_of(self, features: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        centred = features.mean(axis=(1, 2)) - self._novelty.mean
        missed = centred - centred @ self._novelty.basis @ self._novelty.basis.T
        beyond = np.maximum(centred @ self._novelty.kinds - self._novelty.reach, 0)
        return np.linalg.norm(np.concatenate([missed, beyond], axis=1), axis=1).astype(np.float32)
