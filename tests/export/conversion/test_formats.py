"""The table of file formats, and what is checked on the way to a TFLite file."""

import subprocess
import sys

import pytest

from cxr_edge.export.conversion import metadata, tflite
from cxr_edge.export.conversion.formats import BY_NAME, FILES, FORMATS, PRECISIONS, gate_of
from cxr_edge.export.conversion.golden import TOLERANCE
from cxr_edge.export.verification.gates import DEFAULTS
from cxr_edge.export.verification.layers import LIMITS
from cxr_edge.runtime import Bundle, BundleError
from cxr_edge.runtime.bundles.bundle import ENGINE_OF_SUFFIX


def test_every_row_has_a_name_of_its_own_an_engine_and_a_gate():
    assert len(BY_NAME) == len(FORMATS)
    assert len({(row.suffix, row.precision) for row in FORMATS if row.role == "files"}) == len(
        [row for row in FORMATS if row.role == "files"]
    ), "two files that decide cannot be told apart by engine and precision"
    for row in FORMATS:
        assert row.suffix in ENGINE_OF_SUFFIX
        assert gate_of(row.precision) in DEFAULTS.keys() & TOLERANCE.keys() & LIMITS.keys()


def test_a_row_may_name_the_gate_of_another_precision(monkeypatch):
    from dataclasses import replace

    from cxr_edge.export.conversion import formats

    row = replace(BY_NAME["model.int8.tflite"], name="model.int16.tflite", precision="int16", gate="int8")
    monkeypatch.setattr(formats, "FORMATS", (*FORMATS, row))
    assert gate_of("int16") == "int8" and gate_of("fp16") == "fp16"


def test_the_table_loads_without_the_packages_that_write_files():
    heavy = {"numpy", "onnx", "keras", "tensorflow", "onnxruntime", "cv2", "cxr_edge.runtime.bundles.bundle"}
    program = "import sys, cxr_edge.export.conversion.formats; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert not heavy & set(loaded)


def test_a_bundle_lists_each_file_by_its_row(bundle):
    manifest = Bundle.open(bundle).manifest
    assert sorted(file.path for file in manifest.all_files) == sorted(FILES)
    for file in manifest.all_files:
        row = BY_NAME[file.path]
        assert (file.precision, file.engine) == (row.precision, ENGINE_OF_SUFFIX[row.suffix])
    assert {file.precision for file in manifest.files} == set(PRECISIONS)
    assert manifest.gradient.path == "gradient.onnx" and not manifest.companions


def test_an_image_that_is_not_cast_first_is_refused(tmp_path):
    """The cast becomes a dequantisation: another operator in its place must not."""
    import keras
    from keras import ops

    image = keras.Input((8, 8, 1), dtype="uint8", name="image")
    flat = ops.cast(ops.reshape(image, (-1, 64)), "float32")
    flatbuffer = tflite.tflite_from_keras(keras.Model(image, {"probability": ops.sum(flat, axis=1)}))
    with pytest.raises(BundleError, match=r"read by \['RESHAPE'\], expected one CAST"):
        tflite.write_tflite(flatbuffer, tmp_path / "model.tflite", "{}", ("A", "B"))


def test_metadata_writes_only_members_of_enumerations_as_bytes():
    assert metadata._encode({0: metadata.Byte(2)})
    with pytest.raises(TypeError):
        metadata._encode({0: 2})
