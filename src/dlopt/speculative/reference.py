"""LLMA: copy from documents that the answer is expected to quote (Yang et al. 2023)."""

from __future__ import annotations

from collections.abc import Sequence

from dlopt.catalog import method
from dlopt.speculative.draft import Draft, whole
from dlopt.speculative.ngrams import NgramIndex
from dlopt.speculative.sampling import Sampling


@method(
    "llma",
    topic="speculative",
    kind="drafter",
    cite="yang2023llma",
    summary="copies from reference documents where the output repeats an n-gram of theirs",
    search={"min_ngram": (1, 8, "int"), "length": (2, 32, "int")},
    needs=("transformers",),
)
class ReferenceDrafter:
    """When the output so far ends with an n-gram of a reference, drafts the tokens that follow it there.

    Only the output is matched, not the prompt, and only the references are searched: retrieved passages, the text to be
    rewritten, an earlier answer. Longer matches win. Deterministic; the index is made once, for all rows and requests.

    references: token ids of each document, none of them empty; None takes the prompt itself as the only one. min_ngram:
    at least 1, the paper's n: how many tokens have to agree (1). length: tokens of a draft, at least 1, the paper's k
    (20). max_ngram: at least min_ngram; matches are sought from this length down. latest: of several places take the
    last one; the paper's code takes the first. Matches and drafts never reach from one document into the next.
    """

    def __init__(
        self,
        references: Sequence[Sequence[int]] | None = None,
        min_ngram: int = 1,
        length: int = 20,
        max_ngram: int = 5,
        *,
        latest: bool = False,
    ) -> None:
        whole("min_ngram", min_ngram)
        whole("length", length)
        if max_ngram < min_ngram:
            raise ValueError(f"max_ngram must be at least min_ngram = {min_ngram}, got {max_ngram}")
        self.min_ngram, self.length, self.max_ngram, self.latest = min_ngram, length, max_ngram, latest
        self.index = None if references is None else self._indexed(references)

    def _indexed(self, references: Sequence[Sequence[int]]) -> tuple[NgramIndex, list[int]]:
        if not len(references) or not all(len(document) for document in references):
            raise ValueError("references must be documents of token ids, at least one, none of them empty")
        index = NgramIndex(self.min_ngram, self.max_ngram, latest=self.latest)
        ends: list[int] = []  # for each place, where its document ends
        for document in references:
            index.divide()  # before the first it does nothing
            index.extend([int(token) for token in document])
            ends += [len(index.tokens)] * len(document)
        return index, ends

    def begin(self, prompt: list[int], sampling: Sampling) -> ReferenceSession:
        return ReferenceSession(self, self.index or self._indexed([prompt]))


class ReferenceSession:
    """LLMA on one row: the output so far and the shared index."""

    def __init__(self, drafter: ReferenceDrafter, index: tuple[NgramIndex, list[int]]) -> None:
        self.length = drafter.length
        self.index, self.ends = index
        self.output: list[int] = []

    def propose(self, limit: int) -> Draft:
        found = self.index.find(self.output)
        if found is None:
            return Draft()
        place, matched = found
        return Draft(self.index.tokens[place : min(place + min(limit, self.length), self.ends[place])], level=matched)

    def observe(self, tokens: list[int]) -> None:
        self.output += tokens
