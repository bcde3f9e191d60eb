"""The protocol of engines: raw pixels in, named outputs out."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from cxr_edge.runtime.bundles.bundle import InputContract
from cxr_edge.runtime.errors import BundleError

FloatArray = npt.NDArray[np.float32]
#: Outputs of the deployment graph, by name; the same in every format.
OUTPUTS = ("probability", "logit", "heatmap", "novelty")
#: Outputs that a file may lack.
OPTIONAL = ("unlike",)


@dataclass(frozen=True)
class Outputs:
    """Outputs of the deployment graph for N images.

    Attributes
    ----------
    probability
        (N,) float32 in [0, 1]: sigmoid(logit / temperature).
    logit
        (N,) float32, before temperature scaling.
    heatmap
        (N, h, w) float32 ≥ 0: Grad-CAM, the positive contribution of each cell to the logit.
    novelty
        (N,) float32 ≥ 0: distance of the features from the training set.
    unlike
        (N, M) float32 ≥ 0: the part of the novelty towards each of the manifest's `novelty_kinds`; None if the file
        lacks it.
    """

    probability: FloatArray
    logit: FloatArray
    heatmap: FloatArray
    novelty: FloatArray
    unlike: FloatArray | None = None

    @classmethod
    def concatenate(cls, parts: Sequence[Outputs]) -> Outputs:
        """Join the outputs of several batches of one file; there must be at least one."""
        given = given_outputs(name for name in OPTIONAL if getattr(parts[0], name) is not None)
        return cls(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in given})

    def take(self, rows: npt.NDArray[np.integer]) -> Outputs:
        """Select the outputs of these images."""
        return Outputs(**{name: each[rows] for name, each in vars(self).items() if each is not None})


def given_outputs(names: Iterable[str]) -> tuple[str, ...]:
    """The outputs to read from a file that has `names`: the required ones, and those of the optional ones it has."""
    names = set(names)
    return (*OUTPUTS, *(name for name in OPTIONAL if name in names))


class Engine(Protocol):
    """A model file loaded into an inference library."""

    #: Where the model actually runs, for example "CPU, XNNPACK delegate".
    backend: str

    def __init__(self, path: Path, contract: InputContract, threads: int) -> None:
        """Load `path`; raise BundleError if its input does not match `contract`, EngineError if it cannot run here."""

    def run(self, images: npt.NDArray[np.uint8]) -> Outputs:
        """Run the network on (N, height, width, 1) uint8 in [0, 255]; safe to call from any number of threads."""


def check_signature(
    path: Path, contract: InputContract, name: str, dtype: str, shape: tuple[object, ...], outputs: set[str],
    needed: Collection[str] = OUTPUTS,
) -> None:  # fmt: skip
    """Compare what an engine reports with the manifest; raise BundleError if input or outputs differ."""
    expected = (contract.height, contract.width, contract.channels)
    if (name, dtype, tuple(shape[1:])) != (contract.name, contract.dtype, expected):
        raise BundleError(
            f"{path}: its input is {name!r} {dtype} {tuple(shape)}, the manifest says "
            f"{contract.name!r} {contract.dtype} (N, {', '.join(map(str, expected))}); export it again"
        )
    if lacking := set(needed) - outputs:
        raise BundleError(f"{path}: lacks the output {sorted(lacking)[0]!r}; export it again")
