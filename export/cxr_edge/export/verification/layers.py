"""Layer-by-layer comparison: the error of every tensor of a file against its reference, on real images."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cxr_edge.export.conversion.formats import gate_of
from cxr_edge.export.verification.taps import Array, Tap, Tensor

#: Number of images on which the error is measured.
IMAGES = 16
#: Smallest acceptable SQNR (dB) by gate: a relative error of 1e-4, 1.8 % and 10 %.
LIMITS: Mapping[str, float] = {"fp32": 80.0, "fp16": 35.0, "int8": 20.0}
#: SQNR of a tensor without any error (dB).
EXACT = 200.0
#: Number of values of a tensor that are compared to find its counterpart.
SAMPLED = 20_000
#: Score of an equal shape, which is added to an agreement in [0, 1].
SAME_SHAPE = 0.1


@dataclass(frozen=True)
class Layer:
    """The error of one tensor of a file.

    Attributes
    ----------
    reference
        The tensor of the reference that it is compared with.
    sqnr
        Signal to quantisation noise ratio in dB, 10·log10(Σ reference² / Σ error²) over all images.
    loss
        SQNR of its worst input minus its own (dB): the error that this layer adds. None if its inputs are exact.
    """

    name: str
    operator: str
    reference: str
    sqnr: float
    loss: float | None


@dataclass(frozen=True)
class LayerReport:
    """The errors of a file's tensors against a reference, in the order of the file's graph."""

    reference: str
    images: int
    limit: float
    layers: Sequence[Layer]

    @property
    def first_to_leave(self) -> Layer | None:
        """The first tensor below the limit."""
        return next((layer for layer in self.layers if layer.sqnr < self.limit), None)

    @property
    def worst(self) -> Layer:
        """The tensor with the smallest SQNR."""
        return min(self.layers, key=lambda layer: layer.sqnr)


def measure_layers(
    file: Tap, reference: Tap, images: npt.NDArray[np.uint8], precision: str, reference_name: str
) -> LayerReport:
    """Compare a file with its reference, tensor by tensor.

    Parameters
    ----------
    images
        (N, H, W, 1) uint8. The first image is used to find the counterpart of each tensor.
    """
    pairs = match(file, reference, images[:1])
    signal, noise = np.zeros(len(pairs)), np.zeros(len(pairs))
    for image in images:
        values, expected = file.run(image[np.newaxis]), reference.run(image[np.newaxis])
        for row, (mine, theirs) in enumerate(pairs):
            wanted = np.squeeze(expected[theirs.name]).astype(np.float64)
            found = _as_laid_out(values[mine.name], wanted)
            signal[row] += np.square(wanted).sum()
            noise[row] += np.square(found - wanted).sum()
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(noise > 0, 10 * np.log10(signal / noise), EXACT)
    # A tensor that is zero in the reference, as the parts of the novelty are on radiographs, has no SQNR.
    pairs = [pair for pair, power in zip(pairs, signal, strict=True) if power > 0]
    ratio = ratio[signal > 0]
    sqnr = dict(zip((mine.name for mine, _ in pairs), np.clip(ratio, -EXACT, EXACT).tolist(), strict=True))
    before = _before(file.tensors, sqnr)
    layers = []
    for mine, theirs in pairs:
        loss = before[mine.name] - sqnr[mine.name] if before[mine.name] < EXACT else None
        layers.append(Layer(_short(mine.name), mine.operator, _short(theirs.name), sqnr[mine.name], loss))
    return LayerReport(reference_name, len(images), LIMITS[gate_of(precision)], layers)


def match(file: Tap, reference: Tap, image: npt.NDArray[np.uint8]) -> list[tuple[Tensor, Tensor]]:
    """Find the counterpart of each tensor: by its name, else by the most likely alignment in the same order.

    Counterparts have the same shape, up to the layout. Tensors that one side has fused away have no counterpart.
    """
    mine, theirs = file.run(image), reference.run(image)

    def likeness(a: Tensor, b: Tensor) -> float:
        return _likeness(mine[a.name], theirs[b.name])

    pairs = [(a, b) for a, b in _namesakes(file.tensors, reference.tensors) if likeness(a, b)]
    matched, taken = {a.name for a, _ in pairs}, {b.name for _, b in pairs}
    left = [tensor for tensor in file.tensors if tensor.name not in matched]
    right = [tensor for tensor in reference.tensors if tensor.name not in taken]
    pairs += _align(left, right, np.array([[likeness(a, b) for b in right] for a in left]))
    place = {tensor.name: row for row, tensor in enumerate(file.tensors)}
    return sorted(pairs, key=lambda pair: place[pair[0].name])


def _namesakes(file: Sequence[Tensor], reference: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Pairs of tensors whose name is the same and unique on both sides."""
    mine, theirs = (Counter(_plain(tensor.name) for tensor in side) for side in (file, reference))
    named = {_plain(tensor.name): tensor for tensor in reference}
    unique = {name for name in named if mine[name] == theirs[name] == 1}
    return [(tensor, named[_plain(tensor.name)]) for tensor in file if _plain(tensor.name) in unique]


