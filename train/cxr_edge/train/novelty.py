"""How unlike the training set an image is: the part of its features that the training set's main directions miss."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

#: Main directions kept. Tried with 16 to 128 of a fine-tuned MobileNetV2, at 99 % of held-out radiographs: each catches
#: all photographs, blanks, ramps and noise; the Mahalanobis distance *within* 16 directions catches none of these.
DIRECTIONS = 16
#: Share of held-out radiographs that count as familiar.
FAMILIAR = 0.99


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


def fit_novelty(training: Floats, held_out: Floats) -> Novelty:
    """Find the main directions of the training set's features, and how far held-out radiographs lie off them.

    Parameters
    ----------
    training
        (N, K) pooled features.
    held_out
        (M, K) pooled features, of perturbed images too: radiographs that another program made smaller are none the
        less radiographs (measured: with images as they are alone, 9 of 24 originals were called unfamiliar).
    """
    mean = _to_half(training.mean(axis=0))
    _, _, directions = np.linalg.svd(training - mean, full_matrices=False)
    basis = _to_half(directions[:DIRECTIONS].T)
    return Novelty(mean, basis, float(np.quantile(Novelty(mean, basis, np.inf).of(held_out), FAMILIAR)))


def _to_half(values: npt.NDArray[np.floating]) -> Floats:
    """As all weights of the deployed network, see `fold.py`."""
    return values.astype(np.float16).astype(np.float32)
