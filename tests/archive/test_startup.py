"""The command is listed and explains itself without its heavy packages, and says what to install."""

import subprocess
import sys

import pytest

HEAVY = {"numpy", "ray", "pyarrow", "fsspec", "duckdb", "pandas", "matplotlib", "jinja2"}
BLOCKED = """
import sys
from importlib.abc import MetaPathFinder

class Missing(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("ray", "pyarrow", "duckdb"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
"""
MAIN = "from cxr_edge.runtime.cli import main\n"


def run(program, *arguments):
    return subprocess.run([sys.executable, "-c", program, *map(str, arguments)], capture_output=True, text=True)


@pytest.mark.parametrize("arguments", [(), ("score",), ("score", "report")])
def test_help_loads_nothing_heavy(arguments):
    program = MAIN + "code = main.main(); print('MODULES', *sys.modules, sep='\\n'); sys.exit(code)"
    done = run("import sys\n" + program, *arguments, "--help")
    assert done.returncode == 0, done.stderr
    assert not set(done.stdout.split("MODULES\n")[1].split()) & HEAVY
    assert "score" in done.stdout


def test_a_missing_package_is_named_with_its_extra(tmp_path):
    not_installed = "main._is_installed = lambda of, extra: extra != 'archive'\n"  # they are installed here
    for arguments in (("score", tmp_path, "-o", tmp_path / "out"), ("score", "report", tmp_path)):
        done = run(BLOCKED + MAIN + not_installed + "sys.exit(main.main())", *arguments)
        assert done.returncode == 2 and "pip install 'cxr-edge[archive]'" in done.stderr, done.stderr
        assert "Traceback" not in done.stderr


def test_options_that_make_no_sense_are_refused(cli, tmp_path):
    for options in (("--shard", "0/3"), ("--shard", "4/3"), ("--sample", "0"), ("--limit", "0"), ("--workers", "0")):
        code, _, error = cli("score", tmp_path, "-o", tmp_path / "out", *options)
        assert code == 2 and options[0] in error
    assert cli("score", tmp_path)[0] == 2
