"""The page of the poem assistant in a real browser: by mouse, by keyboard alone, at the width of a phone."""

import shutil

import pytest

from dlopt.apps import server
from tests.apps.browsing import SHOTS
from tests.apps.conftest import Running

pytestmark = pytest.mark.browser


def test_type_stream_regenerate_change_form_export(visit, assistant, tmp_path):
    seen = visit(accept_downloads=True, permissions=["clipboard-read", "clipboard-write"])
    page = seen.page
    seen.shot("desktop-empty")
    page.fill("#text", "春眠不觉晓")
    assistant.gate.clear()
    page.click("#go")
    page.wait_for_selector("#poems[aria-busy=true]")
    assert page.is_disabled("#go")
    page.wait_for_selector("article .char")
    assert page.query_selector(".rules:not([hidden])") is None
    assistant.gate.set()
    (first,) = seen.poems()
    assert first.startswith("春眠不觉晓")
    assert len(first) == 20
    assert page.inner_text("article .good").startswith("合律")
    assert len(page.query_selector_all(".char.rhyme")) in (2, 3)
    marks = page.eval_on_selector_all(".char small", "all => all.map(m => m.textContent).join('')")
    assert set(marks) <= set("○●⊙")
    assert len(marks) == 20
    seen.shot("desktop-poem")

    page.click("article .again")
    page.wait_for_selector("#poems[aria-busy=true], #poems[aria-busy=false]")
    (second,) = seen.poems()
    assert second.startswith("春眠不觉晓")
    assert second != first, "another seed"

    # alternatives are a click away; what follows is written anew, what stands before stays
    page.click("article .char >> nth=7")
    page.wait_for_selector(".choose .grid button")
    options = page.query_selector_all(".choose .grid button")
    assert 1 < len(options) <= 12
    seen.shot("desktop-alternatives")
    wanted = options[1].eval_on_selector("b", "b => b.textContent")
    options[1].click()
    page.wait_for_selector(".choose", state="detached")
    (third,) = seen.poems()
    assert third[:8] == second[:7] + wanted

    # a form with a title, two at a time
    page.click("text=律诗 >> nth=0")
    page.fill("#text", "")
    page.fill("#title", "秋夜")
    page.click("#length-row >> text=七言")
    page.select_option("#count", "2")
    page.select_option("#rhyme", label="上平声一东")
    page.click("#go")
    both = seen.poems(2)
    assert [len(text) for text in both] == [56, 56]
    assert page.inner_text("article .meta").endswith("押一东韵")
    seen.shot("desktop-two")

    with page.expect_download() as told:
        page.click("article .save")
    path = tmp_path / "poem.png"
    told.value.save_as(path)
    assert told.value.suggested_filename == "秋夜.png"
    check_picture(path, wide=True, name="export")
    with page.expect_download() as told:
        page.click("article .save-down")
    told.value.save_as(path)
    check_picture(path, wide=True, name="export-down")

    page.click("article .copy")
    page.wait_for_function("() => document.querySelector('article .copy').textContent === '已复制'")
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied.replace("\n", "").replace("，", "").replace("。", "") == "秋夜" + both[0]

    page.click("article .attend")
    page.wait_for_selector("article .look canvas")
    assert "最看" in page.inner_text("article .look p")
    inked = page.evaluate(
        "() => { const c = document.querySelector('.look canvas');"
        " return new Set(c.getContext('2d').getImageData(0, 0, c.width, c.height).data).size; }"
    )
    assert inked > 20, "the map is drawn"
    seen.shot("desktop-attention")


def check_picture(path, wide, name):
    from PIL import Image

    if SHOTS:
        shutil.copy(path, f"{SHOTS}/{name}.png")
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert min(image.size) > 500
        colours = image.convert("RGB").getcolors(1_000_000)
        assert len(colours) > 50, "there is ink on the paper"
        assert max(colours)[1] == (0xF6, 0xF2, 0xE9)


