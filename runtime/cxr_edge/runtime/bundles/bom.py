"""Bill of materials of a bundle for machine learning (ML-BOM), in CycloneDX 1.6.

It is written as plain JSON, because the usual Python library has no model cards. No package is needed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from datetime import datetime
from importlib.metadata import version
from typing import Any
from uuid import NAMESPACE_URL, uuid5

from cxr_edge.runtime.bundles.manifest import CONTENTS, Manifest, ModelFile, OperatingPoint

Json = dict[str, Any]
DESCRIPTION = "Decides whether a frontal chest radiograph resembles those labelled pneumonia in its training data."
MODEL_LICENCE = "weights: defined by their owner"
LIMITATIONS = (
    "Frontal chest radiographs only; expect less accuracy at another hospital than on its own data set.",
    "Above the manifest's novelty_threshold an image is unlike the training set, and the decision means nothing.",
)
OUTPUTS = ("probability", "logit", "heatmap", "novelty")


def bill_of_materials(manifest: Manifest) -> Json:
    """The ML-BOM of a bundle; equal manifests give equal documents.

    Returns
    -------
    CycloneDX 1.6 JSON: the model with its card, one component for each file with its sha256, and the packages with
    which the network was trained and exported.
    """
    metadata: Json = {"component": _model(manifest), "tools": {"components": [_cxr_edge()]}}
    if timestamp := _timestamp(manifest.created):
        metadata["timestamp"] = timestamp
    tools = list(_tools(manifest))
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid5(NAMESPACE_URL, manifest.to_json())}",
        "version": 1,
        "metadata": metadata,
        "components": tools,
        "dependencies": [{"ref": "model", "dependsOn": [tool["bom-ref"] for tool in tools]}],
    }


def _model(manifest: Manifest) -> Json:
    return {
        "type": "machine-learning-model",
        "bom-ref": "model",
        "name": manifest.name,
        "version": manifest.created,
        "description": DESCRIPTION,
        "licenses": [{"license": {"name": MODEL_LICENCE}}],
        "components": [_file(file) for file in manifest.all_files],
        "modelCard": {
            "modelParameters": {
                "approach": {"type": "supervised"},
                "task": "binary classification",
                "architectureFamily": "convolutional neural network",
                "modelArchitecture": manifest.name,
                "datasets": list(_datasets(manifest)),
                "inputs": [{"format": _input_format(manifest)}],
                "outputs": [{"format": name} for name in (*OUTPUTS, *(["lungs"] if manifest.lungs else []))],
            },
            "quantitativeAnalysis": {"performanceMetrics": list(_metrics(manifest))},
            "considerations": {
                "users": ["Researchers and engineers who study such networks on small devices."],
                "useCases": ["Research. Not a medical device: no decision about a patient may rest on it."],
                "technicalLimitations": list(LIMITATIONS),
            },
            "properties": [
                _property(f"operating_point:{point.name}", f"{_rule(point)}: {point.chosen}")
                for point in manifest.operating_points
            ]
            + ([_property("site", json.dumps(asdict(manifest.site)))] if manifest.site else []),
        },
        "properties": [
            _property(name, manifest.training[name])
            for name in ("model_sha256", "novelty_sha256")
            if name in manifest.training
        ],
    }


def _rule(point: OperatingPoint) -> str:
    unsure = "" if point.rule_out is None else f", unsure from {point.rule_out}"
    return f"p >= {point.threshold}{unsure}"


def _file(file: ModelFile) -> Json:
    properties = {"engine": file.engine, "precision": file.precision, "bytes": file.bytes}
    return {
        "type": "file",
        "bom-ref": f"file:{file.path}",
        "name": file.path,
        "hashes": [{"alg": "SHA-256", "content": file.sha256}],
        "properties": [_property(name, value) for name, value in properties.items()],
    }


def _input_format(manifest: Manifest) -> str:
    feed = manifest.input
    return f"{feed.name}: {feed.dtype} ({feed.layout}: N, {feed.height}, {feed.width}, {feed.channels}) in [0, 255]"


def _datasets(manifest: Manifest) -> Iterator[Json]:
    for name, data in (("training", manifest.training.get("data")), ("int8 calibration", manifest.calibration)):
        if known := _object(data):
            yield {
                "type": "dataset",
                "name": name,
                "description": "Chest radiographs, normal or pneumonia; the fingerprint is a sha256 over all files.",
                # The hashes of the training images are too many for a document to read.
                "contents": {"properties": [_property(key, value) for key, value in known.items() if key != CONTENTS]},
                "sensitiveData": ["radiographs of patients"],
            }


def _metrics(manifest: Manifest) -> Iterator[Json]:
    for part, metrics in _object(manifest.training.get("metrics")).items():
        for name, value in _object(metrics).items():
            yield {"type": str(name), "value": str(value), "slice": str(part)}


def _tools(manifest: Manifest) -> Iterator[Json]:
    """Packages used for training and export, each release once."""
    used: dict[tuple[str, str], list[str]] = {}
    for stage, key in (("training", "versions"), ("export", "export_versions")):
        for name, release in _object(manifest.training.get(key)).items():
            used.setdefault((str(name), str(release)), []).append(stage)
    for (name, release), stages in used.items():
        yield {
            "type": "platform" if name == "python" else "library",
            "bom-ref": f"tool:{name}@{release}",
            "name": name,
            "version": release,
            "scope": "excluded",  # created the files but is not part of them
            "properties": [_property("used_in", ", ".join(stages))],
        }


def _cxr_edge() -> Json:
    licence = [{"license": {"id": "Apache-2.0"}}]
    return {"type": "application", "name": "cxr-edge", "version": version("cxr-edge"), "licenses": licence}


def _property(name: str, value: object) -> Json:
    return {"name": f"cxr-edge:{name}", "value": str(value)}


def _object(value: object) -> Mapping[str, Any]:
    """Provenance is not validated; anything but an object is ignored."""
    return value if isinstance(value, Mapping) else {}


def _timestamp(created: str) -> str | None:
    """The date of the manifest, if it has the form that CycloneDX requires (with a time zone)."""
    try:
        when = datetime.fromisoformat(created)
    except ValueError:
        return None
    return when.isoformat() if when.tzinfo else None
