"""The fuzzer of images, briefly; run it long by hand (see its help)."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

pytest.importorskip("cxr_edge.runtime.engines")
PROGRAM = Path(__file__).with_name("images.py")


def fuzz(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, PROGRAM, *map(str, arguments)], capture_output=True, text=True, check=False)


def test_broken_files_give_typed_errors_soon_and_in_little_memory(tmp_path):
    done = fuzz("--count", 600, "--seed", 3, "--keep", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "600 files" in done.stdout and " 0 findings" in done.stdout
    assert "ImageError" in done.stdout and "read" in done.stdout
    assert not list(tmp_path.iterdir())


def test_a_finding_is_reported_saved_and_can_be_replayed(tmp_path):
    done = fuzz("--count", 5, "--read", "--seconds", 0, "--keep", tmp_path)
    assert done.returncode == 1 and "5 findings" in done.stdout and "FINDING" in done.stderr
    saved = sorted(tmp_path.iterdir())
    assert [path.name for path in saved] == [f"0-{index}.bin" for index in range(5)]
    assert fuzz("--read", "--replay", saved[0]).returncode == 0
    assert fuzz("--read", "--replay", saved[0], "--seconds", 0).returncode == 1
