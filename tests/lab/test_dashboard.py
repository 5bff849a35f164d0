"""The dashboard: one file, no request, nothing in a record can become markup or script."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from fontTools.ttLib import TTFont

from dlopt.lab import dashboard
from dlopt.lab.report import ReportError
from tests.lab.made_up import record, records

HOSTILE = "</script><script>document.title='pwned'</script><img src=x onerror=\"document.title='pwned'\"><!--\u2028"


class Reader(HTMLParser):
    """Elements with their attributes, and the text of each script."""

    def __init__(self) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self.elements and self.elements[-1][0] == "script":
            self.scripts[-1] += data


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    some = [*records(), record(HOSTILE, note=HOSTILE)]
    return dashboard.page(some, tmp_path_factory.mktemp("page") / "dashboard.html")


@pytest.fixture(scope="module")
def read(page: Path) -> Reader:
    reader = Reader()
    reader.feed(page.read_text(encoding="utf-8"))
    return reader


def content(read: Reader) -> dict[str, Any]:
    return json.loads(read.scripts[0])


def test_the_page_loads_nothing(page: Path, read: Reader) -> None:
    for tag, attributes in read.elements:
        assert tag not in ("link", "iframe", "img", "object", "embed"), tag
        assert not {"src", "href", "srcset", "action", "onerror", "onload"} & set(attributes), tag
    (policy,) = (a["content"] for _, a in read.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert "default-src 'none'" in policy
    assert "http" not in policy
    text = page.read_text(encoding="utf-8")
    hosts = {host for host in re.findall(r"https?://([\w.-]+)", text)}  # noqa: C416
    assert hosts <= {"www.w3.org", "github.com", "vega.github.io"}  # namespaces, and names in Vega's messages
    assert "@import" not in text
    assert "url(http" not in text


def test_hostile_text_stays_text(page: Path, read: Reader) -> None:
    assert len(read.scripts) == 3  # data, Vega, the page's own
    assert [r for r in content(read)["runs"] if r["method"] == HOSTILE]
    own = read.scripts[2]
    assert "innerHTML" not in own
    assert "document.write" not in own
    raw = page.read_text(encoding="utf-8")
    assert "<script>document.title" not in raw
    assert "\u2028" not in raw.split("<script>")[0]


def test_every_run_is_there_with_its_curve(read: Reader) -> None:
    data = content(read)
    assert len(data["runs"]) == len(records()) + 1
    assert {r["status"] for r in data["runs"]} == {"done", "diverged"}
    first = data["runs"][0]
    assert first["params"] == ""  # nothing was set: see the next test
    assert first["curve"]["examples"][0] is None
    assert len(first["curve"]["val_loss"]) == 21
    assert data["labels"]["val_loss"] == "验证损失"
    assert data["labels"]["bytes.state"] == "优化器状态"
    assert {"step", "examples", "tokens", "forwards", "bytes_sent", "seconds"} == set(data["axes"])


def test_what_was_set_is_shown_and_its_characters_are_brought_along(tmp_path: Path) -> None:
    changed = record("adamw")
    changed.overrides.update(params={"lr": 0.25}, seed=3)
    text = dashboard.page([changed], tmp_path / "p.html").read_text(encoding="utf-8")
    reader = Reader()
    reader.feed(text)
    assert content(reader)["runs"][0]["params"] == "lr=0.25"
    font = re.search(r"url\(data:font/woff;base64,([^)]+)\)", text)
    assert font
    known = TTFont(io.BytesIO(base64.b64decode(font[1]))).getBestCmap()
    assert {ord(c) for c in text if ord(c) >= 0x2E80} <= set(known)


def test_values_that_json_lacks(tmp_path: Path) -> None:
    strange = record("adamw")
    strange.summary.update(test_loss=float("nan"), right="01" * 200)
    text = dashboard.page([strange], tmp_path / "p.html").read_text(encoding="utf-8")
    reader = Reader()
    reader.feed(text)
    assert content(reader)["runs"][0]["summary"]["test_loss"] is None
    assert "right" not in content(reader)["runs"][0]["summary"]


def test_the_same_records_give_the_same_page(page: Path, tmp_path: Path) -> None:
    again = dashboard.page([*records(), record(HOSTILE, note=HOSTILE)], tmp_path / "again.html")
    assert again.read_bytes() == page.read_bytes()


def test_no_records_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match="at least one record"):
        dashboard.page([], tmp_path / "p.html")


@pytest.mark.browser
def test_in_a_browser_it_draws_and_runs_no_script_of_a_record(page: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is None:
        pytest.skip("no chromium")
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=5000", "--dump-dom"]
    told = subprocess.run([*command, page.as_uri()], capture_output=True, text=True, timeout=120, check=True).stdout
    assert "<title>dlopt 实验记录</title>" in told
    assert 'class="marks"' in told or "role-mark" in told  # the chart
    assert "13 次运行" in told
    assert "AdamW" in told
