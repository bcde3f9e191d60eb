"""The documents of `verify` hold: the example of gates.toml loads, the workflow's commands exist."""

import json
import re
import shlex
import subprocess
import sys

import click
import pytest
import yaml
from support import ROOT

from cxr_edge.export.gates import DEFAULTS, HIGHEST, LEAST, load_gates
from cxr_edge.runtime.cli import cli as program

GATES = (ROOT / "docs" / "gates.md").read_text()
WORKFLOW = yaml.safe_load((ROOT / "docs" / "github-workflow.yml").read_text())
STEPS = {step.get("name"): step for step in WORKFLOW["jobs"]["model"]["steps"]}


def test_the_example_names_every_key_and_loads(tmp_path):
    path = tmp_path / "gates.toml"
    path.write_text(re.search(r"```toml\n(.*?)```", GATES, re.DOTALL)[1])
    gates = load_gates(path)
    assert set(re.findall(r"^(\w+) = ", path.read_text(), re.MULTILINE)) == {*HIGHEST, *LEAST}
    assert gates["int8"].heatmap_iou == 0.6 and gates["fp16"].probability_max == 0.01


def test_the_table_of_defaults_is_the_programs():
    lines = [line.split("|")[1:-1] for line in GATES.splitlines() if line.startswith("| `") and line.count("|") == 5]
    rows = [(name.strip(" `"), cells) for name, *cells in lines]
    told = {p: {name: float(cells[i]) for name, cells in rows if cells[i].strip()} for i, p in enumerate(DEFAULTS)}
    for precision, gate in DEFAULTS.items():
        assert told[precision] == {k: v for k, v in vars(gate).items() if v is not None}


def commands():
    script = "\n".join(step.get("run", "") for step in STEPS.values())
    return re.findall(r"^cxr-edge .*$", script, re.MULTILINE)


@pytest.mark.parametrize("line", commands())
def test_each_command_of_the_workflow_has_these_options(line):
    _, name, *arguments = shlex.split(line)
    with click.Context(program) as context:
        command = program.get_command(context, name)
    command.make_context(name, arguments, resilient_parsing=False)


def test_the_workflow_does_all_that_it_says():
    assert [line.split()[1] for line in commands()] == ["export", "verify", "bench"]
    assert "--junit" in STEPS["Verify"]["run"] and "cxr-edge[export,bench]" in STEPS["Install"]["run"]
    assert "out" in STEPS["Keep what was made"]["with"]["path"].split()


@pytest.mark.parametrize(("milliseconds", "code"), [(9.0, 0), (14.0, 0), (16.0, 1), (None, 1)])
def test_the_workflow_fails_when_a_file_got_slower(tmp_path, milliseconds, code):
    def bench(path, **p50):
        files = [{"file": f"model.{name}", "stages_ms": {"total": {"p50": ms}}} for name, ms in p50.items() if ms]
        path.parent.mkdir()
        path.write_text(json.dumps({"files": files}))

    bench(tmp_path / "ci" / "bench-baseline.json", onnx=10.0, tflite=8.0)
    bench(tmp_path / "out" / "bench.json", onnx=milliseconds, tflite=8.0)
    step = STEPS["Compare with the baseline"]
    script = step["run"].replace("python -", f"{sys.executable} -")
    done = subprocess.run(["bash", "-e", "-c", script], cwd=tmp_path, env=step["env"], capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    assert "model.onnx" in done.stdout + done.stderr
