"""What `emulate.py` runs on both architectures: make inputs, and write what the packaged model says of images."""

import argparse
import json
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
import simplejpeg

from cxr_edge.export.conversion.golden import draw_inputs
from cxr_edge.runtime import load
from cxr_edge.runtime.imaging.image import read_image
from cxr_edge.runtime.imaging.preprocess import preprocess
from cxr_edge.train.data.phantom import draw


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    inputs = commands.add_parser("inputs", help="write the golden inputs, drawn radiographs and a DICOM file")
    inputs.add_argument("folder", type=Path)
    outputs = commands.add_parser("outputs", help="write one JSON line for each image")
    outputs.add_argument("engine")
    outputs.add_argument("lines", type=Path)
    outputs.add_argument("images", type=Path, nargs="+")
    arguments = parser.parse_args()
    if arguments.command == "inputs":
        write_inputs(arguments.folder)
        return
    with arguments.lines.open("w") as stream:
        for row in describe(arguments.engine, arguments.images):
            print(json.dumps(row), file=stream, flush=True)


def write_inputs(folder: Path) -> None:
    """Golden inputs as PNG; drawn radiographs as JPEG (OpenCV's and simplejpeg's); one as DICOM with JPEG Lossless."""
    for name, picture in draw_inputs(224, 224).items():
        (folder / f"golden-{name}.png").write_bytes(cv2.imencode(".png", picture)[1].tobytes())
    for seed, finding in enumerate((None, "focal", "diffuse")):
        large = cv2.resize(draw(seed, finding).image, None, fx=4, fy=4, interpolation=cv2.INTER_CUBIC)
        (folder / f"drawn-{seed}.jpeg").write_bytes(cv2.imencode(".jpeg", large)[1].tobytes())
        jpeg = simplejpeg.encode_jpeg(large[..., np.newaxis], quality=90, colorspace="GRAY")
        (folder / f"drawn-{seed}-simplejpeg.jpeg").write_bytes(jpeg)
    if find_spec("gdcm") and find_spec("pydicom"):
        write_dicom(folder / "drawn-lossless.dcm", large)


def write_dicom(path: Path, pixels: np.ndarray) -> None:
    """Write (H, W) uint8 as 12-bit grey values, compressed as JPEG Lossless by GDCM."""
    import gdcm
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian, generate_uid

    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = DigitalXRayImageStorageForPresentation
    meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID, dataset.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    dataset.Modality = "DX"
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.SamplesPerPixel, dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 1, 16, 12, 11
    dataset.PixelRepresentation, dataset.PhotometricInterpretation = 0, "MONOCHROME2"
    dataset.PixelData = (pixels.astype(np.uint16) * 16).tobytes()
    dataset.save_as(path, enforce_file_format=True)
    compress(gdcm, path)


def compress(gdcm, path: Path) -> None:
    reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
    reader.SetFileName(str(path))
    assert reader.Read(), path
    change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.JPEGLosslessProcess14_1))
    change.SetInput(reader.GetImage())
    assert change.Change(), path
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    writer.SetFileName(str(path))
    assert writer.Write(), path


def describe(engine: str, images: list[Path]) -> Iterator[dict[str, object]]:
    """The network's input, in hexadecimal, and its outputs for each image, decided one by one with one thread."""
    predictor = load(engine=engine, threads=1)
    for path in images:
        prediction = predictor.predict(path)
        pixels = preprocess(read_image(path))
        yield {
            "image": path.name,
            "pixels": pixels.tobytes().hex(),
            "label": prediction.label,
            "probability": prediction.probability,
            "outputs": [prediction.logit, prediction.novelty, *prediction.heatmap.ravel().tolist()],
            "ms": prediction.timings_ms["total"],
        }


if __name__ == "__main__":
    main()
