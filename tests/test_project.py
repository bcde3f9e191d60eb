"""Site, workflows, templates, hooks, wheel and changelog are what maintainers rely on."""

import os
import re
import shlex
import subprocess
import sys
import zipfile
from pathlib import Path

import click
import pytest
import tomllib
import yaml
from support import ROOT

from cxr_edge.runtime.cli.main import OWN

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
STAGES = ("runtime", "common", "web", "train", "export", "sites", "archive", "serve", "benchmarks")


def run(program: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name(program)), *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The site, built with every warning as an error."""
    folder = tmp_path_factory.mktemp("site")
    done = run("mkdocs", "build", "--strict", "--site-dir", folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
def test_the_site_has_a_reference_of_every_command(site):
    page = (site / "cli" / "index.html").read_text()
    commands = {*OWN, *PYPROJECT["project"]["entry-points"]["cxr_edge.commands"]}
    assert set(re.findall(r'<h2 id="([\w-]+)"', page)) == commands
    assert "--operating-point" in page and "--held-out" in page


@pytest.mark.slow
def test_the_site_has_a_reference_of_the_public_names(site):
    from cxr_edge import runtime

    page = (site / "api" / "index.html").read_text()
    assert not [name for name in runtime.__all__ if f'.{name}"' not in page]


@pytest.mark.slow
def test_the_site_fetches_nothing_from_other_hosts(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) > 15
    for page in pages:
        text = page.read_text()
        fetched = re.findall(r"<(?:script|img|iframe)[^>]+src=\"([^\"]+)", text)
        fetched += re.findall(r"<link[^>]+rel=\"(?:stylesheet|preconnect|icon)\"[^>]+href=\"([^\"]+)", text)
        assert fetched and not [link for link in fetched if "//" in link], page


@pytest.mark.slow
def test_workflows_are_valid(tmp_path):
    """By the schema of GitHub workflows, which finds a deliberate mistake in each."""
    lint = ("check-jsonschema", "--builtin-schema", "vendor.github-workflows")
    paths = [*WORKFLOWS, ROOT / "docs" / "github-workflow.yml"]
    done = run(*lint, *paths)
    assert done.returncode == 0, done.stdout
    for path in paths:
        (tmp_path / path.name).write_text(path.read_text().replace("runs-on:", "run-on:"))
    broken = run(*lint, *tmp_path.glob("*.yml"))
    assert broken.returncode == 1 and all(f"{path.name}::" in broken.stdout for path in paths)


def test_workflows_run_commands_that_exist():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    extras = set(PYPROJECT["project"]["optional-dependencies"])
    text = "\n".join(path.read_text() for path in WORKFLOWS)
    assert {"check", "test", "docs"} <= set(re.findall(r"make ([\w-]+)", text)) <= targets
    (matrix,) = re.findall(r"engine: \[([\w, ]+)\]", text)
    assert {"dicom", *matrix.split(", ")} <= extras
    assert {"ubuntu-24.04", "ubuntu-24.04-arm"} <= set(re.findall(r"ubuntu-[\w.-]+", text)) and "macos-" in text


@pytest.mark.slow
def test_issue_templates_are_valid():
    forms = [ROOT / ".github" / "ISSUE_TEMPLATE" / f"{name}.yml" for name in ("bug", "feature")]
    done = run("check-jsonschema", "--builtin-schema", "vendor.github-issue-forms", *forms)
    assert done.returncode == 0, done.stdout


def test_pre_commit_runs_what_make_check_runs():
    (checks,) = re.findall(r"^check:.*\n((?:\t.+\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    wanted = {line.split("/")[-1].removesuffix(" .").removesuffix(" --check") for line in checks.splitlines()}
    wanted = {command.replace("format --check", "format") for command in wanted}
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    hooks = {hook["entry"].removeprefix(".venv/bin/").removesuffix(" --fix") for hook in repository["hooks"]}
    assert hooks == {"ruff check", "ruff format", "mypy", "lint-imports"}
    assert all(any(command.startswith(hook) for command in wanted) for hook in hooks) and len(wanted) == len(hooks)


@pytest.mark.slow
def test_the_hooks_are_valid():
    assert run("pre-commit", "validate-config", ".pre-commit-config.yaml").returncode == 0


@pytest.mark.slow
@pytest.mark.skipif("PYTEST_XDIST_WORKER" not in os.environ, reason="the tests run in one process")
def test_processes_share_the_tests_by_group(request):
    # Otherwise each process would have TensorFlow in its memory and make the chain anew.
    assert request.node.nodeid.endswith("@test_project.py")


@pytest.mark.slow
def test_importing_the_tests_imports_no_training_framework():
    # Every process imports all test modules; `support.Lazy` defers what needs TensorFlow.
    code = "import sys, pytest; pytest.main(['--collect-only', '-q']); print({'tensorflow', 'jax'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"


@pytest.mark.slow
def test_the_wheel_says_that_it_is_typed(tmp_path):
    done = run("hatchling", "build", "-t", "wheel", "-d", tmp_path)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {f"cxr_edge/{stage}/py.typed" for stage in STAGES} <= set(names)


def test_the_changelog_knows_the_version():
    released = re.findall(
        r"^## \[(\d+\.\d+\.\d+)\] - \d{4}-\d\d-\d\d$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE
    )
    assert released[0] == PYPROJECT["project"]["version"]


@pytest.mark.parametrize("document", ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "SECURITY.md", "docs"])
def test_documents_name_modules_that_exist(document):
    """Paths are relative to the repository, or to the namespace package of a stage."""
    pages = (ROOT / document).glob("*.md") if document == "docs" else [ROOT / document]
    named = {path for page in pages for path in re.findall(r"`([a-z]+/[\w/.]+\.py)`", page.read_text())}
    places = [ROOT, *(ROOT / stage / "cxr_edge" for stage in STAGES), ROOT / "runtime" / "cxr_edge" / "runtime"]
    assert not [path for path in named if not any((place / path).is_file() for place in places)]


def console_lines() -> list[str]:
    pages = [ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md"))]
    return [
        line for page in pages for line in re.findall(r"^(?:\$|   ) (?:\S*/)?(cxr-edge .*)$", page.read_text(), re.M)
    ]


@pytest.mark.parametrize("line", console_lines())
def test_commands_in_the_documents_have_these_options(line):
    from cxr_edge.runtime.cli.main import cli as program

    _, name, *arguments = shlex.split(line.partition("#")[0].partition(" > ")[0])
    with click.Context(program) as context:
        command = program.get_command(context, name)
        assert command is not None
        command.make_context(name, arguments)
