"""`cxr-edge export --format web` writes a complete site, or says what it needs."""

import json
import re
import shutil

import pytest
from browsers import needs_npm

from cxr_edge.runtime.bundles.bundle import Bundle, sha256
from cxr_edge.web import site_folder


@needs_npm
def test_a_site_is_complete(site_path, bundle, run):
    model = Bundle.open(site_path / "model")
    assert [file.precision for file in model.manifest.files] == ["fp32", "int8"]
    for file in model.manifest.files:
        model.check(file)
    assert (model.folder / model.manifest.training["run"]).resolve() == run.resolve()
    assert model.manifest.operating_points == Bundle.open(bundle).manifest.operating_points
    (names,) = re.findall(r"\[\"app\.webmanifest\".*?\]", (site_path / "sw.js").read_text())
    kept = set(json.loads(names))
    there = {path.relative_to(site_path).as_posix() for path in site_path.rglob("*") if path.is_file()}
    assert there - kept == {"sw.js"} | {name for name in there if name.startswith("litert/")}
    assert kept <= there and "model/model.int8.tflite" in kept


@needs_npm
def test_a_site_names_no_other_host(site_path):
    page = (site_path / "index.html").read_text()
    assert "//" not in page and "default-src 'none'" in page and "connect-src 'self'" in page
    script = (site_path / "main.js").read_text()
    addresses = re.findall(r"https?://[\w.-]+", script)
    assert {a for a in addresses if "github.com" not in a and "www.apache.org" not in a} == set()


@needs_npm
def test_a_site_is_replaced_and_other_folders_are_not(cli, site_path, bundle, tmp_path):
    copy = shutil.copytree(site_path, tmp_path / "site")
    code, out, err = cli("export", bundle, "--format", "web", "--precision", "int8", "-o", copy)
    assert code == 0, err
    assert "model/model.int8.tflite" in out and not (copy / "model" / "model.fp32.tflite").exists()
    assert sha256(copy / "index.html") == sha256(site_path / "index.html")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("keep")
    code, _, err = cli("export", bundle, "--format", "web", "-o", tmp_path / "mine")
    assert code == 2 and "is not a site" in err and (tmp_path / "mine" / "letter.txt").exists()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--format", "web"), "-o"),
        (("--format", "web", "--format", "onnx", "-o", "x"), "no other format"),
    ],
)
def test_wrong_options_are_refused(cli, bundle, options, reason):
    code, _, err = cli("export", bundle, *options)
    assert code == 2 and reason in err


def test_a_missing_file_is_named(cli, bundle, tmp_path):
    lone = shutil.copytree(bundle, tmp_path / "bundle")
    manifest = json.loads((lone / "manifest.json").read_text())
    manifest["files"] = [file for file in manifest["files"] if file["path"] != "model.fp16.tflite"]
    (lone / "manifest.json").write_text(json.dumps(manifest))
    code, _, err = cli("export", lone, "--format", "web", "-o", tmp_path / "site")
    assert code == 2 and "fp16" in err and "fp32, int8" in err and not (tmp_path / "site").exists()


def test_a_missing_node_is_named(cli, bundle, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    code, _, err = cli("export", bundle, "--format", "web", "-o", tmp_path / "site")
    assert code == 2 and "Node.js" in err and not (tmp_path / "site").exists()


def test_packages_are_pinned_by_hash_without_an_address():
    wanted = json.loads((site_folder() / "package.json").read_text())
    text = (site_folder() / "package-lock.json").read_text()
    locked = json.loads(text)["packages"]
    for name, version in (wanted["dependencies"] | wanted["devDependencies"]).items():
        assert locked[f"node_modules/{name}"]["version"] == version
    assert all(package["integrity"].startswith("sha512-") for path, package in locked.items() if path)
    assert "://" not in text
