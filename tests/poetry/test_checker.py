"""The checker: known poems, known faults, and a second checker that was written apart."""

import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dlopt.poetry import check
from dlopt.poetry.checker import KINDS, readings_of
from dlopt.poetry.patterns import FORMS, arrangements, couplets
from dlopt.poetry.script import simplified
from dlopt.poetry.text import LIMIT
from tests.poetry import second_checker as second
from tests.poetry.poems import CANON, FAULTY, IRREGULAR, RHYMES

REGULATED = ("五绝", "七绝", "五律", "七律")


def kinds_of(report):
    return {fault.kind for fault in report.faults}


@pytest.mark.parametrize(("form", "author", "title", "text"), CANON, ids=range(len(CANON)))
def test_a_canonical_poem_is_regular(form, author, title, text):
    report = check(text)
    assert report.ok, str(report)
    assert report.form == form
    assert report.pattern
    assert second.right(report.lines)
    if title in RHYMES:
        assert report.rhyme[-1] == RHYMES[title]


def test_there_are_at_least_fifty_of_them_in_all_four_forms():
    assert len({text for *_, text in CANON}) >= 50
    assert {form for form, *_ in CANON} == set(REGULATED)
    assert set(RHYMES) <= {title for _, _, title, _ in CANON}


@pytest.mark.parametrize(("author", "title", "text", "kinds", "one"), IRREGULAR, ids=range(len(IRREGULAR)))
def test_a_famous_irregular_poem_fails_for_its_reason(author, title, text, kinds, one):
    report = check(text)
    assert kinds <= kinds_of(report)
    assert one in {(f.kind, f.line, f.position) for f in report.faults}
    if "不押韵" not in kinds:  # those of an oblique rhyme break more rules
        assert kinds_of(report) == kinds
    assert not second.right(report.lines)


@pytest.mark.parametrize(("text", "kind", "line", "position"), FAULTY, ids=range(len(FAULTY)))
def test_one_fault_is_found_alone_and_in_its_place(text, kind, line, position):
    (fault,) = check(text).faults
    assert (fault.kind, fault.line, fault.position) == (kind, line, position)
    assert str(line) in fault.message
    assert any("\u4e00" <= c <= "\u9fff" for c in fault.message)


def test_every_kind_of_fault_is_among_the_violations():
    assert {kind for _, kind, *_ in FAULTY} | set().union(*(kinds for *_, kinds, _ in IRREGULAR)) == set(KINDS)
    assert len(FAULTY) + len(IRREGULAR) >= 20


def test_the_texts_are_those_of_the_corpus(tang):
    known = {"".join(record["paragraphs"]) for record in tang}
    missing = [title for *_, title, text in CANON if text not in known]
    missing += [title for _, title, text, *_ in IRREGULAR if text not in known]
    assert missing == []


@pytest.mark.parametrize(("mode", "step"), [("lenient", 5), ("strict", 10)])
def test_the_second_checker_agrees_on_poems_of_the_corpus(clean, mode, step):
    # only characters that stand in the table: the second checker does not know other shapes of them
    poems = [p for p in clean.poems if p.form in REGULATED and all(c in second.table() for c in p.text)][::step]
    assert len(poems) > 10_000 / step
    counts = [0, 0]
    for poem in poems:
        report = check(poem.lines, mode=mode, script="traditional")
        assert report.ok == second.right(poem.lines, mode), str(report)
        counts[report.ok] += 1
    assert min(counts) > 1_500 / step


def test_the_reason_agrees_where_one_rule_is_broken(clean):
    poems = [p for p in clean.poems if p.form in REGULATED]
    found = dict.fromkeys(("孤平", "三平尾", "失粘", "失对"), 0)
    for poem in poems[::23]:
        for rule in found:
            if second.right_but_for(poem.lines, rule):
                found[rule] += 1
                reasons = kinds_of(check(poem.lines, script="traditional")) - {"未收字", "出韵", "不押韵", "重韵"}
                # lost 粘 in one place may as well be lost 对 in others
                assert reasons == {rule} or (reasons <= {"失粘", "失对"} and rule in ("失粘", "失对")), poem.text
    assert min(found.values()) >= 1, found


@pytest.mark.parametrize("mode", ["lenient", "strict"])
@pytest.mark.parametrize("form", FORMS)
def test_both_checkers_agree_on_random_tones(form, mode):
    """Poems of characters of one tone each: patterns with none, one or two places changed."""
    draw = random.Random(f"{form}{mode}")
    seen = [0, 0]
    for _ in range(150):
        arrangement = draw.choice(arrangements(form))
        lines = []
        for i in range(0, FORMS[form].lines, 2):
            shape = draw.choice(couplets(arrangement.kinds[i : i + 2], FORMS[form].length, mode))
            lines += [shape.first, shape.second]
        tones = [[draw.choice("平仄") if t == "中" else t for t in line] for line in lines]
        for _ in range(draw.randrange(3)):
            line = draw.choice(tones)
            place = draw.randrange(len(line))
            line[place] = "平" if line[place] == "仄" else "仄"
        rhyme = iter("東公紅翁通")
        made = []
        for i, line in enumerate(tones):
            text = "".join("天" if t == "平" else "月" for t in line)
            made.append(text[:-1] + next(rhyme) if text[-1] == "天" and (i == 0 or i % 2) else text)
        report = check(made, form, mode=mode, script="traditional")
        assert report.ok == second.right(made, mode), str(report)
        seen[report.ok] += 1
    assert min(seen) > 10


