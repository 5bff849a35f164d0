"""The page on decoding with drafts and what it asks the server for.

`POST /api/decode/run` answers with server-sent events (`event:` and `data:` lines, the data one JSON object): queued,
then those of `dlopt.apps.decoder`, or error at any place. POST, since a prompt is too long for an address; so the page
reads them with `fetch`. A reader who leaves ends the work before its next token.
"""

from __future__ import annotations

import json
import secrets
from typing import Any

from fastapi import APIRouter
from fastapi.concurrency import run_in_threadpool
from pydantic import BaseModel, ConfigDict, Field

from dlopt.apps.decoder import Ask, Cancelled, Decoder, offers
from dlopt.apps.poem import NotReady
from dlopt.apps.stream import Pieces
from dlopt.apps.worker import Worker

PAGE = ("/decode", "投机解码", "同一段提示，先逐词解码，再带草稿解码：哪些词元是草稿猜中的，哪些由模型改正，快了多少。")
LONGEST = 8_000  # characters of a prompt or a reference
TOKENS, LENGTH, HOTTEST = (2, 256), (1, 64), 1.5

# in English, the language of the default model
LETTER = (
    "Last sumemr my sister and I travlled to a small village in the mountians. Every morning we walked to the baker, "
    "who alwyas gave us a warm loaf of bread. In the evenings we sat by the river and lisened to the old fishermen "
    "tell stories about the winter when the whole valley was covered in snow."
)
FUNCTION = (
    "def average(values):\n    total = 0\n    count = 0\n    for value in values:\n        total += value\n"
    "        count += 1\n    if count == 0:\n        return 0\n    return total / count"
)
EXAMPLES = [
    {
        "title": "改错字",
        "prompt": f"Correct the spelling mistakes in this text. Answer with the corrected text only.\n\n{LETTER}",
        "reference": LETTER,
    },
    {
        "title": "改代码",
        "prompt": f"Rename the variable total to result in this function. Print the whole function.\n\n{FUNCTION}",
        "reference": FUNCTION,
    },
    {"title": "闲聊", "prompt": "Explain in a few sentences why the sky is blue.", "reference": ""},
]


class Asking(BaseModel):
    """What a request says: see `dlopt.apps.decoder.Ask`. seed: None draws one."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)
    prompt: str = Field(default="", max_length=LONGEST)
    drafter: str = Field(default="prompt-lookup", max_length=40)
    reference: str = Field(default="", max_length=LONGEST)
    gate: bool = True
    temperature: float = Field(default=0, ge=0, le=HOTTEST)
    top_p: float = Field(default=1, gt=0, le=1)
    seed: int | None = Field(default=None, ge=0, lt=2**31)
    length: int = Field(default=10, ge=LENGTH[0], le=LENGTH[1])
    tokens: int = Field(default=96, ge=TOKENS[0], le=TOKENS[1])


def router(decoder: Decoder, worker: Worker) -> APIRouter:
    """The routes."""
    routes = APIRouter(prefix="/api/decode")

    @routes.get("/about")
    def about() -> dict[str, Any]:  # not async: it may have to look at files
        return {
            "missing": decoder.missing(),
            "model": decoder.card(),
            "drafters": offers(),
            "examples": EXAMPLES,
            "bounds": {"characters": LONGEST, "tokens": TOKENS, "length": LENGTH, "temperature": HOTTEST},
        }

    @routes.post("/run")
    async def run(body: Asking) -> Pieces:
        seed = secrets.randbelow(2**31) if body.seed is None else body.seed
        ask = Ask(**{**body.model_dump(), "seed": seed})
        if missing := await run_in_threadpool(decoder.missing):
            raise NotReady(missing)
        ahead = worker.ahead
        job = worker.submit(lambda job: decoder.run(ask, job.tell, job.cancelled.is_set))
        return Pieces({"type": "queued", "ahead": ahead}, job, _event, Cancelled, "解码", "text/event-stream")

    return routes


def _event(event: dict[str, Any]) -> str:
    body = {key: value for key, value in event.items() if key != "type"}
    return f"event: {event['type']}\ndata: {json.dumps(body, ensure_ascii=False)}\n\n"
