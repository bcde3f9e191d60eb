"""What travels with a model: the manifest and the files it vouches for; reads, checks, refuses.

A bundle is a folder with a `manifest.json`. Each model file carries the manifest's facts too (ONNX: `metadata_props`;
TFLite: a `manifest.json` in the zip appended to the flatbuffer, as TFLite metadata packs associated files), so that a
lone file still knows how to be fed.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar

from cxr_edge.runtime.errors import BundleError, EngineError, IntegrityError, UsageError

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
#: Key of the manifest's facts in an ONNX file's metadata.
METADATA_KEY = "cxr_edge_manifest"
#: Model file suffix -> engine that runs it.
ENGINE_OF_SUFFIX = {".onnx": "onnx", ".tflite": "litert"}
PRECISIONS = ("fp32", "fp16", "int8")

T = TypeVar("T")


@dataclass(frozen=True)
class InputContract:
    """How the network is fed: raw grayscale pixels; the graph normalises."""

    height: int = 224
    width: int = 224
    channels: int = 1
    name: str = "image"
    dtype: str = "uint8"
    layout: str = "NHWC"
    interpolation: str = "area"


@dataclass(frozen=True)
class HeatmapGeometry:
    """Where the cells of the heatmap lie in the network's input.

    The centre of cell (i, j)'s receptive field is the pixel (origin + stride·i, origin + stride·j).
    """

    stride: float
    origin: float


@dataclass(frozen=True)
class OperatingPoint:
    """A threshold on the probability, and how it was chosen."""

    name: str
    threshold: float
    chosen: str


@dataclass(frozen=True)
class ModelFile:
    """One file that the manifest vouches for."""

    path: str
    engine: str
    precision: str
    sha256: str
    bytes: int


@dataclass(frozen=True)
class Manifest:
    """The facts of a model; written by `cxr-edge export`.

    `training` and `calibration` are provenance (data fingerprint, split, seed, versions): carried, not interpreted.
    `companions` are files with other inputs or outputs than `files`, for others to run: nothing here decides with them.
    `files` decide; `gradient` (d logit / d image) only explains, and is left out of old or small bundles.
    The first operating point is the default. An image of more novelty than the threshold is not in distribution.
    """

    name: str
    created: str
    input: InputContract
    heatmap: HeatmapGeometry
    operating_points: tuple[OperatingPoint, ...]
    novelty_threshold: float
    temperature: float = 1.0
    classes: tuple[str, ...] = ("NORMAL", "PNEUMONIA")
    training: Mapping[str, Any] = field(default_factory=dict)
    calibration: Mapping[str, Any] = field(default_factory=dict)
    files: tuple[ModelFile, ...] = ()
    companions: tuple[ModelFile, ...] = ()
    gradient: ModelFile | None = None
    schema_version: int = SCHEMA_VERSION

    def to_json(self) -> str:
        """Text of `manifest.json`."""
        return json.dumps(asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes, name: str) -> Manifest:
        """Read a manifest; `name` says in errors where it came from.

        Raises
        ------
        BundleError
            If it is not JSON, of a newer schema, or lacks a field.
        """
        try:
            data = json.loads(text)
        except ValueError as error:
            raise BundleError(f"{name}: not JSON ({error})") from error
        if not isinstance(data, dict):
            raise BundleError(f"{name}: not a manifest")
        if data.get("schema_version") != SCHEMA_VERSION:
            raise BundleError(
                f"{name}: schema_version {data.get('schema_version')}, this cxr-edge reads {SCHEMA_VERSION}; "
                "upgrade cxr-edge or export again"
            )
        data["input"] = _build(InputContract, data.get("input"), f"{name}: input")
        data["heatmap"] = _build(HeatmapGeometry, data.get("heatmap"), f"{name}: heatmap")
        points = data.get("operating_points") or []
        data["operating_points"] = tuple(_build(OperatingPoint, p, f"{name}: operating_points") for p in points)
        for key in ("files", "companions"):
            data[key] = tuple(_build(ModelFile, f, f"{name}: {key}") for f in data.get(key) or [])
        if data.get("gradient") is not None:
            data["gradient"] = _build(ModelFile, data["gradient"], f"{name}: gradient")
        data["classes"] = tuple(data.get("classes", ()))
        manifest = _build(cls, data, name)
        if not manifest.operating_points:
            raise BundleError(f"{name}: no operating point; export again")
        for file in manifest.all_files:
            if Path(file.path).name != file.path:
                raise BundleError(f"{name}: file path {file.path!r} leaves the bundle")
        return manifest

    @property
    def all_files(self) -> tuple[ModelFile, ...]:
        """Every file that the manifest vouches for, those that decide nothing here too."""
        return (*self.files, *([self.gradient] if self.gradient else []), *self.companions)

    def operating_point(self, name: str | None = None) -> OperatingPoint:
        """The operating point of that name; the default one without a name."""
        for point in self.operating_points:
            if name in (None, point.name):
                return point
        known = ", ".join(point.name for point in self.operating_points)
        raise UsageError(f"no operating point {name!r} in this bundle; it has: {known}")


@dataclass(frozen=True)
class Bundle:
    """A manifest and the folder that its files lie in."""

    folder: Path
    manifest: Manifest

    @classmethod
    def open(cls, path: str | PathLike[str]) -> Bundle:
        """Open a bundle folder, or a lone model file by the facts inside it.

        Raises
        ------
        BundleError
            If there is no bundle at `path`, or its manifest cannot be used.
        """
        path = Path(path)
        if path.is_file() and path.suffix in ENGINE_OF_SUFFIX:
            return cls(path.parent, _lone_manifest(path))
        manifest = path / MANIFEST
        if not manifest.is_file():
            raise BundleError(
                f"{path}: no bundle ({MANIFEST} not found); make one with `cxr-edge export RUN -o {path}`"
            )
        facts = Manifest.from_json(manifest.read_bytes(), str(manifest))
        return cls(path, replace(facts, files=(*facts.files, *_plans(path))))

    def find(self, engine: str, precision: str = "auto") -> ModelFile | None:
        """The file for an engine and a precision; `auto` takes the most exact one."""
        for wanted in PRECISIONS if precision == "auto" else (precision,):
            for file in self.manifest.files:
                if (file.engine, file.precision) == (engine, wanted):
                    return file
        return None

    def check(self, file: ModelFile) -> Path:
        """Path of a file, once its content is what the manifest vouches for.

        Raises
        ------
        IntegrityError
            If the file is missing, cut short or changed.
        """
        path = self.folder / file.path
        if not path.is_file():
            raise IntegrityError(f"{path}: missing, though the manifest names it; copy the whole bundle again")
        if (size := path.stat().st_size) != file.bytes:
            raise IntegrityError(f"{path}: {size} bytes instead of {file.bytes}: cut short or changed; copy it again")
        if sha256(path) != file.sha256:
            raise IntegrityError(f"{path}: sha256 differs from the manifest's: changed after export; copy it again")
        return path

    @cached_property
    def parity(self) -> Mapping[str, Any]:
        """What `cxr-edge verify` last found (`parity.json`); empty if it has not run."""
        path = self.folder / "parity.json"
        try:
            return json.loads(path.read_bytes()) if path.is_file() else {}
        except ValueError as error:
            raise BundleError(f"{path}: not JSON ({error}); run `cxr-edge verify` again") from error

    def verified(self, file: ModelFile) -> bool | None:
        """Whether `verify` passed this very file (by sha256); None if it never ran on it."""
        for row in self.parity.get("files", []):
            if row.get("sha256") == file.sha256:
                return bool(row["passed"])
        return None


def sha256(path: Path) -> str:
    """Hex digest of a file's content."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _plans(folder: Path) -> list[ModelFile]:
    """TensorRT plans, which are built on the device after the manifest was written; their sidecars vouch for them."""
    plans = []
    for sidecar in sorted(folder.glob("*.engine.json")):
        try:
            entry = json.loads(sidecar.read_bytes())["file"]
        except (ValueError, KeyError, TypeError) as error:
            raise BundleError(f"{sidecar}: not the sidecar of a TensorRT plan; build the plan anew") from error
        plans.append(_build(ModelFile, entry, str(sidecar)))
    return plans


