"""Is this poem regular, and if not, what is wrong with it and where? `check("白日依山尽，...").faults`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from dlopt.poetry.patterns import Arrangement, Form, arrangements, check_mode, find_form
from dlopt.poetry.reading import Fault, Reading, judge_tones
from dlopt.poetry.rhymebook import rhymes, tone_of
from dlopt.poetry.rhyming import judge_rhyme
from dlopt.poetry.script import SCRIPTS, script_of
from dlopt.poetry.text import form_of, lines_of

KINDS = ("字数", "未收字", "平仄", "失对", "失粘", "孤平", "三平尾", "不押韵", "出韵", "重韵")


@dataclass(frozen=True)
class Report:
    """What `check` found.

    form: 五绝, 七绝, 五律, 七律, 五言联 or 七言联. kinds: which kind (a, b, A, B) each line was taken for; '' where the
    number of lines is wrong. pattern: the arrangement, such as 仄起首句不入韵; '' if 对 or 粘 is lost. rhyme: the
    level group that the lines rhyme by, by full name; '' if none. faults: what is wrong. notes: allowed departures
    (拗救, 三仄尾, 借邻韵), in the same shape.
    """

    form: str
    lines: tuple[str, ...]
    mode: str
    script: str
    kinds: str = ""
    pattern: str = ""
    rhyme: str = ""
    faults: tuple[Fault, ...] = ()
    notes: tuple[Fault, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether there is no fault."""
        return not self.faults

    def __str__(self) -> str:
        head = (
            f"{self.form}（{self.pattern or '格式不成立'}，{self.rhyme or '无韵'}）：{'合律' if self.ok else '不合律'}"
        )
        return "\n".join([head, *(f.message for f in self.faults), *(f"注：{n.message}" for n in self.notes)])


def check(
    poem: str | Iterable[str],
    form: str | Form | None = None,
    *,
    mode: str = "lenient",
    script: str | None = None,
    shown: Callable[[str], str] = str,
) -> Report:
    """Check a poem against the rules of its form.

    The lines are taken for the kinds (a, b, A, B) that leave the fewest faults, and what does not fit is named:
    字数 (length), 未收字 (not in the table; its tone then counts as either), 平仄 (tone at a place that is not free),
    失对, 失粘, 孤平, 三平尾, 不押韵 (an even line that does not end level), 出韵 (level, but in another group), 重韵
    (the same character rhymes twice). A character of several readings is given the one that fits.

    Args:
        poem: text with punctuation or line breaks, or lines.
        form: one of `patterns.FORMS`; None reads it off the number and the length of lines.
        mode: "lenient" (一三五不论, but no 孤平 and no 三平尾) or "strict" (see `dlopt.poetry.patterns`).
        script: "traditional" or "simplified"; None finds out.
        shown: the character that a reader sees for one of the poem's, if another: two that look alike are 重韵.

    ValueError, with a sentence, if the text is empty or too long, holds anything but Chinese characters and
    punctuation, or has no form.
    """
    check_mode(mode)
    if script not in (None, *SCRIPTS):
        raise ValueError(f"script must be one of {', '.join(SCRIPTS)} or None, got {script!r}")
    wanted = find_form(form) if form is not None else None
    lines = lines_of(poem, wanted)
    wanted = wanted or form_of(lines)
    script = script or script_of("".join(lines))
    if len(lines) != wanted.lines:
        message = f"{wanted.name}应有{wanted.lines}句，此处有{len(lines)}句"
        return Report(wanted.name, lines, mode, script, faults=(Fault("字数", 0, 0, "", message),))
    readings = tuple(Reading.of(line, wanted.length, script) for line in lines)
    rhyme = judge_rhyme(readings)
    again = any(r.text[-1] == lines[0][-1] for r in readings[1::2])
    kinds, faults, notes = judge_tones(readings, wanted, mode, rhyme.first_fault is None and not again)
    found = [*_length_faults(lines, wanted), *_unknown(readings), *faults, *rhyme.faults]
    if kinds[0] in "AB":
        found += [rhyme.first_fault] if rhyme.first_fault else []
        notes = [*notes, *([rhyme.first_note] if rhyme.first_note else [])]
    found += _repeated(readings, kinds, shown)
    pattern = next((a for a in arrangements(wanted.name) if a.kinds == kinds), Arrangement("", kinds))
    return Report(
        wanted.name,
        lines,
        mode,
        script,
        kinds,
        pattern.name,
        rhyme.group,
        tuple(sorted(found, key=lambda f: (f.line, f.position))),
        tuple(sorted(notes, key=lambda n: (n.line, n.position))),
    )


def readings_of(char: str, script: str = "traditional") -> list[tuple[str, str]]:
    """[(tone, group)] of a character, to be shown beside it."""
    return [(tone_of(group), group) for group in sorted(rhymes(char, script))]


def _length_faults(lines: tuple[str, ...], form: Form) -> list[Fault]:
    return [
        Fault("字数", i, 0, "", f"第{i}句有{len(line)}字，{form.name}每句{form.length}字")
        for i, line in enumerate(lines, 1)
        if len(line) != form.length
    ]


def _unknown(readings: tuple[Reading, ...]) -> list[Fault]:
    return [
        Fault("未收字", i, j, char, f"第{i}句第{j}字「{char}」韵书未收，平仄不明")
        for i, reading in enumerate(readings, 1)
        for j, char in enumerate(reading.text, 1)
        if not reading.known[j - 1]
    ]


def _repeated(readings: tuple[Reading, ...], kinds: str, shown: Callable[[str], str]) -> list[Fault]:
    seen: dict[str, int] = {}
    faults = []
    for i, reading in enumerate(readings, 1):
        if i % 2 == 0 or (i == 1 and kinds[0] in "AB"):
            char = shown(reading.text[-1])
            if char in seen:
                faults.append(Fault("重韵", i, len(reading.text), char, f"第{i}句与第{seen[char]}句同押「{char}」字"))
            seen.setdefault(char, i)
    return faults
