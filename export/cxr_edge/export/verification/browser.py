"""Running a site in Chromium: its page reads every image file and decides, as it does for a user."""

from __future__ import annotations

import base64
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from cxr_edge.common.dataset import LabelledImage, evenly, fingerprint, read_dataset
from cxr_edge.export.conversion.site import MODEL
from cxr_edge.export.verification.gates import Gate, check, gate_for
from cxr_edge.export.verification.parity import compare, find_flips
from cxr_edge.export.verification.preprocessing import PreprocessingParity
from cxr_edge.export.verification.verify import (
    DataRecord,
    FileResult,
    Progress,
    Trained,
    Verification,
    available_images,
    check_finite,
    check_lungs_declared,
    trained_run,
    unusable,
)
from cxr_edge.runtime.bundles.bundle import Bundle, Manifest, ModelFile
from cxr_edge.runtime.engines import Outputs
from cxr_edge.runtime.errors import CxrEdgeError, DataError, EngineError, MissingExtraError
from cxr_edge.runtime.files import check_writable, write_atomically
from cxr_edge.runtime.imaging.preprocess import chunks

if TYPE_CHECKING:
    from playwright.sync_api import Page

#: Names of Chromium's program.
PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
#: Number of files that the page gets at once.
CHUNK = 32
#: What a file server must say about files that Python does not know.
TYPES = {".js": "text/javascript", ".wasm": "application/wasm", ".webmanifest": "application/manifest+json"}
ADD_INPUT = """() => {
  const input = Object.assign(document.createElement("input"), { type: "file", id: "verify", multiple: true });
  document.body.append(input);
}"""
#: Lets the page's own engine read and decide on the files of an input element.
ASK = """async (input) => {
  const engine = await cxrEdge;
  const base64 = (array) => {
    const bytes = new Uint8Array(array.buffer, array.byteOffset, array.byteLength);
    let text = "";
    for (let at = 0; at < bytes.length; at += 32768) text += String.fromCharCode(...bytes.subarray(at, at + 32768));
    return btoa(text);
  };
  const answers = [];
  for (const file of input.files) {
    try {
      const { prediction, outputs, resized } = await engine.predict(file);
      const arrays = Object.fromEntries(Object.entries(outputs).map(([name, values]) => [name, base64(values)]));
      answers.push({ outputs: arrays, pixels: base64(resized), timings: prediction.timings_ms });
    } catch (error) {
      answers.push({ error: error.message });
    }
  }
  return answers;
}"""


@dataclass(frozen=True)
class BrowserRun:
    """What a page computed for N images.

    Attributes
    ----------
    browser
        Name and version.
    pixels
        (N, height, width, 1) uint8: what the page fed to the network.
    milliseconds
        Stage -> (N,) milliseconds: decode, preprocess, inference, total.
    """

    browser: str
    outputs: Outputs
    pixels: npt.NDArray[np.uint8]
    milliseconds: Mapping[str, npt.NDArray[np.float64]]


def verify_site(
    site: Path,
    data: Path,
    run_folder: Path | None,
    gates: Mapping[str, Gate],
    limit: int | None,
    progress: Progress,
    held_out: bool = False,
) -> Verification:
    """Run every file of a site in Chromium, from the image file on, and compare it with the trained network.

    The result is written to `SITE.parity.json` beside the site, because it names images and a site is published.
    Parameters and errors are those of `verify_bundle`; EngineError and MissingExtraError if Chromium or Playwright are
    missing.
    """
    result = site.with_name(f"{site.name}.parity.json")
    check_writable(result)
    find_chromium()
    bundle = Bundle.open(site / MODEL)
    run = trained_run(bundle, run_folder)
    available = available_images(read_dataset(data), run, held_out)
    images = evenly(available, limit or len(available))
    trained = Trained(run, bundle, images, progress)
    results, read = [], []
    for file in bundle.manifest.files:
        verified, preprocessing = _verify_file(site, bundle, file, trained, gates, progress)
        results.append(verified)
        read += preprocessing
    record = DataRecord(fingerprint(images), len(images), len(available), held_out)
    verification = Verification(bundle.manifest, record, images, trained.outputs, results, read)
    write_atomically(result, json.dumps(verification.to_dict(), indent=2, allow_nan=False) + "\n")
    return verification


def _verify_file(
    site: Path, bundle: Bundle, file: ModelFile, trained: Trained, gates: Mapping[str, Gate], progress: Progress
) -> tuple[FileResult, list[PreprocessingParity]]:
    manifest, gate = bundle.manifest, None
    try:
        gate = gate_for(file, gates)
        path = bundle.check(file)
        ran = run_in_browser(site, manifest, file, trained.images, progress)
        check_finite(path, ran.outputs, ran.outputs.given)
        check_lungs_declared(bundle, trained)
    except (MissingExtraError, DataError):
        raise
    except CxrEdgeError as error:  # changed content, a page that does not start, NaN
        return unusable(file, error, gate), []
    parity = compare(file, ran.browser, ran.outputs, trained.outputs, trained.labels, manifest, ran.outputs.given)
    flips = find_flips(ran.outputs, trained.outputs, manifest.operating_points)
    times = {stage: float(np.median(values)) for stage, values in ran.milliseconds.items()}
    verified = FileResult(file, parity, check(parity, gate), None, gate, ran.outputs, flips, None, times)
    return verified, [trained.read_by(f"the page of {file.path} in {ran.browser}", ran.pixels)]


