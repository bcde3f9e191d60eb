import struct
import subprocess
import sys
from pathlib import Path
from time import process_time

import cv2
import numpy as np
import pytest
from fuzz.mutate import repair
from fuzz.seeds import (
    COLOUR,
    DEEP,
    GRAY,
    SEEDS,
    bmp,
    encode,
    png,
    png_chunk,
    png_file,
    tiff_file,
    webp,
    webp_canvas,
)
from support import needs_native_speed

from cxr_edge.runtime import ImageError
from cxr_edge.runtime.imaging.formats import check_file
from cxr_edge.runtime.imaging.image import read_image
from cxr_edge.runtime.imaging.signatures import sniff

PNG, TIFF, BMP, WEBP = png()[0], tiff_file(GRAY), bmp()[0], webp()[0]
DEFLATE = encode(".tiff", GRAY, cv2.IMWRITE_TIFF_COMPRESSION, 8)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP", "WebP"])
def test_sound_files_are_read_and_their_headers_tell_the_sides(kind):
    for data in SEEDS[kind]():
        header = check_file(data, "file")
        assert sniff(data[:132]) == header.format == kind
        assert read_image(data).shape == (header.height, header.width)
        assert header.least <= header.stored


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("big", [False, True])
def test_tiff_and_bigtiff_of_both_byte_orders(order, big):
    np.testing.assert_array_equal(read_image(tiff_file(GRAY, order, big)), GRAY)


def test_the_content_decides_not_the_suffix(tmp_path):
    path = tmp_path / "radiograph.txt"
    path.write_bytes(PNG)
    np.testing.assert_array_equal(read_image(path), GRAY)


@pytest.mark.parametrize("data", [encode(".jp2"), encode(".pgm"), b"GIF89a" + bytes(200), b"\0" * 300, b"x"])
def test_other_formats_are_refused_with_what_is_accepted(data):
    with pytest.raises(ImageError, match=r"bytes: not an image.*expected JPEG, PNG, TIFF, BMP, WebP or DICOM"):
        read_image(data)


