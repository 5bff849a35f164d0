"""Max-gram (MaG): copy after the longest match of the end of the text, then bigrams (CS Drafting, Chen et al. 2024)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dlopt.catalog import method
from dlopt.speculative.bigram import Bigram, chain
from dlopt.speculative.draft import Draft, whole
from dlopt.speculative.ngrams import NgramIndex
from dlopt.speculative.sampling import Sampling


@method(
    "max-gram",
    topic="speculative",
    kind="drafter",
    cite="chen2024cascade",
    summary="copies what followed the longest earlier match of the end of the text, then bigrams",
    search={"length": (2, 16, "int")},
    needs=("transformers",),
)
class MaxGram:
    """Finds the longest end of the text that stood in prompt or output before, copies the tokens that followed it
    there, and goes on with bigrams where there is no match or the copy reaches the end of the text. Deterministic.

    bigram: a `Bigram`, whose table is used; None stops at the end of the copy. length: tokens of a draft, at least 1
    (the paper: 10; inside a `CascadeDrafter` its lengths count). longest: matches of this many tokens or more are equal
    in the search, at least 1. latest: of several places take the last one. The draft's level is the match's length.
    """

    def __init__(
        self, bigram: Bigram | None = None, length: int = 10, longest: int = 8, *, latest: bool = True
    ) -> None:
        for name, value in (("length", length), ("longest", longest)):
            whole(name, value)
        self.bigram, self.length, self.longest, self.latest = bigram, length, longest, latest

    def check(self, model: Any, tokenizer: Any) -> None:
        """ValueError if the bigrams are for another vocabulary."""
        if self.bigram is not None:
            self.bigram.check(model, tokenizer)

    def begin(self, prompt: list[int], sampling: Sampling) -> MaxGramSession:
        return MaxGramSession(self, prompt)


class MaxGramSession:
    """Max-gram on one row: the index grows with the text."""

    def __init__(self, drafter: MaxGram, prompt: list[int]) -> None:
        self.length, self.longest = drafter.length, drafter.longest
        self.table = None if drafter.bigram is None else drafter.bigram.table
        self.index = NgramIndex(1, drafter.longest, latest=drafter.latest)
        self.index.extend(prompt)
        self.matched = 0

    def after(self, more: Sequence[int], count: int) -> list[int]:
        """Up to `count` tokens that may follow the text and `more` tokens behind it, which are not in the index."""
        known = self.index.tokens
        end = known if not more else [*known[-self.longest :], *more]
        found = self.index.find(end)
        place, self.matched = found or (len(known), 0)
        tokens = known[place : place + count]
        if self.table is not None and len(tokens) < count:
            tokens += chain(self.table, (tokens or end)[-1], count - len(tokens))
        return tokens

    def propose(self, limit: int) -> Draft:
        tokens = self.after((), min(limit, self.length))
        return Draft(tokens, level=self.matched)

    def observe(self, tokens: list[int]) -> None:
        self.index.extend(tokens)
