"""What a bundle says about held-out radiographs and each perturbation of them, measured once and kept in a file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from cxr_edge.common.reference import Measured, measure
from cxr_edge.runtime.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cxr_edge.common.dataset import LabelledImage, Pixels
    from cxr_edge.runtime.predictor import Predictor

#: Name of the unchanged images among the versions.
ORIGINAL = "original"
BATCH = 32


@dataclass(frozen=True)
class Observed:
    """Held-out images of a bundle's training data.

    Attributes
    ----------
    labels, patients
        (N,) int in {0, 1}, and (N,) text.
    versions
        Name -> what the bundle says about this version of the images; the first is `ORIGINAL`.
    """

    labels: npt.NDArray[np.int64]
    patients: npt.NDArray[np.str_]
    versions: dict[str, Measured]


def observe(predictor: Predictor, data: Path, folder: Path, part: str = "hold-out") -> Observed:
    """Measure all versions, or read them from the file that an earlier call wrote.

    Parameters
    ----------
    data
        The data set that the bundle was trained on, in the Kaggle layout.
    folder
        Folder of the file, whose name contains the sha256 of the model file.
    part
        `validation` or `hold-out`.

    Raises
    ------
    DataError
        If the part has another number of images than in training.
    """
    path = folder / f"observed-{part}-{predictor.file.sha256[:16]}.npz"
    if not path.is_file():
        images = held_out(predictor, data, part)
        folder.mkdir(parents=True, exist_ok=True)
        np.savez(path, **_measure_all(predictor, images))  # type: ignore[arg-type]
    with np.load(path) as stored:
        return _read(dict(stored))


def held_out(predictor: Predictor, data: Path, part: str) -> list[LabelledImage]:
    """The images of a part of the training data; training splits by patient numbers, so the split can be repeated."""
    from cxr_edge.common.dataset import read_dataset
    from cxr_edge.train.data.patients import split_by_blocks

    images, facts = read_dataset(data, ("train", "val")), predictor.manifest.training
    options = [facts["config"][name] for name in ("val_fraction", "holdout_fraction", "fold")]
    parts = dict(zip(("training", "validation", "hold-out"), split_by_blocks(images, *options), strict=True))
    expected = facts["split"][{"validation": "validation_images", "hold-out": "holdout_images"}[part]]
    if len(parts[part]) != expected:
        raise DataError(
            f"{data}: found {len(parts[part])} images of the {part}, expected {expected}; "
            f"name the data set that {predictor.manifest.name} was trained on"
        )
    return [images[row] for row in parts[part]]


def _measure_all(predictor: Predictor, images: Sequence[LabelledImage]) -> dict[str, npt.NDArray[Any]]:
    """Arrays of the file: labels, patients, names, and the numbers of each version."""
    from rich.console import Console
    from rich.progress import track

    from cxr_edge.common.dataset import read_pixels
    from cxr_edge.train.data.patients import patient_of
    from cxr_edge.train.data.perturbations import PERTURBATIONS, perturb

    pixels = read_pixels(images, predictor.manifest.input.height, predictor.manifest.input.width)
    arrays: dict[str, npt.NDArray[Any]] = {
        "labels": np.array([image.label for image in images]),
        "patients": np.array([patient_of(image.path) for image in images]),
        "names": np.array([ORIGINAL, *PERTURBATIONS]),
    }
    for row, name in enumerate(track(arrays["names"], "observing", console=Console(stderr=True))):
        version = perturb(pixels, PERTURBATIONS[name]) if name in PERTURBATIONS else pixels
        found = vars(measure_pixels(predictor, version)).items()
        arrays |= {f"{row}.{field}": values for field, values in found if values is not None}
    return arrays


def measure_pixels(predictor: Predictor, pixels: Pixels) -> Measured:
    """What the bundle says about images (N, H, W, 1) uint8 of its input size."""
    from cxr_edge.runtime.engines import Outputs

    starts = range(0, len(pixels), BATCH)
    outputs = Outputs.concatenate([predictor.engine.run(pixels[start : start + BATCH]) for start in starts])
    return measure(outputs, predictor.manifest.heatmap, predictor.manifest.input)


def _read(arrays: dict[str, npt.NDArray[Any]]) -> Observed:
    fields = ("logit", "novelty", "evidence", "whole_lungs")
    versions = {
        str(name): Measured(*(arrays.get(f"{row}.{field}") for field in fields))  # type: ignore[arg-type]
        for row, name in enumerate(arrays["names"])
    }
    return Observed(arrays["labels"], arrays["patients"], versions)