def test_simplified_text_is_judged_alike():
    for _, _, title, text in CANON:
        report = check(simplified(text))
        assert report.ok, title
        assert report.rhyme == check(text).rhyme


def test_three_level_ends_are_only_named_where_the_last_can_be_level():
    (fault,) = (
        f for f in check("千山鳥飛絕，萬徑人蹤滅。孤舟蓑笠翁，獨釣寒江雪。").faults if f.line == 2 and f.position == 3
    )
    assert (fault.kind, fault.char) == ("平仄", "人")


def test_departures_are_noted():
    notes = check(
        "離離原上草，一歲一枯榮。野火燒不盡，春風吹又生。遠芳侵古道，晴翠接荒城。又送王孫去，萋萋滿別情。"
    ).notes
    assert notes == ()  # 不 has a level reading
    (note,) = check("移舟泊煙渚，日暮客愁新。野曠天低樹，江清月近人。").notes
    assert (note.kind, note.line) == ("拗救", 1)
    assert "特定格式" in note.message
    saved = check("向晚意不適，驅車登古原。夕陽無限好，只是近黃昏。")
    assert saved.ok
    borrowed = check("一去二三里，煙村四五家。亭臺六七座，八九十枝花。")
    assert borrowed.ok
    report = check("清明時節雨紛紛，路上行人欲斷魂。借問酒家何處有，牧童遙指杏花村。")
    assert report.ok
    assert report.rhyme[-1] == "元"
    assert [(n.kind, n.line) for n in report.notes] == [("借邻韵", 1)]


def test_strict_is_a_part_of_lenient():
    for _, _, _, text in CANON:
        assert check(text).ok >= check(text, mode="strict").ok
    assert not check("遠上寒山石徑秋，白雲生處有人家。停車坐愛楓林晚，霜葉紅於二月花。").ok
    # 五律 b with an oblique third (三仄尾): a note in one mode, a fault in the other
    text = "清晨入古寺，初日照高林。曲徑通幽處，禪房花木深。山光悅鳥性，潭影空人心。萬籟此都寂，但餘鐘磬音。"
    assert "三仄尾" in {n.kind for n in check(text).notes}
    assert kinds_of(check(text, mode="strict")) == {"平仄"}


def test_arrangements_have_their_names():
    assert [a.name for a in arrangements("五律")] == [
        "仄起首句入韵",
        "平起首句入韵",
        "仄起首句不入韵",
        "平起首句不入韵",
    ]
    assert [a.name for a in arrangements("七律")] == [
        "平起首句入韵",
        "仄起首句入韵",
        "平起首句不入韵",
        "仄起首句不入韵",
    ]
    assert [a.kinds for a in arrangements("五律", False)] == ["aBbAaBbA", "bAaBbAaB"]


def test_a_wrong_number_of_lines_is_a_fault_of_length_where_a_form_is_asked_for():
    report = check("白日依山盡，黃河入海流。", "五绝")
    assert [(f.kind, f.line) for f in report.faults] == [("字数", 0)]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "empty"),
        ("，。\n", "empty"),
        ("hello, world", "no Chinese character"),
        ("白日依山盡，黃河入海流。欲窮千里目，更上1層樓。", "line 4 has '1' in place 3"),
        ("白日依山🌄，黃河入海流。", "no Chinese character"),
        ("（白日）依山盡，黃河入海流。", "no Chinese character"),
        ("白" * 10_000, "at most"),
        ("白" * 21, "cannot be cut"),
        ("白日依山盡，黃河入海流。欲窮千里目。", "none of the forms"),
        ("白日，黃河。欲窮，更上。", "none of the forms"),
    ],
)
def test_what_is_no_poem_is_refused_with_a_sentence(text, says):
    with pytest.raises(ValueError, match=says):
        check(text)


def test_wrong_options_are_refused():
    for options in ({"form": "六絕"}, {"mode": "free"}, {"script": "roman"}):
        with pytest.raises(ValueError, match=r"form is called|must be one of"):
            check("白日依山盡，黃河入海流。", **options)
    with pytest.raises(ValueError, match="one character"):
        readings_of("白日")


HAN = st.characters(min_codepoint=0x4E00, max_codepoint=0x9FFF)
EMOJI = st.characters(min_codepoint=0x1F300, max_codepoint=0x1FAFF)
LINES = st.lists(st.text(HAN, min_size=4, max_size=8), min_size=1, max_size=9)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.one_of(st.text(max_size=80), LINES, st.text(EMOJI, min_size=1, max_size=20)))
def test_any_input_gives_a_report_or_a_sentence(poem):
    try:
        report = check(poem)
    except ValueError as error:
        said = str(error)
    else:
        said = "a report, not a sentence"
        assert report.ok == (not report.faults)
        assert all(f.kind in KINDS and 0 <= f.line <= len(report.lines) for f in report.faults)
    assert len(said) > 20


def test_the_limit_holds_for_lines_too():
    with pytest.raises(ValueError, match=str(LIMIT)):
        check(["白日依山盡"] * 100)


def test_blank_lines_before_a_poem_are_no_part_of_it():
    assert check("\n" * 2000 + "白日依山尽，黄河入海流。欲穷千里目，更上一层楼。").ok
