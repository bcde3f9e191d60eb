"""The parts of `emulate.py` that need no emulation; the whole is too slow for this suite."""

import subprocess
import sys
from pathlib import Path

import pytest
from aarch64 import emulate
from aarch64.outputs import describe, write_inputs
from support import needs_litert


@pytest.mark.slow
def test_help_says_what_is_needed_and_every_option():
    program = Path(emulate.__file__)
    done = subprocess.run([sys.executable, program, "--help"], capture_output=True, text=True, check=True)
    assert "neither root nor binfmt_misc" in done.stdout
    for option in ("--engine", "--suite", "--qemu-suite", "--cpu", "--package", "--originals", "--cache"):
        assert option in done.stdout
    done = subprocess.run([sys.executable, program, "--suite", "woody"], capture_output=True, text=True)
    assert done.returncode == 2 and "bookworm" in done.stderr


def row(pixels=(9, 9), label="NORMAL", probability=0.2):
    return {"pixels": bytes(pixels).hex(), "label": label, "probability": probability}


@pytest.mark.parametrize(
    ("there", "holds"),
    [
        (row(), True),
        (row(probability=0.2 + 1e-6), True),
        (row(probability=0.21), False),  # the same pixels
        (row((9, 10), probability=0.21), True),  # a pixel rounded otherwise
        (row((9, 11)), False),
        (row((9, 10), probability=0.3), False),
        (row(label="PNEUMONIA"), False),
    ],
)
def test_architectures_agree_within_the_limits(there, holds):
    comparison = emulate.compare([row(), row()], [row(), there])
    assert comparison.holds is holds
    assert comparison.same_pixels == (2 if there["pixels"] == row()["pixels"] else 1)


def test_nothing_compared_does_not_hold():
    assert not emulate.compare([], []).holds


def test_a_failing_command_is_named_with_its_last_words():
    with pytest.raises(emulate.EmulationError, match="exit code 3:\nno disk"):
        emulate.run([sys.executable, "-c", "print('no disk'); raise SystemExit(3)"])
    assert emulate.ended(139) == emulate.ended(-11) == "signal 11"


@needs_litert
def test_outputs_are_compared_with_themselves(tmp_path):
    write_inputs(tmp_path)
    images = sorted(tmp_path.iterdir())
    assert {path.suffix for path in images} >= {".png", ".jpeg"} and len(images) >= 9
    first, again = (list(describe("litert", images)) for _ in range(2))
    comparison = emulate.compare(first, again)
    assert comparison.holds and comparison.same_pixels == len(images) and comparison.difference == 0.0
    assert len({r["probability"] for r in first}) == len(images)
