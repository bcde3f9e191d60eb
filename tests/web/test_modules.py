"""The page's modules compute what the runtime computes; Node.js runs them."""

import base64
import io
import json
import subprocess
from pathlib import Path

import cv2
import numpy as np
import pytest
from browsers import needs_node
from PIL import Image
from support import ROOT, SHARED, needs_shared

from cxr_edge.runtime.bundles.bundle import HeatmapGeometry, InputContract, OperatingPoint
from cxr_edge.runtime.bundles.manifest import SiteCalibration
from cxr_edge.runtime.explanation.gradcam import TURBO_RGB, upsample
from cxr_edge.runtime.explanation.lungs import evidence_inside, find_lungs
from cxr_edge.runtime.imaging.image import read_image
from cxr_edge.runtime.imaging.preprocess import preprocess
from cxr_edge.runtime.prediction import kind_of
from cxr_edge.web import page_folder
from cxr_edge.web.icons import SIDES, draw_icon

pytestmark = needs_node
RANDOM = np.random.default_rng(0)
GEOMETRY, CONTRACT = HeatmapGeometry(32.0, 25.3), InputContract(224, 224)


def call(*calls: tuple) -> list[dict]:
    """Call functions (module, name, *arguments) of the page; each gives {value} or {error}."""
    wanted = [{"module": module, "name": name, "args": args} for module, name, *args in calls]
    command = ["node", str(ROOT / "tests" / "web" / "call.mjs"), page_folder().as_uri()]
    done = subprocess.run(command, input=json.dumps(wanted), capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def pack(array) -> dict:
    return {"bytes": base64.b64encode(bytes(array) if isinstance(array, bytes) else array.tobytes()).decode()}


def gray(array: np.ndarray) -> dict:
    return {"values": pack(array), "height": array.shape[0], "width": array.shape[1]}


def unpack(result: dict) -> np.ndarray:
    assert "error" not in result, result
    value = result["value"]
    pixels = np.frombuffer(base64.b64decode(value["values"]["bytes"]), np.uint8)
    return pixels.reshape(value["height"], value["width"]).astype(int)


@pytest.mark.parametrize(
    "shape", [(224, 224), (225, 224), (448, 448), (331, 402), (1000, 1777), (1317, 857), (2001, 2500)]
)
def test_area_averages_are_equal_bit_by_bit(shape):
    picture = RANDOM.integers(0, 256, shape, dtype=np.uint8)
    (mine,) = call(("imaging/preprocess.js", "resize", gray(picture), 224, 224))
    np.testing.assert_array_equal(unpack(mine), preprocess(picture)[:, :, 0])


def test_pictures_beyond_32_bit_sums_differ_by_one_level_at_most():
    """The runtime leaves them to OpenCV, which sums in single precision."""
    picture = RANDOM.integers(0, 256, (3000, 2900), dtype=np.uint8)
    (mine,) = call(("imaging/preprocess.js", "resize", gray(picture), 224, 224))
    assert np.abs(unpack(mine) - preprocess(picture)[:, :, 0]).max() <= 1


@pytest.mark.parametrize("shape", [(32, 32), (100, 180), (223, 400), (900, 120)])
def test_small_pictures_are_interpolated_as_opencv_does(shape):
    picture = RANDOM.integers(0, 256, shape, dtype=np.uint8)
    (mine,) = call(("imaging/preprocess.js", "resize", gray(picture), 224, 224))
    assert np.abs(unpack(mine) - preprocess(picture)[:, :, 0]).max() <= 1


def png(image: Image.Image, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "png", **options)
    return stream.getvalue()


def exif(orientation: int) -> Image.Exif:
    block = Image.Exif()
    block[0x0112] = orientation
    return block


NOISE = RANDOM.integers(0, 256, (40, 57, 3), dtype=np.uint8)
DEEP = RANDOM.integers(300, 4000, (40, 57), dtype=np.uint16)
EXACT = {
    "gray": png(Image.fromarray(NOISE[:, :, 0])),
    "gray and alpha": png(Image.merge("LA", [Image.fromarray(NOISE[:, :, 0]), Image.fromarray(NOISE[:, :, 1])])),
    "one bit": png(Image.fromarray(NOISE[:, :, 0] > 99)),
    "16 bits": png(Image.fromarray(DEEP)),
    "16 bits, flat": png(Image.fromarray(np.full_like(DEEP, 7))),
    **{f"orientation {n}": png(Image.fromarray(NOISE[:, :, 0]), exif=exif(n)) for n in range(1, 9)},
}
#: OpenCV's libpng rounds another way in less than 1 % of the pixels.
CLOSE = {
    "colour": png(Image.fromarray(NOISE)),
    "colour and alpha": png(Image.fromarray(np.dstack([NOISE, NOISE[:, :, :1]]))),
    "palette": png(Image.fromarray(NOISE).quantize(16)),
}


def test_png_files_give_the_same_gray():
    decoded = call(
        *(("imaging/png.js", "decodePng", pack(data), name, 10**8) for name, data in (EXACT | CLOSE).items())
    )
    for (name, data), mine in zip((EXACT | CLOSE).items(), decoded, strict=True):
        difference = np.abs(unpack(mine) - read_image(data))
        assert difference.max() <= (name in CLOSE), name
        assert (difference > 0).mean() < (0.5 if name == "palette" else 0.01), name


def interlaced(pixels: np.ndarray) -> bytes:
    """An Adam7 file of 8-bit gray, which Pillow reads but does not write."""
    import struct
    import zlib

    passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
    rows = [b"\0" + row.tobytes() for x, y, dx, dy in passes for row in pixels[y::dy, x::dx] if row.size]

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 8, 0, 0, 0, 1)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"".join(rows)))
        + chunk(b"IEND", b"")
    )


