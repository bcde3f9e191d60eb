"""Where the real radiographs lie, for tests that need them."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"
needs_shared = pytest.mark.skipif(
    not (SHARED / "data").is_dir(), reason="real radiographs and ImageNet weights (../shared) are not here"
)
