import struct
from concurrent.futures import ThreadPoolExecutor
from time import process_time

import cv2
import numpy as np
import pytest
from fuzz.seeds import COLOUR, GRAY, encode, exif_segment, jpeg, radiograph
from support import SHARED, needs_native_speed, needs_shared

from cxr_edge.runtime import ImageError
from cxr_edge.runtime.imaging.image import read_image
from cxr_edge.runtime.imaging.jpeg import MAX_BLOCK_VISITS, exif_orientation

PLAIN = encode(".jpg")
PROGRESSIVE = encode(".jpg", GRAY, cv2.IMWRITE_JPEG_PROGRESSIVE, 1)


def by_opencv(data: bytes) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE)


def with_frame(data: bytes, height=None, width=None, precision=8, marker=None) -> bytes:
    """The file with another frame header."""
    at = next(data.find(m) for m in (b"\xff\xc0", b"\xff\xc2") if data.find(m) > 0)
    _, _, old_height, old_width = struct.unpack_from(">HBHH", data, at + 2)
    frame = struct.pack(">BHH", precision, height or old_height, width or old_width)
    return data[: at + 1] + bytes([marker or data[at + 1]]) + data[at + 2 : at + 4] + frame + data[at + 9 :]


@pytest.mark.parametrize("data", [*jpeg(), PLAIN + b"more bytes" * 50, PLAIN + bytes(512)])
def test_full_size_is_bit_equal_to_opencv(data):
    np.testing.assert_array_equal(read_image(data), by_opencv(data))


@needs_shared
def test_the_originals_are_bit_equal_to_opencv():
    originals = sorted((SHARED / "data" / "originals").glob("*/*.jpeg"))
    assert len(originals) == 70
    for path in originals:
        np.testing.assert_array_equal(read_image(path), by_opencv(path.read_bytes()), err_msg=path.name)


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("orientation", range(10))
def test_every_exif_orientation_is_applied_as_opencv_does(orientation, order):
    xmp = b"\xff\xe1\0\x10http://ns.xap\0"
    data = PLAIN[:2] + xmp + exif_segment(orientation, order) + PLAIN[2:]
    np.testing.assert_array_equal(read_image(data), by_opencv(data))


def test_malformed_exif_is_upright_or_typed():
    rng = np.random.default_rng(0)
    sound = exif_segment(6)[10:]
    for length in range(len(sound)):
        assert exif_orientation(sound[:length]) in (1, 6)
    for _ in range(500):
        broken = np.frombuffer(sound, np.uint8).copy()
        broken[rng.integers(0, len(broken), 4)] = rng.integers(0, 256, 4)
        assert exif_orientation(broken.tobytes()) in range(1, 9)