def _lone_manifest(path: Path) -> Manifest:
    facts = _facts_of_tflite(path) if path.suffix == ".tflite" else _facts_of_onnx(path)
    if facts is None:
        raise BundleError(f"{path}: carries no cxr-edge facts, so nobody knows how to feed it; export it with cxr-edge")
    manifest = Manifest.from_json(facts, str(path))
    if manifest.companions:
        raise BundleError(f"{path}: is made for other clients, not for cxr-edge; name its bundle or another file of it")
    if manifest.gradient:
        raise BundleError(f"{path}: holds a gradient and decides nothing; open the bundle that it belongs to")
    if len(manifest.files) != 1:
        raise BundleError(f"{path}: its embedded manifest names {len(manifest.files)} files instead of itself")
    # A file cannot hold its own hash: the embedded entry says engine and precision, the rest is measured.
    itself = replace(manifest.files[0], path=path.name, sha256=sha256(path), bytes=path.stat().st_size)
    return replace(manifest, files=(itself,))


def _facts_of_tflite(path: Path) -> bytes | None:
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.read(MANIFEST)
    except (zipfile.BadZipFile, KeyError):
        return None


def _facts_of_onnx(path: Path) -> str | None:
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        raise EngineError(f"{path}: reading an ONNX file needs: pip install 'cxr-edge[onnx]'") from error
    try:
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own hierarchy derives from Exception alone
        raise BundleError(f"{path}: not a model that ONNX Runtime can load ({error})") from error
    facts: str | None = session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
    return facts


def _build(cls: type[T], data: object, name: str) -> T:
    """Make a dataclass of a JSON object whose keys are exactly its fields (those with defaults may lack)."""
    if not isinstance(data, dict):
        raise BundleError(f"{name}: missing or not an object")
    if unknown := data.keys() - {f.name for f in fields(cls)}:  # type: ignore[arg-type]
        raise BundleError(f"{name}: unknown field {sorted(unknown)[0]!r}")
    try:
        return cls(**data)
    except TypeError as error:
        raise BundleError(f"{name}: {error}".replace("__init__() ", "")) from error
