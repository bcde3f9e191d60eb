"""Out-of-distribution detection by the pooled features of the trained network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from cxr_edge.common.run import Floats, Novelty

#: Number of main directions. Tried with 16 to 128 directions of a fine-tuned MobileNetV2, at 99 % of held-out
#: radiographs: each number detects all photographs, blanks, ramps and noise. The Mahalanobis distance *within* 16
#: directions detects none of these.
DIRECTIONS = 16
#: Share of held-out radiographs that are in distribution.
FAMILIAR = 0.99
#: Share of held-out radiographs to which the direction of a kind of outlier adds no novelty.
UNLIKE = 0.999
#: Novelty of the median outlier of a kind, as a multiple of the threshold of the residual.
REACH = 3.0
#: Inverse regularisation of the logistic regressions. 0.1 detects 93 % of inverted radiographs, 1 detects 96 %.
SLACK = 1.0


def fit_novelty(training: Floats, held_out: Floats, outliers: Mapping[str, Floats]) -> Novelty:
    """Fit the directions to training images and outliers, and the threshold to held-out images.

    Parameters
    ----------
    training
        (N, K) pooled features.
    held_out
        (M, K) pooled features of original and perturbed images. Perturbed ones are needed because another program may
        have resized a radiograph (measured: without them, 9 of 24 full-size radiographs were out of distribution).
    outliers
        Kind -> (L, K) pooled features of `cxr_edge.train.data.outliers`.
    """
    mean = _to_half(training.mean(axis=0))
    _, _, directions = np.linalg.svd(training - mean, full_matrices=False)
    basis = _to_half(directions[:DIRECTIONS].T)
    none = Novelty(mean, basis, np.zeros((len(mean), 0), np.float32), np.zeros(0, np.float32), np.inf)
    residual = float(np.quantile(none.of(held_out), FAMILIAR))
    kinds, reach = [], []
    for features in outliers.values():
        direction = _towards(training - mean, features - mean)
        limit = float(np.quantile((held_out - mean) @ direction, UNLIKE))
        beyond = float(np.median((features - mean) @ direction)) - limit
        # A kind that does not lie beyond the radiographs must not count, or it would flag them.
        scale = REACH * residual / beyond if beyond > 0 else 0.0
        kinds.append(direction * scale)
        reach.append(limit * scale)
    found = Novelty(mean, basis, _to_half(np.stack(kinds, axis=1)), _to_half(np.array(reach)), np.inf)
    return replace(found, threshold=float(np.quantile(found.of(held_out), FAMILIAR)))


def _towards(radiographs: Floats, outliers: Floats) -> Floats:
    """The direction that separates outliers from radiographs, by logistic regression with balanced classes."""
    from sklearn.linear_model import LogisticRegression

    features = np.concatenate([radiographs, outliers])
    labels = np.repeat([0, 1], [len(radiographs), len(outliers)])
    model = LogisticRegression(C=SLACK, class_weight="balanced", max_iter=500).fit(features, labels)
    return np.asarray(model.coef_[0], np.float32)


def _to_half(values: npt.NDArray[np.floating]) -> Floats:
    """Round to half precision, as `fold.py` does with all weights of the network."""
    return values.astype(np.float16).astype(np.float32)
