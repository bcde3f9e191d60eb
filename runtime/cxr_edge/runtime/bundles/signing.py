"""Signing of bundles and checking of signatures with the OpenSSF package `model-signing`.

`model.sig` contains the sha256 of every file in the bundle at the time of signing: manifest, model files,
`parity.json`, golden inputs, TensorRT plans and their sidecars. The command of the package can check it as well:

    model_signing verify key BUNDLE --signature BUNDLE/model.sig --public_key KEY --ignore_unsigned_files
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cxr_edge.runtime.bundles.bundle import SIGNATURE
from cxr_edge.runtime.bundles.fields import Document, read_limited
from cxr_edge.runtime.bundles.manifest import LARGEST_MANIFEST, MANIFEST
from cxr_edge.runtime.errors import IntegrityError, MissingExtraError, UsageError

if TYPE_CHECKING:
    from cxr_edge.runtime.bundles.bundle import Bundle

LARGEST_SIGNATURE = 1_000_000
SIGN_AGAIN = "get the bundle again from a source that you trust, or sign it again: cxr-edge sign BUNDLE --key KEY"


def sign(bundle: Bundle, private_key: Path, password: str | None = None) -> Path:
    """Sign every file of a bundle; write `model.sig` and return its path.

    Parameters
    ----------
    bundle
        The bundle; its files are first compared with the manifest.
    private_key
        PEM file with an ECDSA key on the curve P-256, P-384 or P-521.
    password
        Password of the key, if it is encrypted.

    Raises
    ------
    IntegrityError
        If a file differs from the manifest.
    UsageError
        If the key cannot be used, or `model.sig` cannot be written.
    MissingExtraError
        If `[sign]` is not installed.
    """
    hashing, signing, _ = _library()
    for file in bundle.manifest.all_files:
        bundle.check(file)
    path = bundle.folder / SIGNATURE
    try:
        config = signing.Config().use_elliptic_key_signer(
            private_key=private_key, password=password.encode() if password else None
        )
    except Exception as error:  # the exceptions of `cryptography` depend on the kind of key
        raise UsageError(
            f"{private_key}: not a private key to sign with ({error}); make one: openssl ecparam -name prime256v1 "
            "-genkey -noout -out key.pem"
        ) from error
    config.set_hashing_config(hashing.Config().set_ignored_paths(paths=[SIGNATURE]))
    try:
        config.sign(bundle.folder, path)
    except (OSError, ValueError) as error:  # ValueError: a symbolic link
        raise UsageError(f"{path}: cannot sign this folder ({error}); repair that and try again") from error
    return path


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
    _, _, verifying = _library()
    path = folder / SIGNATURE
    if not path.is_file():
        raise IntegrityError(f"{folder}: found no {SIGNATURE}, expected a bundle that is signed; {SIGN_AGAIN}")
    try:
        config = verifying.Config().use_elliptic_key_verifier(public_key=public_key)
    except Exception as error:  # as in `sign`
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
    import base64

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


def _library() -> tuple[Any, Any, Any]:
    try:
        from model_signing import hashing, signing, verifying
    except ModuleNotFoundError as error:
        raise MissingExtraError("sign", error.name) from error
    return hashing, signing, verifying
