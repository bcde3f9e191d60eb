"""Every command of the README runs, and every command of the program is in it."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from browsers import HAS_BROWSER, HAS_NPM
from support import ROOT, SHARED, needs_shared

README = (ROOT / "README.md").read_text()
COMMANDS = [line[2:] for block in re.findall(r"```console\n(.*?)```", README, re.DOTALL) for line in block.splitlines()]
#: Lines that are run in another place.
ELSEWHERE = {
    "make demo": "tests/benchmarks/test_bench.py runs the same command, smaller",
    "make test": "this is it",
    "cxr-edge serve": "tests/serve/test_readme.py runs these on a free port",
    "curl": "tests/serve/test_readme.py",
}


@pytest.fixture(scope="module")
def workplace(tmp_path_factory, phantoms) -> Path:
    """A folder as the README assumes it: `chest_xray`, `archive` and `xray.jpeg` lie there."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "chest_xray").symlink_to(phantoms)
    (folder / "archive").symlink_to(phantoms / "test")
    image = phantoms / "train" / "PNEUMONIA" / "person0_bacteria_0.jpeg"
    (folder / "xray.jpeg").write_bytes(image.read_bytes())
    (folder / "gates.toml").write_text("[int8]\nflip_rate = 1.0\n")
    (folder / "budget.toml").write_text("[all]\nsize_mb = 10\n")
    return folder


@pytest.mark.slow
@needs_shared
def test_commands_run_in_the_order_written(workplace):
    ran = 0
    for command in COMMANDS:
        if any(command.startswith(prefix) for prefix in ELSEWHERE):
            continue
        words = shlex.split(command.partition("#")[0])
        if "site" in words and not (HAS_NPM and HAS_BROWSER):
            continue  # tests/web is skipped and names what is missing
        if words[1] == "train":
            # Where the README lets Keras fetch the weights, or trains for half an hour.
            words = [w for w in words if not w.endswith(".h5") and w not in ("--weights",)]
            words += ["--weights", str(next((SHARED / "weights").glob("*.h5"))), "--epochs", "1", "--head-epochs", "1"]
        # No GPU here: it must say so. Phantoms may break a gate, other programs slow a file: that is an answer.
        judges = words[1] == "verify" or "--baseline" in words
        allowed = (2,) if "tensorrt" in words else (0, 1) if judges else (0,)
        if words[0] == "duckdb":  # its Python package has no program; it runs the same query
            query = "import duckdb, sys; print(duckdb.sql(sys.argv[1]))"
            words = [sys.executable, "-c", query, *words[2:]]
        if words[0] == "cxr-edge":
            words[0] = str(Path(sys.executable).with_name(words[0]))
        done = subprocess.run(words, cwd=workplace, capture_output=True, text=True)
        assert done.returncode in allowed, f"{command}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr
        ran += 1
    assert ran >= 8


def test_python_blocks_run(bundle, xray, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bundle").symlink_to(bundle)
    (tmp_path / "xray.jpeg").write_bytes(xray.read_bytes())
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})


def test_every_command_of_the_program_is_in_the_readme(cli):
    _, out, _ = cli("--help")
    for name in re.findall(r"^  (\w+) ", out.split("Commands:")[1], re.MULTILINE):
        assert f"cxr-edge {name}" in README, name


def test_commands_in_other_documents_exist(cli):
    names = set(re.findall(r"^  (\w+) ", cli("--help")[1].split("Commands:")[1], re.MULTILINE))
    for document in ("ARCHITECTURE.md", "CHANGELOG.md"):
        used = set(re.findall(r"`cxr-edge (\w+)", (ROOT / document).read_text()))
        assert used <= names, document
