"""The page on decoding with drafts in a real browser: colours, counters, stop, keyboard, the width of a phone."""

import re

import pytest

from dlopt.apps import server
from dlopt.apps.decoder import Decoder
from dlopt.tasks.models import pretrained
from tests.apps.browsing import SHOTS
from tests.apps.conftest import Running
from tests.apps.drafting import PROMPT, serve

pytestmark = pytest.mark.browser
DECODE = ("/decode", "() => document.querySelectorAll('input[name=drafter]').length === 5")
DONE = "() => !document.querySelector('#result').hidden"
TEXT = "pane => pane.querySelector('.text').textContent"
COUNTED = "pane => pane.querySelectorAll('.strip .bar').length"


@pytest.fixture(scope="module")
def running(held):
    yield from serve(held)


def ask(page, tokens=48):
    page.fill("#prompt", PROMPT)
    page.fill("#tokens", str(tokens))
    page.fill("#length", "4")
    page.uncheck("#gate")


def check(page):
    """What holds after any run to the end."""
    page.wait_for_function(DONE)
    assert page.get_attribute("#panes", "aria-busy") == "false"
    plain, drafted = (page.eval_on_selector(pane, TEXT) for pane in ("#plain", "#drafted"))
    assert plain == drafted != ""
    for pane in ("#plain", "#drafted"):
        assert page.eval_on_selector(pane, COUNTED) == int(page.inner_text(f"{pane} .n-rounds"))
        assert len(page.query_selector_all(f"{pane} .t")) == int(page.inner_text(f"{pane} .n-tokens"))
        assert float(page.inner_text(f"{pane} .n-speed")) > 0
    assert re.match(r"加速 \d+\.\d\d 倍（预测 \d+\.\d\d）", page.inner_text("#result .big"))
    assert "完全相同" in page.inner_text("#result .same")
    assert "加速" in page.text_content("#status"), "readers of the screen hear of the end"


def fits(page):
    return page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")


def test_tokens_come_in_colours_and_rounds_are_counted(visit, held):
    seen = visit(DECODE)
    page = seen.page
    seen.shot("decode-empty")
    ask(page)
    held.hold(12)
    page.click("#go")
    page.wait_for_selector("#plain .t")
    assert page.get_attribute("#panes", "aria-busy") == "true"
    assert page.is_disabled("#go")
    assert page.is_enabled("#halt")
    assert page.is_hidden("#result")
    held.free()
    check(page)
    assert page.inner_text("#plain .n-tokens") == page.inner_text("#drafted .n-tokens") == "48"
    assert page.inner_text("#plain .n-each") == "1.00"
    assert float(page.inner_text("#drafted .n-each")) > 1
    assert page.query_selector("#plain .accepted, #plain .corrected, #plain .bonus") is None
    looks = {
        kind: page.eval_on_selector(
            f"#drafted .text .{kind}",
            "t => { const s = getComputedStyle(t); return [s.backgroundColor, s.textDecorationColor,"
            " s.textDecorationLine + s.textDecorationStyle]; }",
        )
        for kind in ("accepted", "corrected", "bonus", "plain")
    }
    for what in zip(*looks.values()):
        assert len(set(what)) == 4, "told apart by ground, by line and by its kind"
    # the accepted part of a bar is as wide as its share
    shares = page.eval_on_selector_all(
        "#drafted .bar",
        "all => all.filter(b => b.querySelector('.draft')).map(b => [b.title.match(/\\d+/g).map(Number),"
        " b.querySelector('.hits').offsetWidth / b.querySelector('.draft').offsetWidth])",
    )
    assert len(shares) > 5
    for (offered, taken), share in shares:
        assert share == pytest.approx(taken / offered, abs=0.1)
    assert "v(k)" in page.inner_text("#costs")
    assert "tiny" in page.inner_text("#about")
    seen.shot("decode-done")


def test_stop_ends_it_and_the_page_goes_on(visit, held):
    seen = visit(DECODE)
    page = seen.page
    ask(page, 256)
    held.hold(12)
    try:
        page.click("#go")
        page.wait_for_selector("#plain .t")
        page.click("#halt")
        page.wait_for_selector("#panes[aria-busy=false]")
        assert "没有写完" in page.inner_text("#plain .about")
        assert page.is_hidden("#result")
        assert page.is_hidden("#problem")
        assert page.evaluate("document.activeElement.id") == "go"
    finally:
        held.free()
    page.fill("#tokens", "12")
    page.click("#go")
    check(page)
    assert page.inner_text("#plain .n-tokens") == "12", "nothing of the first is left"


