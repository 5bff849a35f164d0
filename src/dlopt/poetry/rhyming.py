"""The rhyme of a poem: which level group its even lines share, and which lines fall out of it."""

from __future__ import annotations

from dataclasses import dataclass

from dlopt.poetry.reading import Fault, Reading
from dlopt.poetry.rhymebook import level_groups, near


@dataclass(frozen=True)
class Rhyme:
    """group: by full name, '' if no even line ends level. faults: of the even lines.

    first_fault, first_note: what is to be said of the first line if it is taken for a rhyming one.
    """

    group: str
    faults: tuple[Fault, ...]
    first_fault: Fault | None = None
    first_note: Fault | None = None


def judge_rhyme(readings: tuple[Reading, ...]) -> Rhyme:
    """The group that most even lines share; of several the one that the first line is in, or near to, or the earliest.

    An even line that has no level reading does not rhyme (不押韵); one that has, in other groups, falls out (出韵).
    Characters that the table lacks are not judged here. The first line may rhyme by a near group (借邻韵, a note).
    """
    even = [(i, r) for i, r in enumerate(readings, 1) if i % 2 == 0]
    judged = [(i, r) for i, r in even if r.known[-1]]
    opening = readings[0].groups
    candidates = [g for g in level_groups() if any(g in r.groups for _, r in judged)]

    def rank(g: str) -> tuple[int, bool, bool, int]:
        having = [i for i, r in judged if g in r.groups]
        return len(having), g in opening, bool(near(g) & opening), -having[0]

    # max keeps the first of equals, so what is still tied goes by the order of the table
    group = max(candidates, key=rank, default="")
    faults = []
    for i, reading in judged:
        char, place = reading.text[-1], len(reading.text)
        if not reading.groups:
            message = f"第{i}句不押韵：末字「{char}」无平声读音"
            faults.append(Fault("不押韵", i, place, char, message))
        elif group not in reading.groups:
            close = "（邻韵）" if near(group) & reading.groups else ""
            own = "、".join(sorted(g[3:] for g in reading.groups))
            message = f"第{i}句出韵：末字「{char}」属{own}{close}，全诗押{group[3:]}"
            faults.append(Fault("出韵", i, place, char, message))
    return Rhyme(group, tuple(faults), *_first(readings[0], group))


def _first(reading: Reading, group: str) -> tuple[Fault | None, Fault | None]:
    char, place = reading.text[-1], len(reading.text)
    if not reading.known[-1] or not group or group in reading.groups:
        return None, None
    own = "、".join(sorted(g[3:] for g in reading.groups)) or "仄声"
    if near(group) & reading.groups:
        return None, Fault("借邻韵", 1, place, char, f"第1句借邻韵：末字「{char}」属{own}，全诗押{group[3:]}")
    return Fault("出韵", 1, place, char, f"第1句出韵：末字「{char}」属{own}，全诗押{group[3:]}"), None
