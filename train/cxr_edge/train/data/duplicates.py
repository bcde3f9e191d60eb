"""Finding duplicates: copies of a file, and pictures that were stored again."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from cxr_edge.runtime.imaging.gray import Gray
from cxr_edge.runtime.imaging.preprocess import preprocess

K = TypeVar("K", bound=Hashable)

#: Side of the perceptual hash: 256 bits. The usual 64 bits do not distinguish two chests.
HASH_SIDE = 16
#: Two pictures that differ in at most this many bits are the same. Measured on the 5,232 radiographs of *Chest X-Ray
#: Images*, 13.7 million pairs: copies differ in 0 bits, the nearest two others in 38. The same radiograph stored again
#: as a JPEG of quality 40 differs in up to 14 bits, at half the size in up to 10, with a gamma of 1.2 in up to 16. If
#: cropped by 1 % it is mostly found (median 16), by 2 % it is not (median 32). Two phantoms differ in 24 bits or more.
MAX_DISTANCE = 20
#: Rows of the distance matrix that are computed at a time; limits memory.
BLOCK = 1024

Bits = npt.NDArray[np.bool_]


def perceptual_hash(gray: Gray) -> Bits:
    """Hash a radiograph, (H, W) uint8, by the signs of its low frequencies at the network's input size: (256,) bool."""
    import imagehash
    from PIL import Image

    return np.asarray(imagehash.phash(Image.fromarray(preprocess(gray)[:, :, 0]), HASH_SIDE).hash.ravel(), np.bool_)


def equal(keys: Sequence[K]) -> list[list[int]]:
    """Indices of equal keys, for each key that occurs more than once."""
    members: dict[K, list[int]] = {}
    for index, key in enumerate(keys):
        members.setdefault(key, []).append(index)
    return [indices for indices in members.values() if len(indices) > 1]


def similar(hashes: npt.NDArray[np.bool_]) -> list[list[int]]:
    """Indices of images that are connected by steps of at most `MAX_DISTANCE` bits.

    Parameters
    ----------
    hashes
        (N, 256) bool.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    count = len(hashes)
    if not count:
        return []
    rows, columns = _close_pairs(hashes)
    links = coo_array((np.ones(len(rows), np.bool_), (rows, columns)), shape=(count, count))
    return equal(connected_components(links, directed=False)[1].tolist())


def _close_pairs(hashes: npt.NDArray[np.bool_]) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """The two indices of each close pair.

    Two hashes as signs have the inner product bits - 2 * distance. One matrix product compares them all; it is exact in
    float32 and faster than counting bits (0.3 s for 5,232 images).
    """
    signs = 2 * hashes.astype(np.float32) - 1
    found = []
    for start in range(0, len(signs), BLOCK):
        distance = (signs.shape[1] - signs[start : start + BLOCK] @ signs[start:].T) / 2
        found.append(np.argwhere(np.triu(distance <= MAX_DISTANCE, 1)) + start)
    rows, columns = np.concatenate(found).T
    return rows, columns
