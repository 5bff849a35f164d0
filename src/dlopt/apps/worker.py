"""One thread that does the heavy work of all requests in turn, with a bound on how many may wait."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import sys
import threading
import traceback
from collections.abc import AsyncIterator, Callable
from typing import Any

WAITING = 64
_END = object()


class Busy(RuntimeError):
    """So many jobs wait already that no other is taken."""


class Job:
    """One piece of work. The thread calls `tell`, the request reads `results`; `cancelled` says that it left."""

    def __init__(self, work: Callable[[Job], None], loop: asyncio.AbstractEventLoop) -> None:
        self.work, self._loop = work, loop
        self._events: asyncio.Queue[Any] = asyncio.Queue()
        self.cancelled = threading.Event()

    def tell(self, event: Any) -> None:
        """Hand a result to the request; for the thread."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: the server stops
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    def run(self) -> None:
        """Do the work; what it raises becomes its last result."""
        try:
            if not self.cancelled.is_set():
                self.work(self)
        except Exception as error:
            self.tell(error)
        finally:
            self.tell(_END)

    async def results(self) -> AsyncIterator[Any]:
        """What the work tells, in order. An exception of the work is raised. Leaving early cancels the job."""
        try:
            while (event := await self._events.get()) is not _END:
                if isinstance(event, Exception):
                    raise event
                yield event
        finally:
            self.cancelled.set()


class Worker:
    """The thread. waiting: jobs that may stand in line behind the one at work, at least 1."""

    def __init__(self, waiting: int = WAITING) -> None:
        if waiting < 1:
            raise ValueError(f"waiting must be at least 1, got {waiting}")
        self._jobs: queue.Queue[Job | None] = queue.Queue(waiting)
        self._thread = threading.Thread(target=self._run, name="dlopt-worker", daemon=True)
        self._thread.start()

    @property
    def ahead(self) -> int:
        """About how many jobs wait."""
        return self._jobs.qsize()

    def submit(self, work: Callable[[Job], None]) -> Job:
        """Put work in line; call it from the event loop. `Busy` if the line is full."""
        job = Job(work, asyncio.get_running_loop())
        try:
            self._jobs.put_nowait(job)
        except queue.Full:
            raise Busy(f"{self._jobs.maxsize} requests wait already") from None
        return job

    async def ask(self, work: Callable[[], Any]) -> Any:
        """The value of one call, done in turn."""
        (found,) = [found async for found in self.submit(lambda job: job.tell(work())).results()]
        return found

    def close(self) -> None:
        """Refuse what still waits, and end the thread after the job at work."""
        while True:
            try:
                job = self._jobs.get_nowait()
            except queue.Empty:
                break
            if job is not None:
                job.cancelled.set()
                job.run()
        self._jobs.put(None)
        self._thread.join(timeout=10)

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                job.run()
            except BaseException:  # the thread must live, whatever a job does
                traceback.print_exc(file=sys.stderr)
