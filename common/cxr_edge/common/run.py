"""The run folder, which is the contract between training, evaluation and export.

`run.json` holds the facts, `model.keras` the trained network, `novelty.npz` its distance from the training set.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from cxr_edge.runtime.bundles.bundle import HeatmapGeometry, InputContract, OperatingPoint, sha256
from cxr_edge.runtime.errors import BundleError, IntegrityError

if TYPE_CHECKING:
    import keras

RECORD, NETWORK, NOVELTY = "run.json", "model.keras", "novelty.npz"
SCHEMA_VERSION = 1
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Run:
    """A trained network and the facts about it (`run.json`)."""

    folder: Path
    record: Mapping[str, Any]

    @classmethod
    def open(cls, folder: Path) -> Run:
        """Read a run, and check that its files are those that were written with it.

        Raises
        ------
        BundleError, IntegrityError
            If the folder is no run, of another schema or incomplete, or a file is missing or was changed.
        """
        record = _read_record(folder)
        for name, key in ((NETWORK, "model_sha256"), (NOVELTY, "novelty_sha256")):
            path = folder / name
            if not path.is_file():
                raise IntegrityError(f"{path}: missing; copy the whole run again, or train again")
            if sha256(path) != record.get(key):
                raise IntegrityError(f"{path}: its sha256 is not the one in {RECORD}; copy the whole run again")
        run = cls(folder, record)
        try:
            _ = run.arch, run.input, run.geometry, run.operating_points, run.temperature, run.held_out, run.fingerprint
        except (KeyError, TypeError, ValueError) as error:
            raise BundleError(f"{folder / RECORD}: incomplete ({error!r}); train again") from error
        return run

    @property
    def arch(self) -> str:
        """Name of the architecture."""
        return str(self.record["config"]["arch"])

    @property
    def fingerprint(self) -> str:
        """Of the data set that the run was trained on."""
        return str(self.record["data"]["fingerprint"])

    @property
    def temperature(self) -> float:
        """Of the probability: sigmoid(logit / temperature)."""
        return float(self.record["temperature"])

    @property
    def input(self) -> InputContract:
        """How the network is fed."""
        return InputContract(self.record["input"]["height"], self.record["input"]["width"])

    @property
    def geometry(self) -> HeatmapGeometry:
        """Where the heatmap's cells lie."""
        return HeatmapGeometry(**self.record["heatmap"])

    @property
    def operating_points(self) -> tuple[OperatingPoint, ...]:
        """Thresholds chosen in training; the first is the default."""
        return tuple(OperatingPoint(**point) for point in self.record["operating_points"])

    @property
    def validation_files(self) -> frozenset[str]:
        """`CLASS/name` of the images that chose the epoch, the temperature and the thresholds."""
        return frozenset(self.record["split"]["validation_files"])

    @property
    def holdout_files(self) -> frozenset[str]:
        """`CLASS/name` of the images that chose nothing; empty in a run that was trained without a hold-out."""
        return frozenset(self.record["split"].get("holdout_files", ()))

    @property
    def held_out(self) -> frozenset[str]:
        """`CLASS/name` of every image of the patients that were held out of training."""
        return self.validation_files | self.holdout_files

    @property
    def novelty(self) -> Novelty:
        """How unlike the training set an image is."""
        return Novelty.load(self.folder / NOVELTY)

    def network(self) -> keras.Model:
        """Load the trained network."""
        import keras

        return keras.models.load_model(self.folder / NETWORK, compile=False)


@dataclass(frozen=True)
class Novelty:
    """Novelty of pooled features f: the length of two parts together.

    What the training set's main directions miss of f − mean: the residual of a principal component analysis, as in Wang
    et al. 2022 (ViM, equation 5). It tells photographs and blanks, but not inverted radiographs. And how far f reaches
    in directions in which outliers lie, beyond where radiographs do: outlier exposure (Hendrycks et al. 2019).

    Attributes
    ----------
    mean
        (K,) float32.
    basis
        (K, D) float32, orthonormal columns up to half precision.
    kinds
        (K, M) float32: a direction for each kind of outlier.
    reach
        (M,) float32: how far radiographs reach in each.
    threshold
        An image of more novelty is not in distribution.
    """

    mean: Floats
    basis: Floats
    kinds: Floats
    reach: Floats
    threshold: float

    def save(self, path: Path) -> None:
        """Write as `.npz`."""
        np.savez(path, **asdict(self))

    @classmethod
    def load(cls, path: Path) -> Novelty:
        """Read what `save` wrote."""
        with np.load(path) as stored:
            arrays = {field.name: stored[field.name] for field in fields(cls)}
        return cls(**arrays | {"threshold": float(arrays["threshold"])})

    def of(self, features: Floats) -> Floats:
        """(N, K) float32 -> (N,) float32 ≥ 0."""
        centred = features - self.mean
        missed = centred - centred @ self.basis @ self.basis.T
        beyond = np.maximum(centred @ self.kinds - self.reach, 0)
        return np.sqrt((missed**2).sum(axis=1) + (beyond**2).sum(axis=1)).astype(np.float32)


def _read_record(folder: Path) -> Mapping[str, Any]:
    """Content of `run.json`."""
    path = folder / RECORD
    try:
        record = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise BundleError(
            f"{folder}: no run ({RECORD} not found); make one with `cxr-edge train DATA -o {folder}`"
        ) from error
    except ValueError as error:
        raise BundleError(f"{path}: not JSON ({error}); train again") from error
    found = record.get("schema_version") if isinstance(record, dict) else None
    if found != SCHEMA_VERSION:
        raise BundleError(
            f"{path}: found schema_version {found}, expected {SCHEMA_VERSION}; train again with this cxr-edge"
        )
    return record
