"""Verification of a bundle: every file is run by its real engine and compared with the trained network."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cxr_edge.common.dataset import LabelledImage, evenly, fingerprint, read_dataset, read_pixels
from cxr_edge.common.run import Run
from cxr_edge.export.conversion.formats import BY_NAME
from cxr_edge.export.verification.gates import Check, Gate, check, gate_for, is_default_or_stricter
from cxr_edge.export.verification.layers import IMAGES, LayerReport, measure_layers
from cxr_edge.export.verification.parity import Flip, Parity, compare, find_flips, run_file
from cxr_edge.export.verification.precision import check_precision
from cxr_edge.export.verification.preprocessing import Pixels, PreprocessingParity, compare_loaders, compare_pixels
from cxr_edge.export.verification.reference import Reference
from cxr_edge.export.verification.taps import KerasTap, Tap, open_tap
from cxr_edge.runtime.bundles.bundle import PARITY, Bundle, Manifest, ModelFile
from cxr_edge.runtime.engines import Outputs, open_engine
from cxr_edge.runtime.engines.base import OUTPUTS
from cxr_edge.runtime.errors import BundleError, CxrEdgeError, DataError, IntegrityError, UsageError
from cxr_edge.runtime.files import check_writable, write_atomically
from cxr_edge.runtime.predictor import Predictor

SCHEMA_VERSION = 2
#: Number of images on which other loaders are compared with the runtime's decoding and resizing.
PREPROCESSING_IMAGES = 200
#: Called with the current task, the number of finished images and the number of all images.
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class FileResult:
    """Result of one file: the measurements and checks, or why it could not be run.

    Attributes
    ----------
    gate
        Its gate; None if it does not decide.
    outputs, flips
        Its outputs for every image, and the images decided differently; empty if it could not be run.
    layers
        Comparison of its tensors with the reference, if requested.
    milliseconds
        Stage -> median milliseconds for each image; only for a site, whose page measures itself.
    """

    file: ModelFile
    parity: Parity | None
    checks: Sequence[Check]
    error: str | None = None
    gate: Gate | None = None
    outputs: Outputs | None = None
    flips: Sequence[Flip] = ()
    layers: LayerReport | None = None
    milliseconds: Mapping[str, float] | None = None

    @property
    def passed(self) -> bool:
        """Whether it ran, at least one limit was checked, and every limit held."""
        return not self.failures

    @property
    def failures(self) -> list[str]:
        """The reasons why it did not pass."""
        if self.error:
            return [self.error]
        if not self.checks:
            return ["no limit of its gate could be checked: set a limit on an output that the file has"]
        return [str(c) for c in self.checks if not c.passed]

    @property
    def default_gates(self) -> bool:
        """Whether its gate is the default one of its precision or stricter."""
        return self.gate is not None and is_default_or_stricter(self.gate, self.file.precision)


@dataclass(frozen=True)
class DataRecord:
    """The images that a bundle was verified on.

    Attributes
    ----------
    fingerprint
        Fingerprint of these images (`dataset.fingerprint`).
    images, available
        Number of images used, and number in the data set or of its held-out patients.
    held_out
        Whether only patients that the run held out of training were used.
    """

    fingerprint: str
    images: int
    available: int
    held_out: bool

    @property
    def complete(self) -> bool:
        """Whether all available images were used."""
        return self.images == self.available


@dataclass(frozen=True)
class Verification:
    """Results of a bundle, with the images and the outputs of the reference."""

    manifest: Manifest
    data: DataRecord
    samples: Sequence[LabelledImage]
    reference: Outputs
    files: Sequence[FileResult]
    preprocessing: Sequence[PreprocessingParity]

    @property
    def passed(self) -> bool:
        """Whether there is a file and all files passed."""
        return bool(self.files) and all(result.passed for result in self.files)

    @property
    def images(self) -> int:
        """Number of images."""
        return len(self.samples)

    def to_dict(self) -> dict[str, Any]:
        """The content of `parity.json`."""
        return _finite(
            {
                "schema_version": SCHEMA_VERSION,
                "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
                "passed": self.passed,
                "images": self.images,
                "data_fingerprint": self.data.fingerprint,
                "complete": self.data.complete,
                "data": asdict(self.data),
                "files": [self._row(result) for result in self.files],
                "preprocessing": [asdict(parity) for parity in self.preprocessing],
            }
        )

    def _row(self, result: FileResult) -> dict[str, Any]:
        row = asdict(result.file) | {"passed": result.passed, "error": result.error}
        row |= {"default_gates": result.default_gates, "gate": asdict(result.gate) if result.gate else None}
        row["checks"] = [asdict(c) for c in result.checks]
        if result.parity:
            row |= {key: value for key, value in asdict(result.parity).items() if key != "file"}
            row["flipped"] = [{"image": self.samples[f.row].key} | asdict(f) for f in result.flips]
        if result.milliseconds:
            row["milliseconds"] = result.milliseconds
        if result.layers:
            first = result.layers.first_to_leave
            row["layers"] = {"first_to_leave": first.name if first else None} | asdict(result.layers)
        return row


def verify_bundle(
    path: Path,
    data: Path,
    run_folder: Path | None,
    gates: Mapping[str, Gate],
    limit: int | None,
    progress: Progress,
    layers: bool = False,
    held_out: bool = False,
) -> Verification:
    """Run every file of a bundle on a data set, compare it with the trained network, and write `parity.json`.

    Parameters
    ----------
    run_folder
        Run of the trained network; by default the folder that the manifest records.
    limit
        Use this number of images, evenly spread over the data set, instead of all.
    layers
        Also measure the error of every tensor on some of the images.
    held_out
        Use only patients that the run held out of training and of int8 calibration.

    Raises
    ------
    BundleError, DataError, UsageError
        If bundle, run or data cannot be used, or `parity.json` cannot be written. A single file that cannot be run
        is reported as failed.
    """
    bundle = open_for_verification(path)
    run = trained_run(bundle, run_folder)
    available = available_images(read_dataset(data), run, held_out)
    images = evenly(available, limit or len(available))
    trained = Trained(run, bundle, images, progress)
    results = [
        _verify_file(bundle, file, trained, gates, layers, progress)
        for file in (*bundle.manifest.files, *bundle.manifest.companions)
    ]
    if gradient := bundle.manifest.gradient:
        try:
            bundle.check(gradient)  # it does not decide, but must match the manifest
        except IntegrityError as error:
            results.append(unusable(gradient, error))
    record = DataRecord(fingerprint(images), len(images), len(available), held_out)
    verification = Verification(
        bundle.manifest, record, images, trained.outputs, results, trained.preprocessing(progress)
    )
    write_atomically(path / PARITY, json.dumps(verification.to_dict(), indent=2, allow_nan=False) + "\n")
    return verification


def open_for_verification(path: Path) -> Bundle:
    """Open a bundle and check, before a long run, that it can be verified and the result can be written.

    Raises
    ------
    BundleError
        If it cannot be opened.
    UsageError
        If it is a lone file, has no model file, or its folder cannot be written.
    """
    if path.is_file():
        raise UsageError(
            f"{path}: found a file, expected a bundle folder, because the result is written to {PARITY} in it; "
            f"run: cxr-edge verify {path.parent} --data DATA"
        )
    bundle = Bundle.open(path)
    if not (bundle.manifest.files or bundle.manifest.companions):
        raise UsageError(f"{path}: found no model file in its manifest, expected one at least; export it again")
    check_writable(path / PARITY)
    return bundle


def _verify_file(
    bundle: Bundle, file: ModelFile, trained: Trained, gates: Mapping[str, Gate], layers: bool, progress: Progress
) -> FileResult:
    done = 0

    def tick() -> None:
        nonlocal done
        done += 1
        progress(file.path, done, len(trained.images))

    gate = None
    try:
        gate = gate_for(file, gates)
        predictor = _open(bundle, file)
        check_precision(bundle.folder / file.path, file)
        outputs = run_file(predictor, trained.images, tick)
        engine = predictor.engine
        given = getattr(engine, "given", outputs.given)  # a companion may lack outputs
        check_finite(bundle.folder / file.path, outputs, given)
        check_lungs_declared(bundle, trained)
    except CxrEdgeError as error:  # changed content, a missing engine, a backend on other hardware, NaN
        return unusable(file, error, gate)
    parity = compare(file, engine.backend, outputs, trained.outputs, trained.labels, bundle.manifest, given)
    flips = find_flips(outputs, trained.outputs, bundle.manifest.operating_points)
    report = _layers(bundle, file, trained, progress) if layers and set(given) >= set(OUTPUTS) else None
    return FileResult(file, parity, check(parity, gate), None, gate, outputs, flips, report)


def check_finite(path: Path, outputs: Outputs, given: Collection[str]) -> None:
    """Reject NaN and infinity in any output, because some outputs have no limit that would detect them."""
    for name in given:
        values = np.asarray(getattr(outputs, name))
        broken = int((~np.isfinite(values.reshape(len(values), -1))).any(axis=1).sum())
        if broken:
            raise BundleError(
                f"{path}: found NaN or infinity in the output {name!r} of {broken} of {len(values)} images, expected "
                "numbers; export it again"
            )


def check_lungs_declared(bundle: Bundle, trained: Trained) -> None:
    """Refuse a bundle that hides the lungs that its network finds, because no limit would check them."""
    if trained.outputs.lungs is not None and bundle.manifest.lungs is None:
        raise BundleError(
            f"{bundle.folder}: found no `lungs` in its manifest, expected the size of their map, because the trained "
            "network finds lungs; export it again"
        )


def _open(bundle: Bundle, file: ModelFile) -> Predictor:
    """Load a file into its engine; a companion may have one of its own."""
    threads = os.cpu_count() or 1
    row = BY_NAME.get(file.path)
    if row and row.open_engine:
        engine = row.open_engine(bundle.check(file), bundle.manifest.input, threads, bundle.manifest.lungs)
    else:
        engine = open_engine(bundle, file, threads)
    return Predictor(bundle, file, engine, bundle.manifest.operating_points[0], threads)


def _layers(bundle: Bundle, file: ModelFile, trained: Trained, progress: Progress) -> LayerReport | None:
    """Compare a file with the fp32 file of the same format, whose tensor names are similar, or else with Keras."""
    if (tap := open_tap(bundle.folder / file.path)) is None:
        return None
    progress(f"{file.path}, layer by layer", 0, 1)
    exact = bundle.find(file.engine, "fp32")
    reference: Tap | None = None
    if exact and exact != file:
        reference = open_tap(bundle.check(exact))
    name = exact.path if exact and reference else "trained network (Keras)"
    pixels = trained.pixels[evenly(range(len(trained.images)), IMAGES)]
    report = measure_layers(tap, reference or KerasTap(trained.network), pixels, file.precision, name)
    progress(f"{file.path}, layer by layer", 1, 1)
    return report


class Trained:
    """The trained network, the images as the runtime reads them, and the outputs for them."""

    def __init__(self, run: Run, bundle: Bundle, images: Sequence[LabelledImage], progress: Progress) -> None:
        self.network = run.network()
        self.images = images
        self.labels: npt.NDArray[np.int64] = np.array([image.label for image in images], np.int64)
        self.pixels = read_pixels(images, bundle.manifest.input.height, bundle.manifest.input.width)
        self._reference = Reference(self.network, run.temperature, run.novelty)
        self._point = bundle.manifest.operating_points[0]
        self.outputs = self._reference.run(
            self.pixels, lambda done: progress("trained network (Keras)", done, len(images))
        )

    def read_by(self, loader: str, pixels: Pixels) -> PreprocessingParity:
        """Compare the runtime's decoding and resizing of all images with another's, (N, H, W, 1) uint8."""
        return compare_pixels(loader, pixels, self.pixels, self.outputs, self._reference.run, self._point)

    def preprocessing(self, progress: Progress) -> list[PreprocessingParity]:
        """Compare the runtime's decoding and resizing with those of other libraries."""
        rows = np.array(evenly(range(len(self.images)), PREPROCESSING_IMAGES))
        images = [self.images[row] for row in rows]
        results = compare_loaders(images, self.pixels[rows], self.outputs.take(rows), self._reference.run, self._point)
        progress("preprocessing", len(rows), len(rows))
        return results


