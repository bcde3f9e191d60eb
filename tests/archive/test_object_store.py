"""Sources and results in S3: moto's server, with objects that are missing, broken, slow, throttled or forbidden."""

import threading
import time
from collections import Counter

import pyarrow.parquet as pq
import pytest
from archive_files import draw

from cxr_edge.runtime.errors import OutputError, UsageError

pytest.importorskip("moto.server")
pytest.importorskip("s3fs")

ERROR = "<?xml version='1.0'?><Error><Code>{code}</Code><Message>{code}</Message></Error>"


class Faults:
    """The server, which answers requests for some objects badly; the name of an object says how."""

    def __init__(self, app):
        self.app, self.asked, self.lock = app, Counter(), threading.Lock()

    def __call__(self, environ, start_response):
        path = environ["PATH_INFO"]
        reads = environ["REQUEST_METHOD"] == "GET" and path.endswith(".jpeg")
        with self.lock:
            self.asked[path] += reads
            count = self.asked[path]
        if reads and "throttled" in path and count <= 2:
            return self._refuse("503 Slow Down", "SlowDown", start_response)
        if ("forbidden" in path and environ["REQUEST_METHOD"] != "PUT") or path.startswith("/secret"):
            return self._refuse("403 Forbidden", "AccessDenied", start_response)
        if "full" in path and environ["REQUEST_METHOD"] == "PUT":
            return self._refuse("403 Forbidden", "QuotaExceeded", start_response)
        if reads and "stuck" in path:
            time.sleep(3)
        if reads and "slow" in path:
            time.sleep(0.3)
        return self.app(environ, start_response)

    def _refuse(self, status, code, start_response):
        start_response(status, [("Content-Type", "application/xml")])
        return [ERROR.format(code=code).encode()]


@pytest.fixture(scope="module")
def server():
    """A server with an empty bucket; the variables of the environment lead s3fs to it."""
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    faults = Faults(DomainDispatcherApplication(create_backend_app))
    running = make_server("127.0.0.1", 0, faults, threaded=True)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{running.server_port}")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "testing")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        yield faults
    running.shutdown()


@pytest.fixture(scope="module")
def bucket(server, tmp_path_factory):
    """Objects of each kind below s3://hospital/2024/."""
    import s3fs

    store = s3fs.S3FileSystem()
    store.mkdir("hospital")
    content = draw(tmp_path_factory.mktemp("objects") / "x.jpeg", 5).read_bytes()
    for name in ("a", "b", "slow", "throttled", "stuck", "forbidden"):
        store.pipe_file(f"hospital/2024/{name}.jpeg", content)
    store.pipe_file("hospital/2024/broken.jpeg", content[:400])
    store.pipe_file("hospital/2024/DICOMDIR", b"index")
    store.pipe_file("hospital/2024/notes.txt", b"text")
    return store


def test_each_object_has_its_row_whatever_the_server_does(bucket, server, run, rows, tmp_path):
    names = ("a", "b", "broken", "forbidden", "missing", "slow", "stuck", "throttled")
    bucket.pipe_file("hospital/list.txt", "\n".join(f"2024/{name}.jpeg" for name in names).encode())
    start = time.monotonic()
    run("s3://hospital/list.txt", target=tmp_path, timeout=0.5)
    found = {row["uri"].split("/")[-1].removesuffix(".jpeg"): row for row in rows(tmp_path)}
    assert sorted(found) == sorted(names) and time.monotonic() - start < 60
    failed = {name: row["error_message"] for name, row in found.items() if row["error_type"]}
    assert sorted(failed) == ["broken", "forbidden", "missing", "stuck"]
    assert "after 5 attempts" in failed["stuck"] and "PermissionError" in failed["forbidden"]
    assert "FileNotFoundError" in failed["missing"] and server.asked["/hospital/2024/throttled.jpeg"] >= 3
    assert found["a"]["sha256"] == found["throttled"]["sha256"] and found["a"]["logit"] == found["slow"]["logit"]


def test_a_bucket_is_listed_with_etags_and_a_result_in_it_goes_on(bucket, run):
    source, target = "s3://hospital/2024/[ab].jpeg", "s3://hospital/scores"
    plan, _ = run(source, target=target)
    assert plan.blocks[0].inputs["version"].to_pylist()[0].isalnum() and plan.inputs == 2
    assert run(source, target=target)[0].done == 2
    bucket.pipe_file("hospital/2024/b.jpeg", bucket.cat_file("hospital/2024/a.jpeg") + b"\0")
    plan, _ = run(source, target=target)
    assert (plan.done, plan.changed) == (1, 1)
    from cxr_edge.archive.storage import Output

    (part,) = Output(target).parts()
    with bucket.open(f"hospital/scores/rows/{part}") as stream:
        table = pq.read_table(stream).to_pylist()
    assert [row["uri"] for row in table] == ["s3://hospital/2024/a.jpeg", "s3://hospital/2024/b.jpeg"]


def test_credentials_that_fail_are_an_error_before_work_starts(bucket, run):
    from cxr_edge.archive.sources import find_inputs, probe

    with pytest.raises(UsageError, match=r"s3://secret/x: cannot be read .*credentials"):
        find_inputs(["s3://secret/x"])
    bucket.pipe_file("hospital/secret.txt", b"s3://secret/a.jpeg")
    with pytest.raises(UsageError, match=r"s3://secret/a\.jpeg: cannot be read .*credentials"):
        probe(find_inputs(["s3://hospital/secret.txt"]))


def test_a_store_that_refuses_to_write_is_an_error(bucket, run):
    with pytest.raises(OutputError, match=r"s3://hospital/full/run\.json: cannot be written"):
        run("s3://hospital/2024/a.jpeg", target="s3://hospital/full")