def test_every_chunk_of_a_png_is_checked():
    rng = np.random.default_rng(0)
    for at in [*range(8, 33), *rng.integers(33, len(PNG), 200)]:
        broken = bytearray(PNG)
        broken[at] ^= 1 << rng.integers(8)
        with pytest.raises(ImageError, match="PNG"):
            read_image(bytes(broken))
    for length in (8, 20, 40, len(PNG) // 2, len(PNG) - 12, len(PNG) - 1):
        with pytest.raises(ImageError, match="cut short; copy the file again"):
            read_image(PNG[:length])
    np.testing.assert_array_equal(read_image(PNG + b"more"), GRAY)


def test_png_chunks_in_the_wrong_place_and_animations_are_refused():
    text = png_chunk(b"tEXt", b"a\0b")
    assert read_image(PNG[:33] + text + PNG[33:]).shape == GRAY.shape
    with pytest.raises(ImageError, match="IHDR, first"):
        read_image(PNG[:8] + text + PNG[8:])
    with pytest.raises(ImageError, match="IHDR, first"):
        read_image(PNG[:33] + PNG[8:])
    with pytest.raises(ImageError, match="animated"):
        read_image(PNG[:33] + png_chunk(b"acTL", bytes(8)) + PNG[33:])
    with pytest.raises(ImageError, match="colour type 5"):
        read_image(repair(PNG[:25] + b"\x05" + PNG[26:]))


def png_of(width: int, height: int, data: bytes = PNG) -> bytes:
    return repair(data[:16] + struct.pack(">II", width, height) + data[24:])


def tiff_of(width: int, height: int) -> bytes:
    broken = bytearray(TIFF)
    struct.pack_into("<I", broken, 18, width)
    struct.pack_into("<I", broken, 30, height)
    return bytes(broken)


def bmp_of(width: int, height: int) -> bytes:
    return BMP[:18] + struct.pack("<ii", width, height) + BMP[26:]


CLAIMS = [
    (png_of(60000, 60000), "expected at most 100,000,000 pixels"),
    (png_of(2**31 - 1, 2**31 - 1), "expected at most 100,000,000 pixels"),
    (png_of(0, 500), "expected at least 1×1"),
    (png_of(9999, 9999), "expected at least 999,9[0-9]* bytes"),
    (png_of(4000, 4000, png_file(np.zeros((100, 100), np.uint8))), "expected at least 15,508 bytes"),
    (
        png_of(9999, 9999, repair(PNG[:24] + b"\x10" + PNG[25:33] + png_chunk(b"IDAT", bytes(2**21)) + PNG[33:])),
        "takes 500 MB",
    ),
    (tiff_of(60000, 520), "expected at least 31,200,000 bytes"),
    (tiff_of(60000, 60000), "1 strips or tiles; expected 116"),
    (tiff_file(GRAY[:1]).replace(b"\1\1\4\0\1\0\0\0\1\0", b"\1\1\4\0\1\0\0\0\0\0"), "at least 1×1"),
    (bmp_of(60000, 60000), "expected at most"),
    (bmp_of(3000, -3000), "expected at least 9,000,000 bytes"),
    (bmp_of(-10, 10), "expected at least 1×1"),
    (webp_canvas(WEBP, 9999, 9999), "on a canvas of"),
    (BMP[: len(BMP) // 2], "expected at least"),
    (TIFF[: len(TIFF) // 2], "past its end"),
    (WEBP[: len(WEBP) // 2], "cut short"),
    (WEBP[:20], "cut short"),
    (TIFF[:9], "cut short"),
    (BMP[:20], "cut short"),
    (webp_canvas(WEBP, *GRAY.shape).replace(b"VP8X\x0a\0\0\0\0", b"VP8X\x0a\0\0\0\2"), "animated"),
]


@needs_native_speed
@pytest.mark.parametrize(("data", "says"), CLAIMS, ids=[f"{i}: {says}" for i, (_, says) in enumerate(CLAIMS)])
def test_claims_that_the_file_cannot_hold_are_refused_at_once(data, says):
    start = process_time()
    with pytest.raises(ImageError, match=f"^bytes: .*({says})"):
        read_image(data)
    assert process_time() - start < 0.1


def test_refused_claims_take_no_memory(tmp_path):
    """In a process of its own, because a peak of memory cannot be reset."""
    for index, (data, _) in enumerate(CLAIMS):
        (tmp_path / str(index)).write_bytes(data)
    program = """
import sys
from pathlib import Path
from cxr_edge.runtime.imaging.image import ImageError, read_image
def peak(): return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) // 1024
paths = sorted(Path(sys.argv[1]).iterdir())
before = peak()
for path in paths:
    try: read_image(path)
    except ImageError: continue
    sys.exit(f"{path} was read")
print(peak() - before)
"""
    if not Path("/proc/self/status").exists():
        pytest.skip("memory is read from /proc")
    done = subprocess.run([sys.executable, "-c", program, tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) <= 20  # MB; believing the first claim takes 3,600


def test_corrupt_deflate_in_tiff_is_refused_although_opencv_reads_it():
    rng = np.random.default_rng(0)
    for _ in range(50):
        at = int(rng.integers(2000, 30000))
        broken = DEFLATE[:at] + rng.bytes(40) + DEFLATE[at + 40 :]
        assert cv2.imdecode(np.frombuffer(broken, np.uint8), cv2.IMREAD_GRAYSCALE) is not None
        with pytest.raises(ImageError, match="TIFF file is corrupt: strip or tile"):
            read_image(broken)


def test_kinds_of_tiff_that_are_not_read_are_named():
    for compression in (2, 4, 6, 7, 34712, 50000):
        broken = bytearray(TIFF)
        struct.pack_into("<I", broken, TIFF.index(struct.pack("<HH", 259, 4)) + 8, compression)
        with pytest.raises(ImageError, match=f"TIFF file has compression {compression}; expected none, LZW"):
            read_image(bytes(broken))


def test_deep_and_coloured_files_are_as_before():
    np.testing.assert_array_equal(read_image(encode(".png", DEEP)), read_image(encode(".tiff", DEEP)))
    np.testing.assert_array_equal(read_image(encode(".png", DEEP)), read_image(DEEP))
    assert np.abs(read_image(encode(".bmp", COLOUR)).astype(int) - read_image(COLOUR[..., ::-1])).max() <= 1
