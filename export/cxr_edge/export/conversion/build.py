"""Run -> bundle."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, replace
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

from cxr_edge.common.dataset import CLASSES, LabelledImage, evenly, fingerprint, read_dataset, read_pixels
from cxr_edge.common.run import Run
from cxr_edge.export.conversion import quantize
from cxr_edge.export.conversion.formats import COMPANIONS, FILES, GRADIENT, MEDIAPIPE, SYMMETRIC
from cxr_edge.export.conversion.golden import write_golden
from cxr_edge.export.conversion.mediapipe import classifier_model
from cxr_edge.runtime.bundles.bundle import ENGINE_OF_SUFFIX, MANIFEST, InputContract, Manifest, ModelFile, sha256
from cxr_edge.runtime.bundles.facts import PLACEHOLDER
from cxr_edge.runtime.errors import DataError, UsageError

#: Packages whose release shapes the files.
TOOLS = (
    "tensorflow",
    "keras",
    "tf2onnx",
    "onnx",
    "onnxruntime",
    "onnxslim",
    "onnxconverter-common",
    "ai-edge-quantizer",
)


def build_bundle(
    run_folder: Path,
    bundle: Path,
    calib: Path | None,
    names: Collection[str],
    calib_images: int,
    step: Callable[[str], None],
) -> Manifest:
    """Export a run to a bundle folder, which appears whole at the end.

    Parameters
    ----------
    calib
        Data set that the int8 ranges are set on; images of patients that the run held out are left out.
    names
        Which of `FILES` and `COMPANIONS` to write.
    step
        Told the name of each file before it is made.

    Raises
    ------
    BundleError, DataError, UsageError
        If the run, the calibration set or the choice of files cannot be used.
    """
    run = Run.open(run_folder)
    if bundle.exists() and not (bundle / MANIFEST).is_file() and (not bundle.is_dir() or any(bundle.iterdir())):
        raise UsageError(f"{bundle}: exists and is not a bundle; choose another folder for -o")
    precisions = FILES | COMPANIONS
    needs_images = any(precisions[name] == "int8" for name in names)
    calibration = _calibration_images(run, calib, calib_images) if needs_images else []
    facts = _facts(run, bundle, calibration)

    partial = bundle.with_name(bundle.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    files = []
    writer = _Writer(run, facts, calibration)
    for name in names:
        step(name)
        files.append(writer.write(precisions[name], partial / name))
    decide = tuple(file for file in files if file.path in FILES and file.path != GRADIENT)
    manifest = replace(
        facts,
        files=decide,
        companions=tuple(file for file in files if file.path in COMPANIONS),
        gradient=next((file for file in files if file.path == GRADIENT), None),
    )
    if runnable := [file for file in decide if file.engine == "litert"]:
        write_golden(partial, runnable, facts.input)
    (partial / MANIFEST).write_text(manifest.to_json())
    (partial / "MODEL_CARD.md").write_text(model_card(manifest))
    shutil.rmtree(bundle, ignore_errors=True)
    partial.rename(bundle)
    return manifest


class _Writer:
    """Makes the files of one run; does once what several files need."""

    def __init__(self, run: Run, facts: Manifest, calibration: Sequence[LabelledImage]) -> None:
        self._run = run
        self._facts = facts
        self._network = run.network()
        self._pixels = read_pixels(calibration, facts.input.height, facts.input.width)
        self._every = -(-len(self._pixels) // quantize.IMAGES) or 1
        self._onnx: Any = None
        self._rounded: dict[int, Any] = {}

    def write(self, precision: str, path: Path) -> ModelFile:
        # It cannot hold its own hash; writing it puts a digest over the rest in the placeholder's place.
        itself = ModelFile(path.name, ENGINE_OF_SUFFIX[path.suffix], precision, PLACEHOLDER, 0)
        if path.name == MEDIAPIPE:
            self._write_mediapipe(path, itself)
        else:
            of_itself = {"gradient": itself} if path.name == GRADIENT else {"files": (itself,)}
            facts = json.dumps(asdict(replace(self._facts, **of_itself)))
            (self._write_onnx if path.suffix == ".onnx" else self._write_tflite)(precision, path, facts)
        return replace(itself, sha256=sha256(path), bytes=path.stat().st_size)

    def _write_onnx(self, precision: str, path: Path, facts: str) -> None:
        from cxr_edge.export.conversion import gradient, onnx

        if precision == "int8":
            symmetric = path.name == SYMMETRIC
            rounded = onnx.onnx_from_keras(self._deployed(127 if symmetric else onnx.REDUCED))
            model = onnx.to_int8(rounded, self._pixels, quantize.finest_integer_map(self._network), symmetric)
        else:
            self._onnx = self._onnx or onnx.onnx_from_keras(self._deployed())
            model = self._onnx
            if path.name == GRADIENT:
                model = gradient.gradient_model(model)
            elif precision == "fp16":
                model = onnx.to_fp16(model)
        onnx.write_onnx(model, path, facts)

    def _write_tflite(self, precision: str, path: Path, facts: str) -> None:
        from cxr_edge.export.conversion import tflite

        if precision == "int8":
            exact = tflite.tflite_from_keras(self._deployed(127))
            flatbuffer = tflite.to_int8(exact, self._pixels, quantize.float_layers(self._network))
        else:
            flatbuffer = tflite.tflite_from_keras(self._deployed(), precision)
        tflite.write_tflite(flatbuffer, path, facts, CLASSES)

    def _deployed(self, steps: int | None = None, input_dtype: str = "uint8") -> Any:
        """The deployment graph, its weights rounded to so many steps each way."""
        from cxr_edge.export.conversion.graph import deployment_model

        network = self._network
        if steps is not None:
            if steps not in self._rounded:
                self._rounded[steps] = quantize.round_weights(network, self._pixels[:: self._every], steps)
            network = self._rounded[steps]
        return deployment_model(network, self._run.temperature, self._run.novelty, input_dtype)

    def _write_mediapipe(self, path: Path, itself: ModelFile) -> None:
        from cxr_edge.export.conversion import tflite

        model = classifier_model(self._deployed(input_dtype="float32"))
        facts = replace(self._facts, input=replace(self._facts.input, channels=3), companions=(itself,))
        flatbuffer = tflite.tflite_from_keras(model, itself.precision)
        tflite.write_tflite(flatbuffer, path, json.dumps(asdict(facts)), CLASSES)


def _calibration_images(run: Run, calib: Path | None, count: int) -> list[LabelledImage]:
    """Draw calibration images evenly over the data set, without the patients that the run held out."""
    if calib is None:
        raise UsageError("int8 needs radiographs to set its ranges on: name a data set with --calib")
    images = [i for i in read_dataset(calib, ("train", "val")) if i.key not in run.held_out]
    if not images:
        raise DataError(f"{calib}: holds only images of patients that the run held out; calibrate on others")
    return evenly(images, count)


def _facts(run: Run, bundle: Path, calibration: Sequence[LabelledImage]) -> Manifest:
    record = run.record
    held_back = {"history", "split", "operating_points", "heatmap", "input", "temperature", "schema_version"}
    split = {
        key: value
        for key, value in record["split"].items()
        if key in ("rule", "train_images", "validation_images", "holdout_images")
    }
    return Manifest(
        name=record["config"]["arch"],
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        input=InputContract(record["input"]["height"], record["input"]["width"]),
        heatmap=run.geometry,
        operating_points=run.operating_points,
        temperature=run.temperature,
        novelty_threshold=run.novelty.threshold,
        training={key: value for key, value in record.items() if key not in held_back}
        # Relative, so that run and bundle may move together; `verify` trusts the hash, not the place.
        | {
            "run": Path(os.path.relpath(run.folder, bundle)).as_posix(),
            "split": split,
            "export_versions": {name: version(name) for name in TOOLS},
        },
        calibration={"images": len(calibration), "fingerprint": fingerprint(calibration)} if calibration else {},
    )


def model_card(manifest: Manifest) -> str:
    """MODEL_CARD.md: what the model is for, what it was made of, and how well it did where."""
    training = manifest.training
    parts = {part: training["metrics"][part] for part in ("validation", "holdout") if part in training["metrics"]}
    counts = " | ".join(f"{part}, {training['split'][f'{part}_images']} images" for part in parts)
    metrics = "\n".join(
        f"| {name} | " + " | ".join(f"{each[name]:.4f}" for each in parts.values()) + " |"
        for name in parts["validation"]
    )
    points = "\n".join(f"- `{p.name}`: p ≥ {p.threshold:.4f}, {p.chosen}" for p in manifest.operating_points)
    files = "\n".join(f"| {f.path} | {f.precision} | {f.bytes / 1e6:.2f} MB |" for f in manifest.all_files)
    return f"""# {manifest.name}: pneumonia on chest radiographs

Research tool, **not a medical device**. It decides whether a frontal chest radiograph resembles those labelled
pneumonia or normal in its training data, and nothing else.

- Input: {manifest.input.height}×{manifest.input.width} grayscale, raw pixels 0–255; the files normalise by themselves.
- Training: {training["split"]["train_images"]} images, seed {training["config"]["seed"]}, data fingerprint
  `{training["data"]["fingerprint"][:16]}…`; split {training["split"]["rule"]}.

Operating points:

{points}

At the first of these, on held-out patients of the same data set (expect less elsewhere). The validation images also
chose epoch, temperature and thresholds{"; the hold-out chose nothing" if "holdout" in parts else ""}.

| | {counts} |
|---|{"---|" * len(parts)}
{metrics}

| file | precision | size |
|---|---|---|
{files}
"""