def run_in_browser(
    site: Path, manifest: Manifest, file: ModelFile, images: Sequence[LabelledImage], progress: Progress
) -> BrowserRun:
    """Run a site's page in Chromium on image files, with the file's own name in the address.

    Raises
    ------
    DataError
        If the page cannot read an image.
    EngineError
        If Chromium is missing, or the page refuses to start.
    MissingExtraError
        If Playwright is not installed.
    """
    answers: list[dict[str, Any]] = []
    with serve_folder(site) as address, open_page() as page:
        browser = page.context.browser
        name = f"Chromium {browser.version if browser else ''}".strip()
        page.goto(f"{address}?file={file.path}")
        _wait_until_ready(page, site)
        page.evaluate(ADD_INPUT)
        for chunk in chunks(images, CHUNK):
            page.set_input_files("#verify", [image.path for image in chunk])
            answers += page.eval_on_selector("#verify", ASK)
            _refuse_errors(chunk, answers[-len(chunk) :])
            progress(f"{file.path} in {name}", len(answers), len(images))
    pixels = np.stack([_array(answer["pixels"], np.uint8) for answer in answers])
    return BrowserRun(
        name,
        _outputs(answers, manifest),
        pixels.reshape(-1, manifest.input.height, manifest.input.width, 1),
        {stage: np.array([answer["timings"][stage] for answer in answers]) for stage in answers[0]["timings"]},
    )


def _refuse_errors(images: Sequence[LabelledImage], answers: Sequence[Mapping[str, Any]]) -> None:
    for image, answer in zip(images, answers, strict=True):
        if "error" in answer:
            raise DataError(f"{image.path}: the page says: {answer['error']}. Repair the image or remove it")


def _wait_until_ready(page: Page, site: Path) -> None:
    """Wait for the engine of the page; the page says why it does not start."""
    reason = page.evaluate("cxrEdge.then(() => '', (error) => error.message)")
    if reason:
        raise EngineError(f"{site}: the page does not start in Chromium. It says: {reason}")


def _array(text: str, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    return np.frombuffer(base64.b64decode(text), dtype)


def _outputs(answers: Sequence[Mapping[str, Any]], manifest: Manifest) -> Outputs:
    """The outputs of the page as an engine returns them."""
    arrays = {
        name: np.stack([_array(answer["outputs"][name], np.float32) for answer in answers])
        for name in answers[0]["outputs"]
    }
    side = round(arrays["heatmap"].shape[1] ** 0.5)
    grid = manifest.lungs
    return Outputs(
        arrays["probability"][:, 0],
        arrays["logit"][:, 0],
        arrays["heatmap"].reshape(-1, side, side),
        arrays["novelty"][:, 0],
        unlike=arrays.get("unlike"),
        lungs=arrays["lungs"].reshape(-1, grid.height, grid.width) if grid else None,
    )


@contextmanager
def open_page(width: int = 1280, height: int = 900, **options: Any) -> Iterator[Page]:
    """Yield a new page of the system's Chromium, without a window; `options` are those of Playwright's `new_context`.

    Errors are those of `find_chromium`.
    """
    program = find_chromium()
    from playwright.sync_api import sync_playwright

    # Chromium's own sandbox does not start for the superuser, as in a container.
    arguments = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=arguments)
        try:
            yield browser.new_context(viewport={"width": width, "height": height}, **options).new_page()
        finally:
            browser.close()


def find_chromium() -> str:
    """Path of the system's Chromium, which Playwright drives.

    Raises
    ------
    EngineError
        If there is none.
    MissingExtraError
        If Playwright is not installed.
    """
    if find_spec("playwright") is None:
        raise MissingExtraError("web", "playwright")
    for program in PROGRAMS:
        if path := shutil.which(program):
            return path
    raise EngineError(
        f"found no Chromium on the PATH, expected one of: {', '.join(PROGRAMS)}; install it (on Debian: apt install "
        "chromium)"
    )


class _Handler(SimpleHTTPRequestHandler):
    extensions_map = SimpleHTTPRequestHandler.extensions_map | TYPES

    def log_message(self, *_: object) -> None:
        """Say nothing for each request."""


@contextmanager
def serve_folder(folder: Path) -> Iterator[str]:
    """Serve a folder on this machine only, on a free port, and yield its address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, directory=str(folder)))
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
