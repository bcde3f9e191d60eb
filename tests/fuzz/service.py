"""Feed hostile requests to a running `cxr-edge serve`.

    python tests/fuzz/service.py --count 5000
    python tests/fuzz/service.py --count 5000 --schemathesis 50

Broken images of every format, slow clients, cut connections, bodies of 10 GB, compressed bodies and PNG bombs; and with
`--schemathesis N`, N requests for each operation of the OpenAPI schema. Exit code 1 if an answer has the status 500, a
worker ends, the service writes to a disk or leaves a temporary file, or it does not answer afterwards.
"""

import argparse
import gzip
import os
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from service import Service, form, serving

from fuzz.images import make_file, make_seeds
from fuzz.mutate import repair
from fuzz.seeds import SEEDS, encode, png_file

HEAD = "POST /v1/predict HTTP/1.1\r\nHost: x\r\n"


def send_mutants(service: Service, count: int, seed: int, statuses: Counter[str]) -> None:
    """Broken images, each alone or in a form, which may be broken as well."""
    seeds = make_seeds(list(SEEDS))

    def send(index: int) -> int:
        rng = np.random.default_rng([seed, index])
        _, data = make_file(seeds, seed, index)
        query = str(rng.choice(["", "?heatmap=png", "?radiograph=png", "?heatmap=array"]))
        if rng.random() < 0.3:
            return service.post(f"/v1/predict{query}", data, content_type="application/octet-stream").status
        kind, body = form(("x", data))
        if rng.random() < 0.1:
            body = body[: int(rng.integers(0, len(body)))]
        return service.post(f"/v1/predict{query}", body, content_type=kind).status

    with ThreadPoolExecutor(8) as clients:
        statuses.update(f"mutants {status}" for status in clients.map(send, range(count)))


def hang_slowly(service: Service, statuses: Counter[str], clients: int = 100, seconds: float = 5) -> None:
    """Many clients that send a byte now and then; meanwhile the service answers others."""
    connections = [socket.create_connection(("127.0.0.1", service.port)) for _ in range(clients)]
    for number, connection in enumerate(connections):
        connection.sendall(f"{HEAD}Content-Length: 100000\r\n\r\n".encode() if number % 2 else b"POST /v1")
    end = time.monotonic() + seconds
    image = encode(".jpg")
    while time.monotonic() < end:
        for connection in connections:
            connection.sendall(b"x")
        statuses[f"beside slow clients {service.post('/v1/predict', image).status}"] += 1
        time.sleep(0.2)
    for connection in connections:
        connection.close()


def cut(service: Service, statuses: Counter[str], count: int = 300) -> None:
    """Connections that are reset anywhere in a request, or before its answer."""
    kind, body = form(("x", encode(".jpg")))
    request = f"{HEAD}Content-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
    rng = np.random.default_rng(0)
    for _ in range(count):
        connection = socket.create_connection(("127.0.0.1", service.port))
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # close resets
        connection.sendall(request[: int(rng.integers(1, len(request) + 1))])
        connection.close()
        statuses["cut"] += 1


def pour(service: Service, statuses: Counter[str]) -> None:
    """Bodies of 10 GB: announced, and in chunks until the service closes the connection."""
    chunk = b"100000\r\n" + bytes(2**20) + b"\r\n"
    for announced in (True, False):
        length = "Content-Length: 10000000000" if announced else "Transfer-Encoding: chunked"
        with socket.create_connection(("127.0.0.1", service.port), timeout=60) as connection:
            connection.sendall(f"{HEAD}{length}\r\n\r\n".encode())
            try:
                for _ in range(10_000):
                    connection.sendall(bytes(2**20) if announced else chunk)
            except OSError:
                pass
            try:
                answer = connection.recv(100)
            except OSError:
                answer = b"HTTP/1.1 cut"
            statuses[f"10 GB {answer[9:12].decode()}"] += 1


