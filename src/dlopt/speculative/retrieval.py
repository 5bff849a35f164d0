"""REST: drafts from a store of texts that look like what is being written (He et al. 2024)."""

from __future__ import annotations

from os import PathLike
from typing import Any

import numpy as np

from dlopt.catalog import method
from dlopt.speculative.datastore import Datastore, identity
from dlopt.speculative.draft import Draft, whole
from dlopt.speculative.sampling import Sampling


@method(
    "rest",
    topic="speculative",
    kind="drafter",
    cite="he2024rest",
    summary="a tree of what most often followed the end of the text in a store of other texts",
    search={"longest": (4, 16, "int"), "length": (2, 16, "int"), "nodes": (4, 64, "int")},
    needs=("transformers",),
)
class DatastoreDrafter:
    """Looks up the longest end of the text that occurs in a datastore and drafts what followed it there, as a tree.

    Up to `hits` occurrences are read, up to `length` tokens of each, and merged into a trie with counts. The `nodes`
    most frequent nodes are drafted, of equal ones the shallower first, so a token never stands there without its
    parent. The order is by count: a gate that cuts the draft keeps the most frequent part. Deterministic.

    Where the official code differs: without a match it verifies one fixed token, here the draft is empty; it lets
    matches and drafts run over the borders of documents; ids stop at 65,535; its sampling rule changes the law of the
    text. If all occurrences of the longest end stand at the end of documents, shorter ends are tried.

    datastore: a `Datastore`, or the path of a saved one. longest, shortest: tokens of the matched end (16 and 2),
    1 <= shortest <= longest. hits: at least 1 (5000); more occurrences are thinned out evenly. length: depth of the
    tree, at least 1 (10). nodes: at least 1 (64). The draft's level is the length of the match.
    """

    def __init__(
        self,
        datastore: Datastore | str | PathLike[str],
        longest: int = 16,
        shortest: int = 2,
        hits: int = 5000,
        length: int = 10,
        nodes: int = 64,
    ) -> None:
        if not 1 <= shortest <= longest:
            raise ValueError(f"shortest and longest need 1 <= shortest <= longest, got {shortest} and {longest}")
        for name, value in (("hits", hits), ("length", length), ("nodes", nodes)):
            whole(name, value)
        self.datastore = datastore if isinstance(datastore, Datastore) else Datastore.load(datastore)
        self.longest, self.shortest, self.hits, self.length, self.nodes = longest, shortest, hits, length, nodes

    def check(self, model: Any, tokenizer: Any) -> None:
        """ValueError if the store's token ids are not the target's."""
        store = self.datastore
        if store.vocabulary > model.config.vocab_size:
            raise ValueError(
                f"the datastore has a vocabulary of {store.vocabulary}, the target only {model.config.vocab_size}; "
                "build it with the target's tokenizer"
            )
        if store.tokenizer is not None and tokenizer is not None and (found := identity(tokenizer)) != store.tokenizer:
            raise ValueError(
                f"the datastore was built with another tokenizer ({store.tokenizer}) than the target's ({found}); "
                "build it again"
            )

    def begin(self, prompt: list[int], sampling: Sampling) -> RetrievalSession:
        return RetrievalSession(self, prompt)


class RetrievalSession:
    """REST on one row: the last tokens of the text."""

    def __init__(self, drafter: DatastoreDrafter, prompt: list[int]) -> None:
        self.drafter = drafter
        self.recent = prompt[-drafter.longest :]

    def propose(self, limit: int) -> Draft:
        our, store = self.drafter, self.drafter.datastore
        length = min(our.length, limit)
        matched, first, last = store.longest(self.recent, our.longest, our.shortest)
        while matched:
            trie = store.follow(first, last, matched, our.hits, length)
            if len(trie.tokens):
                break
            matched, first, last = store.longest(self.recent, matched - 1, our.shortest)
        if not matched:
            return Draft()
        chosen = np.argsort(-trie.counts, kind="stable")[: our.nodes]  # stable: parents stay before their children
        place = np.full(len(trie.tokens) + 1, -1)  # the last entry serves parent -1
        place[chosen] = np.arange(len(chosen))
        return Draft(trie.tokens[chosen].tolist(), place[trie.parents[chosen]].tolist(), level=matched)

    def observe(self, tokens: list[int]) -> None:
        self.recent = [*self.recent, *tokens][-self.drafter.longest :]
