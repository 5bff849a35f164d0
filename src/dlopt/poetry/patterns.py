"""The patterns of 绝句 and 律诗: four kinds of line, how they are arranged, and which departures are allowed.

A line of five characters is one of (平 level, 仄 oblique, 中 either)::

    a 仄仄平平仄    b 平平平仄仄    A 仄仄仄平平    B 平平仄仄平

and a line of seven has two more in front, opposite in tone. The capitals end level and rhyme. In a couplet the even
positions of the two lines are opposite (对: aB, bA), and each couplet begins as the one before ended (粘: aB bA aB bA);
the first line may rhyme too (AB or BA in front). So each form has four arrangements.

Two modes:

* "lenient": positions 1, 3 (and 5 of seven) are free, but for 孤平 and 三平尾 (一三五不论, with its two limits);
* "strict": 王力's patterns, in which only the encircled characters are free.

Allowed in both (拗救): 平平仄平仄 for b, whose first character must then be level (特定格式); 仄平平仄平 for B, which
saves it from 孤平 (本句自救); an a line whose fourth character is oblique, if the B line after it has its third level
(对句相救). An a line whose third alone is oblique (半拗) may be saved so or left. Positions are those of the last five.

Source: 王力《诗词格律》, chapter 2, section 3 (wangli2009gelv).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

LINES = {"a": "仄仄平平仄", "b": "平平平仄仄", "A": "仄仄仄平平", "B": "平平仄仄平"}
MODES = ("lenient", "strict")

# {kind of line: {shape: what is noted where a line needs it}}, in order of preference
_LENIENT = {
    "a": {"中仄中平仄": ""},
    "b": {"中平平仄仄": "", "中平仄仄仄": "三仄尾", "平平仄平仄": "拗救：特定格式"},
    "A": {"中仄仄平平": ""},
    "B": {"平平中仄平": "", "仄平平仄平": "拗救：孤平自救"},
}
_STRICT = {
    "a": {"中仄平平仄": "", "中仄仄平仄": "半拗"},
    "b": {"中平平仄仄": "", "平平仄平仄": "拗救：特定格式"},
    "A": {"中仄仄平平": ""},
    "B": {"平平仄仄平": "", "仄平平仄平": "拗救：孤平自救"},
}
_SAVED = {"lenient": ("中仄中仄仄",), "strict": ("中仄中仄仄", "中仄仄平仄")}  # a lines that the next B line saves
_SAVES = "中平平仄平"


@dataclass(frozen=True)
class Form:
    """One form. name: as users ask for it. lines: how many. length: characters in a line (5 or 7)."""

    name: str
    lines: int
    length: int

    @property
    def size(self) -> int:
        """Characters of a whole poem."""
        return self.lines * self.length


@dataclass(frozen=True)
class Arrangement:
    """Which kind each line is. name: 平起 or 仄起 (by the second character), and whether the first line rhymes."""

    name: str
    kinds: str

    @property
    def first_rhymes(self) -> bool:
        """Whether the first line ends level and rhymes."""
        return self.kinds[0] in "AB"


@dataclass(frozen=True)
class Couplet:
    """Two lines as they may be: strings of 平, 仄 and 中. notes: what a departure is called, by line; '' for none."""

    first: str
    second: str
    notes: tuple[str, str]


FORMS = {
    form.name: form
    for form in (
        Form("五绝", 4, 5),
        Form("七绝", 4, 7),
        Form("五律", 8, 5),
        Form("七律", 8, 7),
        Form("五言联", 2, 5),
        Form("七言联", 2, 7),
    )
}
ALIASES = {
    "5jue": "五绝", "7jue": "七绝", "5lv": "五律", "7lv": "七律",
    "五絕": "五绝", "七絕": "七绝", "五言聯": "五言联", "七言聯": "七言联",
}  # fmt: skip


def find_form(form: str | Form) -> Form:
    """The form of that name; 5jue, 7jue, 5lv and 7lv and traditional script work too. ValueError if there is none."""
    if isinstance(form, Form):
        return form
    name = ALIASES.get(form, form)
    if name not in FORMS:
        raise ValueError(f"no form is called {form!r}; there are {', '.join(FORMS)}")
    return FORMS[name]


def check_mode(mode: str) -> str:
    """`mode`, if there is such a one; else a ValueError."""
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}, got {mode!r}")
    return mode


def start(kind: str, length: int) -> str:
    """The tone of the second character of a line: what 平起 and 仄起, 对 and 粘 go by."""
    level = (LINES[kind][1] == "平") == (length == 5)
    return "平" if level else "仄"


@cache
def arrangements(form: str | Form, first_rhymes: bool | None = None) -> tuple[Arrangement, ...]:
    """The four arrangements of a form, those with a rhyming first line first. first_rhymes: only these, if given."""
    form = find_form(form)
    found = []
    for head in ("AB", "BA", "aB", "bA"):
        kinds = head
        while len(kinds) < form.lines:
            kinds += "bA" if kinds[-1] == "B" else "aB"
        rhymed = head[0] in "AB"
        if first_rhymes in (None, rhymed):
            name = f"{start(head[0], form.length)}起首句{'入韵' if rhymed else '不入韵'}"
            found.append(Arrangement(name, kinds))
    return tuple(found)


@cache
def couplets(kinds: str, length: int, mode: str = "lenient") -> tuple[Couplet, ...]:
    """All shapes that a couplet of these two kinds of line may have, the regular one first.

    kinds: two of a, b, A, B. A character fits a shape if one of its tones does; a couplet is right if it fits one.
    """
    shapes = _LENIENT if check_mode(mode) == "lenient" else _STRICT
    pairs = [(f, s, (x, y)) for f, x in shapes[kinds[0]].items() for s, y in shapes[kinds[1]].items()]
    if kinds == "aB":
        pairs += [(f, _SAVES, ("拗", "拗救：对句相救")) for f in _SAVED[mode]]
    return tuple(
        Couplet(_lengthen(kinds[0], f, length), _lengthen(kinds[1], s, length), notes) for f, s, notes in pairs
    )


def _lengthen(kind: str, shape: str, length: int) -> str:
    return shape if length == 5 else "中" + start(kind, 7) + shape
