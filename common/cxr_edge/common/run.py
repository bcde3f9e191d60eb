"""The run folder: the contract between training, evaluation and export.

`run.json` holds the record, `model.keras` the trained network, and `novelty.npz` its out-of-distribution detector.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from cxr_edge.runtime.bundles.bundle import HeatmapGeometry, InputContract, LungGrid, OperatingPoint, Reference, sha256
from cxr_edge.runtime.bundles.fields import Document
from cxr_edge.runtime.errors import BundleError, IntegrityError

if TYPE_CHECKING:
    import keras

RECORD, NETWORK, NOVELTY = "run.json", "model.keras", "novelty.npz"
SCHEMA_VERSION = 1
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Run:
    """A trained network and its record (`run.json`)."""

    folder: Path
    record: Mapping[str, Any]

    @classmethod
    def open(cls, folder: Path) -> Run:
        """Open a run and check that its files are unchanged.

        Raises
        ------
        BundleError, IntegrityError
            If the folder is not a run, its record has another schema or is incomplete, or a file is missing or changed.
        """
        record = _read_record(folder)
        for name, key in ((NETWORK, "model_sha256"), (NOVELTY, "novelty_sha256")):
            path = folder / name
            if not path.is_file():
                raise IntegrityError(f"{path}: missing; copy the whole run again, or train again")
            if sha256(path) != record.get(key):
                raise IntegrityError(f"{path}: its sha256 is not that in {RECORD}; copy the whole run again")
        run = cls(folder, record)
        try:
            _ = run.arch, run.input, run.geometry, run.operating_points, run.temperature, run.held_out, run.fingerprint
            _ = run.lungs, run.reference
        except (KeyError, TypeError, ValueError) as error:
            raise BundleError(f"{folder / RECORD}: incomplete ({error!r}); train again") from error
        return run

    @property
    def arch(self) -> str:
        """Name of the architecture."""
        return str(self.record["config"]["arch"])

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the training data."""
        return str(self.record["data"]["fingerprint"])

    @property
    def temperature(self) -> float:
        """Temperature of the probability: sigmoid(logit / temperature)."""
        return float(self.record["temperature"])

    @property
    def input(self) -> InputContract:
        """Input contract of the network."""
        return InputContract(self.record["input"]["height"], self.record["input"]["width"])

    @property
    def geometry(self) -> HeatmapGeometry:
        """Places of the heatmap's cells in the image."""
        return HeatmapGeometry(**self.record["heatmap"])

    @property
    def lungs(self) -> LungGrid | None:
        """Size of the map of the lungs; None if the network was trained without masks."""
        found = self.record.get("lungs")
        return None if found is None else LungGrid(**found)

    @property
    def reference(self) -> Reference | None:
        """Distributions over held-out images; None in a run of an earlier version."""
        found = self.record.get("reference")
        document = Document(str(self.folder / RECORD), "copy the run again, or train again")
        return None if found is None else document.build(Reference, found, "reference")

    @property
    def operating_points(self) -> tuple[OperatingPoint, ...]:
        """Thresholds that were chosen in training; the first is the default."""
        return tuple(OperatingPoint(**point) for point in self.record["operating_points"])

    @property
    def validation_files(self) -> frozenset[str]:
        """`CLASS/name` of the images that chose the epoch, the temperature and the thresholds."""
        return frozenset(self.record["split"]["validation_files"])

    @property
    def holdout_files(self) -> frozenset[str]:
        """`CLASS/name` of the hold-out images, which chose nothing; empty in a run without a hold-out."""
        return frozenset(self.record["split"].get("holdout_files", ()))

    @property
    def held_out(self) -> frozenset[str]:
        """`CLASS/name` of all images that were not used for training."""
        return self.validation_files | self.holdout_files

    @property
    def novelty(self) -> Novelty:
        """The out-of-distribution detector."""
        return Novelty.load(self.folder / NOVELTY)

    def network(self) -> keras.Model:
        """Load the trained network."""
        import keras

        return keras.models.load_model(self.folder / NETWORK, compile=False)


@dataclass(frozen=True)
class Novelty:
    """Out-of-distribution detector on features of one pass. The novelty is the length of a vector of two parts.

    The features are the spatial means of some layers, one after another, in F numbers; those of the last feature map
    come last. The first part is the residual of the last K features after a principal component analysis of the
    training set (Wang et al. 2022, ViM, equation 5). It detects photographs and blanks, but not inverted radiographs.
    The second part is how far the first L features reach beyond radiographs in the directions of outliers: outlier
    exposure (Hendrycks et al. 2019). They come from earlier layers, because the last one knows little but the classes.

    Attributes
    ----------
    mean
        (F,) float32.
    basis
        (K, D) float32: columns that are orthonormal up to half precision.
    kinds
        (L, M) float32: one direction for each kind of outlier.
    reach
        (M,) float32: how far radiographs reach in each direction.
    threshold
        An image with more novelty is out of distribution.
    layers
        Names of the layers before the last feature map, whose means are the first L features. If there are none, all
        features are those of the last feature map: F = K = L.
    names
        Names of the M kinds; empty if they are not known.
    """

    mean: Floats
    basis: Floats
    kinds: Floats
    reach: Floats
    threshold: float
    layers: tuple[str, ...] = ()
    names: tuple[str, ...] = ()

    def save(self, path: Path) -> None:
        """Write an `.npz` file."""
        np.savez(path, **asdict(self))

    @classmethod
    def load(cls, path: Path) -> Novelty:
        """Read a file that `save` has written; earlier versions wrote neither layers nor names."""
        with np.load(path) as stored:
            layers, names = (tuple(map(str, stored[key])) if key in stored else () for key in ("layers", "names"))
            mean, basis, kinds, reach = (stored[key] for key in ("mean", "basis", "kinds", "reach"))
            return cls(mean, basis, kinds, reach, float(stored["threshold"]), layers, names)

    def of(self, features: Floats) -> Floats:
        """Novelty: (N, F) float32 -> (N,) float32 ≥ 0."""
        last = (features - self.mean)[:, -len(self.basis) :]
        missed = last - last @ self.basis @ self.basis.T
        beyond = self.beyond(features)
        return np.sqrt((missed**2).sum(axis=1) + (beyond**2).sum(axis=1)).astype(np.float32)

    def beyond(self, features: Floats) -> Floats:
        """How far images reach beyond radiographs towards each kind: (N, F) float32 -> (N, M) float32 ≥ 0."""
        early = (features - self.mean)[:, : len(self.kinds)]
        return np.maximum(early @ self.kinds - self.reach, 0).astype(np.float32)


def _read_record(folder: Path) -> Mapping[str, Any]:
    """Read `run.json` and check its schema."""
    path = folder / RECORD
    try:
        record = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise BundleError(
            f"{folder}: not a run ({RECORD} not found); create one with `cxr-edge train DATA -o {folder}`"
        ) from error
    except ValueError as error:
        raise BundleError(f"{path}: not valid JSON ({error}); copy the run again, or train again") from error
    found = record.get("schema_version") if isinstance(record, dict) else None
    if found != SCHEMA_VERSION:
        raise BundleError(
            f"{path}: found schema_version {found}, expected {SCHEMA_VERSION}; train again with this cxr-edge"
        )
    return record
