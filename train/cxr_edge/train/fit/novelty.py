"""Out-of-distribution detection by features of the trained network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from cxr_edge.common.run import Floats, Novelty

#: Layers before the last feature map, in which outliers are told from radiographs.
#: The last feature map alone finds 76 % of adults of another hospital, blocks 12 and 15 find 96 to 100 %,
#: depending on the recipe, and blocks 9, 12 and 15 more than 99 % with recipes 14 and 17 (docs/experiments.md).
LAYERS = {
    "mobilenetv2": ("block_9_add", "block_12_add", "block_15_add"),
    "resnet50": ("conv4_block6_out", "conv5_block2_out"),
    "cnn": ("pool3", "pool4"),
}
#: Number of main directions. Tried with 16 to 128 directions of a fine-tuned MobileNetV2, at 99 % of held-out
#: radiographs: each number detects all photographs, blanks, ramps and noise. The Mahalanobis distance *within* 16
#: directions detects none of these.
DIRECTIONS = 16
#: Share of held-out radiographs that are in distribution: of all versions of them together, and of each version.
FAMILIAR, FAMILIAR_EACH = 0.99, 0.97
#: Share of held-out radiographs to which the direction of a kind of outlier adds no novelty, likewise.
UNLIKE, UNLIKE_EACH = 0.999, 0.99
#: Novelty of the median outlier of a kind, as a multiple of the threshold of the residual. 3 detects 98 % of adults of
#: another hospital, 6 detects 100 %, with as many false alarms.
REACH = 6.0
#: Inverse regularisation of the logistic regressions on standardised features. A kind may differ little, in a direction
#: in which radiographs differ even less; such a direction needs large coefficients (0.1 missed 4 % of the adults).
SLACK = 1.0
#: A feature that varies less than this share of the mean deviation is not enlarged further.
LEAST_DEVIATION = 1e-3


def fit_novelty(
    training: Floats,
    held_out: Sequence[Floats],
    outliers: Mapping[str, Floats],
    layers: tuple[str, ...] = (),
    last: int | None = None,
) -> Novelty:
    """Fit the directions to training images and outliers, and the threshold to held-out images.

    Parameters
    ----------
    training
        (N, F) features of original and perturbed images, so that neither the main directions nor those of the kinds
        take a perturbation for an outlier.
    held_out
        (M, F) features of the original images and of each perturbation. Perturbed ones are needed because another
        program may have resized a radiograph (measured: without them, 9 of 24 full-size radiographs were out of
        distribution).
    outliers
        Kind -> (L, F) features.
    layers
        Names of the layers whose means are the first features; the others are those of the last feature map.
    last
        Number of features of the last feature map; None means all.
    """
    count = training.shape[1]
    last = last or count
    early = count - last if layers else count
    mean = _to_half(training.mean(axis=0))
    _, _, directions = np.linalg.svd((training - mean)[:, -last:], full_matrices=False)
    basis = _to_half(directions[:DIRECTIONS].T)
    none = Novelty(mean, basis, np.zeros((early, 0), np.float32), np.zeros(0, np.float32), np.inf, layers)
    residual = _limit([none.of(each) for each in held_out], FAMILIAR, 1.0)
    kinds, reach = [], []
    for strange in outliers.values():
        near, far, *versions = (np.asarray((each - mean)[:, :early]) for each in (training, strange, *held_out))
        direction = _towards(near, far)
        limit = _limit([each @ direction for each in versions], UNLIKE, UNLIKE_EACH)
        beyond = float(np.median(far @ direction)) - limit
        # A kind that does not lie beyond the radiographs must not count, or it would flag them.
        scale = REACH * residual / beyond if beyond > 0 else 0.0
        kinds.append(direction * scale)
        reach.append(limit * scale)
    found = replace(
        none, kinds=_to_half(np.stack(kinds, axis=1)), reach=_to_half(np.array(reach)), names=tuple(outliers)
    )
    return replace(found, threshold=_limit([found.of(each) for each in held_out], FAMILIAR, FAMILIAR_EACH))


def _limit(versions: Sequence[Floats], together: float, each: float) -> float:
    """The smallest value that this share of all versions together, and of each one, does not exceed.

    `each` = 1 leaves single versions out of account.
    """
    single = [float(np.quantile(version, each)) for version in versions] if each < 1 else []
    return max([float(np.quantile(np.concatenate(versions), together)), *single])


def _towards(radiographs: Floats, outliers: Floats) -> Floats:
    """The direction that separates outliers from radiographs, by logistic regression with balanced classes."""
    from sklearn.linear_model import LogisticRegression

    deviation = radiographs.std(axis=0)
    deviation = deviation + LEAST_DEVIATION * deviation.mean() + np.finfo(np.float32).tiny
    features = np.concatenate([radiographs, outliers]) / deviation
    labels = np.repeat([0, 1], [len(radiographs), len(outliers)])
    model = LogisticRegression(C=SLACK, class_weight="balanced", max_iter=500).fit(features, labels)
    return np.asarray(model.coef_[0] / deviation, np.float32)


def _to_half(values: npt.NDArray[np.floating]) -> Floats:
    """Round to half precision, as `fold.py` does with all weights of the network."""
    return values.astype(np.float16).astype(np.float32)