def test_interlaced_png_files_give_the_same_gray():
    data = interlaced(NOISE[:, :, 0])
    (mine,) = call(("imaging/png.js", "decodePng", pack(data), "a.png", 10**8))
    np.testing.assert_array_equal(unpack(mine), read_image(data))


def test_broken_png_files_are_refused():
    data = EXACT["gray"]
    damaged = bytearray(data)
    damaged[len(data) // 2] ^= 1
    broken = [data[:-20], data[:40], bytes(damaged)]
    for mine in call(*(("imaging/png.js", "decodePng", pack(content), "a.png", 10**8) for content in broken)):
        assert mine["error"].startswith("a.png: PNG")
    (large,) = call(("imaging/png.js", "decodePng", pack(data), "a.png", 1000))
    assert "1000" in large["error"]


def jpeg(pixels: np.ndarray, **options) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "jpeg", **options)
    return stream.getvalue()


@pytest.mark.parametrize("options", [{"subsampling": 0}, {"subsampling": 2}, {"subsampling": 1, "progressive": True}])
def test_a_rewritten_colour_jpeg_gives_the_stored_luminance_as_red(options):
    """OpenCV stands for the browser here: both decode with libjpeg-turbo. The page's tests use the browser itself."""
    data = jpeg(NOISE, quality=90, exif=exif(1), **options)
    (mine,) = call(("imaging/jpeg.js", "readJpeg", pack(data), "a.jpg"))
    rewritten = base64.b64decode(mine["value"]["bytes"]["bytes"])
    red = np.asarray(Image.open(io.BytesIO(rewritten)).convert("RGB"))[:, :, 0]
    np.testing.assert_array_equal(red, read_image(data))
    plain = cv2.cvtColor(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2GRAY)
    assert (plain != read_image(data)).mean() > 0.01  # the luminance of the decoded colours is another


