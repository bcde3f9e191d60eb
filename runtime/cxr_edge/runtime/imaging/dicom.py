"""Reading of DICOM files as 8-bit grayscale for display.

Everything but a single frontal chest radiograph is refused by name, because a network answers for any image.
"""

from __future__ import annotations

import re

import numpy as np
import numpy.typing as npt

from cxr_edge.runtime.choices import MAX_PIXELS
from cxr_edge.runtime.errors import CxrEdgeError, ImageError, MissingDecoderError
from cxr_edge.runtime.imaging.dicom_file import Header, Tag, read_file
from cxr_edge.runtime.imaging.dicom_pixels import SYNTAXES, Codes, Layout, read_codes
from cxr_edge.runtime.imaging.gray import Gray, stretch

#: Accepted modalities: computed, digital and film radiography, and images of unknown origin.
MODALITIES = frozenset({"CR", "DX", "RG", "OT", "SC", ""})
#: A body part is accepted if it is empty or contains one of these words.
BODY_PARTS = frozenset({"CHEST", "THORAX", "TORAX", "LUNG", "LUNGS"})
#: Refused view positions: lateral and oblique. The networks are trained on frontal views (PA, AP) only.
REFUSED_VIEWS = frozenset({"LL", "RL", "LAT", "LATERAL", "LLO", "RLO", "LAO", "RAO", "LPO", "RPO"})
_OTHERWISE = "if it is one, export it as PNG and read that"

Values = npt.NDArray[np.float64]


def decode_dicom(data: bytes, name: str, max_pixels: int = MAX_PIXELS) -> Gray:
    """Read the bytes of a DICOM file as a radiograph.

    The steps are: modality LUT or rescaling, VOI LUT or first window, inversion of MONOCHROME1, and stretching of the
    range of the image without padding to [0, 255]. Padding becomes black.

    Parameters
    ----------
    name
        Name of the file in errors.
    max_pixels
        Files with more rows × columns are refused before a pixel is decoded.

    Returns
    -------
    (H, W) uint8 in [0, 255]; dense structures are bright.

    Raises
    ------
    ImageError
        If the file is damaged, or is not a single frame of a frontal chest radiograph in grayscale.
    MissingDecoderError
        If pydicom or GDCM is needed but not installed.
    """
    try:
        file = read_file(data)
        _check_radiograph(file.header, name)
        layout = _layout(file.header, name, max_pixels)
        _check_syntax(file.syntax, name)
        codes, bits = read_codes(file, layout)
        return _display(codes, bits, layout.signed, file.header, name)
    except CxrEdgeError:
        raise
    except ModuleNotFoundError as error:
        package = str(error.name).partition(".")[0]
        raise MissingDecoderError(
            f"{name}: DICOM that needs the package '{package}'; run: pip install 'cxr-edge[dicom]'"
        ) from error
    except Exception as error:  # pydicom and the decoders raise many kinds of exceptions
        reason = error if isinstance(error, ValueError) else "its header is damaged"
        raise ImageError(f"{name}: DICOM that cannot be read: {reason}; export the file again") from error


def _check_radiograph(header: Header, name: str) -> None:
    modality, part, view = (header.text(tag) for tag in (Tag.Modality, Tag.BodyPartExamined, Tag.ViewPosition))
    if modality not in MODALITIES:
        raise ImageError(f"{name}: DICOM of modality {modality}; expected a radiograph (CR, DX, RG, OT); {_OTHERWISE}")
    if part and not BODY_PARTS.intersection(re.split(r"[^A-Z]+", part)):
        raise ImageError(f"{name}: DICOM of body part {part}; expected CHEST, THORAX or LUNG; {_OTHERWISE}")
    if view in REFUSED_VIEWS:
        raise ImageError(f"{name}: DICOM of view position {view}; expected a frontal view (PA, AP); {_OTHERWISE}")
    frames = int(header.text(Tag.NumberOfFrames) or 1)
    if frames != 1:
        raise ImageError(f"{name}: DICOM of {frames} frames; expected one; export the frame to be read by itself")
    samples, photometric = header.integer(Tag.SamplesPerPixel), header.text(Tag.PhotometricInterpretation)
    if samples not in (None, 1) or photometric not in ("MONOCHROME1", "MONOCHROME2"):
        raise ImageError(
            f"{name}: DICOM in {photometric or 'unknown'} colours ({samples or 1} samples a pixel); "
            f"expected MONOCHROME1 or MONOCHROME2; {_OTHERWISE}"
        )