def test_by_keyboard_alone(visit):
    seen = visit()
    page = seen.page

    def focus():
        return page.evaluate("document.activeElement.id || document.activeElement.className")

    def tab_to(name, most=40):
        for _ in range(most):
            if focus() == name:
                return
            page.keyboard.press("Tab")
        raise AssertionError(f"{name} is not reached by Tab; the focus is on {focus()!r}")

    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.name") == "kind"
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.querySelector('input[name=kind]:checked').value") == "藏头诗"
    assert page.inner_text("#text-label") == "藏头的字"
    outline = page.evaluate("getComputedStyle(document.activeElement.nextSibling).outlineStyle")
    assert outline == "solid", "the focus can be seen"
    tab_to("text")
    page.keyboard.type("风花雪")
    page.keyboard.press("Enter")
    page.wait_for_selector("#problem:not([hidden])")
    assert "四个" in page.inner_text("#problem")
    page.keyboard.type("月")
    page.keyboard.press("Enter")
    (text,) = seen.poems()
    assert text[::5] == "风花雪月"
    assert page.is_hidden("#problem")

    # the poem is one stop of Tab; arrows move within it
    for _ in range(40):
        page.keyboard.press("Tab")
        if "char" in focus():
            break
    assert page.evaluate("document.activeElement.ariaLabel").startswith("第1句第1字，风")
    page.keyboard.press("Enter")
    assert page.query_selector(".choose") is None, "what is given cannot be changed"
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.ariaLabel").startswith("第2句第2字")
    page.keyboard.press("Enter")
    page.wait_for_selector(".choose .grid button")
    assert page.evaluate("document.activeElement.closest('.choose') !== null"), "the dialog takes the focus"
    page.keyboard.press("Escape")
    assert page.query_selector(".choose") is None
    assert page.evaluate("document.activeElement.ariaLabel").startswith("第2句第2字"), "the focus comes back"

    page.keyboard.press("Enter")
    page.wait_for_selector(".choose .grid button")
    page.keyboard.press("ArrowRight")
    wanted = page.evaluate("document.activeElement.querySelector('b').textContent")
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Shift+Tab")
    assert page.evaluate("document.activeElement.type") == "checkbox", "Tab stays in the dialog"
    page.keyboard.press("Space")
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    page.wait_for_selector(".choose", state="detached")
    page.wait_for_function("() => document.querySelector('.rules').textContent.includes('有字经手改')")
    (changed,) = seen.poems()
    assert changed == text[:6] + wanted + text[7:], "only that character"

    for name in ("again", "copy", "save", "save-down", "attend"):
        tab_to(name)
    page.keyboard.press("Enter")
    page.wait_for_selector(".look canvas")
    before = page.inner_text(".look p")
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowUp")
    page.wait_for_function("before => document.querySelector('.look p').textContent !== before", arg=before)


def test_at_the_width_of_a_phone(visit):
    seen = visit(viewport={"width": 375, "height": 740}, is_mobile=True, has_touch=True, device_scale_factor=2)
    page = seen.page
    seen.shot("phone-empty")

    def fits():
        return page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")

    assert fits()
    page.tap("#examples button >> nth=3")  # 律诗：秋夜
    (text,) = seen.poems()
    assert len(text) == 40
    page.tap("#length-row >> text=七言")
    page.tap("#go")
    page.wait_for_function("() => document.querySelectorAll('.char').length === 56")
    (text,) = seen.poems()
    assert fits(), "seven characters and their mark fit"
    tops = page.eval_on_selector_all(
        ".line", "all => all.map(l => new Set([...l.children].map(c => c.offsetTop)).size)"
    )
    assert set(tops) == {1}, "no line is broken"
    page.tap("article .char >> nth=55")
    page.wait_for_selector(".choose .grid button")
    box = page.eval_on_selector(
        ".choose", "root => { const b = root.getBoundingClientRect(); return [b.left, b.right]; }"
    )
    assert box[0] >= 0
    assert box[1] <= 375
    seen.shot("phone-alternatives")
    page.tap(".choose .grid button >> nth=0")
    page.wait_for_selector(".choose", state="detached")
    seen.poems()
    seen.shot("phone-poem")


def test_faults_are_explained(visit):
    seen = visit(color_scheme="dark")
    page = seen.page
    page.fill("#text", "春风春风寒")  # five level tones
    page.click("#go")
    seen.poems()
    assert "不合律" in page.inner_text(".rules .bad")
    assert "第1句" in page.inner_text(".rules ul")
    assert page.query_selector(".char.fault") is not None
    seen.shot("dark-faults")


@pytest.mark.parametrize("text", ["", "spring", "春眠不觉😀", "春" * 10_000, "春眠不觉", "春眠不觉龘", "<b>春</b>"])
def test_what_cannot_be_served_is_said_in_words(visit, text):
    seen = visit()
    page = seen.page
    page.fill("#text", text)
    page.click("#go")
    page.wait_for_selector("#problem:not([hidden])")
    assert len(page.inner_text("#problem")) > 5
    assert page.query_selector("#problem b") is None
    page.fill("#text", "白日依山尽")
    page.click("#go")
    (written,) = seen.poems()
    assert written.startswith("白日依山尽")
    assert page.is_hidden("#problem")


def test_stop_leaves_the_page_usable(visit, assistant):
    seen = visit()
    page = seen.page
    page.fill("#text", "春眠不觉晓")
    assistant.gate.clear()
    try:
        page.click("#go")
        page.wait_for_selector("article .char")
        page.click("#halt")
        page.wait_for_selector("#poems[aria-busy=false]")
        assert "没有写完" in page.inner_text("article .meta")
    finally:
        assistant.gate.set()
    page.click("#go")
    (text,) = seen.poems()
    assert len(text) == 20


