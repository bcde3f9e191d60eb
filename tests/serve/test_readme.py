"""The lines of the README about the service run, on a free port."""

import json
import re
import shlex
import shutil
import subprocess

import pytest
from support import ROOT

LINES = re.findall(r"^\$ (curl .*)$", (ROOT / "README.md").read_text() + (ROOT / "docs" / "serve.md").read_text(), re.M)


@pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")
@pytest.mark.parametrize("line", LINES)
def test_curl_lines_run(service, jpeg, tmp_path, line):
    (tmp_path / "xray.jpeg").write_bytes(jpeg)
    (tmp_path / "other.png").write_bytes(jpeg)
    words = shlex.split(line.replace("127.0.0.1:8000", f"127.0.0.1:{service.port}").partition(" #")[0])
    done = subprocess.run([*words, "--silent", "--show-error", "--fail"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    if "/metrics" not in line:
        answer = json.loads(done.stdout)
        assert "predictions" in answer or "name" in answer or "ready" in answer


def test_there_are_lines_of_every_kind():
    assert sum("/v1/predict" in line for line in LINES) >= 3 and any("/v1/model" in line for line in LINES)
