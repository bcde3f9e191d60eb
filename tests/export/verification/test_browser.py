"""`cxr-edge verify` of a site: Chromium reads the files and decides."""

import json
import shutil

import pytest
from browsers import needs_browser, needs_npm

pytestmark = [pytest.mark.slow, needs_browser, needs_npm]
LOOSE = "[int8]\nflip_rate = 1\nauc_drop = 1\nsensitivity_drop = 1\nheatmap_rank_correlation = -1\n"
#: A browser that makes pixels brighter when a page reads them, from one of the calls on.
ALTER = """
const read = OffscreenCanvasRenderingContext2D.prototype.getImageData;
let calls = 0;
OffscreenCanvasRenderingContext2D.prototype.getImageData = function (...box) {
  const image = read.apply(this, box);
  if (++calls >= FROM) image.data.forEach((value, at) => (image.data[at] = Math.min(255, value + 8)));
  return image;
};
"""


@pytest.fixture
def copy(site_path, tmp_path):
    """A site to break."""
    return shutil.copytree(site_path, tmp_path / "site")


@pytest.fixture
def options(phantoms, run, tmp_path):
    (tmp_path / "gates.toml").write_text(LOOSE)
    return ("--data", phantoms, "--run", run, "--limit", 24, "--gates", tmp_path / "gates.toml", "--format", "json")


def test_a_sound_site_passes_and_the_result_lies_beside_it(cli, copy, options):
    before = {path: path.stat().st_mtime_ns for path in copy.rglob("*")}
    code, out, err = cli("verify", copy, *options)
    assert code == 0, err
    result = json.loads(out)
    exact, int8 = result["files"]
    assert exact["path"] == "model.fp32.tflite" and exact["logit_max"] <= 1e-3 and exact["passed"]
    assert exact["backend"].startswith("Chromium") and int8["backend"] == exact["backend"]
    assert exact["milliseconds"]["total"] >= exact["milliseconds"]["inference"] > 0
    for read in result["preprocessing"]:
        assert read["images"] == 24 and read["pixel_max"] <= 1 and read["flips"] == 0
    assert json.loads((copy.parent / "site.parity.json").read_text())["files"] == result["files"]
    assert {path: path.stat().st_mtime_ns for path in copy.rglob("*")} == before


def test_a_changed_model_fails(cli, copy, options):
    model = copy / "model" / "model.fp32.tflite"
    content = bytearray(model.read_bytes())
    content[len(content) // 2] ^= 255
    model.write_bytes(content)
    code, out, _ = cli("verify", copy, *options)
    exact, int8 = json.loads(out)["files"]
    assert code == 1 and "IntegrityError" in exact["error"] and int8["passed"]


def test_a_page_that_does_not_start_fails_with_its_reason(cli, copy, options):
    golden = copy / "model" / "golden" / "golden.json"
    content = json.loads(golden.read_text())
    content["files"]["model.fp32.tflite"]["outputs"]["chest"]["logit"] += 1
    golden.write_text(json.dumps(content))
    code, out, _ = cli("verify", copy, *options)
    exact, int8 = json.loads(out)["files"]
    assert code == 1 and "computes other values" in exact["error"] and int8["passed"]


@pytest.mark.parametrize(("from_call", "refused"), [(1, True), (2, False)])
def test_altered_pixels_are_found(cli, copy, options, from_call, refused):
    """By the page itself when it starts, because its small JPEG differs; later by the row of the preprocessing."""
    script = copy / "main.js"
    script.write_text(ALTER.replace("FROM", str(from_call)) + script.read_text())
    code, out, err = cli("verify", copy, *options)
    exact, _ = json.loads(out)["files"]
    if refused:
        assert code == 1 and "alters the pixels" in exact["error"]
    else:
        assert json.loads(out)["preprocessing"][0]["pixel_max"] >= 5, err


def test_layers_of_a_site_are_refused(cli, copy, options):
    code, _, err = cli("verify", copy, *options, "--layers")
    assert code == 2 and "--layers" in err
