"""One thread that does the heavy work of all requests in turn, with a bound on how many may wait."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
import traceback
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Any

WAITING = 64
_END = object()


class Busy(RuntimeError):
    """So many jobs wait already that no other is taken."""


class Stopped(Busy):
    """The worker ended, or the job was cancelled, before the work was done."""


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
        self._most, self._jobs, self._closed = waiting, deque[Job](), False
        self._changed = threading.Condition()  # guards the line and `_closed`
        self._thread = threading.Thread(target=self._run, name="dlopt-worker", daemon=True)
        self._thread.start()

    @property
    def ahead(self) -> int:
        """How many jobs wait that were not cancelled."""
        with self._changed:
            return sum(not job.cancelled.is_set() for job in self._jobs)

    def submit(self, work: Callable[[Job], None]) -> Job:
        """Put work in line; call it from the event loop. `Busy` if the line is full, `Stopped` after `close`."""
        job = Job(work, asyncio.get_running_loop())
        with self._changed:
            if self._closed:
                raise Stopped("the worker has ended")
            for left in [job for job in self._jobs if job.cancelled.is_set()]:
                self._jobs.remove(left)  # whose reader has gone takes no place in the line
                left.run()  # does nothing but end its results
            if len(self._jobs) >= self._most:
                raise Busy(f"{self._most} requests wait already")
            self._jobs.append(job)
            self._changed.notify()
        return job

    async def ask(self, work: Callable[[], Any]) -> Any:
        """The value of one call, done in turn. `Stopped` if the worker is closed before its turn."""
        found = [found async for found in self.submit(lambda job: job.tell(work())).results()]
        if not found:
            raise Stopped("the worker ended before the work was done")
        return found[0]

    def close(self) -> None:
        """Refuse what still waits, and end the thread after the job at work."""
        with self._changed:
            self._closed = True
            while self._jobs:
                job = self._jobs.popleft()
                job.cancelled.set()
                job.run()
            self._changed.notify()
        self._thread.join(timeout=10)

    def _next(self) -> Job | None:
        with self._changed:
            self._changed.wait_for(lambda: self._jobs or self._closed)
            return self._jobs.popleft() if self._jobs else None

    def _run(self) -> None:
        while (job := self._next()) is not None:
            try:
                job.run()
            except BaseException:  # the thread must live, whatever a job does
                traceback.print_exc(file=sys.stderr)
