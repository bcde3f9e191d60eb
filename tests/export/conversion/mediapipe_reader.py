"""Runs in an environment with MediaPipe alone: its own readers on a TFLite file, as JSON on standard output."""

import json
import sys
from pathlib import Path


def metadata(path):
    from mediapipe.tasks.metadata import metadata_schema_py_generated as schema
    from mediapipe.tasks.metadata import schema_py_generated as tflite

    model = tflite.ModelT.InitFromObj(tflite.Model.GetRootAs(Path(path).read_bytes(), 0))
    (entry,) = (entry for entry in model.metadata if entry.name == b"TFLITE_METADATA")
    buffer = bytes(model.buffers[entry.buffer].data)
    assert schema.ModelMetadata.ModelMetadataBufferHasIdentifier(buffer, 0)
    table = schema.ModelMetadataT.InitFromObj(schema.ModelMetadata.GetRootAs(buffer, 0))
    (subgraph,) = table.subgraphMetadata
    graph = model.subgraphs[0]
    colours = {value: name for name, value in vars(schema.ColorSpaceType).items() if not name.startswith("_")}
    return {
        "name": text(table.name),
        "description": text(table.description),
        "license": text(table.license),
        "author": text(table.author),
        "files": [text(file.name) for file in table.associatedFiles],
        "inputs": [
            {
                "name": text(tensor.name),
                "color_space": colours[tensor.content.contentProperties.colorSpace],
                "normalization": [
                    numbers(unit.options.mean) + numbers(unit.options.std) for unit in tensor.processUnits
                ],
                "range": numbers(tensor.stats.min) + numbers(tensor.stats.max),
            }
            for tensor in subgraph.inputTensorMetadata
        ],
        "outputs": [
            {
                "name": text(tensor.name),
                "description": text(tensor.description),
                "shape": [int(size) for size in graph.tensors[index].shape],
                "labels": [text(f.name) for f in tensor.associatedFiles or [] if f.type == 2],  # TENSOR_AXIS_LABELS
            }
            for tensor, index in zip(subgraph.outputTensorMetadata, graph.outputs, strict=True)
        ],
    }


def classify(path, *images):
    import mediapipe
    from mediapipe.tasks.python import BaseOptions
    from mediapipe.tasks.python.vision import ImageClassifier, ImageClassifierOptions

    options = ImageClassifierOptions(base_options=BaseOptions(model_asset_path=path))
    with ImageClassifier.create_from_options(options) as classifier:
        return [
            {score.category_name: score.score for score in result.classifications[0].categories}
            for image in images
            for result in [classifier.classify(mediapipe.Image(mediapipe.ImageFormat.SRGB, rgb(image)))]
        ]


def rgb(path):
    import cv2

    return cv2.cvtColor(cv2.imread(path), cv2.COLOR_BGR2RGB)


def numbers(array):
    return [float(number) for number in array]


def text(value):
    return (value or b"").decode()


if __name__ == "__main__":
    command, *arguments = sys.argv[1:]
    print(json.dumps({"metadata": metadata, "classify": classify}[command](*arguments)))
