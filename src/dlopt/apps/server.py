"""The server behind `dlopt app`: pages, their requests, and the bounds on what may be asked.

It listens on this machine only unless told otherwise, asks no other host for anything, executes nothing that it is
sent, and answers every error with {"error": a sentence in Chinese}; only a Host header that is not its own name, and
bytes that are not HTTP, get a plain line in English from the framework.
"""

from __future__ import annotations

import base64
import hashlib
import html
import re
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import asynccontextmanager
from importlib.resources import files
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware

from dlopt.apps import decode, glyphs, poem
from dlopt.apps.decoder import Decoder
from dlopt.apps.worker import WAITING, Busy, Stopped, Worker
from dlopt.poetry.assistant import Assistant
from dlopt.poetry.wish import Refused

BODY = 65_536  # bytes of a request
LOCAL = ("127.0.0.1", "localhost", "::1")
PAGES = (poem.PAGE, decode.PAGE)
STATUS = {
    404: "没有这个页面",
    405: "这个地址不接受这种请求",
    400: "请求读不懂：应为 JSON",
    413: f"请求太大：最多{BODY}字节",
}

Message = MutableMapping[str, Any]


def create(
    assistant: Assistant | None,
    *,
    missing: str = "",
    decoder: Decoder | None = None,
    hosts: tuple[str, ...] = LOCAL,
    waiting: int = WAITING,
) -> FastAPI:
    """The application. missing: why there is no assistant. decoder: None takes the default pretrained model, if it is
    here when somebody asks. hosts: names that a browser may know this server by."""
    worker = Worker(waiting)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        worker.close()

    app = FastAPI(title="dlopt", docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)
    app.state.worker = worker
    app.include_router(poem.router(assistant, missing, worker))
    app.include_router(decode.router(decoder or Decoder(), worker))
    app.include_router(glyphs.router)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=[_bracketed(h) for h in hosts])
    app.add_middleware(Bounded)  # the last added is the outermost
    index = _page("index").replace("<!-- pages -->", "\n".join(map(_entry, PAGES)))
    for path, text in (("/", index), *((path, _page(path[1:])) for path, _, _ in PAGES)):
        app.add_api_route(path, _answer(text), methods=["GET"], response_class=HTMLResponse)
    app.add_api_route("/favicon.ico", lambda: Response(status_code=204), methods=["GET"])

    app.exception_handler(Refused)(lambda request, error: poem.refused(error, 422))
    app.exception_handler(poem.NotReady)(lambda request, error: poem.refused(error, 503))
    app.exception_handler(Stopped)(lambda request, error: _error(503, "服务正在停止，请稍后再试"))
    app.exception_handler(Busy)(lambda request, error: _error(503, f"请求太多，已有{waiting}个在排队，请稍后再试"))
    app.exception_handler(RequestValidationError)(lambda request, error: _error(422, _invalid(error)))

    @app.exception_handler(HTTPException)
    async def other(request: Request, error: HTTPException) -> JSONResponse:
        return _error(error.status_code, STATUS.get(error.status_code, str(error.detail)))

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> JSONResponse:
        answer = _error(500, f"服务器内部出错（{type(error).__name__}），请再试一次")
        answer.raw_headers.extend(GUARDS)  # it is made outside of `Bounded`
        return answer

    return app


def serve(app: FastAPI, host: str, port: int) -> None:
    """Serve until interrupted. OSError if the address is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(128)
        where = f"http://{_bracketed(host)}:{listener.getsockname()[1]}/"
        print(f"dlopt: serving {where} (Ctrl+C ends it)", file=sys.stderr, flush=True)
        config = uvicorn.Config(
            app, log_level="warning", timeout_keep_alive=15, limit_concurrency=512, timeout_graceful_shutdown=3
        )
        uvicorn.Server(config).run(sockets=[listener])


class Bounded:
    """Refuses bodies over `BODY` bytes, however they come, and adds headers that keep a page to itself."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Message, receive: Callable[[], Awaitable[Message]], send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = message.get("headers", [])
                names = {name.lower() for name, _ in own}
                message["headers"] = [*own, *((name, value) for name, value in GUARDS if name not in names)]
            await send(message)

        stated = dict(scope["headers"]).get(b"content-length", b"0")
        if not stated.isdigit() or int(stated) > BODY:
            await _error(413, STATUS[413])(scope, receive, guarded)
            return
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] != "http.request":
                return  # the client has gone
            body, more = body + message.get("body", b""), message.get("more_body", False)
            if len(body) > BODY:
                await _error(413, STATUS[413])(scope, receive, guarded)
                return
        given = False

        async def replay() -> Message:
            nonlocal given
            if given:
                return await receive()  # waits for the client to leave
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self.app(scope, replay, guarded)


GUARDS = [
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
]


def _error(status: int, sentence: str) -> JSONResponse:
    return poem.refused(RuntimeError(sentence), status)


def _invalid(error: RequestValidationError) -> str:
    """The first thing that is wrong with a request, by the field's name."""
    first = error.errors()[0]
    where = [str(part) for part in first["loc"] if part != "body"]
    if first["type"] in ("json_invalid", "model_attributes_type", "missing") and len(where) < 2 and not where[:1]:
        return "请求读不懂：应为一个 JSON 对象"
    if first["type"] == "json_invalid":
        return "请求读不懂：不是合法的 JSON"
    about = {"string_too_long": "太长", "too_long": "太多", "extra_forbidden": "是多余的项", "missing": "缺少"}
    name = re.sub(r"[^A-Za-z_0-9.]", "", ".".join(where))[:40]
    return f"请求中的「{name}」{about.get(first['type'], '不在允许的范围内')}"


def _answer(text: str) -> Callable[[], Awaitable[HTMLResponse]]:
    headers = {"Content-Security-Policy": _policy(text)}

    async def answer() -> HTMLResponse:
        return HTMLResponse(text, headers=headers)

    return answer


def _policy(text: str) -> str:
    """Nothing but what stands in the page itself, and requests to this server."""
    script, style = (" ".join(_hashes(text, tag)) or "'none'" for tag in ("script", "style"))
    return (
        f"default-src 'none'; script-src {script}; style-src {style}; connect-src 'self'; font-src 'self'; "
        "img-src 'self' data: blob:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def _hashes(text: str, tag: str) -> list[str]:
    bodies = re.findall(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
    return [f"'sha256-{base64.b64encode(hashlib.sha256(b.encode()).digest()).decode()}'" for b in bodies]


def _page(name: str) -> str:
    return files("dlopt.apps").joinpath("pages", f"{name}.html").read_text(encoding="utf-8")


def _entry(page: tuple[str, str, str]) -> str:
    path, title, about = map(html.escape, page)
    return f'<li><a href="{path}"><b>{title}</b><span>{about}</span></a></li>'


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
