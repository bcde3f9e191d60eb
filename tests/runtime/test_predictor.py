import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from support import LITERT, ONNX, PACKAGED_FILES, assert_complete

from cxr_edge.runtime import EngineError, ImageError, MissingExtraError, UsageError, load
from cxr_edge.runtime.engines import available_engines, missing_extra
from cxr_edge.runtime.errors import CxrEdgeWarning
from cxr_edge.runtime.imaging.image import read_image


@pytest.mark.parametrize(("engine", "precision"), PACKAGED_FILES)
def test_every_file_decides_and_explains(bundle, xray, engine, precision):
    assert_complete(load(bundle, engine, precision).predict(xray))


@pytest.mark.parametrize("engine", [ONNX, LITERT])
def test_many_is_one_by_one(bundle, phantoms, engine):
    images = sorted((phantoms / "test").rglob("*.jpeg"))
    predictor = load(bundle, engine)
    many = [p.probability for p in predictor.predict_many(images, batch_size=5)]
    np.testing.assert_allclose(many, [predictor.predict(i).probability for i in images], atol=1e-6)


def test_a_broken_image_in_a_batch_leaves_the_others(bundle, xray, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    results = list(load(bundle).predict_many([xray, broken, xray, broken], batch_size=2))
    assert [isinstance(r, ImageError) for r in results] == [False, True, False, True]
    assert "broken.png" in str(results[1])
    assert len(list(load(bundle).predict_many([broken] * 3))) == 3


def test_auto_takes_the_preferred_engine_that_is_installed(bundle):
    paths = {"onnx": "model.onnx", "litert": "model.int8.tflite"}
    (preferred, *_) = (engine for engine in available_engines() if engine in paths)
    assert load(bundle).file.path == paths[preferred]


def test_absent_choices_say_what_there_is(bundle):
    with pytest.raises(EngineError, match="onnx fp32, litert int8"):
        load(bundle, available_engines()[0], "int4")
    with pytest.raises(UsageError, match="litert"):
        load(bundle, "caffe")


@pytest.mark.parametrize(("engine", "extra"), [("tensorrt", "tensorrt"), ("onnx", "onnx"), ("litert", "tflite")])
def test_an_engine_that_is_not_installed_names_its_extra(bundle, engine, extra):
    if missing_extra(engine) is None:
        pytest.skip(f"{engine} is installed")
    with pytest.raises(MissingExtraError, match=rf"cxr-edge\[{extra}\]"):
        load(bundle, engine)


def test_a_file_that_failed_its_gate_warns(bundle, tmp_path):
    copy = shutil.copytree(bundle, tmp_path / "bundle")
    file = load(copy).file
    (copy / "parity.json").write_text(json.dumps({"files": [{"sha256": file.sha256, "passed": False}]}))
    with pytest.warns(CxrEdgeWarning, match="failed its gate"):
        load(copy)


def test_explain_keeps_the_radiograph_and_adds_bands(bundle, xray):
    explanation = load(bundle).explain(xray)
    height, width = read_image(xray).shape
    scale = 512 / max(height, width)
    assert explanation.picture.shape[1] == round(width * scale)
    assert explanation.picture.shape[0] > round(height * scale)
    assert explanation.picture.dtype == np.uint8


@pytest.mark.skipif(not Path("/dev/fd").is_dir(), reason="this system has no paths of open pipes")
def test_explain_reads_a_pipe_once(bundle, xray):
    predictor = load(bundle)
    reader, writer = os.pipe()
    with ThreadPoolExecutor(1) as pool, os.fdopen(reader), os.fdopen(writer, "wb") as stream:
        pool.submit(lambda: (stream.write(xray.read_bytes()), stream.close()))
        explanation = predictor.explain(f"/dev/fd/{reader}")
    expected = predictor.explain(xray)
    assert explanation.prediction.probability == expected.prediction.probability
    np.testing.assert_array_equal(explanation.picture, expected.picture)


def test_explain_names_the_file_that_it_cannot_read(bundle, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(ImageError, match=r"broken\.png"):
        load(bundle).explain(tmp_path / "broken.png")


def test_another_operating_point_shares_the_engine(bundle, xray):
    predictor = load(bundle)
    screening = predictor.at("screening")
    assert screening.engine is predictor.engine
    first, second = predictor.predict(xray), screening.predict(xray)
    assert (first.logit, first.operating_point) == (second.logit, "balanced") and second.operating_point == "screening"
    with pytest.raises(UsageError, match="screening"):
        predictor.at("none")


def test_errors_name_the_image_as_the_caller_does(bundle):
    predictor = load(bundle)
    for read in (predictor.predict, predictor.explain):
        with pytest.raises(ImageError, match=r"^image 7: empty"):
            read(b"", name="image 7")
