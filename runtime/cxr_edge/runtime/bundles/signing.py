"""Signing of bundles with the OpenSSF package `model-signing`.

`model.sig` contains the sha256 of every file in the bundle at the time of signing: manifest, model files,
`parity.json`, golden inputs, TensorRT plans and their sidecars. The command of the package can check it as well:

    model_signing verify key BUNDLE --signature BUNDLE/model.sig --public_key KEY --ignore_unsigned_files
"""

from __future__ import annotations

from pathlib import Path

from cxr_edge.runtime.bundles.bundle import Bundle
from cxr_edge.runtime.bundles.manifest import SIGNATURE
from cxr_edge.runtime.bundles.signature import signing_library
from cxr_edge.runtime.errors import UsageError


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
    hashing, signing, _ = signing_library()
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