def test_the_header_of_a_jpeg_is_read():
    files = [jpeg(NOISE, exif=exif(6)), jpeg(NOISE[:, :, 0])]
    turned, plain = (
        result["value"] for result in call(*(("imaging/jpeg.js", "readJpeg", pack(f), "a") for f in files))
    )
    assert (turned["height"], turned["width"], turned["orientation"], turned["components"]) == (40, 57, 6, 3)
    assert (plain["orientation"], plain["components"]) == (1, 1)


def test_broken_jpeg_files_are_refused():
    data = jpeg(NOISE)
    cmyk = io.BytesIO()
    Image.fromarray(NOISE).convert("CMYK").save(cmyk, "jpeg")
    broken = {data[: len(data) // 2]: "cut short", data[:60]: "corrupt", cmyk.getvalue(): "4 components"}
    results = call(*(("imaging/jpeg.js", "readJpeg", pack(content), "a.jpg") for content in broken))
    for mine, wanted in zip(results, broken.values(), strict=True):
        assert wanted in mine["error"] and mine["error"].startswith("a.jpg")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientations_turn_pixels_as_the_runtime_does(orientation):
    pixels = NOISE[:, :, 0]
    (mine,) = call(("imaging/gray.js", "upright", gray(pixels), orientation))
    np.testing.assert_array_equal(unpack(mine), read_image(png(Image.fromarray(pixels), exif=exif(orientation))))


def lung_maps() -> np.ndarray:
    """300 maps of blobs, some with both lungs, some with specks or lungs at a border."""
    maps = RANDOM.random((300, 28, 28)).astype(np.float32)
    smooth = [cv2.GaussianBlur(m, (0, 0), 1 + 3 * RANDOM.random()) for m in maps]
    return np.stack([(m - m.min()) / (m.max() - m.min()) for m in smooth]).astype(np.float32)


def test_lungs_and_their_evidence_are_the_same():
    maps, heatmaps = lung_maps(), RANDOM.random((300, 7, 7)).astype(np.float32)
    found = call(*(("lungs.js", "findLungs", m.tolist()) for m in maps))
    kinds = set()
    expected = [find_lungs(m) for m in maps]
    for mine, theirs in zip(found, expected, strict=True):
        assert mine["value"]["found"] == theirs.found
        hull = np.frombuffer(base64.b64decode(mine["value"]["hull"]["bytes"]), np.uint8)
        np.testing.assert_array_equal(hull.reshape(28, 28), theirs.hull)
        kinds.add(theirs.found)
    assert {"both", "one", "cut off"} <= kinds
    geometry, contract = {"stride": 32.0, "origin": 25.3}, {"height": 224, "width": 224}
    shares = call(
        *(
            ("lungs.js", "evidenceInside", heat.tolist(), pack(lungs.hull.astype(np.uint8)), 28, 28, geometry, contract)
            for heat, lungs in zip(heatmaps, expected, strict=True)
        )
    )
    for mine, heat, lungs in zip(shares, heatmaps, expected, strict=True):
        assert mine["value"] == pytest.approx(evidence_inside(heat, lungs.hull, GEOMETRY, CONTRACT), abs=1e-5)
    (empty,) = call(
        (
            "lungs.js",
            "evidenceInside",
            np.zeros((7, 7)).tolist(),
            pack(np.ones(784, np.uint8)),
            28,
            28,
            geometry,
            contract,
        )
    )
    assert empty["value"] is None


def test_the_heatmap_lies_where_the_runtime_draws_it():
    heat = RANDOM.random((7, 7)).astype(np.float32)
    geometry = {"stride": 32.0, "origin": 25.3}
    rows, columns = (result["value"] for result in call(
        ("heatmap.js", "interpolation", 100, 224, 7, geometry), ("heatmap.js", "interpolation", 150, 224, 7, geometry)
    ))  # fmt: skip
    (mine,) = call(("heatmap.js", "spread", rows, heat.tolist(), columns))
    expected = upsample(heat, GEOMETRY, CONTRACT, 100, 150)
    np.testing.assert_allclose(np.reshape(mine["value"], (100, 150)), expected, atol=1e-5)


@pytest.mark.parametrize("rule_out", [None, 0.25])
def test_decisions_are_those_of_the_operating_point(rule_out):
    point = OperatingPoint("p", 0.75, "", rule_out)
    probabilities = [0.0, 0.2499999, 0.25, 0.5, 0.7499999, 0.75, 1.0]
    answers = ("NORMAL", "PNEUMONIA") if rule_out is None else ("NORMAL", "UNSURE", "PNEUMONIA")
    plain = {"name": "p", "threshold": 0.75, "rule_out": rule_out}
    for p, mine in zip(
        probabilities,
        call(*(("decide.js", "decide", p, plain, ["NORMAL", "PNEUMONIA"]) for p in probabilities)),
        strict=True,
    ):
        assert mine["value"]["label"] == answers[point.answer(p)]


def test_probabilities_at_a_site_are_the_same():
    site = SiteCalibration(
        "2026-01-01", "labels: bias", 99, 60, 0, "0" * 64, 0.5, (0.4, 0.6), (0.2, 0.3), 1.0, (0.0, 1.0), 2.0, False,
        slope=1.3, bias=-0.7,
    )  # fmt: skip
    logits = [-800.0, -3.5, 0.0, 0.25, 40.0, 800.0]
    plain = {"slope": site.slope, "bias": site.bias}
    found = call(*(("decide.js", "siteProbability", plain, logit) for logit in logits))
    assert [mine["value"] for mine in found] == pytest.approx([site.probability(logit) for logit in logits], abs=1e-15)


def test_kinds_of_strangers_are_the_same():
    kinds = ["adult", "turned", "noise"]
    cases = [(RANDOM.random(3).astype(np.float32), float(RANDOM.random() * 2)) for _ in range(50)]
    named = call(*(("decide.js", "kindOf", beyond.tolist(), novelty, kinds) for beyond, novelty in cases))
    expected = [kind_of(beyond, novelty, kinds) for beyond, novelty in cases]
    assert [mine["value"] for mine in named] == expected and {"unknown", "adult"} <= set(expected)


def test_csv_is_the_format_of_predict():
    rows = [
        {"path": 'a "b",c.png', "label": "NORMAL", "in_distribution": True, "unlike": None},
        {"path": "x", "error": "bad"},
    ]
    (mine,) = call(("results.js", "toCsv", rows))
    from cxr_edge.runtime.cli.batch import _write_csv

    stream = io.StringIO()
    _write_csv(stream, rows)
    assert mine["value"] == stream.getvalue()


def test_colours_and_icons_are_those_that_the_code_draws():
    source = "".join(c for line in (page_folder() / "turbo.js").read_text().splitlines() for c in line.split('"')[1::2])
    assert bytes.fromhex(source) == TURBO_RGB.tobytes()
    for side in SIDES:
        np.testing.assert_array_equal(cv2.imread(str(page_folder() / f"icon-{side}.png")), draw_icon(side))


def test_the_page_needs_nothing_of_a_site():
    assert not [path for path in page_folder().rglob("*.js") if "../site" in path.read_text()]


def test_pages_speak_to_no_other_host():
    for path in page_folder().rglob("*"):
        if path.suffix in (".js", ".html", ".css", ".webmanifest"):
            assert "//" not in path.read_text().replace("https, or", "").replace("// ", ""), path


@needs_shared
def test_stored_luminance_of_real_files_is_kept():
    files = sorted(Path(SHARED / "data" / "originals").rglob("*.jpeg"))[:12]
    for path, mine in zip(
        files, call(*(("imaging/jpeg.js", "readJpeg", pack(p.read_bytes()), p.name) for p in files)), strict=True
    ):
        rewritten = base64.b64decode(mine["value"]["bytes"]["bytes"])
        red = np.asarray(Image.open(io.BytesIO(rewritten)).convert("RGB"))[:, :, 0]
        np.testing.assert_array_equal(red, read_image(path))
