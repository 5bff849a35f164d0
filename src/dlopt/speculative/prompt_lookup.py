"""Prompt lookup: what followed the last tokens when they stood in the text before (Saxena 2023)."""

from __future__ import annotations

from dlopt.catalog import method
from dlopt.speculative.draft import Draft, whole
from dlopt.speculative.ngrams import NgramIndex
from dlopt.speculative.sampling import Sampling


@method(
    "prompt-lookup",
    topic="speculative",
    kind="drafter",
    cite="saxena2023lookup",
    summary="copies what followed the last n-gram of the text at its earlier place",
    search={"max_ngram": (1, 8, "int"), "length": (2, 16, "int")},
    needs=("transformers",),
)
class PromptLookup:
    """Finds the longest n-gram that ends the text, n from max_ngram down to min_ngram, at an earlier place of prompt
    and output, and drafts the tokens that followed it there. Deterministic; one dictionary entry per token and n.

    max_ngram: at least 1 (the original: 3; transformers: 2). length: tokens of a draft, at least 1 (10 in both). With a
    gate it is the most that is ever drafted. min_ngram: from 1 to max_ngram. latest: copy from the last of several
    places, which follows changes of topic; transformers takes the first.

    Example:
        >>> from dlopt.speculative import PromptLookup, Sampling
        >>> session = PromptLookup(max_ngram=2, length=3).begin([5, 6, 7, 8, 9, 5, 6], Sampling())
        >>> session.propose(10).tokens
        [7, 8, 9]
    """

    def __init__(self, max_ngram: int = 3, length: int = 10, min_ngram: int = 1, *, latest: bool = True) -> None:
        whole("max_ngram", max_ngram)
        whole("length", length)
        if not 1 <= min_ngram <= max_ngram:
            raise ValueError(f"min_ngram must be from 1 to max_ngram = {max_ngram}, got {min_ngram}")
        self.max_ngram, self.length, self.min_ngram, self.latest = max_ngram, length, min_ngram, latest

    def begin(self, prompt: list[int], sampling: Sampling) -> LookupSession:
        return LookupSession(self, prompt)


class LookupSession:
    """Prompt lookup on one row: the index grows with the text."""

    def __init__(self, drafter: PromptLookup, prompt: list[int]) -> None:
        self.length = drafter.length
        self.index = NgramIndex(drafter.min_ngram, drafter.max_ngram, latest=drafter.latest)
        self.index.extend(prompt)

    def propose(self, limit: int) -> Draft:
        found = self.index.find(self.index.tokens)
        if found is None:
            return Draft()
        place, matched = found
        return Draft(self.index.tokens[place : place + min(limit, self.length)], level=matched)

    def observe(self, tokens: list[int]) -> None:
        self.index.extend(tokens)
