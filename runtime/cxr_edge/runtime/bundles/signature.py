"""Checking of a bundle's signature, `model.sig`. `signing` writes it, and says what it covers."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cxr_edge.runtime.bundles.fields import Document, read_limited
from cxr_edge.runtime.bundles.manifest import LARGEST_MANIFEST, MANIFEST, SIGNATURE
from cxr_edge.runtime.errors import IntegrityError, MissingExtraError, UsageError

LARGEST_SIGNATURE = 1_000_000
SIGN_AGAIN = "get the bundle again from a source that you trust, or sign it again: cxr-edge sign BUNDLE --key KEY"


def verify(folder: Path, public_key: Path) -> frozenset[str]:
    """Verify the signature of a bundle folder with a trusted key.

    Returns
    -------
    Names of the files that the signature covers, relative to the folder, with `/`.

    Raises
    ------
    IntegrityError
        If the signature is missing or was made with another key, or if a file that it covers is missing or changed.
    UsageError
        If the key cannot be used.
    MissingExtraError
        If `[sign]` is not installed.
    """
    _, _, verifying = signing_library()
    path = folder / SIGNATURE
    if not path.is_file():
        raise IntegrityError(f"{folder}: found no {SIGNATURE}, expected a bundle that is signed; {SIGN_AGAIN}")
    try:
        config = verifying.Config().use_elliptic_key_verifier(public_key=public_key)
    except Exception as error:  # as in `signing.sign`
        raise UsageError(
            f"{public_key}: not a public key to verify with ({error}); take it from the private one: "
            "openssl ec -in key.pem -pubout -out key.pub"
        ) from error
    try:
        config.set_ignore_unsigned_files(True).verify(folder, path)
    except Exception as error:  # model-signing does not catch the exceptions of its parsers
        changed = re.findall(r"Hash mismatch for \\?'([^'\\]+)", str(error))
        if changed:
            raise IntegrityError(f"{folder}: {', '.join(changed)} changed after signing; {SIGN_AGAIN}") from error
        reason = str(error) or type(error).__name__
        raise IntegrityError(f"{path}: not a signature by {public_key} ({reason}); {SIGN_AGAIN}") from error
    names = frozenset(_digests(path))
    if MANIFEST not in names:
        raise IntegrityError(f"{path}: the signature does not cover {MANIFEST}; {SIGN_AGAIN}")
    return names


def check_unlocked(folder: Path) -> None:
    """Compare the manifest of a signed bundle with the sha256 in its signature, without a key.

    This detects accidents such as an edited threshold. Only `verify` detects an attacker who edits both files.

    Raises
    ------
    IntegrityError
        If the manifest differs, or the signature cannot be read.
    """
    path = folder / SIGNATURE
    if not path.is_file():
        return
    expected = _digests(path).get(MANIFEST)
    if expected is None:
        raise IntegrityError(f"{path}: the signature does not cover {MANIFEST}; {SIGN_AGAIN}")
    if hashlib.sha256(read_limited(folder / MANIFEST, LARGEST_MANIFEST, SIGN_AGAIN)).hexdigest() != expected:
        raise IntegrityError(f"{folder / MANIFEST}: changed after the bundle was signed; {SIGN_AGAIN}")


def _digests(path: Path) -> Mapping[str, str]:
    """Name -> sha256 of the files that a signature covers; the signature itself is not verified."""
    document = Document(str(path), SIGN_AGAIN)
    envelope = document.parse(read_limited(path, LARGEST_SIGNATURE, SIGN_AGAIN))
    try:
        statement: Any = document.parse(base64.b64decode(envelope["dsseEnvelope"]["payload"]))
        predicate = statement["predicate"]
        if (predicate["serialization"]["method"], predicate["serialization"]["hash_type"]) != ("files", "sha256"):
            raise ValueError("it is not over the sha256 of each file")
        return {str(entry["name"]): str(entry["digest"]) for entry in predicate["resources"]}
    except (KeyError, TypeError, ValueError) as error:
        raise IntegrityError(f"{path}: not a signature of cxr-edge ({error!r}); {SIGN_AGAIN}") from error


def signing_library() -> tuple[Any, Any, Any]:
    """Import the modules `hashing`, `signing` and `verifying` of model-signing; MissingExtraError without `[sign]`."""
    try:
        from model_signing import hashing, signing, verifying
    except ModuleNotFoundError as error:
        raise MissingExtraError("sign", error.name) from error
    return hashing, signing, verifying
