"""Chinese characters on machines without a Chinese font: the server's own font, and only there."""

import os
import shutil
from pathlib import Path

import pytest

from dlopt.apps import glyphs
from dlopt.lab import fonts
from tests.apps.browsing import BROWSERS, FLAGS, SHOTS, TIMEOUT

LOADED = "() => [...document.fonts].filter(f => f.family.includes('dlopt glyphs')).map(f => f.status)"


def test_the_font_is_served_whole_and_may_be_kept(client):
    found = client.get(glyphs.PATH)
    assert found.content == fonts.find(fonts.SANS).read_bytes()
    assert (found.headers["content-type"], found.headers["cache-control"]) == ("font/otf", "max-age=86400")
    for path in ("/", "/poem"):
        page = client.get(path)
        assert f'url("{glyphs.PATH}")' in page.text
        assert "font-src 'self'" in page.headers["content-security-policy"]
        assert page.headers.get_list("cache-control") == ["no-store"]


@pytest.mark.parametrize("case", ["none", "collection"])
def test_without_a_font_there_is_a_sentence(client, monkeypatch, case):
    def find(family):
        if case == "none":
            raise fonts.FontUnavailable("nothing")
        return Path("/usr/share/fonts/NotoSansCJK-Regular.ttc")

    monkeypatch.setattr(fonts, "find", find)
    answer = client.get(glyphs.PATH)
    assert (answer.status_code, answer.json()["error"]) == (404, "没有这个页面")


@pytest.mark.browser
@pytest.mark.parametrize("chinese", [False, True])
def test_a_browser_takes_it_only_where_it_has_none(running, tmp_path, chinese):
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip(f"none of {', '.join(BROWSERS)} is installed")
    sync_api = pytest.importorskip("playwright.sync_api")
    folder = tmp_path / "fonts"
    folder.mkdir()
    if chinese:
        fonts.link(folder)
    latin = Path(__import__("matplotlib").get_data_path()) / "fonts" / "ttf"
    (tmp_path / "fonts.conf").write_text(
        f"<fontconfig><dir>{folder}</dir><dir>{latin}</dir><cachedir>{tmp_path}</cachedir></fontconfig>"
    )
    asked = []
    with sync_api.sync_playwright() as playwright:
        environment = {**os.environ, "FONTCONFIG_FILE": str(tmp_path / "fonts.conf")}
        found = playwright.chromium.launch(executable_path=program, args=FLAGS, env=environment)
        page = found.new_page(locale="zh-CN")
        page.set_default_timeout(TIMEOUT)
        page.on("request", lambda request: asked.append(request.url))
        page.goto(running.url + "/poem")
        page.wait_for_function("() => document.querySelectorAll('#rhyme option').length === 31")
        page.evaluate("() => document.fonts.ready.then(() => true)")
        status = page.evaluate(LOADED)
        anew = page.evaluate("() => document.documentElement.classList.contains('glyphs')")
        if SHOTS:
            page.wait_for_timeout(500)  # drawn anew
            page.screenshot(path=f"{SHOTS}/glyphs-{chinese}.png")
        found.close()
    assert (running.url + glyphs.PATH in asked) == (not chinese)
    assert status == (["unloaded"] if chinese else ["loaded"])
    assert anew == (not chinese)