def _align(
    file: Sequence[Tensor], reference: Sequence[Tensor], likeness: npt.NDArray[np.float64]
) -> list[tuple[Tensor, Tensor]]:
    """The alignment of two sequences with the largest total likeness (Needleman and Wunsch 1970)."""
    i, j = len(file), len(reference)
    best = np.zeros((i + 1, j + 1))
    for row, column in np.ndindex(i, j):
        best[row + 1, column + 1] = max(
            best[row, column + 1], best[row + 1, column], best[row, column] + likeness[row, column]
        )
    pairs = []
    while i and j:
        if best[i, j] == best[i - 1, j]:
            i -= 1
        elif best[i, j] == best[i, j - 1]:
            j -= 1
        else:
            i, j = i - 1, j - 1
            pairs.append((file[i], reference[j]))
    return pairs


def _likeness(values: Array, expected: Array) -> float:
    """Likeness of two tensors; above 0 if their shapes are equal in some layout."""
    if values.size != expected.size:
        return 0.0
    wanted = np.squeeze(expected)
    try:
        return SAME_SHAPE + max(_agreement(_as_laid_out(values, wanted), wanted), 0.0)
    except ValueError:  # different shapes
        return 0.0


def _as_laid_out(values: Array, wanted: Array) -> Array:
    """Convert (1, …) to the shape of `wanted`, with the channel order that agrees better with it."""
    found = np.squeeze(values)
    layouts = [found] + ([np.moveaxis(found, 0, -1), np.moveaxis(found, -1, 0)] if found.ndim == 3 else [])
    fitting = [layout for layout in layouts if layout.shape == wanted.shape]
    if not fitting:
        raise ValueError(f"{values.shape} is not {wanted.shape}")
    return fitting[0] if len(fitting) == 1 else max(fitting, key=lambda layout: _agreement(layout, wanted))


def _agreement(a: Array, b: Array) -> float:
    """2·Σab / (Σa² + Σb²) of every n-th value: 1 if equal, less if offset, scale or pattern differ."""
    step = max(1, a.size // SAMPLED) | 1  # odd: sizes are even, and an even step would miss every other column
    a, b = (np.ravel(x)[::step].astype(np.float64) for x in (a, b))
    energy = float(a @ a + b @ b)
    return 2 * float(a @ b) / energy if energy > 0 else 1.0


def _before(tensors: Sequence[Tensor], sqnr: Mapping[str, float]) -> dict[str, float]:
    """For each tensor, the worst SQNR of its inputs. An input without a counterpart is replaced by its own inputs."""
    reached: dict[str, float] = {}
    before = {}
    for tensor in tensors:
        before[tensor.name] = min((reached.get(name, EXACT) for name in tensor.inputs), default=EXACT)
        reached[tensor.name] = sqnr.get(tensor.name, before[tensor.name])
    return before


def _plain(name: str) -> str:
    """A name without what tells copies apart and what ONNX Runtime's quantiser adds."""
    return re.sub(r" #\d+$|_QuantizeLinear_Input$", "", name)


def _short(name: str) -> str:
    """What says most of a long name: its last parts."""
    last = _plain(name).split(";")[-1]
    return "/".join(last.split("/")[-2:])
