"""LiteRT's own benchmark program, which comes with its Python package."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from cxr_edge.runtime.errors import EngineError

MODULE = "ai_edge_litert.tools.benchmark_litert_model"


def benchmark_model(file: Path, threads: int, runs: int = 100) -> dict[str, Any]:
    """Run the program on a TFLite file: its own record of the network alone.

    Raises
    ------
    EngineError
        If the installed LiteRT has no such program, or it fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        command = [sys.executable, "-m", MODULE, "--model", str(file), "--num_threads", str(threads)]
        command += ["--num_runs", str(runs), "--result_json", str(result)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode or not result.exists():
            lines = (done.stderr or done.stdout).strip().splitlines()
            raise EngineError(
                f"{MODULE} {file.name}: found exit code {done.returncode}, expected a result "
                f"({lines[-1] if lines else 'it says nothing'}); install another ai-edge-litert"
            )
        return dict(json.loads(result.read_text()))
