"""The `infer` request of the Open Inference Protocol (KServe v2), with its extension for binary tensors.

https://github.com/kserve/open-inference-protocol and Triton's `extension_binary_data.md`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from cxr_edge.runtime.errors import UsageError

if TYPE_CHECKING:
    from cxr_edge.runtime.engines.base import Outputs
    from cxr_edge.runtime.predictor import Predictor

Pixels = npt.NDArray[np.uint8]
#: Parameters that ask for another answer than the one given here.
UNSUPPORTED = ("classification", "shared_memory_region")


def infer(predictor: Predictor, body: bytes, json_length: int | None, max_images: int) -> tuple[dict[str, Any], bytes]:
    """Answer an infer request.

    Parameters
    ----------
    body
        JSON, followed by the bytes of binary tensors.
    json_length
        Length of the JSON (the header `Inference-Header-Content-Length`); None if the body has no binary tensors.
    max_images
        Largest number of images.

    Returns
    -------
    The reply (`status`, and `json_length` if there are binary tensors) and the body of the answer.
    """
    try:
        request = _parse(body[:json_length])
        pixels = _pixels(request, body[len(body) if json_length is None else json_length :], predictor, max_images)
        names = _asked(request, predictor)
        return _answer(request, predictor, predictor.engine.run(pixels), names)
    except UsageError as error:
        return {"status": 400}, json.dumps({"error": str(error)}).encode()


def _parse(text: bytes) -> dict[str, Any]:
    try:
        request = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"the request is not JSON ({error}); see Inference-Header-Content-Length") from error
    if not isinstance(request, dict) or not isinstance(request.get("inputs"), list) or len(request["inputs"]) != 1:
        raise UsageError("inputs: expected a list of one tensor")
    if not isinstance(request["inputs"][0], dict):
        raise UsageError("inputs[0]: expected an object")
    return request


def _pixels(request: Mapping[str, Any], binary: bytes, predictor: Predictor, max_images: int) -> Pixels:
    """The input of the network as (N, height, width, 1) uint8."""
    tensor, feed = request["inputs"][0], predictor.manifest.input
    wanted = (feed.height, feed.width, feed.channels)
    if tensor.get("name") != feed.name or tensor.get("datatype") != "UINT8":
        found = f"{tensor.get('name')!r} of {tensor.get('datatype')!r}"[:200]
        raise UsageError(f"inputs[0]: found {found}, expected '{feed.name}' of 'UINT8'")
    shape = tensor.get("shape")
    if not _is_shape(shape) or tuple(shape[1:]) != wanted or not 1 <= shape[0] <= max_images:
        expected = f"[N, {', '.join(map(str, wanted))}] with N from 1 to {max_images}"
        raise UsageError(f"inputs[0].shape: found {str(shape)[:200]}, expected {expected}")
    values = _binary(tensor, binary) if "data" not in tensor else _numbers(tensor["data"])
    if values.size != np.prod(shape):
        raise UsageError(f"inputs[0]: found {values.size} values, expected {np.prod(shape)} for the shape {shape}")
    return values.reshape(shape)


def _is_shape(shape: Any) -> bool:
    return isinstance(shape, list) and len(shape) == 4 and all(type(side) is int for side in shape)


def _binary(tensor: Mapping[str, Any], binary: bytes) -> Pixels:
    size = _parameters(tensor).get("binary_data_size")
    if type(size) is not int or size != len(binary):
        raise UsageError(
            f"inputs[0].parameters.binary_data_size: found {str(size)[:50]}, expected {len(binary)}, the number of "
            "bytes after the JSON; or give the values as data"
        )
    return np.frombuffer(binary, np.uint8)


def _numbers(data: Any) -> Pixels:
    try:
        values = np.asarray(data)
    except (ValueError, OverflowError):  # lists of different lengths
        values = np.empty(0)
    if values.dtype.kind not in "iu" or (values.size and not 0 <= values.min() <= values.max() <= 255):
        raise UsageError("inputs[0].data: expected whole numbers in [0, 255], flat or nested as the shape says")
    return values.astype(np.uint8).ravel()


def _asked(request: Mapping[str, Any], predictor: Predictor) -> list[tuple[str, bool]] | None:
    """Names of the outputs, and whether each is binary; None if the request does not choose."""
    asked = request.get("outputs")
    for place in (request, request["inputs"][0], *(asked if isinstance(asked, list) else ())):
        for name in UNSUPPORTED:
            if name in _parameters(place):
                raise UsageError(f"parameters.{name}: not supported here; leave it out")
    if not asked:
        return None
    if not isinstance(asked, list):
        raise UsageError("outputs: expected a list of objects with a name")
    everywhere = _binary_everywhere(request)
    return [(_name(entry), bool(_parameters(entry).get("binary_data", everywhere))) for entry in asked]


def _parameters(place: Any) -> Mapping[str, Any]:
    found = place.get("parameters", {}) if isinstance(place, dict) else None
    if not isinstance(found, dict):
        raise UsageError("inputs, outputs and parameters: expected objects")
    return found


def _name(entry: Mapping[str, Any]) -> str:
    if not isinstance(name := entry.get("name"), str):
        raise UsageError("outputs: expected a name in each")
    return name


def _binary_everywhere(request: Mapping[str, Any]) -> bool:
    return bool(_parameters(request).get("binary_data_output", False))


def _answer(
    request: Mapping[str, Any], predictor: Predictor, found: Outputs, asked: list[tuple[str, bool]] | None
) -> tuple[dict[str, Any], bytes]:
    asked = asked or [(name, _binary_everywhere(request)) for name in found.given]
    outputs, tail = [], b""
    for name, binary in asked:
        if name not in found.given:
            raise UsageError(f"outputs: found {name[:100]!r}, expected of: {', '.join(found.given)}")
        values = np.ascontiguousarray(getattr(found, name), "<f4")
        tensor: dict[str, Any] = {"name": name, "datatype": "FP32", "shape": list(values.shape)}
        if binary:
            tensor["parameters"] = {"binary_data_size": values.nbytes}
            tail += values.tobytes()
        else:
            tensor["data"] = values.ravel().tolist()
        outputs.append(tensor)
    answer: dict[str, Any] = {"model_name": predictor.manifest.name, "outputs": outputs}
    if isinstance(request.get("id"), str):
        answer["id"] = request["id"]
    text = json.dumps(answer).encode()
    return {"status": 200, "json_length": len(text) if tail else None}, text + tail
