"""Opening and checking of bundles: folders with a `manifest.json` and the files that it lists.

Each model file also contains the facts of the manifest (see `facts`), so that a lone file can be used. Trust in a
bundle has three sources: the sha256 of each file in the manifest, `parity.json` of `cxr-edge verify`, and
`model.sig` if the bundle is signed (see `signature`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any

from cxr_edge.runtime.bundles.fields import Document, read_limited
from cxr_edge.runtime.bundles.manifest import (
    LARGEST_MANIFEST,
    MANIFEST,
    REMEDY,
    SIGNATURE,
    ClassReference,
    HeatmapGeometry,
    InputContract,
    LungGrid,
    Manifest,
    ModelFile,
    OperatingPoint,
    Reference,
    SiteCalibration,
)
from cxr_edge.runtime.choices import ENGINES, PRECISIONS
from cxr_edge.runtime.errors import BundleError, IntegrityError

__all__ = [
    "ENGINE_OF_SUFFIX",
    "MANIFEST",
    "PARITY",
    "Bundle",
    "ClassReference",
    "HeatmapGeometry",
    "InputContract",
    "LungGrid",
    "Manifest",
    "ModelFile",
    "OperatingPoint",
    "Reference",
    "SiteCalibration",
    "sha256",
]

PARITY = "parity.json"
#: Suffix of a model file -> engine that runs it.
ENGINE_OF_SUFFIX = {row.suffix: name for name, row in ENGINES.items() if row.suffix}
#: Maximum size of `parity.json` in bytes; it lists every flipped image and optionally every layer.
LARGEST_PARITY = 16_000_000
SIDECAR_SUFFIX = ".engine.json"
REBUILD = "delete it, or rebuild the plan: cxr-edge export BUNDLE --format tensorrt"


@dataclass(frozen=True)
class Bundle:
    """A manifest and the folder of its files.

    Attributes
    ----------
    signed
        Names of the files that a trusted signature covers; None if no signature was requested.
    """

    folder: Path
    manifest: Manifest
    signed: frozenset[str] | None = field(default=None, compare=False)

    @classmethod
    def open(cls, path: str | PathLike[str], trusted: str | PathLike[str] | None = None) -> Bundle:
        """Open a bundle folder, or a lone model file with the facts inside it.

        Parameters
        ----------
        path
            The folder or the file.
        trusted
            Public key (PEM file). The bundle must be signed with it. Files that the signature does not cover are then
            ignored, such as TensorRT plans and a `parity.json` that were added later.

        Raises
        ------
        BundleError
            If there is no bundle at `path`, or its manifest cannot be used.
        IntegrityError
            If its signature is missing or invalid, or a lone file differs from its digest.
        MissingExtraError
            If a signature must be checked and `[sign]` is not installed.
        """
        path = Path(path)
        try:
            is_lone, is_bundle = path.is_file() and path.suffix in ENGINE_OF_SUFFIX, (path / MANIFEST).is_file()
        except OSError as error:
            raise BundleError(
                f"{path}: cannot be read ({error.strerror}); check the path and its permissions"
            ) from error
        if is_lone:
            return _open_lone(path, trusted is not None)
        if not is_bundle:
            raise BundleError(
                f"{path}: no bundle ({MANIFEST} not found); make one with `cxr-edge export RUN -o {path}`"
            )
        signed = None
        if trusted is not None or (path / SIGNATURE).is_file():
            from cxr_edge.runtime.bundles import signature

            if trusted is None:
                signature.check_unlocked(path)
            else:
                signed = signature.verify(path, Path(trusted))
        facts = Manifest.from_json(_read(path, MANIFEST, LARGEST_MANIFEST, REMEDY), str(path / MANIFEST))
        bundle = cls(path, facts, signed)
        plans = tuple(_plan(path, sidecar) for sidecar in bundle._sidecars())
        return replace(bundle, manifest=replace(facts, files=(*facts.files, *plans)))

    def find(self, engine: str, precision: str = "auto") -> ModelFile | None:
        """The file for an engine and a precision; `auto` takes the most exact one."""
        files = [f for f in self.manifest.files if f.engine == engine and precision in ("auto", f.precision)]
        return min(files, key=_rank, default=None)

    def check(self, file: ModelFile) -> Path:
        """Compare a file with the manifest and return its path.

        Raises
        ------
        IntegrityError
            If the file is missing, truncated or changed, or a link out of the bundle.
        """
        path = _inside(self.folder, file.path)
        try:
            if not path.is_file():
                raise IntegrityError(f"{path}: missing, though the manifest names it; copy the whole bundle again")
            if (size := path.stat().st_size) != file.bytes:
                raise IntegrityError(
                    f"{path}: {size} bytes instead of {file.bytes}: cut short or changed; copy it again"
                )
            if sha256(path) != file.sha256:
                raise IntegrityError(f"{path}: sha256 differs from the manifest's: changed after export; copy it again")
        except OSError as error:
            raise IntegrityError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
        return path

    @cached_property
    def parity(self) -> Mapping[str, Any]:
        """The last result of `cxr-edge verify` (`parity.json`); empty if it is missing or not covered by the signature.

        Raises
        ------
        BundleError
            If the file is invalid.
        """
        path = self.folder / PARITY
        # The folder of a lone file need not be its bundle.
        if not path.is_file() or not self._covers(PARITY) or not (self.folder / MANIFEST).is_file():
            return {}
        document = Document(str(path), "run `cxr-edge verify` again, or delete the file")
        data = document.parse(_read(self.folder, PARITY, LARGEST_PARITY, document.remedy))
        return _checked_parity(document, data)

    def verified(self, file: ModelFile) -> bool | None:
        """Whether `verify` passed this file (by sha256); None if it never ran on it."""
        row = self._row(file)
        return None if row is None else bool(row["passed"])

    def warning(self, file: ModelFile) -> str | None:
        """Why this file may decide differently from the trained network, according to `parity.json`.

        None if it passed on all images with the default gates or stricter ones, or if there is no `parity.json`.
        """
        if not self.parity:
            return None
        row = self._row(file)
        if row is None:
            return f"{file.path}: {PARITY} does not mention this file; run `cxr-edge verify`"
        if not row["passed"]:
            return f"{file.path} failed its gate in `cxr-edge verify`: it may decide otherwise than the trained network"
        # Older records lack these two fields; they count as complete runs.
        if self.parity.get("complete", True) is not True:
            return f"{file.path} was verified on {self.parity.get('images')} images only; run `cxr-edge verify` on all"
        if row.get("default_gates", True) is not True:
            return f"{file.path} was verified under looser gates than the default ones; run `cxr-edge verify` without"
        return None

    def _row(self, file: ModelFile) -> Mapping[str, Any] | None:
        rows = (row for row in self.parity.get("files", []) if row["sha256"] == file.sha256)
        return next(rows, None)

    def _covers(self, name: str) -> bool:
        return self.signed is None or name in self.signed

    def _sidecars(self) -> list[str]:
        """Names of the sidecars of usable TensorRT plans."""
        names = sorted(path.name for path in self.folder.glob(f"*{SIDECAR_SUFFIX}"))
        return [name for name in names if self._covers(name) and self._covers(name.removesuffix(".json"))]


def _rank(file: ModelFile) -> int:
    """Order of preference of `auto`; precisions that it does not know come last."""
    return PRECISIONS.index(file.precision) if file.precision in PRECISIONS else len(PRECISIONS)


def sha256(path: Path) -> str:
    """Hex digest of a file's content."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _inside(folder: Path, name: str) -> Path:
    """Path of a file of a bundle; raise IntegrityError if a symbolic link leads out of the bundle."""
    path = folder / name
    try:
        target, root = path.resolve(), folder.resolve()
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links, before Python 3.13
        raise IntegrityError(
            f"{path}: found a link that leads nowhere; copy the file itself into the bundle"
        ) from error
    if not target.is_relative_to(root):
        raise IntegrityError(
            f"{path}: found a link to {target}, expected a file inside the bundle; copy the bundle with its links "
            "followed (cp -rL)"
        )
    return path


