import struct
import subprocess
import sys
import time
import tracemalloc
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from itertools import islice

import numpy as np
import pytest
from support import needs_native_speed

pydicom = pytest.importorskip("pydicom")
pytest.importorskip("gdcm")

from dicom_files import LOSSY, NATIVE, TRANSFER_SYNTAXES, dicom, encode, radiograph, sequence  # noqa: E402
from jpeg_writer import lossless  # noqa: E402

from cxr_edge.runtime import ImageError, MissingDecoderError, MissingExtraError  # noqa: E402
from cxr_edge.runtime.imaging.dicom import BODY_PARTS, MODALITIES, decode_dicom  # noqa: E402
from cxr_edge.runtime.imaging.dicom_pixels import SYNTAXES, _gdcm  # noqa: E402
from cxr_edge.runtime.imaging.dicom_samples import SAMPLES, is_sample, sample  # noqa: E402
from cxr_edge.runtime.imaging.image import read_image, stretch  # noqa: E402
from cxr_edge.runtime.imaging.preprocess import read_inputs  # noqa: E402

DEPTHS = {"JPEGBaseline8Bit": [8], "JPEGExtended12Bit": [12, 8]}
CASES = [(syntax, bits) for syntax in TRANSFER_SYNTAXES for bits in DEPTHS.get(syntax, [8, 12, 16])]


def error_of(data, match):
    with pytest.raises(ImageError, match=match) as caught:
        decode_dicom(data, "case.dcm")
    assert str(caught.value).startswith("case.dcm: ")
    return str(caught.value)


@pytest.mark.parametrize(("syntax", "bits"), CASES)
def test_each_transfer_syntax_gives_the_pixels_that_were_stored(syntax, bits):
    pixels = radiograph(bits=bits)
    shown, expected = decode_dicom(dicom(pixels, syntax, bits), "x"), stretch(pixels, "x")
    # An error in stored values becomes one in shades, and the ends of the range move by as much. JPEG 2000 at a quarter
    # of the size has 2 bits for a pixel of 8, so that noise of 5 % of the range is partly lost.
    allowed = {"JPEG2000": 10}.get(syntax) or np.ceil(2 * LOSSY.get(syntax, 0) * 255 / (2**bits - 1))
    assert np.abs(shown.astype(int) - expected).max() <= allowed


@pytest.mark.parametrize("syntax", [s for s in TRANSFER_SYNTAXES if s not in LOSSY])
@pytest.mark.parametrize("bits", [8, 12, 16])
def test_signed_pixels(syntax, bits):
    pixels = radiograph(bits=bits).astype(int) - (1 << (bits - 1))
    pixels = pixels.astype(np.int8 if bits == 8 else np.int16)
    np.testing.assert_array_equal(decode_dicom(dicom(pixels, syntax, bits), "x"), stretch(pixels, "x"))


@pytest.mark.parametrize("predictor", range(1, 8))
def test_every_predictor_of_jpeg_lossless(predictor):
    pixels = radiograph()
    data = dicom(pixels, "JPEGLossless", codestream=lossless(pixels, 12, predictor))
    np.testing.assert_array_equal(decode_dicom(data, "x"), stretch(pixels, "x"))


def test_application_data_in_a_codestream_do_no_harm():
    """GDCM ends the process on a JFIF segment of a version that it does not know."""
    pixels = radiograph()
    stream = encode(pixels, "JPEGLosslessSV1", 12)
    jfif = b"\xff\xff\xe0\0\x10JFIF\0\x09\x01\x00\0\x01\0\x01\0\0"
    data = dicom(pixels, "JPEGLosslessSV1", codestream=stream[:2] + jfif + stream[2:])
    np.testing.assert_array_equal(decode_dicom(data, "x"), stretch(pixels, "x"))


@pytest.mark.parametrize("syntax", SAMPLES)
def test_samples_of_doctor_open_and_doctor_would_see_wrong_pixels(syntax):
    gray = decode_dicom(sample(syntax), "x")
    assert is_sample(gray)
    assert not is_sample(255 - gray)
    assert pydicom.dcmread(BytesIO(sample(syntax)), force=True).Rows == 32


def test_samples_cover_all_syntaxes_but_the_second_spelling_of_htj2k():
    assert {SYNTAXES[s][0] for s in set(SYNTAXES) - set(SAMPLES)} == {"HTJ2K Lossless RPCL"}


