"""A running `cxr-edge serve` and a plain client of it."""

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TOKEN = "0123456789abcdef-token"


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Service:
    process: subprocess.Popen
    port: int
    lines: list[dict] = field(default_factory=list)

    def request(self, method: str, path: str, body: bytes | None = None, **headers: str) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body, {name.replace("_", "-"): text for name, text in headers.items()})
            response = connection.getresponse()
            return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
        finally:
            connection.close()

    def get(self, path: str, **headers: str) -> Answer:
        return self.request("GET", path, **headers)

    def post(self, path: str, body: bytes, **headers: str) -> Answer:
        return self.request("POST", path, body, **headers)

    def upload(self, *images: tuple[str, bytes], query: str = "", **headers: str) -> Answer:
        """Send images as a browser does."""
        kind, body = form(*images)
        return self.post(f"/v1/predict{query}", body, content_type=kind, **headers)

    def wait(self, ready: bool = True, seconds: float = 60, **headers: str) -> None:
        """Wait until the service is ready, or is not."""
        deadline = time.monotonic() + seconds
        while (self.get("/v2/health/ready", **headers).status == 200) != ready:
            assert time.monotonic() < deadline, self.lines
            assert self.process.poll() is None, self.lines
            time.sleep(0.02)

    def workers(self) -> list[int]:
        """Process numbers of the workers."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return [int(number) for number in children.split()]

    def events(self, name: str) -> list[dict]:
        return [line for line in self.lines if line.get("event") == name]


def form(*images: tuple[str, bytes], field: str = "file") -> tuple[str, bytes]:
    """Content type and body of multipart/form-data."""
    boundary = "----boundary0123456789"
    parts = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="{field}"; filename="{name}"\r\n'
        "Content-Type: application/octet-stream\r\n\r\n".encode()
        + content
        + b"\r\n"
        for name, content in images
    ]
    return f"multipart/form-data; boundary={boundary}", b"".join(parts) + f"--{boundary}--\r\n".encode()


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "cxr_edge.runtime.cli", "serve", *map(str, arguments)]


@contextmanager
def serving(*arguments: object, ready: bool = True, **environment: str):
    """Run the service on a free port for the block, and end it by SIGTERM."""
    process = subprocess.Popen(
        command("--port", 0, *arguments),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | environment,
    )
    address = process.stdout.readline()
    match = re.search(r":(\d+)/", address)
    if not match:
        raise AssertionError(process.communicate()[1])
    service = Service(process, int(match[1]))
    reader = threading.Thread(target=_read, args=(process.stderr, service.lines), daemon=True)
    reader.start()
    try:
        if ready:
            token = environment.get("CXR_EDGE_TOKEN")
            service.wait(**({"authorization": f"Bearer {token}"} if token else {}))
        yield service
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        finally:
            process.kill()
            reader.join(5)
        unexpected = [line for line in service.lines if "not_json" in line or "traceback" in line]
        assert not unexpected, unexpected


def _read(stream, lines: list[dict]) -> None:
    for line in stream:
        try:
            lines.append(json.loads(line))
        except ValueError:
            lines.append({"not_json": line})
