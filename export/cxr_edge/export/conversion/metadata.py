"""TFLite metadata: what Netron, MediaPipe, ML Kit and Android Studio show about a file and its tensors.

It follows `metadata_schema.fbs` of TensorFlow Lite Support and is written with the flatbuffers library alone: the code
generated from that schema exists only in much larger packages.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import flatbuffers


class Byte(int):
    """A member of an enumeration or union of the schema; all are stored in one byte."""


#: Table -> its fields in the order of the schema, up to the last one that is written.
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
FEATURE_PROPERTIES, IMAGE_PROPERTIES = Byte(1), Byte(2)
RGB, GRAYSCALE = Byte(1), Byte(2)
NORMALIZATION_OPTIONS = Byte(1)
DESCRIPTIONS, TENSOR_AXIS_LABELS = Byte(1), Byte(2)

NAME = "Pneumonia on chest radiographs"
DESCRIPTION = (
    "Decides whether a frontal chest radiograph resembles those labelled pneumonia in its training data. "
    "Research tool, not a medical device. manifest.json inside this file holds thresholds and provenance."
)
LICENSE = "Weights: the license of whoever trained them. cxr-edge, which exported them: Apache-2.0."
#: Descriptions of the outputs.
OUTPUTS = {
    "probability": "Calibrated probability of pneumonia. manifest.json has the thresholds of each operating point.",
    "logit": "Logit of pneumonia, before temperature scaling.",
    "heatmap": "Grad-CAM: contribution of each cell to the logit, 0 or more. manifest.json says where the cells lie.",
    "novelty": "Distance from the training set; above novelty_threshold in manifest.json the image is unlike it.",
    "lungs": "Probability that each tile of the image belongs to a lung.",
    "unlike": "Part of the novelty towards each of novelty_kinds in manifest.json: 0 or more.",
    "scores": "Probability of each class of labels.txt.",
}
LABELS = "labels.txt"

#: A table of the schema: slot -> text, `Byte`, list of floats, table or list of tables.
Table = dict[int, Any]


def add_metadata(model: Any, manifest: str) -> None:
    """Add TFLite metadata to a model. The caller appends the associated files that it names.

    Parameters
    ----------
    model
        Unpacked flatbuffer (`ModelT`) with one image input, whose outputs are named by its signature.
    manifest
        Name of the associated file that holds the manifest's facts.
    """
    from ai_edge_litert.schema_py_generated import BufferT, MetadataT

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


def _file(name: str, description: str, type: Byte) -> Table:
    return _table("AssociatedFile", name=name, description=description, type=type)


def _table(table: str, **values: Any) -> Table:
    return {FIELDS[table].split().index(field): value for field, value in values.items()}


def _encode(table: Table) -> bytes:
    import flatbuffers

    builder = flatbuffers.Builder()
    builder.Finish(_write(builder, table), file_identifier=b"M001")
    return bytes(builder.Output())


def _write(builder: flatbuffers.Builder, value: Any) -> int:
    """Write a text, a list of floats, a table or a list of tables, and return its offset."""
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
    offsets = {slot: _write(builder, value) for slot, value in table.items() if not isinstance(value, Byte)}
    builder.StartObject(max(table, default=-1) + 1)
    for slot, value in table.items():
        if isinstance(value, Byte):
            builder.PrependUint8Slot(slot, value, 0)
        else:
            builder.PrependUOffsetTRelativeSlot(slot, offsets[slot], 0)
    return builder.EndObject()
