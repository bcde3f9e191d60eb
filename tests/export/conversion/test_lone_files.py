"""Every file of an exported bundle decides alone as in its bundle, and covers itself by a digest."""

import json
import shutil

import pytest

from cxr_edge.runtime import Bundle, IntegrityError, load
from cxr_edge.runtime.bundles.facts import read_facts

FILES = (
    "model.onnx", "model.fp16.onnx", "model.int8.onnx", "model.fp32.tflite", "model.fp16.tflite", "model.int8.tflite",
)  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_a_lone_file_decides_as_its_bundle(bundle, tmp_path, xray, name):
    lone = shutil.copy(bundle / name, tmp_path)
    alone = load(lone)
    whole = load(bundle, alone.file.engine, alone.file.precision)
    assert alone.predict(xray).probability == whole.predict(xray).probability
    assert alone.manifest.operating_points == whole.manifest.operating_points


@pytest.mark.parametrize("name", FILES)
def test_a_changed_lone_file_is_refused(bundle, tmp_path, name):
    facts = read_facts(bundle / name)
    assert set(json.loads(facts.text)["files"][0]["sha256"]) != {"0"}
    content = bytearray((bundle / name).read_bytes())
    (start, end), *_ = facts.model
    content[(start + end) // 2] ^= 1
    (tmp_path / name).write_bytes(content)
    with pytest.raises(IntegrityError, match="cut short or changed"):
        Bundle.open(tmp_path / name)