def bomb(service: Service, statuses: Counter[str]) -> None:
    """A compressed body, and PNG files that claim many pixels or hold many of one colour."""
    content = gzip.compress(bytes(50_000_000))
    statuses[f"gzip {service.post('/v1/predict', content, content_encoding='gzip').status}"] += 1
    blank = png_file(np.zeros((9000, 9000), np.uint8))
    claim = bytearray(png_file(np.zeros((100, 100), np.uint8)))
    claim[16:24] = struct.pack(">II", 60_000, 60_000)
    for data in (blank, repair(bytes(claim)), content):
        statuses[f"bombs {service.upload(('x', data)).status}"] += 1


def run_schemathesis(service: Service, examples: int, statuses: Counter[str]) -> None:
    """Requests that the OpenAPI schema describes, and some that it does not; answers must fit the schema."""
    address = f"http://127.0.0.1:{service.port}/openapi.json"
    program = shutil.which("schemathesis") or str(Path(sys.executable).with_name("schemathesis"))
    command = [program, "run", address, "--max-examples", str(examples), "--no-color", "--checks"]
    checks = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
    with tempfile.TemporaryDirectory() as folder:
        name = service.get("/v1/model").json()["name"]
        (Path(folder) / "schemathesis.toml").write_text(f'[parameters]\nname = "{name}"\n')
        done = subprocess.run([*command, checks], capture_output=True, text=True, cwd=folder)
    print(done.stdout[-3000:], file=sys.stderr)
    statuses[f"schemathesis {'passed' if done.returncode == 0 else 'FAILED'}"] += 1


def written(service: Service) -> int:
    """Bytes that the service and its workers have sent to disks."""
    processes = [service.process.pid, *service.workers()]
    return sum(int(Path(f"/proc/{p}/io").read_text().split("write_bytes: ")[1].split()[0]) for p in processes)


def fuzz(options: argparse.Namespace, folder: Path) -> list[str]:
    """Run all attacks; return the findings."""
    statuses: Counter[str] = Counter()
    with serving(TMPDIR=str(folder)) as service:
        workers, before = service.workers(), written(service)
        attacks: list[tuple[Callable[..., None], tuple]] = [
            (send_mutants, (options.count, options.seed, statuses)),
            (hang_slowly, (statuses,)),
            (cut, (statuses,)),
            (pour, (statuses,)),
            (bomb, (statuses,)),
        ]
        if options.schemathesis:
            attacks.append((run_schemathesis, (options.schemathesis, statuses)))
        for attack, arguments in attacks:
            start = time.monotonic()
            attack(service, *arguments)
            print(f"{attack.__name__}: {time.monotonic() - start:.0f} s, {peak(service)}", file=sys.stderr, flush=True)
        findings = judge(service, workers, before, folder, statuses)
    for outcome, count in sorted(statuses.items()):
        print(f"{outcome:30} {count:8,}")
    return findings


def judge(service: Service, workers: list[int], before: int, folder: Path, statuses: Counter[str]) -> list[str]:
    found = {
        "an answer with the status 500": any(outcome.endswith((" 500", "FAILED")) for outcome in statuses),
        f"workers ended: {service.events('worker lost')}": service.workers() != workers,
        "a log line with a defect": bool([line for line in service.lines if "traceback" in line]),
        f"{written(service) - before} bytes written to disk": written(service) != before,
        f"temporary files: {list(folder.iterdir())}": any(folder.iterdir()),
        "a sound image is not answered": service.upload(("x", encode(".jpg"))).status != 200,
        "memory of bodies is held": b"cxr_edge_held_bytes 0.0" not in service.get("/metrics").body,
    }
    return [what for what, is_so in found.items() if is_so]


def peak(service: Service) -> str:
    """The most memory that each process took."""
    statuses = [Path(f"/proc/{p}/status").read_text() for p in (service.process.pid, *service.workers())]
    return "peak " + ", ".join(f"{int(text.split('VmHWM:')[1].split()[0]) / 1024:.0f} MB" for text in statuses)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000, help="broken images")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--schemathesis", type=int, default=0, help="requests for each operation of the schema")
    options = parser.parse_args()
    os.environ.pop("CXR_EDGE_TOKEN", None)
    with tempfile.TemporaryDirectory() as folder:
        findings = fuzz(options, Path(folder))
    for finding in findings:
        print(f"FINDING {finding}")
    print(f"{len(findings)} findings")
    return int(bool(findings))


if __name__ == "__main__":
    sys.exit(main())
