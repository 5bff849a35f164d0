"""An answer in pieces: whoever leaves, and whenever, nobody works for them any more."""

import asyncio
import json

import pytest

from dlopt.apps.stream import Pieces
from dlopt.apps.worker import Worker


class Left(Exception):
    """What the work raises once nobody reads."""


@pytest.mark.parametrize("pieces", [0, 1, 3])
def test_the_job_is_cancelled_however_early_the_reader_leaves(pieces):
    """pieces: how many the reader takes; 0 is gone before the answer begins."""

    async def use():
        worker = Worker()
        job = worker.submit(lambda job: [job.tell({"n": n}) for n in range(2)] and job.cancelled.wait(30))
        answer = Pieces({"type": "start"}, job, lambda event: json.dumps(event), Left, "试", "text/plain")
        enough, sent = asyncio.Event(), []
        if not pieces:
            enough.set()

        async def receive():
            await enough.wait()
            return {"type": "http.disconnect"}

        async def send(message):
            sent.append(message)
            if len(sent) == pieces + 1:  # the first message has the status
                enough.set()
            if enough.is_set():
                await asyncio.sleep(30)  # nobody takes it

        await answer({"type": "http", "method": "POST", "path": "/", "headers": []}, receive, send)
        assert job.cancelled.is_set()
        assert len(sent) <= pieces + 1
        worker.close()

    asyncio.run(asyncio.wait_for(use(), 20))
