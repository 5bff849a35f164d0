"""Suffix decoding: drafts as long as the match is, from this request and from earlier outputs (Oliaro et al. 2024)."""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Sequence
from threading import Lock
from typing import Any

from dlopt.catalog import method
from dlopt.speculative.automaton import BORDER, SuffixAutomaton
from dlopt.speculative.draft import Draft, whole
from dlopt.speculative.ngrams import LONGEST_MATCH
from dlopt.speculative.sampling import Sampling


class SuffixHistory:
    """Earlier outputs that requests draft from: `history.add(tokens)` after each. May be shared by threads.

    most: tokens that are kept, at least 1. When they are passed, the oldest texts leave until three quarters of it are
    left (always keeping the newest), and the index is made anew. Some 0.5 kB of memory a token.
    """

    def __init__(self, most: int = 100_000) -> None:
        whole("most", most)
        self.most = most
        self.texts: deque[list[int]] = deque()
        self.tokens = 0
        self.index = SuffixAutomaton()
        self.lock = Lock()

    def add(self, tokens: Sequence[int]) -> None:
        """One text of 1 to `most` token ids. No match and no draft reaches from it into another."""
        text = [int(token) for token in tokens]
        if not 1 <= len(text) <= self.most:
            raise ValueError(f"a text of a history has 1 to {self.most} tokens, got {len(text)}")
        if min(text) < 0:
            raise ValueError(f"token ids are at least 0, got {min(text)}")
        with self.lock:
            self.texts.append(text)
            self.tokens += len(text)
            if self.tokens <= self.most:
                self.index.extend([*text, BORDER])
                return
            while self.tokens > 3 * self.most // 4 and len(self.texts) > 1:
                self.tokens -= len(self.texts.popleft())
            self.index = SuffixAutomaton()
            self.index.extend([token for kept in self.texts for token in (*kept, BORDER)])


@method(
    "suffix-decoding",
    topic="speculative",
    kind="drafter",
    cite="oliaro2024suffixdecoding",
    summary="drafts in proportion to the length of the match, in this text and in earlier outputs",
    search={"max_spec_factor": (0.5, 4.0, "log"), "min_token_prob": (0.02, 0.5, "log")},
    needs=("transformers",),
)
class SuffixDrafter:
    """For every end of the text, p = 1 to `depth` tokens, that occurred before, drafts what followed; takes the best.

    A token after a matched end and some drafted tokens has the share of the places of that string at which it follows.
    Probability of a node: the product of shares along its path. From the end of p tokens at most max_spec_factor p
    nodes are taken, the most probable first, none below min_token_prob. Of the drafts of all p, from the request
    (prompt and output) and from the history, the one with the largest sum of probabilities is proposed; of equal ones
    the longest match, and the request before the history. Deterministic.

    The paper's suffix trees are suffix automata here: the same counts, and p runs over the states that differ in them
    only. Memory: some 0.5 kB a token of the request, and what the history states.

    history: a `SuffixHistory`, which the caller fills, or None. depth: at least 1 (64). max_spec_factor: above 0 (1).
    min_token_prob: above 0, at most 1 (0.1). tree: False drafts one path, always on to the most frequent token.
    """

    def __init__(
        self,
        history: SuffixHistory | None = None,
        depth: int = 64,
        max_spec_factor: float = 1.0,
        min_token_prob: float = 0.1,
        *,
        tree: bool = True,
    ) -> None:
        whole("depth", depth)
        if not 0 < max_spec_factor < math.inf:
            raise ValueError(f"max_spec_factor must be above 0, got {max_spec_factor}")
        if not 0 < min_token_prob <= 1:
            raise ValueError(f"min_token_prob must be above 0 and at most 1, got {min_token_prob}")
        self.history, self.depth, self.tree = history, depth, tree
        self.max_spec_factor, self.min_token_prob = max_spec_factor, min_token_prob

    def check(self, model: Any, tokenizer: Any) -> None:
        """ValueError if the history has tokens that the target does not."""
        if self.history is None:
            return
        with self.history.lock:
            largest = max((max(text) for text in self.history.texts), default=-1)
        if largest >= model.config.vocab_size:
            raise ValueError(
                f"the history has token {largest}, the target a vocabulary of {model.config.vocab_size}; "
                "use outputs of the same tokenizer"
            )

    def begin(self, prompt: list[int], sampling: Sampling) -> SuffixSession:
        return SuffixSession(self, prompt)


