"""The poem assistant: writes under the rules, explains, offers other characters, shows what the model attends to.

    assistant = Assistant(checkpoint.find())
    poems = assistant.write(Wish("绝句", "春眠不觉晓"), seed=1)

The model proposes, the constraint (`constrained.py`) decides what is allowed, so every poem has the form, the tones and
the rhyme that were asked for. A first line of the user's own may be irregular: it is kept, and its faults are named.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dlopt.poetry.checkpoint import Checkpoint
from dlopt.poetry.constrained import ProsodyConstraint
from dlopt.poetry.layout import prefix
from dlopt.poetry.patterns import Form, find_form
from dlopt.poetry.rhymebook import members, rhymes
from dlopt.poetry.script import each_simplified
from dlopt.poetry.tables import Tables
from dlopt.poetry.vocabulary import PUNCTUATION, SPECIALS
from dlopt.poetry.wish import Asked, Refused, Wish, refusal, understand
from dlopt.poetry.written import MARKS, Poem, describe
from dlopt.transformer.decoding import generate

MOST = 16  # poems of one call
CANDIDATES = 8  # for each of them


@dataclass(frozen=True)
class Stroke:
    """One character while it is written. poem, line, place: counted from 0. mark: see `written.MARKS`."""

    poem: int
    line: int
    place: int
    char: str
    mark: str


@dataclass(frozen=True)
class Alternative:
    """A character that could stand in a place. probability: among what is allowed. source: as the model has it."""

    char: str
    probability: float
    mark: str
    source: str


class Cancelled(Exception):
    """The caller no longer wants the poem."""


class Assistant:
    """A model of poems with its tables, ready to write. Not for several threads at a time."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.model, self.vocabulary, self.card = checkpoint.model, checkpoint.vocabulary, checkpoint.card
        self.tables = Tables(self.vocabulary)
        chars = self.vocabulary.chars
        self._simple = dict(zip(chars, each_simplified("".join(chars)), strict=True))
        self._same: dict[str, str] = {}  # {simplified form: the characters that have it and a tone, commonest first}
        for char in chars:
            if self.vocabulary.id(char) in self.tables.tones:
                self._same[self._simple[char]] = self._same.get(self._simple[char], "") + char

    def understand(self, wish: Wish) -> Asked:
        """The wish in the model's terms; `Refused` with a sentence if it cannot be met, before anything is written."""
        asked = understand(wish, self._known)
        regular = replace(asked, request=replace(asked.request, judge_given=True))
        try:
            self._made(regular)
        except ValueError as error:
            # a line of the user's own that fits no pattern is answered by its second and last characters
            if not str(error).startswith("no pattern"):
                raise refusal(error, asked) from error
            self._constraint(asked)
            return asked
        return regular

    def write(
        self,
        wish: Wish | Asked,
        *,
        count: int = 1,
        temperature: float = 0.9,
        top_p: float = 0.95,
        best_of: int = 1,
        seed: int = 0,
        written: str = "",
        stream: Callable[[Stroke], None] | None = None,
        stopped: Callable[[], bool] = lambda: False,
    ) -> list[Poem]:
        """Poems, all alike for the same wish, settings and seed.

        Args:
            count: how many, 1 to 16.
            temperature: 0 (the likeliest character each time) to 2.
            top_p: share of the probability that is drawn from, above 0, at most 1.
            best_of: candidates per poem, 1 to 8, of which the one that the model finds likeliest stays. They cannot be
                streamed.
            seed: at least 0.
            written: the first characters of the poem, as `Poem.source` has them, to go on from.
            stream: told every character as it is written.
            stopped: asked at every character; the work ends with `Cancelled` once it says True.

        `Refused` with a sentence for anything out of range, or a beginning that breaks the rules.
        """
        _within("首数", count, 1, MOST)
        _within("温度", temperature, 0, 2)
        _within("候选数", best_of, 1, CANDIDATES)
        _within("种子", seed, 0, 2**63 - 1)
        if not 0 < top_p <= 1:
            raise Refused(f"top_p 应大于 0 且不超过 1，现为 {top_p}")
        asked = self.understand(wish) if isinstance(wish, Wish) else wish
        constraint = self._constraint(asked)
        head = self._beginning(asked, written)
        layout, start, form = constraint.layouts[0], constraint.start, find_form(asked.request.form)
        if len(head) - start >= len(layout) - 2:
            raise Refused("这首诗已经写完，没有可续写的字")
        at = [len(head) - start]

        def tell(tokens: Tensor) -> None:
            if stopped():
                raise Cancelled
            if stream is not None and best_of == 1 and layout[at[0]] < 0:
                number = sum(item < 0 for item in layout[: at[0]])
                line, place = divmod(number, form.length)
                for n, token in enumerate(tokens.tolist()):
                    own = self.vocabulary.tokens[token]
                    char = asked.typed(number, own, self._display(own, asked.script))
                    stream(Stroke(n, line, place, char, self._mark(token)))
            at[0] += 1

        prompt = torch.tensor([head] * (count * best_of))
        try:
            made = generate(
                self.model, prompt, len(layout) - (len(head) - start), temperature=temperature, top_p=top_p,
                processors=[constraint], generator=torch.Generator().manual_seed(seed), eos=self.vocabulary.eos,
                stream=tell,
            )  # fmt: skip
        except ValueError as error:
            raise refusal(error, asked) from error
        rows = torch.cat((prompt, made.tokens), 1)
        scores = self._scores(constraint, asked, rows, stopped)
        poems = [
            self._poem(asked, constraint.lines(n, row), masked, free)
            for n, (row, (masked, free)) in enumerate(zip(rows.tolist(), scores))
        ]
        groups = [poems[i * best_of : (i + 1) * best_of] for i in range(count)]
        return [max(group, key=lambda p: p.logprob or 0.0) for group in groups]

    def alternatives(self, wish: Wish | Asked, written: str, top: int = 12) -> list[Alternative]:
        """What could stand after the characters `written` (as in `Poem.source`), likeliest first; at most `top`."""
        _within("候选数", top, 1, 50)
        asked = self.understand(wish) if isinstance(wish, Wish) else wish
        size = find_form(asked.request.form).size
        if len(written) >= size:
            raise Refused(f"这首诗只有{size}个字")
        if asked.given[len(written)]:
            raise Refused("这个字是题中所给，不能更换")
        constraint, head = self._constraint(asked), self._beginning(asked, written)
        tokens = torch.tensor([head])
        with torch.no_grad():
            logits = self.model(tokens)[:, -1]
        try:
            share = constraint(logits, tokens).softmax(-1)[0]
        except ValueError as error:
            raise refusal(error, asked) from error
        found: dict[str, Alternative] = {}
        for token in share.argsort(descending=True)[: int((share > 0).sum())].tolist():
            char = self.vocabulary.tokens[token]
            shown = self._display(char, asked.script)
            # of those that look alike the likeliest
            found.setdefault(shown, Alternative(shown, float(share[token]), self._mark(token), char))
            if len(found) == top:
                break
        return list(found.values())

    def judge(self, wish: Wish | Asked, source: Sequence[str]) -> Poem:
        """A poem whose characters were changed by hand: its faults, without the probabilities of a written one."""
        asked = self.understand(wish) if isinstance(wish, Wish) else wish
        form = find_form(asked.request.form)
        if [len(line) for line in source] != [form.length] * form.lines:
            raise Refused(f"{form.name}应有{form.lines}句，每句{form.length}字")
        self._ids("".join(source))
        return self._poem(asked, source, None, None)

    def attention(self, wish: Wish | Asked, source: Sequence[str]) -> tuple[list[str], Tensor]:
        """(t tokens as they are shown, weights (layers, heads, t, t)): row i is where token i looked."""
        asked = self.understand(wish) if isinstance(wish, Wish) else wish
        self.judge(asked, source)
        tokens = self._beginning(asked, "".join(source))
        with torch.no_grad():
            maps = torch.cat(self.model.attention_maps(torch.tensor([tokens])))
        names = {self.vocabulary.bos: "始", self.vocabulary.sep: "题"}
        shown = [names.get(t, "体" if t < len(SPECIALS) else self.vocabulary.tokens[t]) for t in tokens]
        return [self._display(char, asked.script) for char in shown], maps

    def _constraint(self, asked: Asked) -> ProsodyConstraint:
        try:
            return self._made(asked)
        except ValueError as error:
            raise refusal(error, asked) from error

    def _made(self, asked: Asked) -> ProsodyConstraint:
        start = len(prefix(self.vocabulary, asked.request.form, asked.title))
        return ProsodyConstraint(self.vocabulary, asked.request, start=start, tables=self.tables)

    def _beginning(self, asked: Asked, written: str) -> list[int]:
        """The model's prefix and what is written, with the punctuation that belongs between and after lines."""
        form: Form = find_form(asked.request.form)
        if len(written) > form.size:
            raise Refused(f"{form.name}只有{form.size}个字，已写{len(written)}个字")
        found = prefix(self.vocabulary, form.name, asked.title)
        for place, token in enumerate(self._ids(written)):
            found.append(token)
            if place % form.length == form.length - 1:
                found.append(self.vocabulary.id(PUNCTUATION[place // form.length % 2]))
        return found

    def _ids(self, text: str) -> list[int]:
        unknown = [c for c in text if c not in self._simple or self.vocabulary.id(c) not in self.tables.tones]
        if unknown:
            raise Refused(f"「{unknown[0]}」不在字表里，或韵书未收它的平仄，请换一个字")
        return [self.vocabulary.id(c) for c in text]

    @torch.no_grad()
    def _scores(
        self, constraint: ProsodyConstraint, asked: Asked, rows: Tensor, stopped: Callable[[], bool]
    ) -> list[tuple[float, float]]:
        """Per row: log-probability in nats of the characters that are not given, under the mask and without it."""
        logits = self.model(rows[:, :-1])
        found = torch.zeros(2, len(rows), dtype=torch.float64)
        given, place = asked.given, 0
        for i, item in enumerate(constraint.layouts[0]):
            if item >= 0:
                continue
            if not given[place]:
                if stopped():
                    raise Cancelled
                at = constraint.start + i
                for k, scores in enumerate((constraint(logits[:, at - 1], rows[:, :at]), logits[:, at - 1])):
                    found[k] += scores.double().log_softmax(-1).gather(1, rows[:, at, None])[:, 0]
            place += 1
        return [(masked, free) for masked, free in found.T.tolist()]

    def _poem(self, asked: Asked, source: Sequence[str], masked: float | None, free: float | None) -> Poem:
        return describe(asked, tuple(source), masked, free, lambda char: self._display(char, asked.script))

    def _known(self, char: str) -> str:
        """The character of the vocabulary for a traditional one; '' if there is none.

        Itself, or a variant of the same readings: 幹 and 干 are two characters. A simplified one that the table of
        rhymes does not list, such as 饥 among traditional ones, is read as the commonest that it stands for.
        """
        if char in self._simple and self.vocabulary.id(char) in self.tables.tones:
            return char
        options = self._same.get(each_simplified(char)[0], "")
        listed = any(char in group for group in members().values())
        return next((c for c in options if not listed or rhymes(c) == rhymes(char)), "")

    def _display(self, char: str, script: str) -> str:
        return self._simple.get(char, char) if script == "simplified" else char

    def _mark(self, token: int) -> str:
        return MARKS[self.tables.tones.get(token, frozenset())]


def _within(name: str, value: float, least: float, most: float) -> None:
    if not least <= value <= most:
        raise Refused(f"{name}应在 {least} 与 {most} 之间，现为 {value}")
