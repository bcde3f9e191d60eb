import struct
from pathlib import Path

import cv2
import numpy as np
import pytest

from cxr_edge.runtime import ImageError
from cxr_edge.runtime.imaging.image import read_image

GRAY = np.tile(np.linspace(0, 255, 80).astype(np.uint8), (60, 1))


def encode(suffix, pixels=GRAY):
    return cv2.imencode(suffix, pixels)[1].tobytes()


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tiff"])
def test_lossless_bytes_come_back_as_they_were(suffix):
    np.testing.assert_array_equal(read_image(encode(suffix)), GRAY)


def test_path_and_bytes_and_array_agree(xray):
    from_path = read_image(xray)
    np.testing.assert_array_equal(from_path, read_image(xray.read_bytes()))
    np.testing.assert_array_equal(from_path, read_image(str(xray)))
    np.testing.assert_array_equal(from_path, read_image(from_path))


def test_16_bit_images_are_stretched_to_their_own_range():
    deep = (GRAY.astype(np.uint16) * 16) + 100  # 12 bits used of 16
    np.testing.assert_array_equal(read_image(encode(".png", deep)), GRAY)


def test_colour_becomes_luminance_whatever_the_source():
    rgb = np.zeros((40, 40, 3), np.uint8)
    rgb[..., 0] = 200
    assert abs(int(read_image(rgb)[0, 0]) - 60) <= 1  # 0.299 · 200
    encoded = read_image(encode(".png", rgb[..., ::-1]))
    np.testing.assert_allclose(read_image(rgb), encoded, atol=1)  # libpng and OpenCV round the weights differently


def test_exif_orientation_is_applied():
    rotate_by_90_degrees = 6
    entry = struct.pack("<HHIHH", 0x0112, 3, 1, rotate_by_90_degrees, 0)
    exif = b"Exif\0\0" + struct.pack("<2sHIH", b"II", 42, 8, 1) + entry + struct.pack("<I", 0)
    jpeg = encode(".jpg")
    content = jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + jpeg[2:]
    assert read_image(content).shape == read_image(jpeg).shape[::-1] == GRAY.shape[::-1]


@pytest.mark.parametrize(
    ("content", "says"),
    [(b"", "empty"), (b"hello, I am a text", "not an image"), (encode(".png")[:200], "cut short")],
)
def test_bad_files_are_named_with_what_is_wrong(tmp_path, content, says):
    path = tmp_path / "bad.jpeg"
    path.write_bytes(content)
    with pytest.raises(ImageError, match=f"bad.jpeg.*{says}"):
        read_image(path)


def test_truncated_jpeg_is_refused_not_filled_with_grey(xray):
    content = xray.read_bytes()
    for share in (0.3, 0.6, 0.95):
        with pytest.raises(ImageError):
            read_image(content[: int(share * len(content))])


def test_missing_folder_and_tiny_images_are_errors(tmp_path):
    with pytest.raises(ImageError, match="cannot be read"):
        read_image(tmp_path / "absent.png")
    with pytest.raises(ImageError, match="cannot be read"):
        read_image(tmp_path)
    with pytest.raises(ImageError, match="20×20"):
        read_image(GRAY[:20, :20])
    with pytest.raises(ImageError, match="finite"):
        read_image(np.full((40, 40), np.nan))
    with pytest.raises(ImageError, match="shape"):
        read_image(np.zeros((2, 40, 40, 1), np.uint8))


def test_what_is_not_one_file_of_a_radiograph_is_refused(tmp_path):
    with pytest.raises(ImageError, match=r"cannot be read .*check the path"):
        read_image("with\0zero.png")
    endless = Path("/dev/zero")
    if endless.exists():
        with pytest.raises(ImageError, match="/dev/zero: file of more than 2,500,000 bytes"):
            read_image(endless, max_pixels=1_000_000)
    with pytest.raises(ImageError, match="complex128; expected integers or real numbers"):
        read_image(np.zeros((40, 40), np.complex128))
    with pytest.raises(ImageError, match="object"):
        read_image(np.full((40, 40), None))


def test_floats_of_any_range_are_stretched_or_refused():
    np.testing.assert_array_equal(read_image(GRAY * 1e30), GRAY)
    for values in (GRAY * 1e300, np.where(GRAY > 9, 3e38, -3e38), np.where(GRAY > 9, np.inf, 0.0)):
        with pytest.raises(ImageError, match="finite"):
            read_image(values)


@pytest.mark.parametrize("photometric", ["MONOCHROME2", "MONOCHROME1"])
def test_dicom_is_windowed_and_monochrome1_inverted(tmp_path, photometric):
    pydicom = pytest.importorskip("pydicom")
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian

    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = DigitalXRayImageStorageForPresentation
    meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
    dataset = FileDataset("x.dcm", {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.Rows, dataset.Columns = GRAY.shape
    dataset.SamplesPerPixel, dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 1, 16, 12, 11
    dataset.PixelRepresentation, dataset.PhotometricInterpretation = 0, photometric
    dataset.PixelData = (GRAY.astype(np.uint16) * 16).tobytes()
    path = tmp_path / "x.dcm"
    dataset.save_as(path, enforce_file_format=True)
    expected = 255 - GRAY if photometric == "MONOCHROME1" else GRAY
    np.testing.assert_array_equal(read_image(path), expected)
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(ImageError, match="DICOM"):
        read_image(path)
