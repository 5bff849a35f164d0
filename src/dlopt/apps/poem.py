"""The page of the poem assistant and what it asks the server for.

`POST /api/poem/write` answers with one JSON object a line, as the poems come about; all others with one object. What
cannot be served is {"error": sentence} with a status of 4xx, or 503 where the line of waiting requests is full.
"""

from __future__ import annotations

import base64
import json
import secrets
import time
from typing import Annotated, Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from dlopt.apps.stream import Pieces
from dlopt.apps.worker import Job, Worker
from dlopt.poetry.assistant import Assistant, Cancelled, Stroke, Wish
from dlopt.poetry.patterns import FORMS
from dlopt.poetry.rhymebook import level_groups
from dlopt.poetry.script import simplified
from dlopt.poetry.wish import KINDS, Asked

PAGE = ("/poem", "诗词助手", "写绝句、律诗、藏头诗、对联，或续下句：平仄与押韵由规则保证，字由小型 Transformer 选出。")
POEMS = 6  # of one request
Text = Field(default="", max_length=20_000)  # longer than what is served, so that the refusal can say what is wrong


class Asking(BaseModel):
    """What every request says: see `dlopt.poetry.wish.Wish`. source: lines as the model has them."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)
    kind: str = Field(default="绝句", max_length=20)
    text: str = Text
    title: str = Text
    length: int = Field(default=0, ge=0, le=7)
    rhyme: str | None = Field(default=None, max_length=20)
    script: str = Field(default="auto", max_length=20)

    def wish(self) -> Wish:
        """Without what a kind of request adds."""
        return Wish(self.kind, self.text, self.title, self.length, self.rhyme, self.script)


class Writing(Asking):
    """written: the first characters of a poem (as in its `source`), to go on from. seed: None draws one."""

    count: int = Field(default=1, ge=1, le=POEMS)
    temperature: float = Field(default=0.9, ge=0, le=2)
    top_p: float = Field(default=0.95, gt=0, le=1)
    best_of: int = Field(default=1, ge=1, le=4)
    seed: int | None = Field(default=None, ge=0, lt=2**31)
    written: str = Field(default="", max_length=100)


class Choosing(Asking):
    """written: what stands before the place that is asked about."""

    written: str = Field(default="", max_length=100)


class Looking(Asking):
    """source: the lines of a finished poem."""

    source: list[Annotated[str, Field(max_length=20)]] = Field(max_length=8)


def router(assistant: Assistant | None, missing: str, worker: Worker) -> APIRouter:
    """The routes. missing: why there is no assistant, said to whoever asks for it."""
    routes = APIRouter(prefix="/api/poem")

    def ready() -> Assistant:
        if assistant is None:
            raise NotReady(missing)
        return assistant

    @routes.get("/about")
    async def about() -> dict[str, Any]:
        if assistant is None:
            return {"missing": missing}
        card = assistant.card
        return {
            "kinds": KINDS,
            "forms": {f.name: [f.lines, f.length] for f in FORMS.values()},
            "rhymes": [[name, simplified(name)] for name in level_groups()],
            "poems": POEMS,
            "model": {
                "parameters": sum(p.numel() for p in assistant.model.parameters()),
                "layers": assistant.model.config.layers,
                "heads": assistant.model.config.heads,
                "characters": len(assistant.vocabulary.chars),
                "key": card.key,
                "licence": card.licence,
                "data": card.data,
                "figures": dict(card.figures),
            },
        }

    @routes.post("/write")
    async def write(body: Writing) -> Pieces:
        found = ready()
        asked = found.understand(body.wish())
        seed = secrets.randbelow(2**31) if body.seed is None else body.seed
        # before the job is in line: nothing may stand between that and its reader
        head = {"type": "start", "seed": seed, "count": body.count, "ahead": worker.ahead, **_form(asked)}
        job = worker.submit(lambda job: _write(job, found, asked, body, seed))
        return Pieces(head, job, _line, Cancelled, "写诗", "application/x-ndjson")

    @routes.post("/alternatives")
    async def alternatives(body: Choosing) -> Any:
        asked = ready().understand(body.wish())
        return {"alternatives": [vars(a) for a in await worker.ask(lambda: ready().alternatives(asked, body.written))]}

    @routes.post("/judge")
    async def judge(body: Looking) -> Any:
        asked = ready().understand(body.wish())
        return (await worker.ask(lambda: ready().judge(asked, body.source))).as_dict()

    @routes.post("/attention")
    async def attention(body: Looking) -> Any:
        asked = ready().understand(body.wish())
        tokens, maps = await worker.ask(lambda: ready().attention(asked, body.source))
        layers, heads = maps.shape[:2]
        scaled = (maps * 255).round().byte().numpy().tobytes()
        return {"tokens": tokens, "layers": layers, "heads": heads, "weights": base64.b64encode(scaled).decode()}

    return routes


class NotReady(RuntimeError):
    """There is no model to serve with. The message is a sentence in Chinese."""


def _form(asked: Asked) -> dict[str, Any]:
    form = FORMS[asked.request.form]
    return {"form": form.name, "lines": form.lines, "length": form.length}


def _write(job: Job, assistant: Assistant, asked: Asked, body: Writing, seed: int) -> None:
    began = time.perf_counter()

    def stroke(made: Stroke) -> None:
        job.tell({"type": "stroke", **vars(made)})

    poems = assistant.write(
        asked, count=body.count, temperature=body.temperature, top_p=body.top_p, best_of=body.best_of, seed=seed,
        written=body.written, stream=stroke, stopped=job.cancelled.is_set,
    )  # fmt: skip
    for number, poem in enumerate(poems):
        job.tell({"type": "poem", "poem": number, **poem.as_dict()})
    job.tell({"type": "end", "seconds": round(time.perf_counter() - began, 3)})


def _line(event: dict[str, Any]) -> str:
    return json.dumps(event, ensure_ascii=False) + "\n"


def refused(error: Exception, status: int) -> JSONResponse:
    """An error as every page gets it."""
    headers = {"Retry-After": "5"} if status == 503 else None
    return JSONResponse({"error": str(error)}, status_code=status, headers=headers)
