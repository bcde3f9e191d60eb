import os
import time

import cv2
import numpy as np
import pytest
from support import needs_native_speed

from cxr_edge.runtime.imaging.folders import find_images
from cxr_edge.runtime.imaging.signatures import sniff

GRAY = np.tile(np.arange(64, dtype=np.uint8) * 4, (48, 1))
PREAMBLE = b"\0" * 128 + b"DICM" + b"\x02\0\0\0UL\4\0\0\0\0\0"


def names(folder):
    return [path.relative_to(folder).as_posix() for path in find_images(folder)]


def test_sorted_and_by_suffix(tmp_path):
    for name in ("b.PNG", "a.jpeg", "notes.txt", "sub/c.dcm"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert names(tmp_path) == ["a.jpeg", "b.PNG", "sub/c.dcm"]


def test_files_without_a_known_suffix_by_content(tmp_path):
    for name in ("IM0001", "1.2.840.113", ".hidden", "DICOM/S1/I2.img"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(PREAMBLE)
    (tmp_path / "no-preamble").write_bytes(b"\x08\0\5\0CS\x0a\0ISO_IR 100" + bytes(200))
    (tmp_path / "picture").write_bytes(cv2.imencode(".png", GRAY)[1].tobytes())
    (tmp_path / "DICOMDIR").write_bytes(PREAMBLE)
    (tmp_path / ".DS_Store").write_bytes(b"\0\0\0\1Bud1" + bytes(200))
    (tmp_path / "notes.txt").write_text("BM is how this text starts, and it goes on for a while\n")
    (tmp_path / "empty").touch()
    expected = [".hidden", "1.2.840.113", "DICOM/S1/I2.img", "IM0001", "no-preamble", "picture"]
    assert names(tmp_path) == expected


def test_loops_pipes_and_broken_links_do_not_hang(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "x.png").touch()
    (tmp_path / "sub" / "loop").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "broken.png").symlink_to(tmp_path / "absent.png")
    (tmp_path / "linked").symlink_to(tmp_path / "sub" / "x.png")  # an empty file by content
    os.mkfifo(tmp_path / "pipe")
    os.mkfifo(tmp_path / "pipe.png")
    assert names(tmp_path) == ["sub/x.png"]
    assert find_images(tmp_path / "absent") == []


@needs_native_speed
def test_100_000_files_would_be_listed_in_less_than_20_seconds(tmp_path):
    for number in range(2000):
        (tmp_path / f"IM{number:06d}").write_bytes(PREAMBLE)
    began = time.process_time()
    assert len(find_images(tmp_path)) == 2000
    assert time.process_time() - began < 20 / 50


@pytest.mark.parametrize("suffix", [".png", ".jpeg", ".bmp", ".tiff", ".webp"])
def test_signatures_of_pictures(suffix):
    content = cv2.imencode(suffix, GRAY)[1].tobytes()
    assert sniff(content[:132]) not in (None, "DICOM")


@pytest.mark.parametrize(
    "content", [b"", b"\x08", b"\x08\0\5\0", bytes(132), b"%PDF-1.7" + bytes(132), b"\x08\0\0\0" * 40]
)
def test_signatures_of_others(content):
    assert sniff(content) is None


def test_a_dicom_file_may_start_with_the_header_of_a_tiff_file():
    """DICOM allows it, so that viewers of slides can open the same file."""
    tiff = cv2.imencode(".tiff", GRAY)[1].tobytes()
    assert sniff(tiff[:132]) == "TIFF" and sniff(tiff[:128] + b"DICM") == "DICOM"
