"""What the tests of the page share: a site, the service, pages that may speak to one host only, and files to drop."""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
import pytest

from cxr_edge.export.verification.browser import PROGRAMS, open_page
from cxr_edge.web import site_folder

HAS_NPM = shutil.which("npm") is not None
HAS_BROWSER = find_spec("playwright") is not None and any(map(shutil.which, PROGRAMS))
INSTALL = "install it (on Debian: apt install chromium nodejs npm)"
needs_node = pytest.mark.skipif(shutil.which("node") is None, reason=f"Node.js is missing; {INSTALL}")
needs_npm = pytest.mark.skipif(not HAS_NPM, reason=f"npm is missing; {INSTALL}")
needs_browser = pytest.mark.skipif(
    not HAS_BROWSER, reason=f"Chromium or Playwright is missing; {INSTALL}, and pip install 'cxr-edge[web]'"
)
needs_service = pytest.mark.skipif(
    find_spec("cxr_edge.serve") is None or find_spec("cxr_edge.serve.app") is None or find_spec("uvicorn") is None,
    reason="the service is not installed",
)


#: LiteRT's log, and what Chromium reports when the service refuses a file.
EXPECTED = ("INFO: ", "WARNING: ", "Failed to load resource: the server responded with a status of 422")


@contextmanager
def page_at(address: str, width: int = 1280, **options):
    """Open a page; fail if it asks another host, breaks its policy, or reports an error."""
    complaints = []

    def watch(request) -> None:
        if not request.url.startswith((address, "blob:", "data:")):
            complaints.append(f"request to {request.url}")

    def complain(message) -> None:
        if message.type == "error" and not message.text.startswith(EXPECTED):
            complaints.append(message.text)

    with open_page(width, 900, accept_downloads=True, **options) as page:
        page.on("request", watch)
        page.on("console", complain)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(address)
        page.wait_for_selector("html[data-ready]", timeout=120_000)
        yield page
    assert complaints == []


def cards(page, count: int):
    """The cards, once the page has finished all of them; its policy forbids `wait_for_function`."""
    from playwright.sync_api import expect

    expect(page.locator(".card")).to_have_count(count)
    expect(page.locator(".card[aria-busy]")).to_have_count(0, timeout=120_000)
    return page.locator(".card").all()


@contextmanager
def service(bundle: Path):
    """Run `cxr-edge serve` on a free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = "import sys; from cxr_edge.runtime.cli.main import main; sys.exit(main())"
    process = subprocess.Popen([sys.executable, "-c", command, "serve", "-m", str(bundle), "--port", str(port)])
    address = f"http://127.0.0.1:{port}/"
    try:
        _wait_for(f"{address}v2/health/ready", process)
        yield address
    finally:
        process.terminate()
        process.wait(30)


def _wait_for(url: str, process: subprocess.Popen) -> None:
    end = time.monotonic() + 120
    while time.monotonic() < end and process.poll() is None:
        try:
            with urllib.request.urlopen(url):
                return
        except OSError:
            time.sleep(0.2)
    raise AssertionError(f"{url} does not answer; the service ended with {process.poll()}")


def axe(tmp_path: Path) -> Path:
    """The script of axe-core, installed by npm at the pinned version."""
    for name in ("package.json", "package-lock.json"):
        shutil.copy(site_folder() / name, tmp_path)
    command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=os.environ)
    if done.returncode:
        pytest.skip(f"npm cannot install axe-core here: {done.stderr[-200:]}")
    return tmp_path / "node_modules" / "axe-core" / "axe.min.js"


def draw_files(folder: Path) -> dict[str, Path]:
    """Write a drawn chest as JPEG, a colour photograph, a 16-bit PNG, a TIFF, a broken JPEG and a text."""
    from sklearn.datasets import load_sample_images

    from cxr_edge.export.conversion.golden import draw_inputs

    chest = cv2.resize(draw_inputs(224, 224)["chest"], (640, 512), interpolation=cv2.INTER_CUBIC)
    photo = cv2.cvtColor(load_sample_images().images[0], cv2.COLOR_RGB2BGR)
    deep = chest.astype(np.uint16) * 16
    pictures = {"chest.jpg": chest, "photo.jpg": photo, "deep.png": deep, "chest.tif": chest}
    files = {}
    for name, picture in pictures.items():
        files[name] = folder / name
        cv2.imwrite(str(files[name]), picture)
    content = files["chest.jpg"].read_bytes()
    for name, data in {"broken.jpg": content[: len(content) // 2], "notes.txt": b"no image at all"}.items():
        files[name] = folder / name
        files[name].write_bytes(data)
    return files
