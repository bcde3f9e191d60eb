"""Facts of the manifest inside a lone model file, and the digest that covers both.

An ONNX file stores the facts in `metadata_props`. A TFLite file stores them in a zip archive appended to the
flatbuffer, like the associated files of TFLite metadata. Both are read here without the library of the engine, so a
damaged file is refused before native code reads it. The `sha256` in the facts is the hash of the file without the
facts, followed by the facts with zeros in place of the digest. Files of earlier versions have no digest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from cxr_edge.runtime.bundles.manifest import LARGEST_MANIFEST, MANIFEST, UNKNOWN_SHA256
from cxr_edge.runtime.errors import BundleError, IntegrityError

#: Key of the facts in the metadata of an ONNX file.
METADATA_KEY = "cxr_edge_manifest"
#: Placeholder of the digest in the facts.
PLACEHOLDER = "0" * 64
#: Maximum number of top-level fields of an ONNX file; usually there are about ten.
MOST_FIELDS = 10_000
BLOCK = 1 << 20
#: Field numbers in onnx.proto: ModelProto.metadata_props, StringStringEntryProto.key and value. Protobuf's wire types.
METADATA_PROPS, KEY, VALUE = 14, 1, 2
VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5


@dataclass(frozen=True)
class Facts:
    """The facts in a model file: their text, and the byte ranges (start, end) of the model itself."""

    text: bytes
    model: Sequence[tuple[int, int]]


def read_facts(path: Path) -> Facts | None:
    """Read the facts inside a model file; None if it has none.

    Raises
    ------
    BundleError
        If the file cannot be read.
    """
    try:
        return _facts_of_tflite(path) if path.suffix == ".tflite" else _facts_of_onnx(path)
    except OSError as error:
        raise BundleError(f"{path}: cannot be read ({error.strerror or error}); copy the file again") from error


def seal(facts: str, model: bytes) -> str:
    """Replace `PLACEHOLDER` in the facts by the digest over model and facts."""
    return facts.replace(PLACEHOLDER, hashlib.sha256(model + facts.encode()).hexdigest())


def check_digest(path: Path, facts: Facts, digest: str) -> None:
    """Compare a model file with the digest in its facts, if they have one.

    Raises
    ------
    IntegrityError
        If the file was changed after its export.
    """
    if digest == UNKNOWN_SHA256:
        return
    found = hashlib.sha256()
    with path.open("rb") as stream:
        for start, end in facts.model:
            stream.seek(start)
            while start < end and (block := stream.read(min(BLOCK, end - start))):
                found.update(block)
                start += len(block)
    found.update(facts.text.replace(digest.encode(), PLACEHOLDER.encode()))
    if found.hexdigest() != digest:
        raise IntegrityError(
            f"{path}: found content of digest {found.hexdigest()[:12]}…, expected {digest[:12]}… as the file says; it "
            "was cut short or changed after export; copy it again"
        )


def _facts_of_tflite(path: Path) -> Facts | None:
    import struct
    import zipfile
    import zlib

    try:
        with zipfile.ZipFile(path) as archive, archive.open(MANIFEST) as entry:
            text = entry.read(LARGEST_MANIFEST + 1)
            start = min(info.header_offset for info in archive.infolist())
    # zipfile raises these for a broken archive, and for an unknown, encrypted or missing member.
    except (zipfile.BadZipFile, KeyError, ValueError, RuntimeError, OverflowError, EOFError, struct.error, zlib.error):
        return None
    return Facts(text, [(0, start)]) if len(text) <= LARGEST_MANIFEST and start >= 0 else None


def _facts_of_onnx(path: Path) -> Facts | None:
    size = path.stat().st_size
    with path.open("rb") as stream:
        try:
            for field, tag, start, end in _fields(stream, size):
                if field != METADATA_PROPS or end - start > LARGEST_MANIFEST:
                    continue
                stream.seek(start)
                entry = _strings(stream, end)
                if entry.get(KEY) == METADATA_KEY.encode():
                    return Facts(entry.get(VALUE, b""), [(0, tag), (end, size)])
        except ValueError:
            return None
    return None


def _fields(stream: BinaryIO, size: int) -> Iterator[tuple[int, int, int, int]]:
    """Fields of a protobuf message that ends at `size`: number, and positions of its tag, content and end."""
    for _ in range(MOST_FIELDS):
        if (tag_at := stream.tell()) >= size:
            return
        number, kind = divmod(_varint(stream), 8)
        if kind == VARINT:
            start, _ = stream.tell(), _varint(stream)
            end = stream.tell()
        elif kind in (FIXED64, LENGTH, FIXED32):
            length = _varint(stream) if kind == LENGTH else 8 if kind == FIXED64 else 4
            start = stream.tell()
            end = start + length
        else:
            raise ValueError(f"wire type {kind}")
        if end > size:
            raise ValueError("a field reaches beyond the end")
        yield number, tag_at, start, end
        stream.seek(end)


def _strings(stream: BinaryIO, end: int) -> dict[int, bytes]:
    """Fields of a message that contains only texts, by number."""
    found = {}
    for number, _, start, stop in _fields(stream, end):
        stream.seek(start)
        found[number] = stream.read(stop - start)
    return found


def _varint(stream: BinaryIO) -> int:
    value = 0
    for shift in range(0, 70, 7):
        if not (byte := stream.read(1)):
            raise ValueError("cut short")
        value |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            return value
    raise ValueError("a number of more than ten bytes")
