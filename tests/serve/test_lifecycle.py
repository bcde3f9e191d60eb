"""Start, death of a worker, drain, and what is left behind."""

import os
import shutil
import signal
import socket
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from fuzz.seeds import encode, radiograph
from service import command, form, serving

from cxr_edge.runtime.predictor import packaged_model


@pytest.fixture
def own():
    """A service that a test may harm."""
    with serving("--workers", 1) as service:
        yield service


def until(condition, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_an_idle_worker_that_dies_is_replaced(own, jpeg):
    (worker,) = own.workers()
    os.kill(worker, signal.SIGKILL)
    own.wait(ready=False)
    assert own.upload(("x", jpeg)).status == 503
    own.wait()
    assert own.upload(("x", jpeg)).status == 200 and own.workers() != [worker]
    assert own.events("worker lost")[0]["exit_code"] == -signal.SIGKILL


def test_a_request_whose_worker_dies_is_answered(own, jpeg):
    (worker,) = own.workers()
    os.kill(worker, signal.SIGSTOP)
    with ThreadPoolExecutor() as clients:
        waiting = [clients.submit(own.upload, ("x", jpeg)) for _ in range(3)]
        until(lambda: b"cxr_edge_queue 2.0" in own.get("/metrics").body)
        os.kill(worker, signal.SIGKILL)
        statuses = sorted(request.result(60).status for request in waiting)
    assert statuses == [200, 200, 503]


def test_a_worker_that_hangs_is_replaced(jpeg):
    with serving("--workers", 1, "--timeout", 1) as service:
        os.kill(service.workers()[0], signal.SIGSTOP)
        assert service.upload(("x", jpeg)).status == 504
        until(lambda: service.events("worker lost"))
        service.wait()
        assert service.upload(("x", jpeg)).status == 200


def test_sigterm_answers_what_was_accepted(jpeg):
    with serving("--workers", 1) as service:
        content_type, body = form(*[(str(i), jpeg) for i in range(16)])
        (worker,) = service.workers()
        with ThreadPoolExecutor() as clients:
            os.kill(worker, signal.SIGSTOP)
            request = clients.submit(service.post, "/v1/predict", body, content_type=content_type)
            until(lambda: b"cxr_edge_queue 15.0" in service.get("/metrics").body)
            service.process.send_signal(signal.SIGTERM)
            until(lambda: service.events("draining"))
            os.kill(worker, signal.SIGCONT)
            assert request.result(30).status == 200 and len(request.result().json()["predictions"]) == 16
        assert service.process.wait(20) == 0
        with pytest.raises(ConnectionRefusedError), socket.create_connection(("127.0.0.1", service.port)):
            pass
    assert not Path(f"/proc/{worker}").exists()


def test_workers_end_with_a_service_that_is_killed(own):
    (worker,) = own.workers()
    own.process.kill()
    until(lambda: not Path(f"/proc/{worker}/stat").exists() or " Z " in Path(f"/proc/{worker}/stat").read_text())


def test_a_bundle_that_cannot_be_loaded_ends_the_service(tmp_path):
    broken = tmp_path / "bundle"
    shutil.copytree(packaged_model(), broken)
    for path in broken.glob("model.*"):
        path.write_bytes(path.read_bytes()[:-1])
    done = subprocess.run(command("-m", broken, "--port", 0), capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and "cut short or changed" in done.stderr.splitlines()[-1]


def test_a_port_in_use_is_named():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = subprocess.run(command("--port", port), capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and f"127.0.0.1:{port}" in done.stderr and "--port" in done.stderr


def written(service) -> int:
    """Bytes that the service and its workers have sent to disks."""
    processes = [service.process.pid, *service.workers()]
    return sum(int(Path(f"/proc/{p}/io").read_text().split("write_bytes: ")[1].split()[0]) for p in processes)


def test_nothing_is_written_to_disk_and_no_name_is_logged(service, tmp_path):
    noise = encode(".png", radiograph(2000, 2000))
    assert len(noise) > 2**20  # above the size at which web frameworks use temporary files
    before = written(service)
    for _ in range(3):
        assert service.upload(("jane-doe.png", noise), ("john-doe.jpg", b"broken")).status == 200
    assert written(service) == before
    assert service.events("request") and "doe" not in str(service.lines)


def test_the_current_folder_cannot_replace_modules(tmp_path):
    """A worker is started with `python -c`, which puts the current folder on the path."""
    from cxr_edge.serve.process import Process
    from cxr_edge.serve.settings import ModelChoice

    (tmp_path / "numpy.py").write_text("raise SystemExit('taken from the current folder')")
    here = Path.cwd()
    os.chdir(tmp_path)
    try:
        process = Process(ModelChoice().to_dict())
        process.connection.settimeout(60)
        greeting = process.connection.recv(100)
        process.end()
    finally:
        os.chdir(here)
    assert b'"model"' in greeting
