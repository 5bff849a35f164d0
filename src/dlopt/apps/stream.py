"""An answer that comes in pieces: what a job tells, one event after the other, or an error in the middle."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from dlopt.apps.worker import Job
from dlopt.poetry.wish import Refused


class Pieces(StreamingResponse):
    """The head, then the job's events, each as `written` writes it. A reader who leaves cancels the job, also one who
    leaves before the answer begins, of whom the generator below never hears.

    cancelled: what the work raises once nobody reads. doing: in Chinese, what was being done where it fails; the answer
    has begun by then, so its status cannot say it any more and an event of type "error" does.
    """

    def __init__(
        self,
        head: dict[str, Any],
        job: Job,
        written: Callable[[dict[str, Any]], str],
        cancelled: type[Exception],
        doing: str,
        media_type: str,
    ) -> None:
        super().__init__(_pieces(head, job, written, cancelled, doing), media_type=media_type)
        self._job = job

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._job.cancelled.set()


async def _pieces(
    head: dict[str, Any], job: Job, written: Callable[[dict[str, Any]], str], cancelled: type[Exception], doing: str
) -> AsyncIterator[str]:
    try:
        yield written(head)
        async for event in job.results():
            yield written(event)
    except Refused as error:
        yield written({"type": "error", "error": str(error)})
    except cancelled:
        return
    except Exception as error:
        yield written({"type": "error", "error": f"{doing}时出错（{type(error).__name__}），请再试一次"})
        raise