def _read(folder: Path, name: str, limit: int, remedy: str) -> bytes:
    return read_limited(_inside(folder, name), limit, remedy)


def _plan(folder: Path, sidecar: str) -> ModelFile:
    """Read the sidecar of a TensorRT plan, which was built on the device after the manifest was written."""
    document = Document(str(folder / sidecar), REBUILD)
    data = document.parse(_read(folder, sidecar, LARGEST_MANIFEST, REBUILD))
    file = document.build(ModelFile, data.get("file") if isinstance(data, dict) else data, "file")
    for field_name, value, expected in (
        ("path", file.path, sidecar.removesuffix(".json")),
        ("engine", file.engine, "tensorrt"),
    ):
        if value != expected:
            raise document.error(f"file.{field_name}", value, expected)
    return file


def _open_lone(path: Path, must_be_signed: bool) -> Bundle:
    from cxr_edge.runtime.bundles.facts import check_digest, read_facts

    if must_be_signed:
        raise IntegrityError(f"{path}: a lone file has no signature; name the folder of its signed bundle")
    facts = read_facts(path)
    if facts is None:
        raise BundleError(
            f"{path}: contains no cxr-edge facts, so its input is unknown; export it with cxr-edge, or copy it "
            "again if it was exported with cxr-edge"
        )
    manifest = Manifest.from_json(facts.text, str(path), embedded=True)
    if manifest.companions:
        raise BundleError(f"{path}: is made for other clients, not for cxr-edge; name its bundle or another file of it")
    if manifest.gradient:
        raise BundleError(f"{path}: holds a gradient and decides nothing; open the bundle that it belongs to")
    if len(manifest.files) != 1:
        raise BundleError(
            f"{path}: found {len(manifest.files)} files in its own manifest, expected itself alone; export it again"
        )
    itself = manifest.files[0]
    if itself.engine != ENGINE_OF_SUFFIX[path.suffix]:
        raise BundleError(f"{path}: found facts of a file for {itself.engine}; give the file back its own suffix")
    try:
        check_digest(path, facts, itself.sha256)
        # The facts inside give engine and precision; the hash of the whole file is computed here.
        itself = replace(itself, path=path.name, sha256=sha256(path), bytes=path.stat().st_size)
    except OSError as error:
        raise BundleError(f"{path}: cannot be read ({error.strerror}); copy it again") from error
    return Bundle(path.parent, replace(manifest, files=(itself,)))


def _checked_parity(document: Document, data: object) -> Mapping[str, Any]:
    """Refuse a `parity.json` without the fields that are used here; other fields are not checked."""
    if not isinstance(data, dict) or not isinstance(data.get("files"), list):
        raise document.error("files", "no list", "a list of files")
    for row, entry in enumerate(data["files"]):
        if not isinstance(entry, dict):
            raise document.error(f"files[{row}]", "no object", "an object")
        for key, kind, words in (("sha256", str, "64 hexadecimal digits"), ("passed", bool, "true or false")):
            if not isinstance(entry.get(key), kind):
                raise document.error(f"files[{row}].{key}", "something else or nothing", words)
    return data
