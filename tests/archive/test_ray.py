"""The command on Ray: interrupted, killed, and complete in the end. Most of the time is that of starting Ray."""

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from archive_files import draw

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def many(tmp_path_factory) -> Path:
    """700 radiographs."""
    folder = tmp_path_factory.mktemp("many")
    for seed in range(700):
        draw(folder / f"{seed:04}.png", seed)
    (folder / "0005.png").write_bytes(b"broken")
    return folder


@contextmanager
def started(*arguments):
    """A driver, killed with its process group at the end. Workers of Ray have groups of their own."""
    with subprocess.Popen(
        [sys.executable, "-m", "cxr_edge.runtime.cli", "score", *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    ) as driver:  # fmt: skip
        try:
            yield driver
        finally:
            with suppress(ProcessLookupError):
                os.killpg(driver.pid, signal.SIGKILL)


def wait_for(driver, condition, seconds=240.0):
    end = time.monotonic() + seconds
    while not condition():
        assert driver.poll() is None, driver.communicate()[0]
        assert time.monotonic() < end
        time.sleep(0.05)


def workers_of(driver):
    """Process ids of the workers that a driver started."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if os.getsid(int(folder.name)) == driver.pid and b"MapWorker" in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def test_killed_workers_and_drivers_lose_nothing_and_repeat_nothing(many, tmp_path):
    out = tmp_path / "out"
    with started(many, "-o", out, "--workers", 2) as driver:
        wait_for(driver, lambda: list(out.glob("rows/*.parquet")))
        os.kill(workers_of(driver)[0], signal.SIGKILL)
        before = len(list(out.glob("rows/*.parquet")))
        wait_for(driver, lambda: len(list(out.glob("rows/*.parquet"))) > before)
    kept = {path.name: path.stat().st_mtime_ns for path in out.glob("rows/*.parquet")}
    errors = sum(pq.read_table(out / "rows" / name)["error_type"].drop_null().length() for name in kept)
    with started(many, "-o", out, "--workers", 1, "--threads", 2) as done:
        said, _ = done.communicate(timeout=240)
    assert done.returncode == (0 if errors else 3), said  # one input is broken; it may have its row already
    uris = pq.read_table(out / "rows")["uri"].to_pylist()
    assert len(uris) == len(set(uris)) == 700
    assert {name: (out / "rows" / name).stat().st_mtime_ns for name in kept} == kept
    assert list((out / "writing").iterdir()) == []
    with started(many, "-o", out) as again:
        said, _ = again.communicate(timeout=60)
    assert again.returncode == 0 and "700 of 700 inputs have their row" in said
    with started(many, "-o", out, "--operating-point", "screening") as other:
        said, _ = other.communicate(timeout=60)
    assert other.returncode == 2 and "operating_point balanced, now screening" in said


def test_sigterm_keeps_finished_rows_and_says_how_to_continue(many, tmp_path):
    with started(many, "-o", tmp_path, "--workers", 1) as driver:
        wait_for(driver, lambda: list(tmp_path.glob("rows/*.parquet")))
        driver.send_signal(signal.SIGTERM)
        said, _ = driver.communicate(timeout=120)
    assert driver.returncode == 143, said
    assert f"finished rows are kept in {tmp_path}; run the same command to continue" in said
    assert list(tmp_path.glob("rows/*.parquet")) and not list(tmp_path.glob("rows/.*"))


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "127.0.0.1:port"])
def test_no_cluster_at_the_address_is_an_error(cli, many, tmp_path, address):
    code, _, err = cli("score", many, "-o", tmp_path / "out", "--address", address)
    assert code == 2 and f"no Ray cluster at {address}" in err and "ray start --head" in err
    assert not (tmp_path / "out").exists()
