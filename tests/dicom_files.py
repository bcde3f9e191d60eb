"""DICOM files made by the tests: any transfer syntax, any header."""

from io import BytesIO

import gdcm
import jpeg_writer
import numpy as np
import pydicom
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate

TRANSFER_SYNTAXES = {
    "ImplicitVRLittleEndian": "1.2.840.10008.1.2",
    "ExplicitVRLittleEndian": "1.2.840.10008.1.2.1",
    "DeflatedExplicitVRLittleEndian": "1.2.840.10008.1.2.1.99",
    "ExplicitVRBigEndian": "1.2.840.10008.1.2.2",
    "RLELossless": "1.2.840.10008.1.2.5",
    "JPEGBaseline8Bit": "1.2.840.10008.1.2.4.50",
    "JPEGExtended12Bit": "1.2.840.10008.1.2.4.51",
    "JPEGLossless": "1.2.840.10008.1.2.4.57",
    "JPEGLosslessSV1": "1.2.840.10008.1.2.4.70",
    "JPEGLSLossless": "1.2.840.10008.1.2.4.80",
    "JPEGLSNearLossless": "1.2.840.10008.1.2.4.81",
    "JPEG2000Lossless": "1.2.840.10008.1.2.4.90",
    "JPEG2000": "1.2.840.10008.1.2.4.91",
}
NATIVE = list(TRANSFER_SYNTAXES)[:4]
DCT_STEP, NEAR = 2, 3
#: Largest error of a lossy pixel in stored values. DCT: each of 64 coefficients is off by at most half a step, and the
#: basis sums to at most 8, so 4 steps, and rounding. JPEG-LS: what was asked of the encoder. JPEG 2000 promises a size.
LOSSY = {"JPEGBaseline8Bit": 4 * DCT_STEP + 1, "JPEGExtended12Bit": 4 * DCT_STEP + 1, "JPEGLSNearLossless": NEAR}
LOSSY["JPEG2000"] = None


def radiograph(rows=48, columns=64, bits=12):
    """A ramp with some noise that spans all of `bits`."""
    y, x = np.mgrid[:rows, :columns]
    values = (x / (columns - 1) + y / (rows - 1)) / 2 * 0.95 + np.random.default_rng(0).random((rows, columns)) * 0.05
    values[0, 0], values[-1, -1] = 0, 1
    return np.rint(values * ((1 << bits) - 1)).astype(np.uint8 if bits <= 8 else np.uint16)


def dicom(pixels, syntax="ExplicitVRLittleEndian", bits=12, codestream=None, **elements):
    """Bytes of a DICOM file of `pixels`; `elements` by keyword go over the usual ones, and None leaves one out."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = TRANSFER_SYNTAXES.get(syntax, syntax)
    meta.MediaStorageSOPClassUID = pydicom.uid.DigitalXRayImageStorageForPresentation
    meta.MediaStorageSOPInstanceUID = "1.2.3.4"
    dataset = FileDataset(
        "x.dcm",
        {},
        preamble=b"\0" * 128,
        file_meta=meta,
        is_implicit_VR=syntax == "ImplicitVRLittleEndian",
        is_little_endian=syntax != "ExplicitVRBigEndian",
    )
    dataset.SpecificCharacterSet = "ISO_IR 100"
    dataset.SOPClassUID, dataset.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    dataset.Modality, dataset.BodyPartExamined, dataset.ViewPosition = "DX", "CHEST", "PA"
    dataset.PatientName = "Muster^Erika"
    dataset.Rows, dataset.Columns = pixels.shape[:2]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = pixels.dtype.itemsize * 8, bits, bits - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    for keyword, value in elements.items():
        if value is None:
            delattr(dataset, keyword)
        else:
            setattr(dataset, keyword, value)
    if syntax in NATIVE:
        big = syntax == "ExplicitVRBigEndian"
        content = pixels.astype(pixels.dtype.newbyteorder(">" if big else "<")).tobytes()
        dataset.PixelData = content + b"\0" * (len(content) % 2)
        dataset["PixelData"].VR = "OB" if pixels.itemsize == 1 else "OW"
    else:
        dataset.PixelData = encapsulate([codestream or encode(pixels, syntax, bits)])
        dataset["PixelData"].VR = "OB"
        dataset["PixelData"].is_undefined_length = True
    stream = BytesIO()
    dataset.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def encode(pixels, syntax, bits):
    """A codestream of `pixels`: our own JPEG where GDCM writes none of that kind, GDCM's elsewhere."""
    if syntax in ("JPEGBaseline8Bit", "JPEGExtended12Bit"):
        return jpeg_writer.lossy(pixels, bits, DCT_STEP)
    if syntax == "JPEGLossless":
        return jpeg_writer.lossless(pixels.view(f"u{pixels.itemsize}"), 8 * pixels.itemsize, predictor=6)
    codec = None
    if syntax == "JPEGLSNearLossless":
        codec = gdcm.JPEGLSCodec()
        codec.SetLossless(False)
        codec.SetLossyError(NEAR)
    elif syntax == "JPEG2000":
        codec = gdcm.JPEG2000Codec()
        codec.SetReversible(False)
        codec.SetRate(0, 4)
    return _gdcm_encode(pixels, TRANSFER_SYNTAXES[syntax], bits, codec)


def _gdcm_encode(pixels, syntax, bits, codec):
    writer = gdcm.ImageWriter()  # owns the image
    image = writer.GetImage()
    image.SetNumberOfDimensions(2)
    image.SetDimensions((pixels.shape[1], pixels.shape[0], 1))
    image.SetPhotometricInterpretation(gdcm.PhotometricInterpretation(gdcm.PhotometricInterpretation.MONOCHROME2))
    image.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.ExplicitVRLittleEndian))
    image.SetPixelFormat(gdcm.PixelFormat(1, pixels.itemsize * 8, bits, bits - 1, int(pixels.dtype.kind == "i")))
    element = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010))
    element.SetByteStringValue(pixels.tobytes())
    image.SetDataElement(element)
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.GetTSType(syntax)))
    if codec is not None:
        change.SetUserCodec(codec)
    change.SetInput(image)
    assert change.Change(), f"GDCM does not encode {syntax}"
    fragments = change.GetOutput().GetDataElement().GetSequenceOfFragments()
    values = (fragments.GetFragment(i).GetByteValue() for i in range(fragments.GetNumberOfFragments()))
    return b"".join(value.GetBuffer().encode("utf-8", "surrogateescape") for value in values)


def sequence(**elements):
    """A sequence of one item."""
    item = pydicom.Dataset()
    for keyword, value in elements.items():
        setattr(item, keyword, value)
    if "LUTData" in elements:
        item["LUTData"].VR = "OW"
    return pydicom.Sequence([item])