def test_uncommon_and_wrong_transfer_syntaxes_are_named():
    error_of(dicom(radiograph(), "1.2.840.10008.1.2.4.100", codestream=b"\0\0\0\1"), r"1\.2\.840\.10008\.1\.2\.4\.100")
    error_of(dicom(radiograph(), "JPEGLSLossless", codestream=encode(radiograph(), "JPEGLossless", 12)), "not JPEG-LS")
    error_of(dicom(radiograph(), "JPEG2000", codestream=encode(radiograph(), "JPEGLossless", 12)), "not a JPEG 2000")


WINDOWS = {
    "rescale": {"RescaleSlope": "-2.5", "RescaleIntercept": "100"},
    "window": {"WindowCenter": 1800, "WindowWidth": 900},
    "first of several windows": {"WindowCenter": [1800, 5], "WindowWidth": [900, 3]},
    "exact": {"WindowCenter": 1800, "WindowWidth": 900, "VOILUTFunction": "LINEAR_EXACT"},
    "sigmoid": {"WindowCenter": 1800, "WindowWidth": 900, "VOILUTFunction": "SIGMOID"},
    "both": {"RescaleSlope": 2, "RescaleIntercept": -4096, "WindowCenter": 0, "WindowWidth": 3000},
    "voi lut": {
        "VOILUTSequence": sequence(
            LUTDescriptor=[3000, 500, 16], LUTData=(np.arange(3000, dtype="<u2") ** 2 // 200).tobytes()
        ),
        "WindowCenter": 5,
        "WindowWidth": 3,
    },
    "modality lut": {
        "ModalityLUTSequence": sequence(
            LUTDescriptor=[4096, 0, 16], LUTData=np.arange(4096, dtype="<u2")[::-1].tobytes()
        ),
        "ModalityLUTType": "US",
    },
}


@pytest.mark.parametrize("photometric", ["MONOCHROME2", "MONOCHROME1"])
@pytest.mark.parametrize("signed", [False, True], ids=["unsigned", "signed"])
@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("syntax", ["ImplicitVRLittleEndian", "ExplicitVRLittleEndian"])
def test_rescale_window_and_luts_as_pydicom_applies_them(syntax, window, signed, photometric):
    from pydicom.pixels import apply_modality_lut, apply_voi_lut

    pixels = radiograph().astype(np.int16) - 2048 if signed else radiograph()
    data = dicom(pixels, syntax, PhotometricInterpretation=photometric, **WINDOWS[window])
    dataset = pydicom.dcmread(BytesIO(data))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = stretch(apply_voi_lut(apply_modality_lut(dataset.pixel_array, dataset), dataset), "x")
    expected = 255 - expected if photometric == "MONOCHROME1" else expected
    shown = decode_dicom(data, "x")
    np.testing.assert_allclose(shown, expected, atol=1)  # ties are rounded the other way
    assert shown.min() == 0 and shown.max() == 255


def test_padding_neither_counts_for_the_range_nor_shows():
    padded = radiograph() // 4 + 1000
    padded[:, :8] = 4000
    inner = stretch(padded[:, 8:], "x")
    for photometric in ("MONOCHROME2", "MONOCHROME1"):
        for extra in ({"PixelPaddingValue": 4000}, {"PixelPaddingValue": 3990, "PixelPaddingRangeLimit": 4010}):
            shown = decode_dicom(dicom(padded, PhotometricInterpretation=photometric, **extra), "x")
            assert not shown[:, :8].any()
            np.testing.assert_allclose(shown[:, 8:], inner if photometric == "MONOCHROME2" else 255 - inner, atol=1)
    error_of(dicom(np.full((40, 40), 7, np.uint16), PixelPaddingValue=7), "all padding")


def test_bits_beyond_those_stored_are_not_pixels():
    pixels = radiograph()
    overlay = pixels | (np.indices(pixels.shape).sum(0) % 2 << 15).astype(np.uint16)
    np.testing.assert_array_equal(decode_dicom(dicom(overlay), "x"), stretch(pixels, "x"))
    shifted = dicom(pixels << 4, HighBit=15)
    np.testing.assert_array_equal(decode_dicom(shifted, "x"), stretch(pixels, "x"))


@pytest.mark.parametrize(
    ("elements", "says"),
    [
        ({"Modality": "CT"}, "modality CT"),
        ({"Modality": "MG"}, "modality MG"),
        ({"Modality": "MR"}, "modality MR"),
        ({"Modality": "US"}, "modality US"),
        ({"Modality": "PX"}, "modality PX"),
        ({"BodyPartExamined": "KNEE"}, "body part KNEE"),
        ({"BodyPartExamined": "HAND"}, "body part HAND"),
        ({"BodyPartExamined": "SKULL"}, "body part SKULL"),
        ({"ViewPosition": "LL"}, "view position LL"),
        ({"ViewPosition": "RL"}, "view position RL"),
        ({"ViewPosition": "LATERAL"}, "view position LATERAL"),
        ({"NumberOfFrames": 17}, "17 frames"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "PALETTE COLOR"),
        ({"PhotometricInterpretation": "RGB", "SamplesPerPixel": 3}, "RGB"),
        ({"PhotometricInterpretation": "YBR_FULL", "SamplesPerPixel": 3}, "YBR_FULL"),
        ({"BitsAllocated": 32, "BitsStored": 32, "HighBit": 31}, "32 bits allocated"),
        ({"BitsStored": 17}, "17 stored"),
        ({"Rows": 0}, "at least one row"),
        ({"WindowCenter": 4, "WindowWidth": 0}, "window width 0"),
    ],
)
def test_what_is_no_frontal_chest_radiograph_is_refused_by_name(elements, says):
    error_of(dicom(radiograph(), **elements), says)


@pytest.mark.parametrize("modality", sorted(MODALITIES - {""}))
@pytest.mark.filterwarnings("ignore:Invalid value for VR CS")  # of pydicom, which writes the file
@pytest.mark.parametrize("part", [*sorted(BODY_PARTS), "chest pa", "PORT_CHEST", "", None])
def test_what_may_be_one_is_read(modality, part):
    assert decode_dicom(dicom(radiograph(), Modality=modality, BodyPartExamined=part, ViewPosition=None), "x").any()


def test_a_second_frame_that_only_the_offset_table_tells_of():
    frames = pydicom.encaps.encapsulate([encode(radiograph(), "RLELossless", 12)] * 3)
    data = dicom(radiograph(), "RLELossless")
    start = data.index(b"\xe0\x7f\x10\x00OB\0\0\xff\xff\xff\xff") + 12
    error_of(data[:start] + frames + b"\xfe\xff\xdd\xe0\0\0\0\0", "3 frames")


def test_old_files_without_preamble():
    pixels = radiograph()
    whole = dicom(pixels)
    bare = whole[whole.index(b"\x08\x00\x05\x00CS") :]  # no file meta either
    implicit = dicom(pixels, "ImplicitVRLittleEndian")
    implicit = implicit[implicit.index(b"\x08\x00\x05\x00\x0a\0\0\0") :]
    for data in (whole[132:], bare, implicit):
        np.testing.assert_array_equal(read_image(data), stretch(pixels, "x"))


@pytest.mark.parametrize("syntax", NATIVE)
def test_pixel_data_of_another_length_are_refused(syntax):
    pixels = radiograph()
    error_of(dicom(pixels, syntax, Rows=50), "bytes of pixel data; expected")
    error_of(dicom(pixels, syntax, Rows=40), "bytes of pixel data; expected")
    error_of(dicom(pixels, syntax)[:-600], "DICOM that cannot be read")


@pytest.mark.parametrize("syntax", [s for s in TRANSFER_SYNTAXES if s not in NATIVE])
def test_a_codestream_of_other_size_or_cut_short_is_refused(syntax):
    bits = DEPTHS.get(syntax, [12])[0]
    pixels = radiograph(bits=bits)
    stream = encode(pixels, syntax, bits)
    error_of(dicom(pixels, syntax, bits, codestream=stream[: len(stream) // 2]), "cannot be read")
    if syntax != "RLELossless":
        error_of(dicom(pixels, syntax, bits, Rows=47), "compressed image is 64×48 .* DICOM header says 64×47")
    else:
        error_of(dicom(pixels, syntax, bits, Rows=96), "cannot be read")


def bombs():
    """Small files that claim to be large."""
    huge = radiograph()
    stream = bytearray(encode(huge, "JPEG2000Lossless", 12))
    struct.pack_into(">II", stream, 8, 60000, 60000)
    yield "60000×60000 pixels in tiles", dicom(huge, "JPEG2000Lossless", codestream=bytes(stream))
    yield "60000×60000 pixels", dicom(huge, "JPEG2000Lossless", codestream=bytes(stream), Rows=60000, Columns=60000)
    tiles = bytearray(encode(huge, "JPEG2000Lossless", 12))
    struct.pack_into(">II", tiles, 24, 1, 1)
    yield "tiles", dicom(huge, "JPEG2000Lossless", codestream=bytes(tiles))
    yield "cannot hold a radiograph of 9000×9000", dicom(huge, Rows=9000, Columns=9000)
    yield "bytes of pixel data; expected", dicom(huge, Rows=900, Columns=900)
    yield "cannot hold a radiograph of 9000×9000", dicom(huge, "RLELossless", Rows=9000, Columns=9000)
    for bits, syntax, at in ((8, "JPEGBaseline8Bit", b"\xff\xc0"), (12, "JPEGLSLossless", b"\xff\xf7")):
        frame = bytearray(encode(radiograph(bits=bits), syntax, bits))
        struct.pack_into(">HH", frame, frame.index(at) + 5, 9000, 9000)
        data = dicom(radiograph(bits=bits), syntax, bits, codestream=bytes(frame), Rows=9000, Columns=9000)
        yield "cannot hold a radiograph of 9000×9000", data
    deflated = dicom(huge, "DeflatedExplicitVRLittleEndian")
    meta = deflated.index(b"1.2.840.10008.1.2.1.99") + 22
    packer = zlib.compressobj(9, wbits=-15)
    packed = packer.compress(b"\x09\x00\x01\x10UN\0\0" + struct.pack("<I", 1 << 28))  # a private element of 256 MB
    packed += b"".join(packer.compress(bytes(1 << 20)) for _ in range(256)) + packer.flush()
    yield "no pixel data", deflated[:meta] + packed


@needs_native_speed
@pytest.mark.parametrize("number", range(9))
def test_small_files_that_claim_to_be_large_cost_neither_time_nor_memory(number):
    decode_dicom(dicom(radiograph(), "JPEG2000"), "x")  # imports
    says, data = next(islice(bombs(), number, None))
    tracemalloc.start()
    began = time.process_time()
    error_of(data, says)
    taken, (_, peak) = time.process_time() - began, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert taken < 0.4
    assert peak < 64e6


def test_the_limit_of_pixels_is_the_callers():
    data = dicom(radiograph())
    assert decode_dicom(data, "x", 48 * 64).shape == (48, 64)
    with pytest.raises(ImageError, match="64×48 pixels; expected at most 3071"):
        decode_dicom(data, "x", 48 * 64 - 1)


@pytest.mark.parametrize("absent", ["pydicom", "gdcm"])
def test_a_missing_decoder_is_one_row_of_a_batch_and_says_what_brings_it(monkeypatch, tmp_path, absent):
    path = tmp_path / "x.dcm"
    path.write_bytes(dicom(radiograph(), "JPEGLossless"))
    for module in [m for m in sys.modules if m.split(".")[0] == absent] + [absent]:
        monkeypatch.setitem(sys.modules, module, None)
    _gdcm.cache_clear()
    first, second = read_inputs([path, radiograph()])
    assert isinstance(first, MissingDecoderError) and isinstance(first, MissingExtraError)
    assert absent in str(first) and "pip install 'cxr-edge[dicom]'" in str(first) and str(path) in str(first)
    assert first.extra == "dicom"
    assert second.shape == (224, 224, 1)


QUIET = """
import sys, warnings
sys.modules["PIL"] = None
from cxr_edge.runtime.imaging.image import read_image
read_image(sys.argv[1])  # imports pydicom and GDCM
before = list(warnings.filters)
for path in sys.argv[1:]:
    read_image(path)
assert warnings.filters == before
"""


def test_sound_files_open_without_pillow_and_without_a_word(tmp_path):
    paths = []
    for syntax, bits in CASES:
        data = dicom(radiograph(bits=bits), syntax, bits).replace(b"ISO_IR 100", b"ISO-IR 1OO")  # pydicom warns of it
        paths.append(tmp_path / f"{syntax}{bits}")
        paths[-1].write_bytes(data)
    done = subprocess.run([sys.executable, "-c", QUIET, *paths], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_threads_read_what_one_reads():
    files = [dicom(radiograph(200, 300, bits), syntax, bits) for syntax, bits in CASES]
    alone = [decode_dicom(data, "x") for data in files]
    with ThreadPoolExecutor(8) as pool:
        for number, gray in enumerate(pool.map(decode_dicom, files * 4, ["x"] * len(files) * 4)):
            np.testing.assert_array_equal(gray, alone[number % len(files)])


def test_a_few_mutated_files(tmp_path):
    """`python tests/fuzz/dicom.py --count 100000` does more."""
    from fuzz.dicom import fuzz

    assert fuzz(2000, seed=7, keep=tmp_path) == []
