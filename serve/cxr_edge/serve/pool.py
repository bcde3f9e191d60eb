"""The pool of workers and its bounded queue."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cxr_edge.runtime.errors import EngineError
from cxr_edge.serve import logs
from cxr_edge.serve.channel import Header, Message
from cxr_edge.serve.errors import RequestError
from cxr_edge.serve.process import Link, Process, WorkerLostError
from cxr_edge.serve.settings import Limits, ModelChoice

#: Seconds that a worker may take to load its model; the first start of a TensorRT plan takes longest.
LOADING_SECONDS = 120.0
#: Longest pause (seconds) before a worker that could not start is started again.
LONGEST_PAUSE = 30.0
#: Weight of the last job in the mean time of jobs.
FORGETTING = 0.05


@dataclass(eq=False)
class Job:
    """One image, or one infer request, and its answer."""

    header: Header
    body: bytes
    started: bool = False
    answer: asyncio.Future[Message] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    def drop(self) -> None:
        """Nobody waits for the answer any more: a job that has not begun is skipped."""
        if not self.answer.cancel() and not self.answer.cancelled():
            self.answer.exception()  # else asyncio warns that nobody looked at it


class Pool:
    """Keeps the workers running and gives each its next job.

    `launch` starts the processes, so that they load while the service imports its modules; `run` starts the rest.

    Attributes
    ----------
    model
        Description of the model; None until the first worker is ready.
    failure
        Why no worker could start; None as long as one could.
    seconds
        Mean time of a job in its worker.
    """

    def __init__(self, choice: ModelChoice, limits: Limits) -> None:
        self.model: dict[str, Any] | None = None
        self.failure: str | None = None
        self.seconds = 0.05
        self.ready = self.waiting = self.lost = 0
        self._choice, self._limits = choice.to_dict(), limits
        self._processes: list[Process] = []
        self._tasks: list[asyncio.Task[None]] = []

    def launch(self) -> None:
        """Start the processes."""
        self._processes = [Process(self._choice) for _ in range(self._limits.workers)]

    def run(self, on_ready: Callable[[], None], on_failure: Callable[[], None]) -> None:
        """Start to work; `on_ready` is called once, and `on_failure` if the model cannot be loaded."""
        self._jobs: asyncio.Queue[Job] = asyncio.Queue()
        self._on_ready, self._on_failure = on_ready, on_failure
        self._tasks = [asyncio.ensure_future(self._keep(process)) for process in self._processes]

    async def close(self) -> None:
        """End all processes; jobs that are left fail."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def retry_after(self) -> int:
        """Seconds until the queue that waits now is done, at least 1."""
        return max(1, math.ceil(self.waiting * self.seconds / self._limits.workers))

    def check_room(self, count: int = 1) -> None:
        """Refuse work that could not be queued.

        Raises
        ------
        RequestError
            503, if no worker is ready or fewer than `count` places are free.
        """
        if not self.ready:
            raise RequestError(503, "the model is not loaded yet; try again", self.retry_after)
        if self.waiting + count > self._limits.queue:
            raise RequestError(503, f"{self.waiting} images wait already; try again later", self.retry_after)

    def submit(self, jobs: Sequence[tuple[Header, bytes]]) -> list[Job]:
        """Queue all jobs or none; raises like `check_room`."""
        self.check_room(len(jobs))
        queued = [Job(header, body) for header, body in jobs]
        for job in queued:
            self._jobs.put_nowait(job)
        self.waiting += len(queued)
        return queued

    async def _keep(self, process: Process) -> None:
        """Work with one process; replace it when it ends."""
        pause = 0.0
        while True:
            link = await Link.open(process)
            try:
                await self._greet(link)
                pause = 0.0
                await self._work(link)
            except WorkerLostError:
                pause = min(LONGEST_PAUSE, pause * 2 or 0.1)
            finally:
                link.close()
                code = process.end()
            self.lost += 1
            logs.warn("worker lost", exit_code=code, pause_seconds=pause)
            await asyncio.sleep(pause)
            process = Process(self._choice)

    async def _greet(self, link: Link) -> None:
        """Wait until the model is loaded and checked; raises WorkerLostError if it cannot be."""
        try:
            greeting, _ = await asyncio.wait_for(link.greeting(), LOADING_SECONDS)
        except asyncio.TimeoutError as error:
            raise WorkerLostError from error
        if "model" not in greeting:
            self._fail(greeting)
            raise WorkerLostError
        if self.model is None:
            self.model = greeting["model"]
            for warning in greeting["warnings"]:
                logs.warn("model warning", message=warning)
            self._on_ready()

    def _fail(self, greeting: Mapping[str, Any]) -> None:
        logs.warn("worker cannot start", **greeting)
        if self.model is None:
            self.failure = greeting["error"]["message"]
            self._on_failure()

    async def _work(self, link: Link) -> None:
        """Give a worker one job after another until it ends, with WorkerLostError."""
        self.ready += 1
        try:
            while True:
                await self._do(link, await self._next_job(link))
        finally:
            self.ready -= 1

    async def _next_job(self, link: Link) -> Job:
        """Wait for a job that is still wanted; raises WorkerLostError if the worker ends before."""
        while True:
            getter = asyncio.ensure_future(self._jobs.get())
            try:
                await asyncio.wait((getter, link.lost), return_when=asyncio.FIRST_COMPLETED)
            finally:
                if not getter.done():
                    getter.cancel()
            if not getter.done():
                raise WorkerLostError
            job = getter.result()
            self.waiting -= 1
            if not job.answer.done():
                return job

    async def _do(self, link: Link, job: Job) -> None:
        job.started = True
        try:
            reply = await asyncio.wait_for(link.ask(job.header, job.body), self._limits.timeout)
        except asyncio.TimeoutError as error:
            self._answer(job, RequestError(504, f"the image took more than {self._limits.timeout:g} s"))
            raise WorkerLostError from error
        except WorkerLostError:
            self._answer(job, RequestError(503, "the worker ended while it read this image; try again", 1))
            raise
        except asyncio.CancelledError:
            self._answer(job, RequestError(503, "the service is stopping; try again", self.retry_after))
            raise
        self.seconds += FORGETTING * (reply[0]["seconds"] - self.seconds)
        if "traceback" in reply[0]:
            logs.warn("defect in a worker", **reply[0])
        if not job.answer.done():
            job.answer.set_result(reply)

    @staticmethod
    def _answer(job: Job, error: RequestError) -> None:
        if not job.answer.done():
            job.answer.set_exception(error)


def raise_failure(pool: Pool) -> None:
    """Raise EngineError if the model could not be loaded."""
    if pool.failure:
        raise EngineError(pool.failure)
