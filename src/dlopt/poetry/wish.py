"""What a user asks the assistant for, in the model's terms; every refusal is a sentence in Chinese."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass

from dlopt.poetry.layout import TITLE
from dlopt.poetry.patterns import FORMS
from dlopt.poetry.request import FREE, Request
from dlopt.poetry.rhymebook import find_group
from dlopt.poetry.script import is_han, script_of, simplified, traditional

KINDS = ("续下句", "绝句", "律诗", "藏头诗", "对联")
LIMIT = 100  # characters of any text that is looked at
_LINES = {"绝句": 4, "律诗": 8}
_NAMED = {f.name: (kind, f.length) for f in FORMS.values() for kind, n in _LINES.items() if f.lines == n}
_BREAKS = re.compile(r"[，。？！；：、,.?!;:\s　/／]+")


class Refused(ValueError):
    """A wish that cannot be met. The message is a sentence in Chinese for whoever made it."""


@dataclass(frozen=True)
class Wish:
    """One wish, as it comes from a page or the command line.

    kind: one of `KINDS`; 五绝, 七绝, 五律, 七律 name a length too. text: the first line or lines (绝句, 律诗), the line
    to be answered (续下句), the upper line (对联), or the word that the lines begin with (藏头诗). title: what the poem
    is about, at most 8 characters. length: 5 or 7 characters in a line; 0: as long as the text's lines, else 5. rhyme:
    a level group such as 东; None leaves it to the model. script: of what is shown, "simplified" or "traditional";
    "auto": as the text.
    """

    kind: str = "绝句"
    text: str = ""
    title: str = ""
    length: int = 0
    rhyme: str | None = None
    script: str = "auto"


@dataclass(frozen=True)
class Asked:
    """A wish in the model's terms. request: for the constraint, in the vocabulary's characters. title: likewise.

    own: the given characters, place by place, as they are to be shown: before variants of the vocabulary were put for
    them. unread: characters of the title that the model does not know.
    """

    kind: str
    request: Request
    title: str
    script: str
    own: str = ""
    unread: str = ""

    def typed(self, place: int, char: str, shown: str) -> str:
        """How a character that stands in a place is to be shown: as the user wrote it, where it is the user's."""
        return self.own[place] if self.own and self.request.characters[place] == char else shown

    @property
    def given(self) -> tuple[bool, ...]:
        """Per place of the poem: whether the character is the user's own."""
        return tuple(char != FREE for char in self.request.characters)


def understand(wish: Wish, known: Callable[[str], str]) -> Asked:
    """Check a wish. known: from a traditional character to the one that the model has for it, '' if it has none.

    `Refused` for an unknown kind, a wrong length, no text at all, text that is too long or is not Chinese, characters
    that the model or the table of rhymes lacks, and an unknown rhyme.
    """
    for text in (wish.kind, wish.text, wish.title, wish.script, wish.rhyme or ""):
        if any("\ud800" <= char <= "\udfff" for char in text):  # half of a character: no encoding has it
            raise Refused("文字里有不完整的编码，请重新输入")
    kind, length = _kind(wish)
    for name, text in (("文字", wish.text), ("题目", wish.title)):
        if len(text) > LIMIT:
            raise Refused(f"{name}有{len(text)}个字，太长了：最多读{LIMIT}个字")
    lines = tuple(line for line in _BREAKS.split(wish.text.strip()) if line)
    title = "".join(_BREAKS.split(wish.title))
    if len(title) > TITLE:
        raise Refused(f"题目有{len(title)}个字，最多{TITLE}个字")
    if not lines and (not title or kind in ("续下句", "藏头诗")):
        need = {
            "续下句": "请写一句五字或七字的上句",
            "藏头诗": "请写要藏在句首的四个或八个字",
            "对联": "请写上联，或写一个题目",
        }
        raise Refused(f"还没有写字：{need.get(kind, '请写首句，或写一个题目')}")
    for char in "".join((*lines, title)):
        if not is_han(char):
            raise Refused(f"「{_shown(char)}」不是汉字：请只写汉字，不要写字母、数字或表情符号")
    seen = script_of("".join((*lines, title)))
    script = _script(wish, seen)
    plain = tuple(_in_script(line, seen, script) for line in lines)
    lines = tuple(_translated(line, seen, known) for line in lines)
    wanted = list(zip(_traditional(title, seen), title, strict=True))
    title = "".join(known(char) or known(own) for char, own in wanted)
    unread = "".join(own for char, own in wanted if not (known(char) or known(own)))
    if unread and not title:
        raise Refused(f"模型不认识题目里的「{_shown(unread)}」，请换一个题目")
    form, given = _given(kind, length, lines)
    rhyme = _rhyme(wish.rhyme)
    first = False if kind == "对联" else None
    request = Request(form, given, rhyme=rhyme, first_rhymes=first, judge_given=False)
    own = Request(form, _given(kind, length, plain)[1]).characters
    return Asked(kind, request, title, script, own, unread)


