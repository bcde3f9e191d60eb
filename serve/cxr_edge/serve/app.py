"""The routes of the service."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from cxr_edge.serve.body import Held, Upload, read_body, read_uploads
from cxr_edge.serve.channel import Header, Message
from cxr_edge.serve.envelope import LIVE, Access, Envelope, refusal
from cxr_edge.serve.errors import ClientGoneError, RequestError
from cxr_edge.serve.metrics import Metrics
from cxr_edge.serve.pool import Pool
from cxr_edge.serve.process import Job
from cxr_edge.serve.settings import Limits
from cxr_edge.web import page_folder

#: Query parameter of `/v1/predict` -> its values, the default first. Operating points are those of the model.
CHOICES = {"heatmap": ("none", "array", "png"), "radiograph": ("none", "png")}
SCHEMA = Path(__file__).with_name("openapi.json")
#: Length of the JSON before binary tensors.
JSON_LENGTH = "inference-header-content-length"
#: Seconds for which an answer is awaited before the connection is watched, which costs as much as reading a request.
WATCHLESS = 0.2


class Service:
    """Answers requests with a pool of workers."""

    def __init__(self, pool: Pool, limits: Limits) -> None:
        self._pool, self._limits = pool, limits
        self.held = Held(limits.max_held)
        self.metrics = Metrics(pool, self.held)

    async def predict(self, request: Request) -> Response:
        """`POST /v1/predict`."""
        self._pool.check_room()
        options = self._options(request.query_params)
        with self.held.share() as share:
            uploads = await read_uploads(request.receive, request.headers, self._limits, share)
            jobs = [(_image_job(upload, options), upload.content) for upload in uploads]
            replies = await self._answers(request, jobs)
        for reply, _ in replies:
            self.metrics.count_image(reply)
        body = b'{"predictions": [' + b", ".join(content for _, content in replies) + b"]}"
        return Response(body, _status(replies), media_type="application/json")

    async def infer(self, request: Request) -> Response:
        """`POST /v2/models/{name}/infer`."""
        self._pool.check_room()
        self._named(request)
        length = request.headers.get(JSON_LENGTH)
        if length is not None and not (length.isascii() and length.isdecimal() and len(length) < 12):
            raise RequestError(400, f"{JSON_LENGTH}: found {length[:50]!r}, expected a number of bytes")
        header = {"kind": "infer", "json_length": length and int(length), "max_images": self._limits.max_files}
        with self.held.share() as share:
            body = await read_body(request.receive, request.headers, self._limits, share)
            ((reply, content),) = await self._answers(request, [(header, body)])
        if (json_length := reply.get("json_length")) is None:
            return Response(content, reply["status"], media_type="application/json")
        return Response(content, 200, {JSON_LENGTH: str(json_length)}, "application/octet-stream")

    async def model(self, request: Request) -> Response:
        """`GET /v1/model`."""
        limits = {"max_files": self._limits.max_files, "max_body": self._limits.max_body}
        model = dict(self._model())
        del model["outputs"]
        return JSONResponse(model | {"limits": limits | {"max_pixels": model.pop("max_pixels")}})

    async def live(self, request: Request) -> Response:
        """`GET /v2/health/live`."""
        return JSONResponse({"live": True})

    async def ready(self, request: Request) -> Response:
        """`GET /v2/health/ready`, and `/v2/models/{name}/ready`."""
        if request.path_params and self._pool.model:
            self._named(request)
        is_ready = self._pool.ready > 0
        return JSONResponse({"ready": is_ready}, 200 if is_ready else 503)

    async def server(self, request: Request) -> Response:
        """`GET /v2`."""
        version = self._model()["version"]
        return JSONResponse({"name": "cxr-edge", "version": version, "extensions": ["binary_tensor_data"]})

    async def metadata(self, request: Request) -> Response:
        """`GET /v2/models/{name}`."""
        model = self._named(request)
        feed = model["input"]
        shape = [-1, feed["height"], feed["width"], feed["channels"]]
        outputs = [{"name": n, "datatype": "FP32", "shape": [-1, *sides]} for n, sides in model["outputs"].items()]
        return JSONResponse(
            {
                "name": model["name"],
                "versions": ["1"],
                "platform": f"cxr-edge_{model['file']['engine']}",
                "inputs": [{"name": feed["name"], "datatype": "UINT8", "shape": shape}],
                "outputs": outputs,
            }
        )

    async def figures(self, request: Request) -> Response:
        """`GET /metrics`."""
        return Response(self.metrics.page(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def schema(self, request: Request) -> Response:
        """`GET /openapi.json`."""
        return Response(SCHEMA.read_bytes(), media_type="application/json")

    def _model(self) -> Mapping[str, Any]:
        if self._pool.model is None:
            raise RequestError(503, "the model is not loaded yet; try again", 1)
        return self._pool.model

    def _named(self, request: Request) -> Mapping[str, Any]:
        """The model, if the request names it."""
        model = self._model()
        if (name := request.path_params["name"]) != model["name"]:
            raise RequestError(404, f"no model {name[:100]!r} here; the model is {model['name']!r}")
        return model

    def _options(self, query: Any) -> dict[str, str]:
        """The query of `/v1/predict`, with defaults."""
        points = tuple(point["name"] for point in self._model()["operating_points"])
        choices = CHOICES | {"operating_point": points}
        options = {name: values[0] for name, values in choices.items()}
        for name, value in query.multi_items():
            if name not in choices:
                raise RequestError(400, f"query: found {name[:50]!r}, expected of: {', '.join(choices)}")
            if value not in choices[name]:
                raise RequestError(400, f"{name}: found {value[:50]!r}, expected of: {', '.join(choices[name])}")
            options[name] = value
        return options

    async def _answers(self, request: Request, jobs: list[tuple[Header, bytes]]) -> list[Message]:
        """Queue jobs and wait for all answers; they are dropped if the client goes or the time is over."""
        queued = self._pool.submit(jobs)
        answers = [job.answer for job in queued]
        try:
            _, missing = await asyncio.wait(answers, timeout=WATCHLESS, return_when=asyncio.FIRST_EXCEPTION)
            if missing and not any(answer.done() and answer.exception() for answer in answers):
                await self._watch(request, queued)
            return [await answer for answer in answers]
        finally:
            self._pool.drop(queued)

    async def _watch(self, request: Request, jobs: list[Job]) -> None:
        """Wait for answers, and for the end of the connection; raises ClientGoneError, or RequestError after a time."""
        together, gone = asyncio.ensure_future(_all(jobs)), asyncio.ensure_future(_gone(request))
        try:
            await asyncio.wait((together, gone), timeout=self._limits.timeout, return_when=asyncio.FIRST_COMPLETED)
            if together.done():
                return
            if gone.done():
                raise ClientGoneError("the client closed the connection")
            message = f"no answer within {self._limits.timeout:g} s; try again later"
            raise RequestError(504 if any(job.started for job in jobs) else 503, message, self._pool.retry_after)
        finally:
            together.cancel()
            gone.cancel()


def make_application(
    service: Service, token: str | None, lifespan: Callable[[Any], AbstractAsyncContextManager[None]]
) -> Envelope:
    """The ASGI application: all routes, behind `Envelope`."""
    routes = [
        Route("/v1/predict", service.predict, methods=["POST"]),
        Route("/v1/model", service.model),
        Route(LIVE, service.live),
        Route("/v2/health/ready", service.ready),
        Route("/v2", service.server),
        Route("/v2/models/{name}", service.metadata),
        Route("/v2/models/{name}/ready", service.ready),
        Route("/v2/models/{name}/infer", service.infer, methods=["POST"]),
        Route("/metrics", service.figures),
        Route("/openapi.json", service.schema),
        Mount("/", StaticFiles(directory=page_folder(), html=True)),
    ]
    handlers = {RequestError: _refuse, HTTPException: _refuse_http, ClientGoneError: _forget, Exception: _apologise}
    app = Starlette(routes=routes, exception_handlers=handlers, lifespan=lifespan)
    return Envelope(app, Access(token), service.metrics)


@asynccontextmanager
async def running(pool: Pool, on_ready: Callable[[], None], on_failure: Callable[[], None]) -> AsyncIterator[None]:
    """Keep the workers running inside the block."""
    pool.run(on_ready, on_failure)
    try:
        yield
    finally:
        await pool.close()


def _image_job(upload: Upload, options: Mapping[str, str]) -> Header:
    return {"kind": "image", "name": upload.name, **options}


def _status(replies: list[Message]) -> int:
    """200 if at least one image was decided, else the worst of 422 and 500."""
    found = {reply["status"] for reply, _ in replies}
    return 200 if 200 in found else max(found)


async def _all(jobs: list[Job]) -> None:
    await asyncio.wait([job.answer for job in jobs], return_when=asyncio.FIRST_EXCEPTION)


async def _gone(request: Request) -> None:
    """Wait until the client closes the connection; the body has been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _refuse(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    return refusal(request.url.path, error)


async def _refuse_http(request: Request, error: Exception) -> Response:
    """Starlette's own errors: no such route, no such method."""
    assert isinstance(error, HTTPException)
    response = refusal(request.url.path, RequestError(error.status_code, f"{error.detail}; see /openapi.json"))
    response.headers.update(error.headers or {})
    return response


async def _forget(request: Request, error: Exception) -> Response:
    return Response(status_code=499)


async def _apologise(request: Request, error: Exception) -> Response:
    return refusal(request.url.path, RequestError(500, "this is a defect of cxr-edge; please report the log"))