class SuffixSession:
    """Suffix decoding on one row."""

    def __init__(self, drafter: SuffixDrafter, prompt: list[int]) -> None:
        self.drafter = drafter
        self.recent = prompt[-drafter.depth :]
        self.own = SuffixAutomaton()
        self.own.extend(prompt)

    def propose(self, limit: int) -> Draft:
        # the whole text itself occurs once, at its end, where nothing follows; its links do elsewhere
        state = max(self.own.link[self.own.last], 0)
        score, draft = self._best(self.own, state, self.own.length[state], limit, 0.0)
        history = self.drafter.history
        if history is not None:
            with history.lock:
                other = self._best(history.index, *history.index.match(self.recent), limit, score)
            if other[0] > score:
                draft = other[1]
        return draft

    def observe(self, tokens: list[int]) -> None:
        self.own.extend(tokens)
        self.recent = [*self.recent, *tokens][-self.drafter.depth :]

    def _best(self, index: SuffixAutomaton, state: int, matched: int, limit: int, score: float) -> tuple[float, Draft]:
        """(sum of probabilities, draft), the best from an end of `matched` tokens or shorter that is above `score`."""
        our, best = self.drafter, Draft()
        grow = _tree if our.tree else _path
        while state > 0:
            below = index.link[state]
            if index.length[below] < our.depth:  # else all strings of this state are longer than depth
                level = min(matched, our.depth)
                budget = int(our.max_spec_factor * level + 1e-9)
                if budget <= score:  # a sum of so many probabilities cannot be larger, nor can shorter ends give more
                    break
                found, draft = grow(index, state, budget, limit, our.min_token_prob)
                if found > score:
                    score, best = found, draft._replace(level=min(level, LONGEST_MATCH))
            state, matched = below, index.length[below]
        return score, best


def _shares(index: SuffixAutomaton, state: int) -> list[tuple[float, int, int]]:
    """[(share, token, state after it)] of what follows a state; the ends of texts do not count."""
    found = [(index.count[after], token, after) for token, after in index.follow[state].items() if token != BORDER]
    total = sum(count for count, _, _ in found)
    return [(count / total, token, after) for count, token, after in found]


def _tree(index: SuffixAutomaton, state: int, budget: int, limit: int, least: float) -> tuple[float, Draft]:
    """The most probable nodes; of equal ones the shallower, then those of the smaller tokens along their path."""
    tokens: list[int] = []
    parents: list[int] = []
    score = 0.0
    heap: list[tuple[float, int, tuple[int, ...], int, int]] = []

    def push(state: int, chance: float, path: tuple[int, ...], parent: int) -> None:
        for share, token, after in _shares(index, state):
            if (reached := chance * share) >= least:
                heapq.heappush(heap, (-reached, len(path) + 1, (*path, token), after, parent))

    push(state, 1.0, (), -1)
    while heap and len(tokens) < budget:
        chance, depth, path, after, parent = heapq.heappop(heap)
        tokens.append(path[-1])
        parents.append(parent)
        score -= chance
        if depth < limit:
            push(after, -chance, path, len(tokens) - 1)
    return score, Draft(tokens, parents)


def _path(index: SuffixAutomaton, state: int, budget: int, limit: int, least: float) -> tuple[float, Draft]:
    """One path, on to the most frequent token, of equal ones the smallest."""
    tokens: list[int] = []
    score, chance = 0.0, 1.0
    while len(tokens) < min(budget, limit) and (shares := _shares(index, state)):
        share, token, state = max(shares, key=lambda entry: (entry[0], -entry[1]))
        chance *= share
        if chance < least:
            break
        tokens.append(token)
        score += chance
    return score, Draft(tokens)
