"""The soak programs, briefly."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent


@pytest.mark.parametrize("engine", ["litert", "onnx"])
def test_predictions_from_threads_equal_the_serial_run(engine):
    command = [sys.executable, HERE / "predictions.py", "--count", "1600", "--engine", engine]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and "0 answers differ" in done.stdout, done.stdout + done.stderr
