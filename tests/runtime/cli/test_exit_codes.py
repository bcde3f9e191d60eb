"""Exit codes are a contract with scripts: each is seen here from outside, on a process of its own."""

import os
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

COMMAND = [sys.executable, "-m", "cxr_edge.runtime.cli"]
#: A command line in which deciding raises what the text says.
BROKEN = """
import sys
from cxr_edge.runtime.predictor import Predictor
def fails(*_):
    {statement}
Predictor.predict_many = fails
from cxr_edge.runtime.cli.main import main
sys.exit(main())
"""


@pytest.fixture(scope="module")
def image(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("exit") / "patient 7.png"
    cv2.imwrite(str(path), np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8))
    return path


def run_broken(statement, image, temp, *options):
    command = [sys.executable, "-c", BROKEN.format(statement=statement), "predict", image, *options]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | {"TMPDIR": str(temp)})


def test_a_defect_is_70_with_one_line_and_a_report(image, tmp_path):
    done = run_broken("raise KeyError('no such thing')", image, tmp_path)
    (report,) = tmp_path.iterdir()
    assert done.returncode == 70 and done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert "defect of cxr-edge (KeyError: 'no such thing')" in line and "report" in line and str(report) in line
    text = report.read_text()
    assert re.match(r"cxr-edge \d+\.\d+\.\d+\S*, Python 3\.\d+", text)
    assert f"predict '{image}'" in text and "Traceback" in text and "in fails" in text


def test_a_defect_is_reported_where_no_file_can_be_written(image):
    # Every place that Python tries for temporary files is too full for one byte.
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0)); raise KeyError('x')"
    done = run_broken(limit, image, "/sys")
    assert done.returncode == 70
    assert "Traceback" in done.stderr and "with the lines above" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("statement", "says"),
    [
        ("raise MemoryError", "not enough memory"),
        ("open('/no/such/file')", "/no/such/file: No such file or directory"),
        ("open('/sys/kernel/x', 'w')", "/sys/kernel/x: Permission denied"),
        ("import nothing_of_this_name", "cxr-edge doctor"),
        ("raise ImportError('libGL.so.1: cannot open shared object file')", "libGL.so.1"),
        ("raise ConnectionError('refused')", "refused"),
    ],
)
def test_what_the_user_can_mend_is_2(image, tmp_path, statement, says):
    done = run_broken(statement, image, tmp_path)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2 and line.startswith("error: ") and says in line
    assert list(tmp_path.iterdir()) == []


def test_a_module_of_ours_that_is_missing_is_a_defect(image, tmp_path):
    assert run_broken("import cxr_edge.runtime.nothing", image, tmp_path).returncode == 70


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("arguments", [["--help"], ["predict", "--help"], ["predict", "IMAGE"]])
def test_a_closed_pipe_ends_quietly(image, arguments, unbuffered):
    reader, writer = os.pipe()
    os.close(reader)
    arguments = [image if argument == "IMAGE" else argument for argument in arguments]
    environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    done = subprocess.run([*COMMAND, *arguments], stdout=writer, stderr=subprocess.PIPE, env=environment)
    os.close(writer)
    assert done.returncode == 141 and done.stderr == b""


def test_head_closes_the_pipe_of_a_long_batch(image, tmp_path):
    for number in range(3000):
        (tmp_path / f"{number}.png").symlink_to(image)
    script = f"'{sys.executable}' -m cxr_edge.runtime.cli predict . --format jsonl | head -1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, cwd=tmp_path)
    row, code = done.stdout.splitlines()
    assert row.startswith('{"path"') and code == "141"
    assert "Traceback" not in done.stderr and "error" not in done.stderr.lower()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("arguments", [["--help"], ["predict", "IMAGE"]])
def test_a_full_disk_under_standard_output_is_2(image, arguments, unbuffered):
    arguments = [image if argument == "IMAGE" else argument for argument in arguments]
    environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    with open("/dev/full", "w") as full:  # noqa: PTH123
        done = subprocess.run([*COMMAND, *arguments], stdout=full, stderr=subprocess.PIPE, text=True, env=environment)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2 and line.startswith("error: standard output: cannot be written (No space left")


@pytest.mark.slow
def test_closed_standard_streams_are_no_defect(image):
    for redirection, code in ((">&-", 0), ("2>&-", 0), (">&- 2>&-", 0)):
        script = f"'{sys.executable}' -m cxr_edge.runtime.cli predict '{image}' {redirection}"
        assert subprocess.run(["bash", "-c", script], capture_output=True).returncode == code, redirection
    script = f"'{sys.executable}' -m cxr_edge.runtime.cli predict absent.png 2>/dev/full"
    assert subprocess.run(["bash", "-c", script], capture_output=True).returncode == 2


def test_help_names_every_code(cli):
    from cxr_edge.runtime import errors

    _, out, _ = cli("--help")
    codes = {value for name, value in vars(errors).items() if name.startswith("EXIT_")}
    assert codes == {0, 1, 2, 3, 70, 130, 141, 143}
    for code in codes:
        assert re.search(rf"\b{code}\b", out.split("Options:")[0]), code