def trained_run(bundle: Bundle, run_folder: Path | None) -> Run:
    """The run that the bundle was exported from, identified by the hash of its network.

    Raises
    ------
    IntegrityError, UsageError
        If it is another run, or none.
    """
    training = bundle.manifest.training
    folder = run_folder or (bundle.folder / training["run"] if "run" in training else None)
    if folder is None or not folder.is_dir():
        raise UsageError(
            f"{bundle.folder}: found no run at {folder}, expected the one that it was exported from; name it with --run"
        )
    run = Run.open(folder)
    if run.record["model_sha256"] != training.get("model_sha256"):
        raise IntegrityError(
            f"{folder}: found another network than that of {bundle.folder}, expected the run that it was exported "
            "from; name that run with --run"
        )
    return run


def available_images(images: list[LabelledImage], run: Run, held_out: bool) -> list[LabelledImage]:
    """The images of a data set, or only those that the run held out."""
    if held_out:
        images = [image for image in images if image.key in run.held_out]
        if {image.label for image in images} != {0, 1}:
            raise DataError(
                "the images that the run held out do not cover both classes; name the data set of the run with --data"
            )
    return images


def unusable(file: ModelFile, error: CxrEdgeError, gate: Gate | None = None) -> FileResult:
    """The result of a file that could not be run."""
    return FileResult(file, None, (), f"{type(error).__name__}: {error}", gate)


def _finite(value: Any) -> Any:
    """Replace NaN and infinity by None, because JSON has neither."""
    if isinstance(value, Mapping):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
