"""The protocol of engines: raw pixels in, named outputs out."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from cxr_edge.runtime.bundles.bundle import InputContract, LungGrid
from cxr_edge.runtime.errors import BundleError

FloatArray = npt.NDArray[np.float32]
#: Outputs that every deployment graph has, by name; the same in every format.
OUTPUTS = ("probability", "logit", "heatmap", "novelty")
#: Outputs that a file may lack. The manifest says whether its files have them.
OPTIONAL = ("unlike", "lungs")


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
    lungs
        (N, h, w) float32 in [0, 1]: probability that a tile of the image belongs to a lung. None if the model does not
        find the lungs.
    """

    probability: FloatArray
    logit: FloatArray
    heatmap: FloatArray
    novelty: FloatArray
    unlike: FloatArray | None = None
    lungs: FloatArray | None = None

    @property
    def given(self) -> tuple[str, ...]:
        """Names of the outputs that there are."""
        return (*OUTPUTS, *(name for name in OPTIONAL if getattr(self, name) is not None))

    @classmethod
    def concatenate(cls, parts: Sequence[Outputs]) -> Outputs:
        """Join the outputs of several batches of one file; there must be at least one. A single one is not copied."""
        if len(parts) == 1:
            return parts[0]
        return cls(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in parts[0].given})

    def take(self, rows: npt.NDArray[np.integer]) -> Outputs:
        """Select the outputs of these images."""
        return Outputs(**{name: getattr(self, name)[rows] for name in self.given})


def given_outputs(names: Iterable[str], lungs: LungGrid | None) -> tuple[str, ...]:
    """The outputs to read from a file that has `names`: the required ones, and the optional ones that it has.

    The lungs are read only if the manifest declares them.
    """
    optional = set(names) - (set() if lungs else {"lungs"})
    return (*OUTPUTS, *(name for name in OPTIONAL if name in optional))


class Engine(Protocol):
    """A model file loaded into an inference library."""

    #: Where the model actually runs, for example "CPU, XNNPACK delegate".
    backend: str

    def __init__(self, path: Path, contract: InputContract, threads: int, lungs: LungGrid | None = None) -> None:
        """Load `path`, which has the output `lungs` if its grid is given.

        Raises
        ------
        BundleError
            If its input does not match `contract`, or an output is missing.
        EngineError
            If it cannot run here.
        """

    def run(self, images: npt.NDArray[np.uint8]) -> Outputs:
        """Run the network on (N, height, width, 1) uint8 in [0, 255]; safe to call from any number of threads."""


def check_signature(
    path: Path, contract: InputContract, name: str, dtype: str, shape: tuple[object, ...],
    outputs: Mapping[str, tuple[object, ...]], lungs: LungGrid | None = None, needed: Collection[str] = OUTPUTS,
) -> None:  # fmt: skip
    """Compare what an engine reports with the manifest; raise BundleError if input or outputs differ.

    Parameters
    ----------
    name, dtype, shape
        The input of the file.
    outputs
        Name -> shape.
    lungs
        Size of the output `lungs` that the manifest declares.
    needed
        Names of the other outputs that the file must have.
    """
    expected = (contract.height, contract.width, contract.channels)
    if (name, dtype, tuple(shape[1:])) != (contract.name, contract.dtype, expected):
        raise BundleError(
            f"{path}: its input is {name!r} {dtype} {tuple(shape)}, the manifest says "
            f"{contract.name!r} {contract.dtype} (N, {', '.join(map(str, expected))}); export it again"
        )
    if lacking := set(needed) - outputs.keys():
        raise BundleError(f"{path}: lacks the output {sorted(lacking)[0]!r}; export it again")
    if lungs is None:
        return
    found = tuple(outputs.get("lungs", ()))
    if found[1:] != (lungs.height, lungs.width):
        given = f"'lungs' {found}" if found else "no 'lungs'"
        raise BundleError(
            f"{path}: among its outputs is {given}, the manifest says 'lungs' (N, {lungs.height}, {lungs.width}); "
            "export it again"
        )
