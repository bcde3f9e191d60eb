"""What lies in deploy/ is valid, as far as the tools are here."""

import os
import re
import shutil
import subprocess

import pytest
from support import ROOT

DEPLOY = ROOT / "deploy"
UNIT = (DEPLOY / "cxr-edge.service").read_text()


def run(*command: object, **options) -> subprocess.CompletedProcess[str]:
    if not shutil.which(str(command[0])):
        pytest.skip(f"{command[0]} is not installed")
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, **options)


def test_the_unit_is_valid_and_hardened(tmp_path):
    unit = tmp_path / "cxr-edge.service"
    unit.write_text(UNIT.replace("/opt/cxr-edge/bin/cxr-edge", "/bin/true"))  # it is not installed here
    done = run("systemd-analyze", "verify", "--man=no", unit)
    assert done.returncode == 0 and not done.stderr, done.stderr
    done = run("systemd-analyze", "security", "--offline=yes", "--threshold=15", unit)
    assert done.returncode == 0, done.stdout[-300:]


def test_the_container_file_passes_its_linter():
    done = run("hadolint", DEPLOY / "Containerfile")
    assert done.returncode == 0, done.stdout


def test_the_proxy_configuration_is_valid(tmp_path):
    done = run(
        "caddy", "validate", "--config", DEPLOY / "Caddyfile", "--adapter", "caddyfile",
        env=os.environ | {"HOME": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_commands_have_options_that_exist(cli):
    _, text, _ = cli("serve", "--help")
    lines = UNIT + (DEPLOY / "Containerfile").read_text()
    used = {
        option
        for line in re.findall(r"cxr-edge serve .*(?:\n#.*)?", lines)
        for option in re.findall(r" (--[\w-]+)", line)
    }
    assert {"--token-file", "--host"} <= used and not [option for option in used if option not in text]


def test_the_container_copies_every_stage():
    copied = set(re.findall(r"^COPY (\w+) \w+$", (DEPLOY / "Containerfile").read_text(), re.MULTILINE))
    packages = re.search(r"^packages = \[(.*)\]", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1]
    assert {path.partition("/")[0] for path in re.findall(r'"([^"]+)"', packages)} == copied
