"""The examples in deploy/: they parse, and their commands have these options."""

import re
import shlex
import subprocess

import click
import pytest
import yaml
from support import ROOT

SCRIPTS = sorted((ROOT / "deploy").glob("slurm/*.sbatch"))
MANIFESTS = sorted((ROOT / "deploy").glob("kuberay/*.yaml"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_valid_for_bash(script):
    assert subprocess.run(["bash", "-n", script]).returncode == 0
    assert script.read_text().startswith("#!/bin/bash\n") and "#SBATCH --job-name=" in script.read_text()


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_manifests_name_kind_containers_and_resources(path):
    found = yaml.safe_load(path.read_text())
    assert (found["apiVersion"], found["kind"]) in {("ray.io/v1", "RayJob"), ("batch/v1", "Job")}
    containers = list(_containers(found))
    assert containers and all({"image", "resources"} <= set(each) for each in containers)


def _containers(node):
    if isinstance(node, dict):
        yield from node.get("containers", ())
        for value in node.values():
            yield from _containers(value)
    elif isinstance(node, list):
        for value in node:
            yield from _containers(value)


@pytest.mark.parametrize("path", [*SCRIPTS, *MANIFESTS], ids=lambda path: path.name)
def test_the_commands_have_these_options(path):
    from cxr_edge.archive.cli import score

    text = re.sub(r"\\\n\s*", "", path.read_text())
    text = re.sub(r"\$\(\([^)]*\)\)|\$\{?\w+\}?", "1", text)
    (line,) = re.findall(r"^[^#\n]*\bcxr-edge score (.*(?:\n\s+--.*)?)$", text, re.MULTILINE)
    arguments = shlex.split(line.partition("||")[0])
    with click.Context(click.Command("cxr-edge")) as parent:
        context = score.make_context("score", arguments, parent)
    assert context.params["target"] and context.params["sources"]