def refusal(error: ValueError, asked: Asked) -> Refused:
    """What the constraint says, as a sentence in Chinese."""
    said = str(error)
    if said.startswith("no pattern") and asked.kind == "对联":
        return Refused("这个上联不能配成对联：上联须以仄声字收尾，并合平仄")
    if said.startswith("no pattern"):
        return Refused(f"所给的字放不进{asked.request.form}的任何一种平仄格式，请换几个字")
    if said.startswith("no rhyme group"):
        rhyme = f"「{simplified(asked.request.rhyme)}」韵" if asked.request.rhyme else "任何一个平声韵部"
        return Refused(f"所给的字与{rhyme}不合，或此韵余下的字不够用，请换一个韵部或换几个字")
    if "breaks the rules" in said or "is not allowed" in said:
        return Refused("前面的字不合格律，后面无法续写：请先改好前面的字")
    return Refused(f"这个要求无法满足（{said}）")


def _kind(wish: Wish) -> tuple[str, int]:
    name = simplified(wish.kind[:LIMIT].strip())
    kind, length = _NAMED.get(name, (name, 0))
    if kind not in KINDS:
        raise Refused(f"没有「{_shown(wish.kind)}」这种体裁：可选{'、'.join((*KINDS, *_NAMED))}")
    if wish.length not in (0, 5, 7):
        raise Refused(f"每句只能是5字或7字，不能是{wish.length}字")
    if wish.length and length not in (0, wish.length):
        raise Refused(f"{name}每句{length}字，不能要求每句{wish.length}字")
    return kind, wish.length or length


def _given(kind: str, length: int, lines: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
    """(name of the form, given lines)."""
    if kind == "藏头诗":
        heads = "".join(lines)
        if len(heads) not in (4, 8):
            raise Refused(f"藏头要四个字（绝句）或八个字（律诗），现在有{len(heads)}个字")
        return _form(len(heads), length or 5), tuple(heads)
    most = {"续下句": 1, "对联": 1}.get(kind) or _LINES[kind] - 1
    if len(lines) > most:
        raise Refused(f"{kind}最多给{most}句，现在有{len(lines)}句")
    for number, line in enumerate(lines, 1):
        if len(line) not in (5, 7):
            raise Refused(f"第{number}句有{len(line)}个字：每句要五个字或七个字")
        if len(line) != (length or len(lines[0])):
            raise Refused(f"第{number}句有{len(line)}个字，与所要的每句{length or len(lines[0])}字不同")
    return _form(_LINES.get(kind, 2), length or (len(lines[0]) if lines else 5)), lines


def _form(lines: int, length: int) -> str:
    return next(f.name for f in FORMS.values() if (f.lines, f.length) == (lines, length))


def _rhyme(name: str | None) -> str | None:
    if not name or not name.strip():
        return None
    try:
        return find_group(name[:LIMIT])
    except ValueError as error:
        raise Refused(
            f"没有「{_shown(name)}」这个平声韵部：如东、冬、江、支、微、鱼、虞、齐、佳、灰、真、文、元、寒等"
        ) from error


def _script(wish: Wish, seen: str) -> str:
    if wish.script not in ("auto", "simplified", "traditional"):
        raise Refused(f"字体只有 auto、simplified、traditional，没有「{_shown(wish.script)}」")
    if wish.script != "auto":
        return wish.script
    whole = wish.text + wish.title
    return "traditional" if seen == "traditional" and simplified(whole) != whole else "simplified"


def _in_script(text: str, seen: str, wanted: str) -> str:
    """A line as it is shown: as it was typed, or in the other script if that is asked for."""
    if seen == wanted:
        return text
    found = simplified(text) if wanted == "simplified" else traditional(text)
    return found if len(found) == len(text) else text


def _traditional(text: str, script: str) -> str:
    return traditional(text) if script == "simplified" else text


def _translated(line: str, script: str, known: Callable[[str], str]) -> str:
    found = ""
    for char, own in zip(_traditional(line, script), line, strict=True):
        one = known(char) or known(own)
        if not one:
            raise Refused(f"「{_shown(own)}」不在字表里，或韵书未收它的平仄，也没有读音相同的异体可代，请换一个字")
        found += one
    return found


def _shown(text: str) -> str:
    """A piece of what was written that can safely be shown again."""
    return "".join(c for c in text[:8] if unicodedata.category(c)[0] != "C") or "不可见字符"
