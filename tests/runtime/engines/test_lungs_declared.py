"""A bundle that declares lungs must have them; one of schema 1 or without lungs need not."""

import json
import shutil

import numpy as np
import pytest
from support import PACKAGED_FILES

from cxr_edge.runtime import Bundle, BundleError, load
from cxr_edge.runtime.bundles.manifest import READABLE, LungGrid, Manifest
from cxr_edge.runtime.predictor import packaged_model

PIXELS = np.random.default_rng(0).integers(0, 256, (224, 224), dtype=np.uint8)


@pytest.fixture
def copy(tmp_path):
    """The packaged model, whose manifest a test may change: fields -> folder."""

    def change(**fields):
        folder = shutil.copytree(packaged_model(), tmp_path / "bundle")
        manifest = json.loads((folder / "manifest.json").read_text()) | {"lungs": None} | fields
        (folder / "manifest.json").write_text(json.dumps(manifest))
        return folder

    return change


@pytest.mark.parametrize(("engine", "precision"), PACKAGED_FILES)
def test_a_declared_output_that_is_missing_is_refused(copy, engine, precision):
    names = {"onnx": "model.onnx", "litert": "model.int8.tflite"}
    folder = copy(schema_version=2, lungs={"height": 27, "width": 28})
    with pytest.raises(BundleError, match=rf"{names[engine]}: .*lungs.*manifest says 'lungs' \(N, 27, 28\); export"):
        load(folder, engine=engine, precision=precision)


@pytest.mark.parametrize("schema", READABLE)
@pytest.mark.parametrize(("engine", "precision"), PACKAGED_FILES)
def test_a_model_without_lungs_decides_as_before(copy, engine, precision, schema):
    with load(copy(schema_version=schema), engine=engine, precision=precision) as predictor:
        prediction = predictor.predict(PIXELS)
        picture = predictor.explain(PIXELS).picture
    assert prediction.lungs is prediction.lungs_found is prediction.evidence_in_lungs is None
    row = prediction.to_dict()
    assert row["lungs_found"] is None and row["evidence_in_lungs"] is None
    assert picture.shape[0] == 28 + 512 + 44  # one line of caption


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ({"height": 28}, "lungs.width: found nothing, expected a whole number"),
        ({"height": 0, "width": 28}, "lungs.height: found 0, expected a whole number from 1"),
        ([28, 28], r"lungs: found \[28, 28\], expected an object"),
    ],
)
def test_a_grid_that_cannot_be_is_refused(copy, value, says):
    with pytest.raises(BundleError, match=says):
        Bundle.open(copy(schema_version=2, lungs=value))


def test_a_grid_survives_json():
    text = Bundle.open(packaged_model()).manifest.to_json()
    data = json.loads(text) | {"schema_version": 2, "lungs": {"height": 14, "width": 28}}
    manifest = Manifest.from_json(json.dumps(data), "x")
    assert manifest.lungs == LungGrid(14, 28)
    assert Manifest.from_json(manifest.to_json(), "again") == manifest
