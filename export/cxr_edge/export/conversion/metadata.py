"""TFLite metadata: what Netron, MediaPipe, ML Kit and Android Studio show of a file and its tensors.

Written with the flatbuffers library alone, after `metadata_schema.fbs` of TensorFlow Lite Support: its generated code
comes only with packages far larger than what it does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import flatbuffers

#: Table -> its fields, in the order of the schema, as far as we write them.
FIELDS = {
    "ModelMetadata": "name description version subgraph_metadata author license associated_files min_parser_version",
    "SubGraphMetadata": "name description input_tensor_metadata output_tensor_metadata",
    "TensorMetadata": "name description dimension_names content process_units stats associated_files",
    "Content": "content_properties_type content_properties range",
    "ImageProperties": "color_space",
    "FeatureProperties": "",
    "ProcessUnit": "options_type options",
    "NormalizationOptions": "mean std",
    "Stats": "max min",
    "AssociatedFile": "name description type",
}
# Members of the schema's enumerations and unions.
FEATURE_PROPERTIES, IMAGE_PROPERTIES = 1, 2
RGB, GRAYSCALE = 1, 2
NORMALIZATION_OPTIONS = 1
DESCRIPTIONS, TENSOR_AXIS_LABELS = 1, 2

NAME = "Pneumonia on chest radiographs"
DESCRIPTION = (
    "Decides whether a frontal chest radiograph resembles those labelled pneumonia in its training data. "
    "Research tool, not a medical device. manifest.json inside this file holds thresholds and provenance."
)
LICENSE = "The network's weights: as whoever trained them says. cxr-edge, which exported them: Apache-2.0."
#: What the outputs are, by name.
OUTPUTS = {
    "probability": "Of pneumonia, in [0, 1], calibrated. Positive at or above the operating point in manifest.json.",
    "logit": "Of pneumonia, before temperature scaling.",
    "heatmap": "Grad-CAM: what each cell adds to the logit, 0 or more. manifest.json says where the cells lie.",
    "novelty": "Distance from the training set; above novelty_threshold in manifest.json the image is unlike it.",
    "scores": "Probability of each class of labels.txt.",
}
LABELS = "labels.txt"

#: A table of the schema: slot -> string, small whole number, list of floats, table or list of tables.
Table = dict[int, Any]


def add_metadata(flatbuffer: bytes, manifest: str) -> bytes:
    """Put TFLite metadata into a model; the associated files that it names are left to the caller to append.

    Parameters
    ----------
    flatbuffer
        TFLite model with one image input, whose outputs are named by its signature.
    manifest
        Name of the associated file with the manifest's facts.
    """
    from tensorflow.lite.python.schema_py_generated import BufferT, MetadataT
    from tensorflow.lite.tools import flatbuffer_utils

    model = flatbuffer_utils.convert_bytearray_to_object(bytearray(flatbuffer))
    names = {tensor.tensorIndex: tensor.name.decode() for tensor in model.signatureDefs[0].outputs}
    graph = model.subgraphs[0]
    channels = graph.tensors[graph.inputs[0]].shape[-1]
    # Readers match tensors by their order in the graph, which is not that of the signature.
    table = _model(channels, [names[index] for index in graph.outputs], manifest)
    buffer, entry = BufferT(), MetadataT()
    buffer.data = list(_encode(table))
    entry.name, entry.buffer = "TFLITE_METADATA", len(model.buffers)
    model.buffers.append(buffer)
    model.metadata = [*(model.metadata or ()), entry]
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))


def _model(channels: int, outputs: list[str], manifest: str) -> Table:
    subgraph = _table(
        "SubGraphMetadata",
        input_tensor_metadata=[_image(channels)],
        output_tensor_metadata=[_output(name) for name in outputs],
    )
    files = [_file(manifest, "Facts of the model: input, thresholds, training.", DESCRIPTIONS)]
    if "scores" not in outputs:  # else the labels belong to them
        files.append(_file(LABELS, "Classes; the probability is that of the last one.", DESCRIPTIONS))
    return _table(
        "ModelMetadata",
        name=NAME,
        description=DESCRIPTION,
        subgraph_metadata=[subgraph],
        license=LICENSE,
        associated_files=files,
        min_parser_version="1.0.0",
    )


def _image(channels: int) -> Table:
    colour = RGB if channels == 3 else GRAYSCALE
    raw = _table("NormalizationOptions", mean=[0.0], std=[1.0])
    return _table(
        "TensorMetadata",
        name="image",
        description="Radiograph, resized by area averaging; raw pixels, the graph normalises.",
        content=_table(
            "Content",
            content_properties_type=IMAGE_PROPERTIES,
            content_properties=_table("ImageProperties", color_space=colour),
        ),
        process_units=[_table("ProcessUnit", options_type=NORMALIZATION_OPTIONS, options=raw)],
        stats=_table("Stats", max=[255.0], min=[0.0]),
    )


def _output(name: str) -> Table:
    features = _table(
        "Content", content_properties_type=FEATURE_PROPERTIES, content_properties=_table("FeatureProperties")
    )
    labels = [_file(LABELS, "Classes, in the order of the scores.", TENSOR_AXIS_LABELS)] if name == "scores" else []
    return _table("TensorMetadata", name=name, description=OUTPUTS[name], content=features, associated_files=labels)


def _file(name: str, description: str, type: int) -> Table:
    return _table("AssociatedFile", name=name, description=description, type=type)


def _table(table: str, **values: Any) -> Table:
    return {FIELDS[table].split().index(field): value for field, value in values.items()}


def _encode(table: Table) -> bytes:
    import flatbuffers

    builder = flatbuffers.Builder()
    builder.Finish(_write(builder, table), file_identifier=b"M001")
    return bytes(builder.Output())


def _write(builder: flatbuffers.Builder, value: Any) -> int:
    """Write a string, a list of floats, a table or a list of tables; -> its offset."""
    if isinstance(value, str):
        return builder.CreateString(value)
    if isinstance(value, dict):
        return _write_table(builder, value)
    floats = bool(value) and isinstance(value[0], float)
    items = value if floats else [_write(builder, item) for item in value]
    builder.StartVector(4, len(items), 4)
    for item in reversed(items):  # flatbuffers grow downwards
        (builder.PrependFloat32 if floats else builder.PrependUOffsetTRelative)(item)
    return builder.EndVector()


def _write_table(builder: flatbuffers.Builder, table: Table) -> int:
    offsets = {slot: _write(builder, value) for slot, value in table.items() if not isinstance(value, int)}
    builder.StartObject(max(table, default=-1) + 1)
    for slot, value in table.items():
        if slot in offsets:
            builder.PrependUOffsetTRelativeSlot(slot, offsets[slot], 0)
        else:
            builder.PrependUint8Slot(slot, value, 0)
    return builder.EndObject()
