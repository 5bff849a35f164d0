"""Which characters may come next in a poem under the rules, so that it can always be finished.

All arrangements of the form are followed side by side, each with the shapes its present couplet can still have and the
rhyme groups that still have enough unused characters. A character is allowed if it keeps one of them alive.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from dlopt.poetry.patterns import Arrangement, Couplet, arrangements, couplets, find_form
from dlopt.poetry.request import FREE, Request
from dlopt.poetry.rhymebook import find_group, near
from dlopt.poetry.tables import Tables
from dlopt.poetry.vocabulary import Vocabulary


@dataclass(frozen=True)
class Branch:
    """An arrangement that is still possible: rhyme groups (by number) and shapes of the couplet being written."""

    groups: frozenset[int]
    shapes: tuple[Couplet, ...]


@dataclass(frozen=True)
class State:
    """After `place` characters. used: tokens that may not come again, with all that look alike. left: unused
    characters per group, those that look alike counted once."""

    place: int
    used: frozenset[int]
    left: tuple[int, ...]
    branches: dict[int, Branch] = field(repr=False)
    last: tuple[int, int] = (-1, -1)  # the two tokens before, within the line


class Plan:
    """One request against one vocabulary. ValueError, with a sentence, if no poem can satisfy it."""

    def __init__(self, request: Request, vocabulary: Vocabulary, tables: Tables) -> None:
        self.request, self.tables, self.form = request, tables, find_form(request.form)
        self.given = [-1 if c == FREE else self._token(c, vocabulary) for c in request.characters]
        every = arrangements(self.form.name, request.first_rhymes)
        self.rhyming = [self._rhyming(a) for a in every]
        fitted = [self._fitted(a) for a in every]
        self.shapes = [shapes for _, shapes in fitted]
        self._enough()
        fixed = [t for t in self.given if t >= 0]
        held = fixed if request.forbid_repeats else [t for k, t in enumerate(self.given) if t >= 0 and self._ends(k)]
        left = list(tables.sizes)
        for token in {min(tables.alike[t]) for t in held}:
            for g in tables.spent[token]:
                left[g] -= 1
        fitting = [n for n, shapes in enumerate(self.shapes) if all(shapes)]
        if not fitting:
            raise ValueError(
                f"no pattern of {self.form.name} ({request.mode}) fits the tones of the given characters "
                f"{request.characters}"
            )
        branches = {n: Branch(self._groups(n, left), self.shapes[n][0]) for n in fitting}
        branches = {n: b for n, b in branches.items() if b.groups}
        if not branches:
            raise ValueError(
                f"no rhyme group{f' but {request.rhyme!r} is asked for, and it' if request.rhyme else ''} fits the "
                f"given characters {request.characters} and has enough characters left in the vocabulary"
            )
        fewest = min(fitted[n][0] for n in branches)
        branches = {n: b for n, b in branches.items() if fitted[n][0] == fewest}
        used = frozenset(token for t in held for token in tables.alike[t])
        self.initial = State(0, used, tuple(left), branches)

    def allowed(self, state: State) -> Tensor:
        """bool (V,): the characters that may come next. At least one, always."""
        k, tables, request = state.place, self.tables, self.request
        if self.given[k] >= 0:
            return torch.zeros_like(tables.legal).index_fill_(0, torch.tensor(self.given[k]), True)
        line, j = divmod(k, self.form.length)
        used = torch.tensor(sorted(state.used), dtype=torch.int64)
        free, rhyming, shapes = set(), set(), set()
        for n, branch in state.branches.items():
            needed = self._needed(n, k)
            if k in self.rhyming[n]:
                rhyming |= {g for g in branch.groups if state.left[g] >= needed}
                continue
            tones = {_half(shape, line)[j] for shape in branch.shapes}
            # groups without a character to spare keep what they have for the rhymes
            tight = request.forbid_repeats and all(state.left[g] <= needed for g in branch.groups)
            free.add(("中" if len(tones) > 1 else tones.pop(), branch.groups if tight else None))
            shapes |= set(branch.shapes)
        mask = tables.rhyming(frozenset(rhyming)).index_fill(0, used, False)
        for tone, held in free:
            mask |= tables.of(tone) if held is None else tables.of(tone) & ~tables.common(held)
        if request.forbid_repeats:
            mask.index_fill_(0, used, False)
            last = state.last[1]
            if free and self._doubles(state, last, j):
                mask[last] = any(_half(shape, line)[j] in ("中", *tables.tones[last]) for shape in shapes)
        return mask

    def advance(self, state: State, token: int) -> State:
        """The state after one more character. ValueError if it leaves nothing alive, so was not allowed."""
        k, tables = state.place, self.tables
        line, j = divmod(k, self.form.length)
        if token not in tables.tones or self.given[k] not in (-1, token):
            raise ValueError(f"token {token} is not allowed in place {j + 1} of line {line + 1}")
        chosen, again = self.given[k] < 0, token in state.used
        if chosen and again and self.request.forbid_repeats and not self._doubles(state, token, j):
            raise ValueError(f"token {token} breaks the rules in place {j + 1} of line {line + 1}: it stood before")
        rhymes = any(k in self.rhyming[n] and set(tables.groups[token]) & b.groups for n, b in state.branches.items())
        left, used = list(state.left), state.used
        if chosen and not again and (self.request.forbid_repeats or rhymes):
            used |= tables.alike[token]
            for g in tables.spent[token]:
                left[g] -= 1
        branches = {}
        for n, branch in state.branches.items():
            shapes = tuple(shape for shape in branch.shapes if self._in(token, _half(shape, line)[j], k))
            groups = branch.groups
            if k in self.rhyming[n]:
                if chosen and again:
                    continue
                groups &= self._fit(token, k)
            needed = self._needed(n, k + 1)
            short = [g for g in tables.spent[token] if left[g] < needed]  # only these have become smaller
            groups = groups.difference(short) if short else groups
            if shapes and groups:
                if line % 2 and j == self.form.length - 1 and line + 1 < self.form.lines:
                    shapes = self.shapes[n][(line + 1) // 2]
                branches[n] = Branch(groups, shapes)
        if not branches:
            raise ValueError(f"token {token} breaks the rules in place {j + 1} of line {line + 1}")
        last = (state.last[1] if j else -1, token)
        return State(k + 1, used, tuple(left), branches, last)

    def _doubles(self, state: State, token: int, j: int) -> bool:
        """Whether a token in place j of a line would be the second half of a reduplication that is allowed."""
        before, last = state.last
        return self.request.reduplication and j > 0 and token == last and before != last

    def _fit(self, token: int, k: int) -> frozenset[int]:
        """Groups of the poem in which a character may rhyme at place k.

        Its own; a given character at the end of the first line also in a near group, where that one is asked for.
        """
        own = frozenset(self.tables.groups[token])
        if self.given[k] < 0 or k >= self.form.length or self.request.rhyme is None:
            return own
        names = self.tables.names
        wanted = find_group(self.request.rhyme)
        close = {names.index(wanted)} if near(wanted) & {names[g] for g in own} else set()
        return own | close

    def _token(self, char: str, vocabulary: Vocabulary) -> int:
        if char not in vocabulary:
            raise ValueError(f"{char!r} is not in the vocabulary (is it in the other script?)")
        token = vocabulary.id(char)
        if token not in self.tables.tones:
            raise ValueError(f"{char!r} is not in the table of rhymes, so its tone is not known")
        return token

    def _ends(self, k: int) -> bool:
        return any(k in places for places in self.rhyming)

    def _rhyming(self, arrangement: Arrangement) -> frozenset[int]:
        lines = [i for i, kind in enumerate(arrangement.kinds) if kind in "AB"]
        return frozenset((i + 1) * self.form.length - 1 for i in lines)

    def _needed(self, n: int, k: int) -> int:
        """Rhymes from place k on that are still to be chosen."""
        return sum(p >= k and self.given[p] < 0 for p in self.rhyming[n])

    def _in(self, token: int, tone: str, k: int) -> bool:
        # a given character that is not judged was fitted when the plan was made
        return tone == "中" or tone in self.tables.tones[token] or (self.given[k] >= 0 and not self.request.judge_given)

    def _fitted(self, arrangement: Arrangement) -> tuple[int, list[tuple[Couplet, ...]]]:
        """(given places that do not fit, per couplet the shapes that fit best); no shapes where none can serve."""
        total, found = 0, []
        for i in range(0, self.form.lines, 2):
            counted = []
            for shape in couplets(arrangement.kinds[i : i + 2], self.form.length, self.request.mode):
                first, second = self._misfits(shape.first, i), self._misfits(shape.second, i + 1)
                # what a departure in the first line would allow the second does not hold for a line out of all rules
                if first is not None and second is not None and not (first + second and shape.notes[0] == "拗"):
                    counted.append((first + second, shape))
            fewest = min((count for count, _ in counted), default=0)
            total += fewest
            found.append(tuple(shape for count, shape in counted if count == fewest))
        return total, found

    def _misfits(self, shape: str, line: int) -> int | None:
        """Given places of a line that do not fit the shape; None if that rules the shape out."""
        begin = line * self.form.length
        tokens = self.given[begin : begin + self.form.length]
        wrong = [j for j, t in enumerate(tokens) if t >= 0 and shape[j] not in ("中", *self.tables.tones[t])]
        spared = not self.request.judge_given and min(tokens) >= 0 and not {1, self.form.length - 1} & set(wrong)
        return len(wrong) if spared or not wrong else None

    def _groups(self, n: int, left: list[int]) -> frozenset[int]:
        fixed = [p for p in self.rhyming[n] if self.given[p] >= 0]
        if len({min(self.tables.alike[self.given[p]]) for p in fixed}) < len(fixed):
            return frozenset()  # the same rhyme twice
        wanted = None if self.request.rhyme is None else self.tables.names.index(find_group(self.request.rhyme))
        return frozenset(
            g
            for g in range(len(left))
            if wanted in (None, g)
            and left[g] >= self._needed(n, 0)
            and all(g in self._fit(self.given[p], p) for p in fixed)
        )

    def _enough(self) -> None:
        """Each tone must have more characters than the poem has places, and those that rhymes may hold back."""
        rhymes = max(map(len, self.rhyming))
        wanted = (self.form.size if self.request.forbid_repeats else 0) + rhymes + 1
        counts = self.tables.counts
        if min(counts) < wanted:
            raise ValueError(
                f"the vocabulary has {counts[0]} level and {counts[1]} oblique characters of known tone; "
                f"{self.form.name} {'without repeats ' if self.request.forbid_repeats else ''}needs {wanted} of each"
            )


def _half(shape: Couplet, line: int) -> str:
    return shape.second if line % 2 else shape.first
