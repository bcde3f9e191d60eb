"""Clusters of images by their low-level appearance, as a proxy for the rooms and devices that made them.

The clusters depend on the images alone, not on a network, so that networks can be compared on them.
"""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from cxr_edge.common.dataset import Pixels
from cxr_edge.common.statistics import Floats, Labels
from cxr_edge.runtime.imaging.gray import Gray

Clusters = npt.NDArray[np.int64]

#: Number of clusters before small ones are merged, and the fewest images of each class in a cluster.
CLUSTERS = 8
FEWEST = 10
#: Number of frequency bands, each of one octave, the finest first.
BANDS = 5
#: Quantiles of the gray levels.
QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
#: Width of the border as a share of each side.
BORDER = 0.08


def appearance(pixels: Pixels) -> Floats:
    """Describe the tone, sharpness, noise and borders of images.

    Parameters
    ----------
    pixels
        (N, H, W, 1) uint8 in [0, 255].

    Returns
    -------
    (N, K) float64: quantiles of the gray levels, the logarithm of the energy of each frequency band in the centre, and
    mean and standard deviation of each border.
    """
    return np.stack([_describe(image[:, :, 0]) for image in pixels])


def appearance_clusters(pixels: Pixels, labels: Labels, seed: int = 0) -> Clusters:
    """Divide images into clusters of similar appearance by k-means (Lloyd 1982).

    Clusters with too few images of a class are merged into the nearest cluster.

    Parameters
    ----------
    pixels, labels
        (N, H, W, 1) uint8 in [0, 255], and (N,) int in {0, 1}.

    Returns
    -------
    (N,) int: the cluster of each image, numbered from 0 by size, the largest first. All are 0 if there are too few
    images for two clusters.
    """
    from sklearn.cluster import KMeans
    from sklearn.preprocessing import StandardScaler

    features = StandardScaler().fit_transform(appearance(pixels))
    count = min(CLUSTERS, len(features))
    found = KMeans(count, n_init=10, random_state=seed).fit_predict(features)
    return _by_size(_merge_small(features, labels, found))


def _merge_small(features: Floats, labels: Labels, clusters: Clusters) -> Clusters:
    """Merge the smallest cluster into the nearest one until all have `FEWEST` images of each class, or one is left."""
    while len(names := np.unique(clusters)) > 1:
        fewest = [min(np.sum(labels[clusters == name] == label) for label in (0, 1)) for name in names]
        if min(fewest) >= FEWEST:
            break
        small = names[int(np.argmin(fewest))]
        centres = np.stack([features[clusters == name].mean(axis=0) for name in names])
        distance = np.linalg.norm(centres - features[clusters == small].mean(axis=0), axis=1)
        distance[names == small] = np.inf
        clusters = np.where(clusters == small, names[int(distance.argmin())], clusters)
    return clusters


def _by_size(clusters: Clusters) -> Clusters:
    """Number clusters from 0, the largest first."""
    _, place, counts = np.unique(clusters, return_inverse=True, return_counts=True)
    rank = np.argsort(np.argsort(-counts, kind="stable"), kind="stable")
    return np.asarray(rank[place], np.int64)


def _describe(image: Gray) -> Floats:
    height, width = image.shape
    y, x = round(BORDER * height), round(BORDER * width)
    strips = (image[:y], image[-y:], image[:, :x], image[:, -x:])
    borders = [value for strip in strips for value in (strip.mean(), strip.std())]
    return np.array([*np.quantile(image, QUANTILES), *_band_energies(image[y:-y, x:-x]), *borders])


def _band_energies(image: Gray) -> list[float]:
    """Logarithm of the standard deviation in each band: differences of Gaussian blurs with doubling sigma."""
    energies = []
    last = image.astype(np.float32)
    for band in range(BANDS):
        blurred = cv2.GaussianBlur(image.astype(np.float32), (0, 0), 0.7 * 2**band)
        energies.append(float(np.log1p((last - blurred).std())))
        last = blurred
    return energies
