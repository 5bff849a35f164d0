"""A server on a free port with a tiny model, and a browser."""

import asyncio
import socket
import threading
import time

import httpx
import pytest
import uvicorn

from dlopt.apps import server
from dlopt.poetry.assistant import Assistant
from tests.apps.browsing import browser, visit  # noqa: F401 (fixtures)
from tests.poetry import tiny


class Slow(Assistant):
    """An assistant that can be held at its first character, so that a line of requests forms."""

    def __init__(self, checkpoint):
        super().__init__(checkpoint)
        self.gate = threading.Event()
        self.gate.set()

        self.finished = 0
        self.stopped = lambda: False

    def write(self, *args, **settings):
        self.stopped = settings["stopped"]
        self.gate.wait(60)
        found = super().write(*args, **settings)
        self.finished += 1
        return found


class Running:
    """A server in a thread of its own. stop() must end it without an error."""

    def __init__(self, app):
        self.app = app
        self.socket = socket.socket()
        self.socket.bind(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}"
        config = uvicorn.Config(app, log_level="warning", ws="none", timeout_graceful_shutdown=2)
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()
        while not self.server.started:
            assert self.thread.is_alive()
            time.sleep(0.01)

    def _run(self):
        asyncio.run(self.server.serve(sockets=[self.socket]))

    def stop(self):
        self.server.should_exit = True
        self.thread.join(timeout=30)
        self.socket.close()
        assert not self.thread.is_alive()


@pytest.fixture(scope="session")
def assistant():
    return Slow(tiny.checkpoint())


@pytest.fixture(scope="session")
def running(assistant):
    found = Running(server.create(assistant, waiting=64))
    yield found
    found.stop()


@pytest.fixture(scope="module")
def held():
    from tests.apps.drafting import Held  # it imports transformers

    return Held()


@pytest.fixture
def client(running):
    with httpx.Client(base_url=running.url, timeout=120, trust_env=False) as found:
        yield found
