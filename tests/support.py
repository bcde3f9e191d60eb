"""What tests share: where the real radiographs lie, which engines are installed, and forged bundles."""

import os
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"
needs_shared = pytest.mark.skipif(
    not (SHARED / "data").is_dir(), reason="real radiographs and ImageNet weights (../shared) are not here"
)
#: For tests that hold something to a time in seconds: set by tests/aarch64/emulate.py.
needs_native_speed = pytest.mark.skipif("CXR_EDGE_EMULATED" in os.environ, reason="this processor is emulated")
needs_onnx = pytest.mark.skipif(find_spec("onnxruntime") is None, reason="ONNX Runtime is not installed")
needs_litert = pytest.mark.skipif(find_spec("ai_edge_litert") is None, reason="LiteRT is not installed")
needs_archive = pytest.mark.skipif(
    not all(find_spec(name) for name in ("ray", "pyarrow", "fsspec", "duckdb")), reason="[archive] is not installed"
)
ONNX = pytest.param("onnx", marks=needs_onnx)
LITERT = pytest.param("litert", marks=needs_litert)
#: Engine and precision of the packaged model's files.
PACKAGED_FILES = [
    pytest.param("onnx", "fp32", marks=needs_onnx),
    pytest.param("litert", "int8", marks=needs_litert),
]


class Lazy:
    """A module that is imported when it is first used.

    Every process imports all test modules, but only one of them needs TensorFlow, which takes seconds and 500 MB.
    """

    def __init__(self, name: str):
        self._name = name

    def __getattr__(self, attribute: str):
        if attribute.startswith("__"):  # pytest asks all that stands in a module for `__test__`
            raise AttributeError(attribute)
        return getattr(import_module(self._name), attribute)


def assert_complete(prediction) -> None:
    """A prediction of a 224-pixel network has every field, in its range, and can be written as JSON."""
    import json

    assert 0 <= prediction.probability <= 1
    assert prediction.heatmap.shape == (7, 7)
    assert prediction.heatmap.min() >= 0
    assert prediction.label == ("PNEUMONIA" if prediction.probability >= prediction.threshold else "NORMAL")
    assert set(prediction.timings_ms) == {"decode", "preprocess", "inference", "total"}
    json.dumps(prediction.to_dict())


def forge(folder: Path, name: str, content: bytes) -> None:
    """Put another file in place of one of a bundle, and let the manifest vouch for it."""
    from cxr_edge.runtime.bundles.bundle import Bundle, sha256

    (folder / name).write_bytes(content)
    manifest = Bundle.open(folder).manifest
    true = {"sha256": sha256(folder / name), "bytes": len(content)}
    files, companions = (
        tuple(replace(f, **true) if f.path == name else f for f in group)
        for group in (manifest.files, manifest.companions)
    )
    (folder / "manifest.json").write_text(replace(manifest, files=files, companions=companions).to_json())


def unsealed_copy(source: Path, folder: Path) -> Path:
    """Copy a model file, its facts without a digest, as the first releases exported it."""
    import io
    import json
    import zipfile

    from cxr_edge.runtime.bundles.facts import METADATA_KEY, UNKNOWN_SHA256, read_facts

    facts, content = read_facts(source), source.read_bytes()
    data = json.loads(facts.text)
    data["files"][0]["sha256"] = UNKNOWN_SHA256
    model, text = b"".join(content[start:end] for start, end in facts.model), json.dumps(data).encode()
    if source.suffix == ".onnx":
        entry = _length_delimited(1, METADATA_KEY.encode()) + _length_delimited(2, text)
        appended = _length_delimited(14, entry)
    else:
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w") as archive:
            archive.writestr("manifest.json", text)
        appended = stream.getvalue()
    copy = folder / source.name
    copy.write_bytes(model + appended)
    return copy


def write_keys(folder: Path, password: bytes | None = None) -> tuple[Path, Path]:
    """A new private and public key, as PEM files."""
    from cryptography.hazmat.primitives import serialization as s
    from cryptography.hazmat.primitives.asymmetric import ec

    folder.mkdir()
    key = ec.generate_private_key(ec.SECP256R1())
    how = s.BestAvailableEncryption(password) if password else s.NoEncryption()
    private, public = folder / "key.pem", folder / "key.pub"
    private.write_bytes(key.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, how))
    public.write_bytes(key.public_key().public_bytes(s.Encoding.PEM, s.PublicFormat.SubjectPublicKeyInfo))
    return private, public


def _length_delimited(number: int, content: bytes) -> bytes:
    """A field of a protobuf message."""
    length, digits = len(content), []
    while length > 0x7F:
        digits.append(length & 0x7F | 0x80)
        length >>= 7
    return bytes([number << 3 | 2, *digits, length]) + content
