"""How unlike an upright frontal radiograph an image is, by the pooled features of the trained network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from cxr_edge.common.run import Novelty

Floats = npt.NDArray[np.float32]

#: Main directions kept. Tried with 16 to 128 of a fine-tuned MobileNetV2, at 99 % of held-out radiographs: each catches
#: all photographs, blanks, ramps and noise; the Mahalanobis distance *within* 16 directions catches none of these.
DIRECTIONS = 16
#: Share of held-out radiographs that count as familiar.
FAMILIAR = 0.99
#: Share of held-out radiographs that add nothing by resembling an outlier of one kind.
UNLIKE = 0.999
#: How far the median outlier of a kind lies, in thresholds of the residual.
REACH = 3.0
#: Inverse strength of the logistic regressions' regularisation. Of inverted radiographs, 0.1 catches 93 %, 1 96 %.
SLACK = 1.0


def fit_novelty(training: Floats, held_out: Floats, outliers: Mapping[str, Floats]) -> Novelty:
    """Find the directions on training images and outliers, the threshold on held-out images.

    Parameters
    ----------
    training
        (N, K) pooled features.
    held_out
        (M, K) pooled features, of perturbed images too: radiographs that another program made smaller are none the
        less radiographs (measured: with images as they are alone, 9 of 24 originals were called unfamiliar).
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
        # A kind that does not lie beyond radiographs must not count: it would flag these.
        scale = REACH * residual / beyond if beyond > 0 else 0.0
        kinds.append(direction * scale)
        reach.append(limit * scale)
    found = Novelty(mean, basis, _to_half(np.stack(kinds, axis=1)), _to_half(np.array(reach)), np.inf)
    return replace(found, threshold=float(np.quantile(found.of(held_out), FAMILIAR)))


def _towards(radiographs: Floats, outliers: Floats) -> Floats:
    """The direction that tells outliers from radiographs: logistic regression, both classes weighing alike."""
    from sklearn.linear_model import LogisticRegression

    features = np.concatenate([radiographs, outliers])
    labels = np.repeat([0, 1], [len(radiographs), len(outliers)])
    model = LogisticRegression(C=SLACK, class_weight="balanced", max_iter=500).fit(features, labels)
    return np.asarray(model.coef_[0], np.float32)


def _to_half(values: npt.NDArray[np.floating]) -> Floats:
    """As all weights of the deployed network, see `fold.py`."""
    return values.astype(np.float16).astype(np.float32)
