"""The protocol of engines: raw pixels in, named outputs out."""

from __future__ import annotations

from collections.abc import Collection, Sequence
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
        (N,) float32 ≥ 0: distance of the pooled features from the training set.
    """

    probability: FloatArray
    logit: FloatArray
    heatmap: FloatArray
    novelty: FloatArray

    @classmethod
    def concatenate(cls, parts: Sequence[Outputs]) -> Outputs:
        """Join the outputs of several batches; there must be at least one."""
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in OUTPUTS))

    def take(self, rows: npt.NDArray[np.integer]) -> Outputs:
        """Select the outputs of these images."""
        return Outputs(self.probability[rows], self.logit[rows], self.heatmap[rows], self.novelty[rows])


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