def test_by_keyboard_alone(visit):
    seen = visit(DECODE)
    page = seen.page

    def tab_to(name, most=40):
        for _ in range(most):
            if page.evaluate("document.activeElement.id") == name:
                return
            page.keyboard.press("Tab")
        raise AssertionError(f"{name} is not reached by Tab")

    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.value") == "prompt-lookup"
    assert page.evaluate("getComputedStyle(document.activeElement.nextSibling).outlineStyle") == "solid"
    assert page.is_hidden("#reference")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.value") == "llma"
    assert page.is_visible("#reference")
    assert "参考" in page.inner_text("#drafter-hint")
    page.keyboard.press("ArrowRight")
    tab_to("prompt")
    page.keyboard.press("Control+Enter")
    page.wait_for_selector("#problem:not([hidden])")
    assert "请先写一段提示" in page.inner_text("#problem")
    page.keyboard.type(PROMPT)
    tab_to("tokens")
    page.keyboard.press("Control+a")
    page.keyboard.type("12")
    tab_to("gate")
    page.keyboard.press("Space")
    tab_to("temperature")
    page.keyboard.press("ArrowRight")
    assert page.inner_text("#temperature-shown") == "0.1"
    page.keyboard.press("Enter")
    check(page)
    assert page.is_hidden("#problem")
    assert page.is_checked("input[value=suffix-decoding]")
    assert "这次是" in page.get_attribute("#seed", "placeholder")


def test_at_the_width_of_a_phone_and_in_the_dark(visit):
    phone = {"viewport": {"width": 375, "height": 740}, "is_mobile": True, "has_touch": True, "device_scale_factor": 2}
    seen = visit(DECODE, color_scheme="dark", **phone)
    page = seen.page
    assert fits(page)
    ask(page, 32)
    page.fill("#prompt", PROMPT + " longwordwithoutanend" * 5)
    page.tap("text=词元回收")
    page.fill("#length", "64")
    page.tap("#go")
    check(page)
    assert fits(page)
    tops = [page.eval_on_selector(pane, "p => p.getBoundingClientRect().top") for pane in ("#plain", "#drafted")]
    assert tops[1] > tops[0] + 100, "one above the other"
    seen.shot("decode-phone")


def test_without_a_model_nothing_can_be_asked(browser, monkeypatch):
    monkeypatch.setattr(pretrained, "state", lambda name: "missing")
    empty = Running(server.create(None, missing="还没有写诗的模型", decoder=Decoder()))
    context = browser.new_context()
    context.set_default_timeout(60_000)
    try:
        page = context.new_page()
        page.goto(empty.url + "/decode")
        page.wait_for_selector("#problem:not([hidden])")
        assert page.inner_text("#problem").startswith("还没有模型：请先运行 dlopt model get")
        assert page.is_disabled("#go")
        assert all(button.is_disabled() for button in page.query_selector_all("#examples button"))
        page.evaluate("document.querySelector('#ask').requestSubmit()")
        assert page.inner_text("#plain .n-tokens") == "0"
    finally:
        context.close()
        empty.stop()


@pytest.mark.llm
@pytest.mark.timeout(1500)
def test_a_real_model_rewrites_with_accepted_drafts(browser, smollm2):
    model, tokenizer = smollm2
    name = Decoder().name
    served = Running(server.create(None, missing="还没有写诗的模型", decoder=Decoder(name, model, tokenizer)))
    context = browser.new_context(viewport={"width": 1440, "height": 1000}, locale="zh-CN")
    try:
        page = context.new_page()
        page.set_default_timeout(1_200_000)  # a bound, not a speed
        page.goto(served.url + "/decode")
        page.wait_for_selector("#examples button")
        page.fill("#tokens", "80")
        page.uncheck("#gate")
        page.click("#examples button >> nth=0")
        page.wait_for_selector("#drafted .bar")
        if SHOTS:
            page.screenshot(path=f"{SHOTS}/decode-real-running.png", full_page=True)
        check(page)
        assert len(page.query_selector_all("#drafted .accepted")) > 10
        assert int(page.inner_text("#drafted .n-rounds")) < int(page.inner_text("#plain .n-rounds"))
        if SHOTS:
            page.screenshot(path=f"{SHOTS}/decode-real.png", full_page=True)
    finally:
        context.close()
        served.stop()