def _layout(header: Header, name: str, max_pixels: int) -> Layout:
    """Layout of the pixels; raise ImageError if there are too many or the layout is not supported."""
    rows, columns, allocated = (header.integer(tag) or 0 for tag in (Tag.Rows, Tag.Columns, Tag.BitsAllocated))
    stored = header.integer(Tag.BitsStored) or allocated
    high = header.integer(Tag.HighBit)
    layout = Layout(
        rows,
        columns,
        allocated,
        stored,
        stored - 1 if high is None else high,
        header.integer(Tag.PixelRepresentation) == 1,
    )
    if not rows or not columns:
        raise ImageError(f"{name}: DICOM of {columns}×{rows} pixels; expected at least one row and one column")
    if rows * columns > max_pixels:
        raise ImageError(
            f"{name}: DICOM of {columns}×{rows} pixels; expected at most {max_pixels} in all; "
            "make it smaller or raise the limit"
        )
    if allocated not in (8, 16) or not 1 < stored <= layout.high_bit + 1 <= allocated:
        raise ImageError(
            f"{name}: DICOM with {allocated} bits allocated, {stored} stored, high bit {layout.high_bit}; "
            "expected 8 or 16 allocated and the others within them; export the file again"
        )
    return layout


def _check_syntax(syntax: str, name: str) -> None:
    if syntax not in SYNTAXES:
        raise ImageError(
            f"{name}: DICOM in transfer syntax {syntax}, which is not supported; "
            "export it again uncompressed (Explicit VR Little Endian)"
        )


def _display(codes: Codes, bits: int, signed: bool, header: Header, name: str) -> Gray:
    """Grey levels of stored codes, computed once for each possible code and then looked up for each pixel."""
    stored = np.arange(1 << bits)
    if signed:
        stored[1 << (bits - 1) :] -= 1 << bits
    shown = _window(_modality(stored.astype(np.float64), header), header)
    if header.text(Tag.PhotometricInterpretation) == "MONOCHROME1":  # the lowest value is white
        shown = shown.min() + shown.max() - shown
    used = np.zeros(len(stored), bool)
    used[codes.ravel()] = True
    used &= ~_padding(stored, signed, header)
    if not used.any():
        raise ImageError(f"{name}: DICOM whose pixels are all padding; export the file again")
    table = np.zeros(len(stored), np.uint8)
    table[used] = stretch(shown[used], name)
    return table[codes]


def _padding(stored: npt.NDArray[np.int_], signed: bool, header: Header) -> npt.NDArray[np.bool_]:
    """Mask of the stored values that mark pixels outside the radiograph."""
    value = header.integer(Tag.PixelPaddingValue, signed)
    if value is None:
        return np.zeros(len(stored), bool)
    limit = header.integer(Tag.PixelPaddingRangeLimit, signed)
    low, high = sorted((value, value if limit is None else limit))
    return (stored >= low) & (stored <= high)


def _modality(stored: Values, header: Header) -> Values:
    """Apply the modality LUT, or slope and intercept, to stored values."""
    if lut := header.first_item(Tag.ModalityLUTSequence):
        return _look_up(stored, lut)
    slope, intercept = header.decimals(Tag.RescaleSlope), header.decimals(Tag.RescaleIntercept)
    return stored * (slope[0] if slope else 1.0) + (intercept[0] if intercept else 0.0)


def _window(values: Values, header: Header) -> Values:
    """Apply the VOI LUT, or else the first window, if there is one (DICOM PS3.3 C.11.2).

    The result of a window has the range of `values`.
    """
    if lut := header.first_item(Tag.VOILUTSequence):
        return _look_up(values, lut)
    centers, widths = header.decimals(Tag.WindowCenter), header.decimals(Tag.WindowWidth)
    if not centers or not widths:
        return values
    center, width, function = centers[0], widths[0], header.text(Tag.VOILUTFunction) or "LINEAR"
    if width < 1 if function == "LINEAR" else width <= 0:
        raise ValueError(f"window width {width:g}; expected at least 1")
    low, high = values.min(), values.max()
    if function == "SIGMOID":
        return low + (high - low) / (1 + np.exp(-4 * (values - center) / width))
    if function == "LINEAR":
        center, width = center - 0.5, width - 1
    elif function != "LINEAR_EXACT":
        raise ValueError(f"VOI LUT function {function}; expected LINEAR, LINEAR_EXACT or SIGMOID")
    # A window of width 1 is a threshold.
    share = (values - center) / width + 0.5 if width else (values > center).astype(np.float64)
    return low + (high - low) * np.clip(share, 0, 1)


def _look_up(values: Values, lut: Header) -> Values:
    """Apply a LUT; values outside its range take its first or last entry (DICOM PS3.3 C.11.1.1)."""
    count, _, bits = lut.integers(Tag.LUTDescriptor)
    _, first, _ = lut.integers(Tag.LUTDescriptor, signed=bool(values.min() < 0))
    raw = lut.raw(Tag.LUTData)
    entries = np.frombuffer(raw, f"{lut.order}u2" if len(raw) >= 2 * (count or 1 << 16) else "u1")
    if len(entries) < (count or 1 << 16) or not 8 <= bits <= 16:
        raise ValueError(f"a LUT of {len(entries)} entries of {bits} bits; expected {count or 1 << 16} of 8 to 16")
    return entries[np.clip(values - first, 0, (count or 1 << 16) - 1).astype(np.intp)].astype(np.float64)