def test_a_second_write_leaves_no_card_dead(visit, assistant):
    seen = visit()
    page = seen.page
    page.fill("#text", "春眠不觉晓")
    page.select_option("#count", "2")
    page.click("#go")
    seen.poems(2)
    assistant.gate.clear()
    try:
        page.click("article >> nth=1 >> .again")
        page.wait_for_function("() => document.querySelectorAll('.rules[hidden]').length === 1")
        assert page.is_disabled("article >> nth=1 >> .again")
        page.click("article >> nth=0 >> .again")
        page.wait_for_function("() => document.querySelectorAll('.meta')[1].textContent === '没有写完'")
        assert page.is_enabled("article >> nth=1 >> .again")
        cell = page.query_selector("article >> nth=1 >> .char >> nth=7")
        assert (cell.get_attribute("aria-label"), cell.get_attribute("title") or "") == (None, ""), (
            "nothing stands there"
        )
    finally:
        assistant.gate.set()
    seen.poems(1)
    page.click("article >> nth=1 >> .again")
    seen.poems(2)

    assistant.gate.clear()
    try:
        page.click("article >> nth=0 >> .again")
        page.wait_for_function("() => document.querySelectorAll('.rules[hidden]').length === 1")
        page.fill("#text", "abc")
        page.evaluate("document.querySelector('#ask').requestSubmit()")
        page.wait_for_selector("#problem:not([hidden])")
        page.wait_for_function("() => document.querySelector('.meta').textContent === '没有写完'")
        assert page.is_enabled("article >> nth=0 >> .again")
    finally:
        assistant.gate.set()


def test_one_dialog_at_a_time_and_none_over_a_poem_being_written(visit, assistant):
    seen = visit()
    page = seen.page
    page.fill("#text", "春眠不觉晓")
    page.click("#go")
    seen.poems()
    page.evaluate(
        "() => { const real = fetch; window.held = []; window.answers = 0; window.fetch = async (url, set) => {"
        " const found = await real(url, set); if (!url.includes('alternatives')) return found;"
        " if (window.held.length < 2) await new Promise(go => window.held.push(go));"
        " setTimeout(() => window.answers++, 100); return found; }; }"
    )
    page.dblclick("article .char >> nth=7")
    page.wait_for_function("() => window.held.length === 2")  # both were asked before one is answered
    page.evaluate("() => window.held.forEach(go => go())")
    page.wait_for_function("() => window.answers === 2")
    assert len(page.query_selector_all(".choose")) == 1
    page.keyboard.press("Escape")
    assert page.query_selector(".choose") is None
    assistant.gate.clear()
    try:
        page.click("article .char >> nth=7")
        page.click("article .again")
        page.wait_for_selector("#poems[aria-busy=true]")
        # the worker is held, so the answer may come only with the poem
        assert page.query_selector(".choose") is None
    finally:
        assistant.gate.set()
    page.wait_for_function("() => window.answers === 3")
    seen.poems()
    assert page.query_selector(".choose") is None


def test_characters_outside_the_basic_plane_keep_their_places(visit):
    seen = visit()
    page = seen.page
    page.fill("#text", "春眠不觉晓")
    page.click("#go")
    seen.poems()
    found = page.evaluate(
        "() => { const card = new Card({}, {}), line = '春山𫛸马来', open = '00000'; card.begin({lines: 2, length: 5});"
        " const poem = {lines: [line, line], tones: ['○○○●○', '○○○●○'], given: [open, open], rhyming: [], faults: [],"
        " notes: [], logprob: null, title: '𫛸', form: '五言联', kind: '对联'}; card.finish(poem);"
        " return [card.cells.map(c => c.firstChild.data).join(''), drawAcross(poem).width,"
        " drawAcross({...poem, lines: ['春山春马来', '春山春马来']}).width, drawDown(poem).height]; }"
    )
    assert found == ["春山𫛸马来" * 2, found[2], found[2], 162 + 5 * 88]


def test_without_a_model_nothing_can_be_asked(browser):
    empty = Running(server.create(None, missing="还没有写诗的模型"))
    context = browser.new_context()
    context.set_default_timeout(60_000)
    try:
        page = context.new_page()
        page.goto(empty.url + "/poem")
        page.wait_for_selector("#problem:not([hidden])")
        assert page.is_disabled("#go")
        assert all(button.is_disabled() for button in page.query_selector_all("#examples button"))
        page.evaluate("document.querySelector('#ask').requestSubmit()")
        assert page.is_disabled("#go")
        assert page.inner_text("#problem") == "还没有写诗的模型"
    finally:
        context.close()
        empty.stop()
