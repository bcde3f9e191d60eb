"""`/v1/predict` gives the answers of `Predictor`."""

import struct
from base64 import b64decode
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
from fuzz.mutate import repair
from fuzz.seeds import encode, png_file, radiograph
from service import form

from cxr_edge.runtime import ImageError


def without_times(row: dict) -> dict:
    return {name: value for name, value in row.items() if name != "timings_ms"}


def expected(predictor, content: bytes, name: str, heatmap: bool = False) -> dict:
    row = {"path": name} | predictor.predict(content).to_dict()
    if not heatmap:
        del row["heatmap"]
    return without_times(row)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tiff", ".bmp", ".webp"])
def test_every_format_gets_the_answer_of_the_predictor(service, predictor, suffix):
    content = encode(suffix, radiograph(600, 500))
    answer = service.upload(("a chest.x", content))
    assert answer.status == 200 and answer.headers["content-type"] == "application/json"
    (row,) = answer.json()["predictions"]
    assert without_times(row) == expected(predictor, content, "a chest.x")
    assert set(row["timings_ms"]) == {"decode", "preprocess", "inference", "total"}


def test_dicom_is_read(service, predictor):
    pytest.importorskip("pydicom")
    from dicom_files import dicom

    content = dicom(radiograph(300, 300).astype(np.uint16) * 16)
    answer = service.post("/v1/predict?radiograph=png", content, content_type="application/dicom")
    (row,) = answer.json()["predictions"]
    picture = b64decode(row.pop("radiograph_png"))
    assert picture.startswith(b"\x89PNG") and without_times(row) == expected(predictor, content, "image")


def test_an_image_may_be_the_body(service, predictor, jpeg):
    for kind in ("image/jpeg", "application/octet-stream", "application/x-www-form-urlencoded"):
        answer = service.post("/v1/predict?heatmap=array", jpeg, content_type=kind)
        (row,) = answer.json()["predictions"]
        assert without_times(row) == expected(predictor, jpeg, "image", heatmap=True)


def test_operating_points_change_the_rule_only(service, predictor, jpeg):
    for point in predictor.manifest.operating_points:
        (row,) = service.upload(("x", jpeg), query=f"?operating_point={point.name}").json()["predictions"]
        assert without_times(row) == expected(predictor.at(point.name), jpeg, "x")
        assert row["threshold"] == point.threshold


def test_pictures_are_those_of_explain(service, predictor, jpeg):
    (row,) = service.upload(("x", jpeg), query="?heatmap=png&radiograph=png").json()["predictions"]
    decode = lambda name, mode: cv2.imdecode(np.frombuffer(b64decode(row[name]), np.uint8), mode)  # noqa: E731
    picture = decode("heatmap_png", cv2.IMREAD_COLOR)[:, :, ::-1]
    np.testing.assert_array_equal(picture, predictor.explain(jpeg).picture)
    assert decode("radiograph_png", cv2.IMREAD_UNCHANGED).shape == (520, 620)
    assert row["heatmap"] == predictor.predict(jpeg).to_dict()["heatmap"]


def test_several_files_are_answered_in_order_and_a_broken_one_alone_fails(service, predictor, jpeg):
    images = [("a", jpeg), ("b", jpeg[:3000]), ("c", encode(".png", radiograph(300, 300))), ("d", b"")]
    answer = service.upload(*images)
    rows = answer.json()["predictions"]
    assert answer.status == 200 and [row["path"] for row in rows] == ["a", "b", "c", "d"]
    for row, (name, content) in zip(rows, images, strict=True):
        try:
            assert without_times(row) == expected(predictor, content, name)
        except ImageError as error:
            assert row["error"]["type"] == type(error).__name__ and row["error"]["message"].startswith("image: ")


def test_a_file_that_cannot_be_read_says_why(service):
    answer = service.upload(("x.jpeg", b"no image"))
    (row,) = answer.json()["predictions"]
    assert answer.status == 422 and row["path"] == "x.jpeg" and row["error"]["type"] == "ImageError"


def test_bombs_are_refused_before_they_are_decoded(service):
    bomb = bytearray(png_file(np.zeros((100, 100), np.uint8)))
    bomb[16:24] = struct.pack(">II", 12_000, 12_000)
    (row,) = service.upload(("bomb.png", repair(bytes(bomb)))).json()["predictions"]
    assert "pixels" in row["error"]["message"]


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/v1/predict?operating_point=none", "balanced"),
        ("/v1/predict?heatmap=yes", "none, array, png"),
        ("/v1/predict?size=3", "operating_point"),
    ],
)
def test_a_wrong_query_is_named(service, jpeg, path, words):
    answer = service.post(path, jpeg)
    assert answer.status == 400 and words in answer.json()["error"]["message"]


def test_malformed_forms_are_refused(service, jpeg):
    kind, body = form(("x", jpeg))
    wrong_field = form(("x", b"balanced"), field="operating_point")
    cases = {
        "ends before": (kind, body[:-40]),
        "malformed": (kind, b"no boundary at all" * 10),
        "boundary": ("multipart/form-data", body),
        "expected 'file' only": wrong_field,
        "no field": form(),
        "empty": ("image/png", b""),
    }
    for words, (content_type, content) in cases.items():
        answer = service.post("/v1/predict", content, content_type=content_type)
        assert answer.status == 400 and words in answer.json()["error"]["message"], words


def test_sixteen_clients_get_their_own_answers(service, predictor):
    rng = np.random.default_rng(0)
    small = [cv2.resize(rng.integers(0, 256, (8, 8), np.uint8), (256, 256)) for _ in range(48)]
    images = [encode(".jpg", pixels) for pixels in small]
    with ThreadPoolExecutor(16) as clients:
        answers = list(clients.map(lambda pair: service.upload(pair), [(str(i), c) for i, c in enumerate(images)]))
    wanted = [expected(predictor, content, str(i)) for i, content in enumerate(images)]
    assert len({row["logit"] for row in wanted}) == len(wanted)
    assert [without_times(answer.json()["predictions"][0]) for answer in answers] == wanted