@pytest.mark.parametrize(
    ("sides", "scale"), [((0, 0), 1), ((521, 620), 1), ((260, 310), 2), ((131, 130), 2), ((64, 64), 8)]
)
def test_it_is_decoded_at_the_smallest_half_whose_sides_suffice(sides, scale):
    small = read_image(PLAIN, *sides)
    assert small.shape == tuple(-(-side // scale) for side in GRAY.shape)
    average = cv2.resize(GRAY[:520, :616], (616 // scale, 520 // scale), interpolation=cv2.INTER_AREA)
    assert np.abs(small[:, : average.shape[1]].astype(int) - average).mean() < 4


def test_the_sides_suffice_after_rotation():
    wide = encode(".jpg", radiograph(500, 1300))
    turned = wide[:2] + exif_segment(6) + wide[2:]
    assert read_image(turned).shape == (1300, 500)
    assert read_image(turned, 600, 250).shape == (650, 250)
    assert read_image(turned, 250, 600).shape == (1300, 500)
    assert read_image(wide, 250, 600).shape == (250, 650)


def test_corrupt_data_is_refused_and_said():
    refused = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        at = int(rng.integers(len(PLAIN) // 3, len(PLAIN) - 100))
        data = PLAIN[:at] + rng.bytes(40) + PLAIN[at + 40 :]
        try:
            read_image(data)
        except ImageError as error:
            refused += 1
            assert "corrupt" in str(error) and "copy the file again" in str(error)
    assert refused >= 40  # OpenCV reads all of them
    for length in (3, 20, 200, 1000, len(PLAIN) // 2, len(PLAIN) - 2, len(PLAIN) - 1):
        with pytest.raises(ImageError, match=r"bytes: JPEG .*cut short.*copy (the file|it) again"):
            read_image(PLAIN[:length])


@pytest.mark.parametrize(
    ("marker", "precision", "says"),
    [
        (0xC3, 8, "lossless JPEG of 8 bits"),
        (0xC3, 16, "lossless JPEG of 16 bits"),
        (0xC1, 12, "JPEG of 12 bits"),
        (0xC9, 8, "arithmetic-coded JPEG"),
        (0xCA, 8, "arithmetic-coded progressive JPEG"),
        (0xC5, 8, "hierarchical JPEG"),
    ],
)
def test_kinds_that_are_not_decoded_are_named(marker, precision, says):
    with pytest.raises(ImageError, match=f"{says}.*expected a baseline or progressive"):
        read_image(with_frame(PLAIN, marker=marker, precision=precision), 64, 64)


def test_no_frame_is_hidden_from_the_walk():
    """libjpeg passes over markers without a length; a lossless frame behind one must not reach it with a scale."""
    lossless = with_frame(PLAIN, marker=0xC3)
    at = lossless.index(b"\xff\xc3")
    for marker in (0x01, 0xD0, 0xD7, 0xD8):
        hidden = lossless[:at] + bytes([0xFF, marker]) + lossless[at:]
        with pytest.raises(ImageError, match="header is corrupt"):
            read_image(hidden, 64, 64)


@needs_native_speed
@pytest.mark.parametrize(
    ("data", "says"),
    [
        (with_frame(PLAIN, 60000, 60000), "60000×60000 pixels; expected at most 100,000,000 pixels"),
        (with_frame(PLAIN, 9999, 9999), "9999×9999 pixels in .* expected at least 390,[0-9]* bytes"),
        (
            with_frame(encode(".jpg", GRAY, cv2.IMWRITE_JPEG_PROGRESSIVE, 1) + bytes(2**20), 9999, 9999),
            "takes 3[0-9]{2} MB",
        ),
    ],
)
def test_claims_are_refused_at_once(data, says):
    start = process_time()
    with pytest.raises(ImageError, match=says):
        read_image(data)
    assert process_time() - start < 0.1


def test_a_second_scan_of_a_sequential_file_is_refused_and_not_decoded():
    sound = encode(".jpg", COLOUR)
    scan = sound[sound.rindex(b"\xff\xda") : -2]
    bomb = sound[:-2] + scan[:20] * 5000 + b"\xff\xd9"
    start = process_time()
    with pytest.raises(ImageError, match="corrupt"):
        read_image(bomb)
    assert process_time() - start < 0.1, "5,000 empty scans of this image would take 0.4 s"


def test_a_bomb_of_scans_is_refused():
    sound = encode(".jpg", COLOUR, cv2.IMWRITE_JPEG_PROGRESSIVE, 1)
    scan = sound[sound.rindex(b"\xff\xda") : -2]
    bomb = sound[:-2] + scan[:20] * 5000 + b"\xff\xd9"
    with pytest.raises(ImageError, match=rf"in 50[01][0-9] scans; expected at most {MAX_BLOCK_VISITS // 7644}"):
        read_image(bomb)


def test_the_limit_of_pixels_is_an_argument():
    assert read_image(PLAIN, max_pixels=GRAY.size).shape == GRAY.shape
    with pytest.raises(ImageError, match="expected at most 322,399 pixels"):
        read_image(PLAIN, max_pixels=GRAY.size - 1)


def test_without_its_library_the_error_names_the_command(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "simplejpeg", None)
    with pytest.raises(ImageError, match="pip install simplejpeg"):
        read_image(PLAIN)


def test_threads_read_the_same_pixels():
    files = [encode(".jpg", radiograph(900 + 8 * i, 1000)) for i in range(4)] * 10
    alone = [read_image(file, 448, 448) for file in files]
    with ThreadPoolExecutor(8) as pool:
        for one, other in zip(alone, pool.map(lambda file: read_image(file, 448, 448), files), strict=True):
            np.testing.assert_array_equal(one, other)
