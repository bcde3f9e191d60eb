"""How unlike the training set an image is: the part of its features that the training set's main directions miss."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

#: Main directions kept. Tried with 16 to 128 of a fine-tuned MobileNetV2, at 99 % of held-out radiographs: each catches
#: all photographs, blanks, ramps and noise and 84 to 88 % of inverted radiographs; the Mahalanobis distance *within* 16
#: directions catches none of these.
DIRECTIONS = 16
#: Share of held-out radiographs that count as familiar.
FAMILIAR = 0.99
#: Training radiographs that the directions are found on, at most.
SAMPLE = 2000
BATCH = 64


@dataclass(frozen=True)
class Novelty:
    """Novelty of pooled features f: the length of what is left of f − mean without its projection on `basis`.

    The residual of a principal component analysis, as in Wang et al. 2022 (ViM, equation 5).

    Attributes
    ----------
    mean
        (K,) float32.
    basis
        (K, D) float32, orthonormal columns up to half precision.
    threshold
        An image of more novelty is not in distribution.
    """

    mean: Floats
    basis: Floats
    threshold: float

    def save(self, path: Path) -> None:
        """Write as `.npz`."""
        np.savez(path, mean=self.mean, basis=self.basis, threshold=self.threshold)

    @classmethod
    def load(cls, path: Path) -> Novelty:
        """Read what `save` wrote."""
        with np.load(path) as stored:
            return cls(stored["mean"], stored["basis"], float(stored["threshold"]))

    def of(self, features: Floats) -> Floats:
        """(N, K) pooled features -> (N,) float32 novelty."""
        centred = features - self.mean
        return np.asarray(np.linalg.norm(centred - centred @ self.basis @ self.basis.T, axis=1), np.float32)


def fit_novelty(network: keras.Model, training: npt.NDArray[np.uint8], validation: npt.NDArray[np.uint8]) -> Novelty:
    """Find the main directions of the training set's features, and how far held-out radiographs lie off them.

    Parameters
    ----------
    training, validation
        (N, H, W, 1) uint8; more than `SAMPLE` training images are thinned evenly.
    """
    pooled = keras.Model(network.inputs[0], network.get_layer("pool").output)
    features = pooled.predict(training[:: -(-len(training) // SAMPLE)], batch_size=BATCH, verbose=0)
    mean = _to_half(features.mean(axis=0))
    _, _, directions = np.linalg.svd(features - mean, full_matrices=False)
    basis = _to_half(directions[:DIRECTIONS].T)
    held_out = pooled.predict(validation, batch_size=BATCH, verbose=0)
    distances = Novelty(mean, basis, np.inf).of(held_out)
    return Novelty(mean, basis, float(np.quantile(distances, FAMILIAR)))


def _to_half(values: npt.NDArray[np.floating]) -> Floats:
    """As all weights of the deployed network, see `fold.py`."""
    return values.astype(np.float16).astype(np.float32)
