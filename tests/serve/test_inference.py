"""The Open Inference Protocol: by hand, and by Triton's own client."""

import json

import numpy as np
import pytest

from cxr_edge.serve.inference import infer

MODEL = "/v2/models/mobilenetv2"


def pixels(count: int = 1) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, 224, 224, 1), dtype=np.uint8)


def request(images: np.ndarray, **fields) -> dict:
    data = {"data": images.ravel().tolist()}
    return {"inputs": [{"name": "image", "datatype": "UINT8", "shape": list(images.shape), **data}], **fields}


def assert_outputs(found: dict, expected) -> None:
    """Outputs by name, bit by bit."""
    assert set(found) == set(expected.given)
    for name, values in found.items():
        np.testing.assert_array_equal(np.asarray(values, np.float32), getattr(expected, name))


def test_json_in_and_out(service, predictor):
    images = pixels(2)
    answer = service.post(f"{MODEL}/infer", json.dumps(request(images, id="7")).encode())
    assert answer.status == 200 and answer.json()["id"] == "7" and answer.json()["model_name"] == "mobilenetv2"
    outputs = {t["name"]: np.reshape(t["data"], t["shape"]) for t in answer.json()["outputs"]}
    assert_outputs(outputs, predictor.engine.run(images))


def test_raw_pixels_in_and_raw_numbers_out(service, predictor):
    images = pixels(3)
    tensor = request(images)["inputs"][0] | {"parameters": {"binary_data_size": images.nbytes}}
    del tensor["data"]
    outputs = [{"name": "logit", "parameters": {"binary_data": True}}, {"name": "probability"}]
    text = json.dumps({"inputs": [tensor], "outputs": outputs}).encode()
    answer = service.post(
        f"{MODEL}/infer", text + images.tobytes(), **{"Inference-Header-Content-Length": str(len(text))}
    )
    length = int(answer.headers["inference-header-content-length"])
    logit, probability = json.loads(answer.body[:length])["outputs"]
    expected = predictor.engine.run(images)
    assert logit["parameters"] == {"binary_data_size": 12} and len(answer.body) == length + 12
    np.testing.assert_array_equal(np.frombuffer(answer.body[length:], "<f4"), expected.logit)
    np.testing.assert_array_equal(np.float32(probability["data"]), expected.probability)


@pytest.mark.parametrize("binary", [True, False])
def test_tritons_client_works(service, predictor, binary):
    triton = pytest.importorskip("tritonclient.http")
    client = triton.InferenceServerClient(f"127.0.0.1:{service.port}")
    assert client.is_server_live() and client.is_server_ready() and client.is_model_ready("mobilenetv2")
    assert client.get_server_metadata()["extensions"] == ["binary_tensor_data"]
    metadata = client.get_model_metadata("mobilenetv2")
    (tensor,) = metadata["inputs"]
    assert tensor == {"name": "image", "datatype": "UINT8", "shape": [-1, 224, 224, 1]}
    images = pixels(2)
    feed = triton.InferInput("image", images.shape, "UINT8")
    feed.set_data_from_numpy(images, binary_data=binary)
    names = [output["name"] for output in metadata["outputs"]]
    asked = [triton.InferRequestedOutput(name, binary_data=binary) for name in names]
    for outputs in (asked, None):
        result = client.infer("mobilenetv2", [feed], outputs=outputs, request_id="5")
        assert_outputs({name: result.as_numpy(name) for name in names}, predictor.engine.run(images))
    with pytest.raises(triton.InferenceServerException if hasattr(triton, "InferenceServerException") else Exception):
        client.infer("another", [feed])
    client.close()


def broken(**changes) -> dict:
    body = request(pixels())
    body["inputs"][0] |= changes
    return body


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"{", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        ({"inputs": []}, "one tensor"),
        ({"inputs": [3]}, "an object"),
        (broken(name="x"), "expected 'image' of 'UINT8'"),
        (broken(datatype="FP32"), "expected 'image' of 'UINT8'"),
        (broken(shape=[1, 224, 224]), "from 1 to 16"),
        (broken(shape=[17, 224, 224, 1]), "from 1 to 16"),
        (broken(shape=[True, 224, 224, 1]), "from 1 to 16"),
        (broken(shape="x"), "from 1 to 16"),
        (broken(data=[1, 2, 3]), "3 values"),
        (broken(data=[[1], [2, 3]]), "whole numbers"),
        (broken(data=[0.5] * 50176), "whole numbers"),
        (broken(data=[256] * 50176), "whole numbers"),
        (broken(data=[10**30] * 50176), "whole numbers"),
        (broken(data=None), "whole numbers"),
        (broken(parameters=[]), "expected objects"),
        (broken(parameters={"shared_memory_region": "x"}), "shared_memory_region"),
        (request(pixels(), outputs=3), "a list"),
        (request(pixels(), outputs=[3]), "objects"),
        (request(pixels(), outputs=[{"name": "x"}]), "probability"),
        (request(pixels(), outputs=[{"name": "logit", "parameters": {"classification": 1}}]), "classification"),
    ],
)
def test_wrong_requests_are_named(predictor, body, words):
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    reply, answer = infer(predictor, content, None, 16)
    assert reply == {"status": 400} and words in json.loads(answer)["error"]


def test_binary_sizes_must_agree(predictor):
    tensor = {"name": "image", "datatype": "UINT8", "shape": [1, 224, 224, 1]}
    for size, sent in ((50175, 50175), (50176, 50175), ("x", 50176), (None, 50176)):
        text = json.dumps({"inputs": [tensor | {"parameters": {"binary_data_size": size}}]}).encode()
        reply, answer = infer(predictor, text + bytes(sent), len(text), 16)
        assert reply == {"status": 400} and "error" in json.loads(answer)


def test_another_model_is_not_found(service):
    for path in ("/v2/models/x", "/v2/models/x/ready"):
        answer = service.get(path)
        assert answer.status == 404 and "mobilenetv2" in answer.json()["error"]
    assert service.post("/v2/models/x/infer", b"{}").status == 404
    length = {"Inference-Header-Content-Length": "-1"}
    assert service.post(f"{MODEL}/infer", b"{}", **length).status == 400
