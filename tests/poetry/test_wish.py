"""What the assistant cannot serve is refused with a sentence in Chinese, whatever it is."""

import re
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlopt.poetry.assistant import Assistant
from dlopt.poetry.wish import Refused, Wish
from tests.poetry import tiny

HAN = re.compile("[\u4e00-\u9fff]")


@cache
def made():
    return Assistant(tiny.checkpoint())


BAD = {
    "empty": Wish(),
    "blank": Wish(text="  \n "),
    "latin": Wish(text="spring"),
    "digits": Wish(text="12345"),
    "emoji": Wish(text="春眠不觉😀"),
    "ten thousand": Wish(text="春" * 10_000),
    "short": Wish(text="春眠不觉"),
    "long": Wish(text="春眠不觉晓处处"[:6]),
    "unknown": Wish(text="春眠不觉龘"),
    "half a surrogate": Wish(text="春眠不觉\ud83d"),
    "control": Wish(text="\x00\x01\x02"),
    "five lines": Wish(text="白日依山尽，" * 5),
    "mixed lengths": Wish(text="白日依山尽，朝辞白帝彩云间"),
    "other length": Wish(text="白日依山尽", length=7),
    "length of the form": Wish("七绝", "白日依山尽"),
    "odd length": Wish(text="白日依山尽", length=6),
    "three heads": Wish("藏头诗", "风花雪"),
    "no line to answer": Wish("续下句", title="春"),
    "two lines to answer": Wish("续下句", "白日依山尽，黄河入海流"),
    "upper line ends level": Wish("对联", "黄河入海流"),
    "long title": Wish(title="春" * 9),
    "latin title": Wish(title="spring"),
    "unknown form": Wish("十四行", "白日依山尽"),
    "unknown rhyme": Wish(text="白日依山尽", rhyme="abc"),
    "oblique rhyme": Wish(text="白日依山尽", rhyme="屋"),
    "unknown script": Wish(text="白日依山尽", script="latin"),
    "script tag": Wish(text="<script>"),
    "rhyme against what is given": Wish(text="白日依山尽，黄河入海流", rhyme="东"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_served_is_refused_with_a_sentence(name):
    with pytest.raises(Refused) as caught:
        made().write(BAD[name])
    said = str(caught.value)
    assert HAN.search(said)
    assert len(said) < 200, "it repeats the whole input"
    said.encode()  # can be sent


@pytest.mark.parametrize(
    "settings_", [{"count": 0}, {"count": 17}, {"temperature": -1}, {"temperature": float("nan")}, {"top_p": 0},
                  {"best_of": 9}, {"seed": -1}, {"written": "abc"}, {"written": "山" * 99}],
)  # fmt: skip
def test_settings_out_of_range_are_refused(settings_):
    with pytest.raises(Refused):
        made().write(Wish(text="白日依山尽"), **settings_)


@settings(max_examples=60, deadline=None)
@given(
    st.text(max_size=12), st.text(max_size=10), st.sampled_from(("续下句", "绝句", "律诗", "藏头诗", "对联")),
    st.sampled_from((0, 5, 7)),
)  # fmt: skip
def test_any_text_is_understood_or_refused(text, title, kind, length):
    said = "诗"
    try:
        made().understand(Wish(kind, text, title, length))
    except Refused as error:
        said = str(error)
    assert HAN.search(said)
