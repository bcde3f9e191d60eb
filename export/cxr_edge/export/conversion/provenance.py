"""The facts of a bundle that do not depend on its files: input, thresholds, training, calibration."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

from cxr_edge.common.dataset import LabelledImage, evenly, fingerprint, read_dataset
from cxr_edge.common.run import Run
from cxr_edge.runtime.bundles.bundle import InputContract, Manifest
from cxr_edge.runtime.errors import DataError, UsageError

#: Packages whose version affects the files.
TOOLS = (
    "tensorflow", "keras", "tf2onnx", "onnx", "onnxruntime", "onnxslim", "onnxconverter-common", "ai-edge-quantizer",
)  # fmt: skip
#: Fields of `run.json` that the manifest leaves out, because it has fields of its own for them or has no use for them.
LEFT_OUT = frozenset(
    {"history", "split", "operating_points", "heatmap", "input", "temperature", "schema_version", "lungs", "reference"}
)
#: Fields of the split that the manifest keeps; the lists of files are left out.
SPLIT = ("rule", "train_images", "validation_images", "holdout_images")


def calibration_images(run: Run, calib: Path | None, count: int) -> list[LabelledImage]:
    """Choose up to `count` images, evenly spread over a data set, without the patients that the run held out.

    Raises
    ------
    DataError, UsageError
        If there is no data set, or it has no such image.
    """
    if calib is None:
        raise UsageError("int8 files need radiographs to set their ranges: name a data set with --calib")
    images = [i for i in read_dataset(calib, ("train", "val")) if i.key not in run.held_out]
    if not images:
        raise DataError(
            f"{calib}: found only images of patients that the run held out, expected others too; name another data "
            "set with --calib"
        )
    return evenly(images, count)


def manifest_of(run: Run, bundle: Path, calibration: Sequence[LabelledImage]) -> Manifest:
    """The manifest of a run's bundle, without files."""
    record, novelty = run.record, run.novelty
    provenance = {
        # Relative, so that run and bundle can move together. `verify` trusts the hash, not the path.
        "run": Path(os.path.relpath(run.folder, bundle)).as_posix(),
        "split": {key: value for key, value in record["split"].items() if key in SPLIT},
        "export_versions": {name: version(name) for name in TOOLS},
    }
    return Manifest(
        name=record["config"]["arch"],
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        input=InputContract(record["input"]["height"], record["input"]["width"]),
        heatmap=run.geometry,
        operating_points=run.operating_points,
        temperature=run.temperature,
        novelty_threshold=novelty.threshold,
        novelty_kinds=novelty.names,
        training={key: value for key, value in record.items() if key not in LEFT_OUT} | provenance,
        lungs=run.lungs,
        reference=run.reference,
        calibration={"images": len(calibration), "fingerprint": fingerprint(calibration)} if calibration else {},
    )
