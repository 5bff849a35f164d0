"""Lines with their possible tones, and the kinds of line that explain them with the fewest faults."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from dlopt.poetry.patterns import LINES, Couplet, Form, couplets, start
from dlopt.poetry.rhymebook import LEVEL, level_rhymes, tones

EITHER = frozenset("平仄")


@dataclass(frozen=True)
class Fault:
    """One finding. kind: its name. line, position: counted from 1; 0 for the whole. message: a sentence in Chinese."""

    kind: str
    line: int
    position: int
    char: str
    message: str


@dataclass(frozen=True)
class Reading:
    """One line: per place the tones that are possible. A line of the wrong length is left free in every place."""

    text: str
    tones: tuple[frozenset[str], ...]
    known: tuple[bool, ...]
    groups: frozenset[str]  # level groups of the last character

    @staticmethod
    def of(line: str, length: int, script: str) -> Reading:
        found = tuple(tones(char, script) for char in line)
        fitting = tuple(t or EITHER for t in found) if len(line) == length else (EITHER,) * length
        return Reading(line, fitting, tuple(map(bool, found)), level_rhymes(line[-1], script))

    def misfits(self, shape: str, last: bool = True) -> list[int]:
        """The places (from 0) whose tone the shape does not allow; the last one only if asked for."""
        end = len(shape) if last else len(shape) - 1
        return [j for j in range(end) if shape[j] != "中" and shape[j] not in self.tones[j]]

    def only(self, place: int) -> str:
        """The tone of a place that has one; '' where both are possible."""
        return next(iter(self.tones[place])) if len(self.tones[place]) == 1 else ""


@dataclass(frozen=True)
class _Taken:
    """A couplet taken for two kinds of line, with the shape that fits best."""

    kinds: str
    cost: int
    lost: bool  # 对
    shape: Couplet
    places: tuple[tuple[int, ...], tuple[int, ...]]


def judge_tones(
    readings: tuple[Reading, ...], form: Form, mode: str, first_rhymes: bool
) -> tuple[str, list[Fault], list[Fault]]:
    """(kinds, faults, notes): the kind of each line that leaves the fewest faults, and what remains.

    A place that does not fit, and lost 对 or 粘, count 1 each. Of explanations with equally many, one in which all
    lines are regular by themselves wins, and only their relation is named; else the one that keeps more relations.
    first_rhymes: whether the first line would rhyme if it were taken for a rhyming one.
    """
    options = [
        list(_options(readings[i], readings[i + 1], i == 0, form, mode, first_rhymes)) for i in range(0, form.lines, 2)
    ]
    path = _best(options, form, 0.99)
    if any(place for taken in path for place in taken.places):
        path = _best(options, form, 1.01)
    faults, notes = [], []
    for k, taken in enumerate(path):
        faults += _relations(path, k, form)
        for half in (0, 1):
            i = 2 * k + half
            faults += _misfits(readings[i], i, taken.kinds[half], taken.places[half], _shape(taken, half))
            note = taken.shape.notes[half]
            if note and not taken.places[half]:
                notes.append(Fault("拗救" if note != "三仄尾" else note, i + 1, 0, "", f"第{i + 1}句：{note}"))
    return "".join(t.kinds for t in path), faults, notes


def _best(options: list[list[_Taken]], form: Form, weight: float) -> list[_Taken]:
    """The cheapest sequence of couplets, by dynamic programming. weight: of lost 对 and 粘."""
    paths: list[tuple[float, list[_Taken]]] = [(0.0, [])]
    for couplet in options:
        best: dict[str, tuple[float, list[_Taken]]] = {}
        for cost, path in paths:
            for taken in couplet:
                broken = bool(path) and _start(path[-1].kinds[1], form) != _start(taken.kinds[0], form)
                total = cost + taken.cost + weight * (taken.lost + broken)
                if taken.kinds not in best or total < best[taken.kinds][0]:
                    best[taken.kinds] = (total, [*path, taken])
        paths = list(best.values())
    return min(paths, key=lambda p: p[0])[1]


def _options(
    first: Reading, second: Reading, opening: bool, form: Form, mode: str, first_rhymes: bool
) -> Iterator[_Taken]:
    for one in "ABab" if opening else "ab":
        for two in "BA":
            fits = []
            for shape in couplets(one + two, form.length, mode):
                # where an even line ends is judged with the rhyme
                places = (tuple(first.misfits(shape.first)), tuple(second.misfits(shape.second, last=False)))
                fits.append((len(places[0]) + len(places[1]), shape, places))
            count, shape, places = min(fits, key=lambda fit: fit[0])
            lost = _start(one, form) == _start(two, form)
            yield _Taken(one + two, count + (one in "AB" and not first_rhymes), lost, shape, places)


def _start(kind: str, form: Form) -> str:
    return start(kind, form.length)


def _shape(taken: _Taken, half: int) -> str:
    return taken.shape.second if half else taken.shape.first


def _relations(path: list[_Taken], k: int, form: Form) -> list[Fault]:
    first, second = path[k].kinds
    found = []
    if k and _start(path[k - 1].kinds[1], form) != _start(first, form):
        message = f"第{2 * k + 1}句与第{2 * k}句失粘：第二字平仄应相同"
        found.append(Fault("失粘", 2 * k + 1, 2, "", message))
    if path[k].lost:
        message = f"第{2 * k + 2}句与第{2 * k + 1}句失对：第二字平仄应相反"
        found.append(Fault("失对", 2 * k + 2, 2, "", message))
    return found


def _misfits(reading: Reading, i: int, kind: str, places: tuple[int, ...], shape: str) -> list[Fault]:
    if not places:
        return []
    o = len(shape) - 5  # where the last five begin
    text = reading.text
    if kind == "B" and [reading.only(o + q) for q in (0, 2)] == ["仄", "仄"] and not set(places) - {o, o + 2}:
        message = f"第{i + 1}句孤平：第{o + 1}字「{text[o]}」仄而第{o + 3}字「{text[o + 2]}」未以平声救"
        return [Fault("孤平", i + 1, o + 1, text[o], message)]
    if kind == "A" and places == (o + 2,) and LEVEL in reading.tones[-1]:
        message = f"第{i + 1}句三平尾：末三字「{text[o + 2 :]}」皆平"
        return [Fault("三平尾", i + 1, o + 3, text[o + 2], message)]
    found = []
    for j in places:
        message = f"第{i + 1}句第{j + 1}字「{text[j]}」应{shape[j]}而{reading.only(j)}（{_plain(kind, len(shape))}）"
        found.append(Fault("平仄", i + 1, j + 1, text[j], message))
    return found


def _plain(kind: str, length: int) -> str:
    if length == 5:
        return LINES[kind]
    return ("平平" if start(kind, 7) == "平" else "仄仄") + LINES[kind]
