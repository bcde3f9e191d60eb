"""Every file of a bundle, run by its real engine, held against the trained network."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cxr_edge.export.gates import Check, Gate, check
from cxr_edge.export.parity import Parity, compare, count_flips, run_file
from cxr_edge.export.run import Reference, Run
from cxr_edge.runtime.bundle import Bundle, ModelFile
from cxr_edge.runtime.dataset import LabelledImage, fingerprint, read_dataset, read_pixels
from cxr_edge.runtime.engines import Outputs
from cxr_edge.runtime.errors import CxrEdgeError, IntegrityError, UsageError
from cxr_edge.runtime.files import write_atomically
from cxr_edge.runtime.predictor import load

SCHEMA_VERSION = 1
#: Images on which our decoder and resizing are compared with Pillow's.
PREPROCESSING_IMAGES = 200
#: Told what is being done, and how many of how many images are.
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class FileResult:
    """One file's verdict: what was measured and held, or why it could not be run."""

    file: ModelFile
    parity: Parity | None
    checks: Sequence[Check]
    error: str | None = None

    @property
    def passed(self) -> bool:
        """Whether it ran and every limit held."""
        return self.error is None and all(c.passed for c in self.checks)


@dataclass(frozen=True)
class PreprocessingParity:
    """Our decoding and resizing against Pillow's (box filter), and what the trained network makes of the difference."""

    images: int
    pixel_max: int
    pixel_mean: float
    probability_max: float
    flips: int


@dataclass(frozen=True)
class Verification:
    """The verdict on a bundle."""

    images: int
    data_fingerprint: str
    files: Sequence[FileResult]
    preprocessing: PreprocessingParity

    @property
    def passed(self) -> bool:
        """Whether every file passed."""
        return all(result.passed for result in self.files)

    def to_dict(self) -> dict[str, Any]:
        """The content of `parity.json`."""
        return {
            "schema_version": SCHEMA_VERSION,
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "passed": self.passed,
            "images": self.images,
            "data_fingerprint": self.data_fingerprint,
            "files": [
                asdict(r.file)
                | {"passed": r.passed, "error": r.error, "checks": [asdict(c) for c in r.checks]}
                | ({k: v for k, v in asdict(r.parity).items() if k != "file"} if r.parity else {})
                for r in self.files
            ],
            "preprocessing": asdict(self.preprocessing),
        }


def verify_bundle(
    path: Path, data: Path, run_folder: Path | None, gates: Mapping[str, Gate], limit: int | None, progress: Progress
) -> Verification:
    """Run every file of a bundle over a data set and compare it with the trained network; writes `parity.json`.

    Parameters
    ----------
    run_folder
        Of the trained network; by default where the bundle was exported from.
    limit
        Take this many images, evenly over the data set, instead of all.

    Raises
    ------
    BundleError, DataError, UsageError
        If bundle, run or data cannot be used at all. A file that cannot be run fails instead.
    """
    bundle = Bundle.open(path)
    run = _trained_network(bundle, run_folder)
    images = _sample(read_dataset(data), limit)
    labels = np.array([image.label for image in images], np.int64)
    reference = _Reference(run, bundle, images, progress)
    results = []
    for file in bundle.manifest.files:
        results.append(_verify_file(bundle, file, images, labels, reference.outputs, gates[file.precision], progress))
    verification = Verification(len(images), fingerprint(images), results, reference.preprocessing(progress))
    write_atomically(path / "parity.json", json.dumps(verification.to_dict(), indent=2) + "\n")
    return verification


def _verify_file(
    bundle: Bundle,
    file: ModelFile,
    images: Sequence[LabelledImage],
    labels: npt.NDArray[np.int64],
    reference: Outputs,
    gate: Gate,
    progress: Progress,
) -> FileResult:
    done = 0

    def tick() -> None:
        nonlocal done
        done += 1
        progress(file.path, done, len(images))

    try:
        predictor = load(bundle.folder, file.engine, file.precision, threads=os.cpu_count())
        outputs = run_file(predictor, images, tick)
    except CxrEdgeError as error:  # changed content, an absent engine, a backend that ran elsewhere
        return FileResult(file, None, (), f"{type(error).__name__}: {error}")
    parity = compare(file, predictor.engine.backend, outputs, reference, labels, bundle.manifest)
    return FileResult(file, parity, check(parity, gate))


class _Reference:
    """The trained network over the images, from their files on."""

    def __init__(self, run: Run, bundle: Bundle, images: Sequence[LabelledImage], progress: Progress) -> None:
        self._network = Reference(run.network(), run.temperature, run.novelty)
        self._images = images
        self._feed = bundle.manifest.input
        self._threshold = bundle.manifest.operating_points[0].threshold
        self._pixels = read_pixels(images, self._feed.height, self._feed.width)
        parts = []
        for start in range(0, len(images), 32):
            parts.append(self._network.run(self._pixels[start : start + 32]))
            progress("trained network (Keras)", min(start + 32, len(images)), len(images))
        columns = ((p.probability, p.logit, p.heatmap, p.novelty) for p in parts)
        self.outputs = Outputs(*(np.concatenate(column) for column in zip(*columns, strict=True)))

    def preprocessing(self, progress: Progress) -> PreprocessingParity:
        """What changes for the trained network when Pillow decodes and resizes instead of us."""
        rows = np.linspace(0, len(self._images) - 1, min(PREPROCESSING_IMAGES, len(self._images))).round().astype(int)
        theirs = np.stack([_pillow_input(self._images[r].path, self._feed.height, self._feed.width) for r in rows])
        difference = np.abs(theirs.astype(int) - self._pixels[rows].astype(int))
        other = self._network.run(theirs)
        ours = self.outputs.take(rows)
        progress("preprocessing against Pillow", len(rows), len(rows))
        return PreprocessingParity(
            images=len(rows),
            pixel_max=int(difference.max()),
            pixel_mean=float(difference.mean()),
            probability_max=float(np.abs(other.probability - ours.probability).max()),
            flips=count_flips(other, ours, self._threshold),
        )


def _pillow_input(path: Path, height: int, width: int) -> npt.NDArray[np.uint8]:
    from PIL import Image, ImageOps

    with Image.open(path) as image:
        gray = ImageOps.exif_transpose(image).convert("L")
        if gray.size != (width, height):
            gray = gray.resize((width, height), Image.Resampling.BOX)
        return np.asarray(gray, np.uint8)[:, :, np.newaxis]


def _trained_network(bundle: Bundle, run_folder: Path | None) -> Run:
    """The run that the bundle was exported from, known by the hash of its network."""
    training = bundle.manifest.training
    folder = run_folder or (bundle.folder / training["run"] if "run" in training else None)
    if folder is None or not folder.is_dir():
        raise UsageError(f"{bundle.folder}: the run it was exported from is not at {folder}; name it with --run")
    run = Run.open(folder)
    if run.record["model_sha256"] != training.get("model_sha256"):
        raise IntegrityError(f"{folder}: is not the run that {bundle.folder} was exported from; name that with --run")
    return run


def _sample(images: list[LabelledImage], limit: int | None) -> list[LabelledImage]:
    if limit is None or limit >= len(images):
        return images
    return [images[row] for row in np.linspace(0, len(images) - 1, limit).round().astype(int)]
