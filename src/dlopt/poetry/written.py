"""A finished poem of the assistant, with what is to be said of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dlopt.poetry.checker import check
from dlopt.poetry.patterns import LINES, find_form, start
from dlopt.poetry.reading import Fault
from dlopt.poetry.rhymebook import rhymes, tones
from dlopt.poetry.script import simplified
from dlopt.poetry.wish import Asked

MARKS = {frozenset("平"): "○", frozenset("仄"): "●", frozenset("平仄"): "⊙", frozenset(): "?"}
"""Level, oblique, either (a character of several readings), not in the table."""


@dataclass(frozen=True)
class Poem:
    """One poem.

    kind: what was asked for (绝句 ...). form: its form (五绝 ...). lines: as shown. source: as the model has them, in
    traditional script. title: as shown. rhyme: the level group, '' if none. pattern: the arrangement, such as
    仄起首句不入韵. tones: a mark of `MARKS` for each character, per line. pattern_tones: the plain pattern of each
    line, in 平 and 仄. rhyming: (line, place) of the characters that rhyme, from 0. given: per line, "1" where the
    character is the user's own. faults, notes: of the checker. logprob: of the characters that were not given, in
    nats, under the rules; free_logprob: under the model alone, so never more; None for a poem that was changed by hand.
    """

    kind: str
    form: str
    lines: tuple[str, ...]
    source: tuple[str, ...]
    title: str
    rhyme: str
    pattern: str
    tones: tuple[str, ...]
    pattern_tones: tuple[str, ...]
    rhyming: tuple[tuple[int, int], ...]
    given: tuple[str, ...]
    faults: tuple[Fault, ...]
    notes: tuple[Fault, ...]
    logprob: float | None
    free_logprob: float | None
    script: str = "simplified"

    @property
    def text(self) -> str:
        """With punctuation, a couplet a row."""
        return "\n".join(f"{a}，{b}。" for a, b in zip(self.lines[::2], self.lines[1::2]))

    def as_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        plain = {name: getattr(self, name) for name in self.__dataclass_fields__ if name not in ("faults", "notes")}
        found = {name: [vars(fault) for fault in getattr(self, name)] for name in ("faults", "notes")}
        return {**plain, **found, "text": self.text}


def describe(
    asked: Asked,
    source: tuple[str, ...],
    logprob: float | None,
    free_logprob: float | None,
    display: Callable[[str], str],
) -> Poem:
    """Check finished lines and put everything into the script that is asked for."""
    form = find_form(asked.request.form)
    report = check(source, form, script="traditional", shown=display)

    def shown(text: str) -> str:
        return simplified(text) if asked.script == "simplified" else text

    def line(number: int) -> str:
        """A line whole, since OpenCC knows words: 乾 is 干 by itself, but not in 乾坤."""
        whole, first = shown(source[number]), number * form.length
        if len(whole) != form.length:
            whole = "".join(map(display, source[number]))
        return "".join(asked.typed(first + j, char, whole[j]) for j, char in enumerate(source[number]))

    def told(faults: tuple[Fault, ...]) -> tuple[Fault, ...]:
        return tuple(Fault(shown(f.kind), f.line, f.position, shown(f.char), shown(f.message)) for f in faults)

    unread = (Fault("题目", 0, 0, "", f"模型不认识题目中的「{asked.unread}」，写作时略去"),) if asked.unread else ()
    kinds = report.kinds
    last = form.length - 1
    ends = [i for i in range(form.lines) if i % 2 or (kinds and kinds[0] in "AB" and i == 0)]
    rhyming = tuple((i, last) for i in ends if report.rhyme in rhymes(source[i][last]))
    mask = "".join("01"[g] for g in asked.given)
    return Poem(
        kind=asked.kind,
        form=form.name,
        lines=tuple(map(line, range(form.lines))),
        source=source,
        title=shown(asked.title),
        rhyme=shown(report.rhyme),
        pattern=report.pattern,
        tones=tuple("".join(MARKS[tones(char)] for char in line) for line in source),
        pattern_tones=tuple(_plain(kind, form.length) for kind in kinds),
        rhyming=rhyming if len(rhyming) > 1 or form.lines == 2 else (),
        given=tuple(mask[i : i + form.length] for i in range(0, form.size, form.length)),
        faults=told(report.faults),
        notes=(*unread, *told(report.notes)),
        logprob=logprob,
        free_logprob=free_logprob,
        script=asked.script,
    )


def _plain(kind: str, length: int) -> str:
    return LINES[kind] if length == 5 else 2 * start(kind, 7) + LINES[kind]
