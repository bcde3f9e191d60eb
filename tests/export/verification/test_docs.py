"""The documents hold: the examples of gates.toml and budget.toml load, the workflow's commands exist and fail."""

import importlib
import json
import re
import shlex

import click
import pytest
import yaml
from support import ROOT
from tree_sitter import Language, Parser

from cxr_edge.benchmarks.regression import LIMITS, load_budget
from cxr_edge.export.verification.gates import DEFAULTS, HIGHEST, LEAST, load_gates
from cxr_edge.runtime.cli.main import cli as program

GATES = (ROOT / "docs" / "gates.md").read_text()
WORKFLOW = yaml.safe_load((ROOT / "docs" / "github-workflow.yml").read_text())
STEPS = {step.get("name"): step for step in WORKFLOW["jobs"]["model"]["steps"]}


def test_the_example_names_every_key_and_loads(tmp_path):
    path = tmp_path / "gates.toml"
    path.write_text(re.search(r"```toml\n(.*?)```", GATES, re.DOTALL)[1])
    gates = load_gates(path)
    assert set(re.findall(r"^(\w+) = ", path.read_text(), re.MULTILINE)) == {*HIGHEST, *LEAST}
    assert gates["int8"].heatmap_iou == 0.6 and gates["fp16"].probability_max == 0.01


def test_the_budget_names_every_limit_and_loads(tmp_path):
    path = tmp_path / "budget.toml"
    path.write_text(re.search(r"```toml\n(.*?)```", (ROOT / "docs" / "bench.md").read_text(), re.DOTALL)[1])
    budget = load_budget(path)
    assert budget.keys() == {"all", "model.int8.tflite"}
    assert {key for limits in budget.values() for key in limits} == LIMITS.keys()


def test_the_table_of_defaults_is_the_programs():
    lines = [line.split("|")[1:-1] for line in GATES.splitlines() if line.startswith("| `") and line.count("|") == 5]
    rows = [(name.strip(" `"), cells) for name, *cells in lines]
    told = {p: {name: float(cells[i]) for name, cells in rows if cells[i].strip()} for i, p in enumerate(DEFAULTS)}
    for precision, gate in DEFAULTS.items():
        assert told[precision] == {k: v for k, v in vars(gate).items() if v is not None}


@pytest.mark.parametrize("language", ["kotlin", "swift"])
def test_the_code_for_phones_parses(language):
    """No compiler of theirs is here."""
    grammar = importlib.import_module(f"tree_sitter_{language}")
    parser = Parser(Language(grammar.language()))
    snippets = re.findall(rf"```{language}\n(.*?)```", (ROOT / "docs" / "mobile.md").read_text(), re.DOTALL)
    assert len(snippets) > 1 and not [code for code in snippets if parser.parse(code.encode()).root_node.has_error]
    assert parser.parse(snippets[0].replace(")", "", 1).encode()).root_node.has_error


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


@pytest.fixture
def repository(tmp_path, phantoms, bundle, monkeypatch):
    """The folders that the workflow expects, as far as its bench needs them."""
    for name, target in {"radiographs": phantoms, "bundle": bundle}.items():
        (tmp_path / name).symlink_to(target)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_workflow_fails_when_a_file_got_slower_or_is_missing(cli, repository):
    line = next(line for line in commands() if line.startswith("cxr-edge bench"))
    quick = [*shlex.split(line)[1:], "--engine", "onnx", "--samples", "20", "--no-cold"]
    arguments = quick[: quick.index("--baseline")] + quick[quick.index("--max-slowdown") :]
    assert cli(*arguments)[0] == 0
    record = json.loads((repository / "out" / "bench.json").read_text())
    baseline = repository / "ci" / "bench-baseline.json"
    baseline.parent.mkdir()
    record["bundle"]["folder"] = str(repository / "gone")  # so that only its absolute figures remain

    # Far from the limit of 1.5: a busy machine alone took ×8.
    for row in record["files"]:
        row["samples_ms"]["total"] = [1e3 * ms for ms in row["samples_ms"]["total"]]
    baseline.write_text(json.dumps(record))
    code, out, err = cli(*quick)
    assert code == 0 and "its bundle is not at" in err, out + err

    slower, gone = record["files"][1], record["files"][2]
    slower["samples_ms"]["total"] = [ms / 1e6 for ms in slower["samples_ms"]["total"]]
    gone["file"] = "model.gone.onnx"
    baseline.write_text(json.dumps(record))
    code, out, _ = cli(*quick)
    assert code == 1 and "3 limits of baseline and budget, 2 failed" in out
    assert f"FAILED: {slower['file']}: ×" in out and "FAILED: model.gone.onnx: slowdown was not measured" in out
    assert [c["passed"] for c in json.loads((repository / "out" / "bench.json").read_text())["checks"]] == [1, 0, 0]
