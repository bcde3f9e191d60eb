"""The pool of workers and its bounded queue."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cxr_edge.runtime.errors import EngineError
from cxr_edge.serve import logs
from cxr_edge.serve.channel import Header, Message
from cxr_edge.serve.errors import RequestError
from cxr_edge.serve.process import Job, Link, Process
from cxr_edge.serve.settings import Limits, ModelChoice

#: Seconds that a worker may take to load its model; the first start of a TensorRT plan takes longest.
LOADING_SECONDS = 120.0
#: Longest pause (seconds) before a worker that could not start is started again.
LONGEST_PAUSE = 30.0
#: Weight of the last job in the mean time of jobs.
FORGETTING = 0.05


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
        self.lost = 0
        self._choice, self._limits = choice.to_dict(), limits
        self._processes: list[Process] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._links: set[Link] = set()
        self._idle: deque[Link] = deque()
        self._jobs: deque[Job] = deque()

    def launch(self) -> None:
        """Start the processes."""
        self._processes = [Process(self._choice) for _ in range(self._limits.workers)]

    def run(self, on_ready: Callable[[], None], on_failure: Callable[[], None]) -> None:
        """Start to work; `on_ready` is called once, and `on_failure` if the model cannot be loaded."""
        self._on_ready, self._on_failure = on_ready, on_failure
        self._tasks = [asyncio.ensure_future(self._keep(process)) for process in self._processes]

    async def close(self) -> None:
        """End all processes; jobs that are left fail."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def ready(self) -> int:
        """Workers that have loaded and checked the model."""
        return len(self._links)

    @property
    def waiting(self) -> int:
        """Jobs that no worker has begun."""
        return len(self._jobs)

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
        self._jobs.extend(queued)
        self._feed()
        return queued

    def drop(self, jobs: Sequence[Job]) -> None:
        """Forget jobs for whose answers nobody waits any more; those that have begun are finished."""
        for job in jobs:
            job.drop()
            if not job.started:
                self._jobs.remove(job)

    def _feed(self) -> None:
        """Give the waiting jobs to the idle workers."""
        while self._jobs and self._idle:
            self._idle.popleft().start(self._jobs.popleft(), self._limits.timeout)

    def _is_idle(self, link: Link, message: Message) -> None:
        """Take the answer of a worker into account, and give it the next job."""
        reply, _ = message
        self.seconds += FORGETTING * (reply["seconds"] - self.seconds)
        if "traceback" in reply:
            logs.warn("defect in a worker", **reply)
        self._idle.append(link)
        self._feed()

    async def _keep(self, process: Process) -> None:
        """Work with one process; replace it when it ends."""
        pause = 0.0
        while True:
            link = await Link.open(process, self._is_idle)
            try:
                pause = 0.0 if await self._greet(link) else min(LONGEST_PAUSE, pause * 2 or 0.1)
                if not pause:
                    await self._work(link)
            finally:
                link.close()
                code = process.end()
            self.lost += 1
            logs.warn("worker lost", exit_code=code, pause_seconds=pause)
            await asyncio.sleep(pause)
            process = Process(self._choice)

    async def _work(self, link: Link) -> None:
        """Let a worker take jobs until it ends."""
        self._links.add(link)
        self._idle.append(link)
        self._feed()
        try:
            await link.lost
        finally:
            self._links.remove(link)
            if link in self._idle:
                self._idle.remove(link)

    async def _greet(self, link: Link) -> bool:
        """Wait until the model is loaded and checked; return False if it cannot be."""
        await asyncio.wait((link.greeting, link.lost), timeout=LOADING_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        if not link.greeting.done():
            return False
        greeting, _ = link.greeting.result()
        if "model" not in greeting:
            self._fail(greeting)
            return False
        if self.model is None:
            self.model = greeting["model"]
            for warning in greeting["warnings"]:
                logs.warn("model warning", message=warning)
            self._on_ready()
        return True

    def _fail(self, greeting: Mapping[str, Any]) -> None:
        logs.warn("worker cannot start", **greeting)
        if self.model is None:
            self.failure = greeting["error"]["message"]
            self._on_failure()


def raise_failure(pool: Pool) -> None:
    """Raise EngineError if the model could not be loaded."""
    if pool.failure:
        raise EngineError(pool.failure)
