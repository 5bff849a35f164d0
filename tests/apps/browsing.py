"""A headless browser, and one visit of the page with all that it asked for and all that went wrong."""

import os
import shutil
from pathlib import Path

import pytest

from dlopt.lab import fonts

FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
         "--disable-sync", "--no-first-run"]  # fmt: skip
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
TIMEOUT = 60_000  # milliseconds: a bound for a busy machine, not a speed that is asked for
POEM = ("/poem", "() => document.querySelectorAll('#rhyme option').length === 31")  # a page, and when it is ready
SHOTS = os.environ.get("DLOPT_SCREENSHOTS")  # a folder to look at


@pytest.fixture(scope="module")  # an open browser holds the event loop of this thread
def browser(tmp_path_factory):
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip(f"none of {', '.join(BROWSERS)} is installed")
    sync_api = pytest.importorskip("playwright.sync_api")
    folder = tmp_path_factory.mktemp("fonts")
    config = folder / "fonts.conf"  # the Chinese fonts of the reports, where the system has none
    places = f"<dir>{fonts.find(fonts.SERIF).parent}</dir><dir>/usr/share/fonts</dir><cachedir>{folder}</cachedir>"
    config.write_text(f"<fontconfig>{places}</fontconfig>")
    with sync_api.sync_playwright() as playwright:
        found = playwright.chromium.launch(
            executable_path=program, args=FLAGS, env={**os.environ, "FONTCONFIG_FILE": str(config)}
        )
        yield found
        found.close()


class Visit:
    """One page, with all that went wrong on it and all that it asked for."""

    def __init__(self, context, url, where=POEM):
        self.wrong, self.asked = [], []
        self.page = context.new_page()
        self.page.set_default_timeout(TIMEOUT)
        self.page.on("console", lambda message: self._hear(message.type, message.text))
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(url + where[0])
        self.page.wait_for_function(where[1])

    def _hear(self, kind, text):
        if kind in ("error", "warning") and "status of 4" not in text:
            self.wrong.append(text)

    def poems(self, count=1):
        """The texts of all cards, once so many are whole."""
        self.page.wait_for_function(
            "n => document.querySelector('#poems').getAttribute('aria-busy') === 'false'"
            " && document.querySelectorAll('.rules:not([hidden])').length === n",
            arg=count,
        )
        script = "card => [...card.querySelectorAll('.char')].map(c => c.firstChild.data).join('')"
        return [card.evaluate(script) for card in self.page.query_selector_all("article")]

    def shot(self, name):
        if SHOTS:
            Path(SHOTS).mkdir(parents=True, exist_ok=True)
            self.page.wait_for_timeout(700)  # the ink dries
            self.page.screenshot(path=f"{SHOTS}/{name}.png", full_page=True)


@pytest.fixture
def visit(browser, running):
    opened = []

    def go(where=POEM, **settings):
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, "locale": "zh-CN", **settings})
        opened.append((context, Visit(context, running.url, where)))
        return opened[-1][1]

    yield go
    for context, one in opened:
        foreign = [url for url in one.asked if not url.startswith((running.url, "blob:", "data:"))]
        context.close()
        assert one.wrong == []
        assert foreign == []
