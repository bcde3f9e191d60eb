"""What tests share: where the real radiographs lie, and bundles that vouch for other content."""

from dataclasses import replace
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"
needs_shared = pytest.mark.skipif(
    not (SHARED / "data").is_dir(), reason="real radiographs and ImageNet weights (../shared) are not here"
)


def forge(folder: Path, name: str, content: bytes) -> None:
    """Put another file in place of one of a bundle, and let the manifest vouch for it."""
    from cxr_edge.runtime.bundle import Bundle, sha256

    (folder / name).write_bytes(content)
    manifest = Bundle.open(folder).manifest
    true = {"sha256": sha256(folder / name), "bytes": len(content)}
    files, companions = (
        tuple(replace(f, **true) if f.path == name else f for f in group)
        for group in (manifest.files, manifest.companions)
    )
    (folder / "manifest.json").write_text(replace(manifest, files=files, companions=companions).to_json())
