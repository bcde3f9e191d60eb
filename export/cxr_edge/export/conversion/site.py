"""Export of a bundle to a static site: the page with LiteRT, which decides in the browser."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import cv2

from cxr_edge.export.conversion.golden import GOLDEN
from cxr_edge.runtime.bundles.bundle import MANIFEST, Bundle, Manifest
from cxr_edge.runtime.errors import BundleError, UsageError
from cxr_edge.runtime.imaging.image import read_image
from cxr_edge.web import page_folder, site_folder

#: Precisions of a site unless told otherwise: half the size of fp32, and exact.
PRECISIONS = ("fp16",)
#: Folder of the model in a site. It is a bundle.
MODEL = "model"
WORKER = "sw.js"
#: Files of the page that are copied; its modules are bundled into one.
STATIC = ("index.html", "style.css", "app.webmanifest", "icon-192.png", "icon-512.png")
#: LiteRT's WebAssembly: with relaxed SIMD, and without. Threads need response headers that a plain file server does not
#: send, and WebGPU computes in half precision; neither is used.
LITERT = ("litert_wasm_internal", "litert_wasm_compat_internal")


def is_site(folder: Path) -> bool:
    """Whether a folder is an exported site."""
    return (folder / WORKER).is_file() and (folder / MODEL / MANIFEST).is_file()


def build_site(bundle: Bundle, site: Path, precisions: Sequence[str], step: Callable[[str], None]) -> Manifest:
    """Write a site. The folder appears only when all its files are complete.

    Parameters
    ----------
    precisions
        Precisions of the TFLite files to take. The page uses the first one.
    step
        Called with what is done next.

    Returns
    -------
    The manifest of the site's model.

    Raises
    ------
    BundleError, IntegrityError
        If the bundle lacks one of the files or its golden outputs, or a file was changed.
    UsageError
        If the target folder cannot be used, or Node.js is missing or fails.
    """
    if site.exists() and not is_site(site) and (not site.is_dir() or any(site.iterdir())):
        raise UsageError(f"{site}: exists and is not a site; choose another folder for -o")
    manifest = _choose(bundle, site, precisions)
    partial = site.with_name(site.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    _write_model(bundle, manifest, partial / MODEL)
    for name in STATIC:
        shutil.copy(page_folder() / name, partial)
    _write_check(bundle, partial)
    with TemporaryDirectory() as folder:
        step("npm packages")
        packages = _install(Path(folder))
        step("JavaScript")
        _copy_litert(packages, partial)
        _bundle_script(packages, site_folder() / "main.js", partial / "main.js")
        _bundle_script(packages, site_folder() / WORKER, partial / WORKER, _list_files(partial))
    shutil.rmtree(site, ignore_errors=True)
    partial.rename(site)
    return manifest


def _choose(bundle: Bundle, site: Path, precisions: Sequence[str]) -> Manifest:
    """The manifest of the site's model: only the files that the browser runs."""
    files = [bundle.find("litert", precision) for precision in dict.fromkeys(precisions)]
    chosen = tuple(file for file in files if file)
    if len(chosen) < len(files):
        had = ", ".join(f.precision for f in bundle.manifest.files if f.engine == "litert") or "none"
        raise BundleError(
            f"{bundle.folder}: found TFLite files in {had}, expected {', '.join(precisions)}; choose with --precision, "
            "or export the bundle again"
        )
    training = dict(bundle.manifest.training)
    if "run" in training:
        training["run"] = Path(os.path.relpath(bundle.folder / training["run"], site / MODEL)).as_posix()
    return replace(bundle.manifest, training=training, files=chosen, companions=(), gradient=None)


def _write_model(bundle: Bundle, manifest: Manifest, folder: Path) -> None:
    golden = bundle.folder / GOLDEN
    if not golden.is_dir():
        raise BundleError(f"{bundle.folder}: found no folder {GOLDEN}, expected the golden outputs; export it again")
    folder.mkdir()
    for file in manifest.files:
        shutil.copy(bundle.check(file), folder)
    shutil.copytree(golden, folder / GOLDEN, ignore=shutil.ignore_patterns("*.png"))
    (folder / MANIFEST).write_text(manifest.to_json())


def _write_check(bundle: Bundle, site: Path) -> None:
    """Write a small JPEG and its pixels, with which the page notices a browser that alters what a page reads."""
    picture = cv2.imread(str(bundle.folder / GOLDEN / "chest.png"), cv2.IMREAD_GRAYSCALE)
    content = cv2.imencode(".jpg", picture)[1].tobytes()
    (site / "check.jpg").write_bytes(content)
    (site / "check.bin").write_bytes(read_image(content).tobytes())


def _install(folder: Path) -> Path:
    """Install the pinned packages from npm, by their hashes, and return `node_modules`; none of their scripts runs."""
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        raise UsageError(
            "--format web: found no Node.js on the PATH, expected node and npm of release 18 or later; install Node.js "
            "and repeat"
        )
    for name in ("package.json", "package-lock.json"):
        shutil.copy(site_folder() / name, folder)
    _run([npm, "ci", "--omit=dev", "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline"], folder)
    return folder / "node_modules"


def _copy_litert(packages: Path, site: Path) -> None:
    source, target = packages / "@litertjs" / "core", site / "litert"
    target.mkdir()
    for stem in LITERT:
        shutil.copy(source / "wasm" / f"{stem}.js", target)
        shutil.copy(source / "wasm" / f"{stem}.wasm", target)
    (target / "NOTICE.txt").write_text(
        "LiteRT.js, https://github.com/google-ai-edge/LiteRT, Copyright Google LLC, Apache License 2.0\n"
    )


def _list_files(site: Path) -> dict[str, str]:
    """Constants of the service worker: the files that it keeps, and a hash of all contents."""
    names = sorted(path.relative_to(site).as_posix() for path in site.rglob("*") if path.is_file())
    digest = hashlib.sha256()
    for name in names:
        digest.update(name.encode() + b"\0" + (site / name).read_bytes())
    kept = [name for name in names if not name.startswith("litert/")]  # the worker adds the one that the browser runs
    return {"SITE_FILES": json.dumps(kept), "SITE_VERSION": json.dumps(digest.hexdigest()[:16])}


def _bundle_script(packages: Path, source: Path, target: Path, constants: dict[str, str] | None = None) -> None:
    """Bundle a module and all that it imports into one file with esbuild."""
    options = ["--bundle", "--minify", "--format=esm", "--target=es2022", "--legal-comments=eof", "--log-level=error"]
    options += [f"--define:{name}={value}" for name, value in (constants or {}).items()]
    esbuild = str(packages / "esbuild" / "bin" / "esbuild")
    _run(["node", esbuild, str(source), f"--outfile={target.resolve()}", *options], packages.parent)


def _run(command: Sequence[str], folder: Path) -> None:
    done = subprocess.run(
        command,
        cwd=folder,
        capture_output=True,
        text=True,
        env={**os.environ, "NODE_PATH": str(folder / "node_modules")},
    )
    if done.returncode:
        raise UsageError(
            f"--format web: {Path(command[0]).name} failed with {done.returncode}; check Node.js and the network, then "
            f"repeat. It said: {done.stderr.strip()[-1500:]}"
        )
