"""What a drafter is, and what it hands to the engine: a `Draft`, a chain or a tree of guessed tokens.

A drafter is configuration that does not change. `begin` starts a session for one row of one request; the session keeps
whatever the method remembers. So rows of a batch, requests and threads share a drafter without sharing state.
"""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

if TYPE_CHECKING:
    from dlopt.speculative.sampling import Sampling


def whole(name: str, value: Any) -> None:
    """ValueError, with the name, unless the value is a whole number of at least 1."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise ValueError(f"{name} must be a whole number, got {value!r}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")


class Draft(NamedTuple):
    """Guessed tokens that continue a text.

    tokens: their ids. parents: for each the index of the token before it, smaller than its own, or -1 for the last
    token of the text; None is a chain. probs: None if the tokens are the drafter's only choice (deterministic), else
    for each token the law (V,) in float64 from which it was really drawn, given its path and its earlier siblings,
    after all processors; an entry None marks a token that was not drawn. level: how sure the drafter is, a small
    integer such as the length of a match; the gate keeps its statistics by it.
    """

    tokens: Sequence[int] = ()
    parents: Sequence[int] | None = None
    probs: Sequence[np.ndarray | None] | None = None
    level: int = 0


class Session(Protocol):
    """A drafter at work on one row. Beyond these, a session may have any of the following.

    costly = True: drafting takes time for every token, so the gate chooses the limit beforehand (default False: it cuts
    the draft afterwards). catch_up(): called before `propose` where a gate takes the time of drafting; reads what the
    text has gained since the last draft, the prompt at first, which is no cost of the next token. written: how many
    tokens the last draft took to write, where that is not its length. stochastic = True: drafts carry probs, so no one
    may choose among drafts after seeing them.
    attach(model, cache): called once, after the prefill, with the target's cache of all tokens but the last.
    learn(inputs, logits): called in every pass of the target with the tokens that went in, also those that will be
    rejected, and the logits (n, V) after each.
    """

    def propose(self, limit: int) -> Draft:
        """A draft of which no path is longer than limit (at least 1); `Draft()` if there is no idea."""
        ...

    def observe(self, tokens: list[int]) -> None:
        """The tokens that this round added to the text: accepted ones, then the corrected or the bonus one.

        The first call brings the token that the prefill gave, before anything was proposed.
        """
        ...


class Drafter(Protocol):
    """Configuration of a method. Beyond `begin`, a drafter may have any of the following.

    check(model, tokenizer): raises ValueError, with a sentence, if the drafter cannot serve this target.
    one_row = True: rows of a batch have to be decoded one after the other.
    """

    def begin(self, prompt: list[int], sampling: Sampling) -> Session:
        """A session for one row; `sampling.seed` is this row's seed."""
        ...


def depths(draft: Draft) -> list[int]:
    """How many tokens of the draft lead to each one, itself included."""
    if draft.parents is None:
        return list(range(1, len(draft.tokens) + 1))
    found: list[int] = []
    for parent in draft.parents:
        found.append(1 + (found[parent] if parent >= 0 else 0))
    return found


def children(draft: Draft) -> list[list[int]]:
    """For the root (place 0) and each token i (place i + 1), the indices of the tokens that follow it."""
    below: list[list[int]] = [[] for _ in range(len(draft.tokens) + 1)]
    for i in range(len(draft.tokens)):
        below[(i if draft.parents is None else draft.parents[i] + 1)].append(i)
    return below


def ancestors(draft: Draft, width: int) -> np.ndarray:
    """Who attends to whom inside a block (width, width): the root in place 0, then the tokens, then padding.

    Each sees itself and its path up to the root. Padding sees itself only, so that no row of the mask is empty.
    """
    seen = np.eye(width, dtype=bool)
    for i in range(len(draft.tokens)):
        parent = i if draft.parents is None else draft.parents[i] + 1
        seen[i + 1] |= seen[parent]
    return seen


def first(draft: Draft, count: int) -> Draft:
    """The first tokens of a draft; parents come before their children, so this is a draft too."""
    if count >= len(draft.tokens):
        return draft
    return draft._replace(
        tokens=draft.tokens[:count],
        parents=None if draft.parents is None else draft.parents[:count],
        probs=None if draft.probs is None else draft.probs[:count],
    )


def chain(draft: Draft) -> Draft:
    """Of a tree the path of first children, which drafters order by how likely they are; a chain stays as it is."""
    if draft.parents is None:
        return draft
    if list(draft.parents) == list(range(-1, len(draft.tokens) - 1)):
        return draft._replace(parents=None)
    below, path = children(draft), []
    place = 0
    while below[place]:
        path.append(below[place][0])
        place = path[-1] + 1
    probs = None if draft.probs is None else [draft.probs[i] for i in path]
    return draft._replace(tokens=[draft.tokens[i] for i in path], parents=None, probs=probs)


def checked(draft: Draft, limit: int, vocabulary: int, who: Any) -> Draft:
    """The draft, if it keeps the rules. ValueError names the drafter and the rule otherwise."""
    count = len(draft.tokens)
    if not count:
        return draft
    name = type(who).__name__
    if min(draft.tokens) < 0 or max(draft.tokens) >= vocabulary:
        raise ValueError(f"{name} drafted a token outside the target's vocabulary of {vocabulary}: {draft.tokens}")
    parents = range(-1, count - 1) if draft.parents is None else draft.parents
    if len(parents) != count or any(not -1 <= parent < i for i, parent in enumerate(parents)):
        raise ValueError(f"{name}: parents must be {count} indices, each from -1 up to below its own place")
    if draft.probs is not None:
        if len(draft.probs) != count:
            raise ValueError(f"{name}: probs must have one entry for each of the {count} tokens")
        for token, law in zip(draft.tokens, draft.probs):
            if law is not None and (law.shape != (vocabulary,) or not law[token] > 0):
                raise ValueError(f"{name}: token {token} has probability 0, or a law that is not ({vocabulary},)")
    if max(depths(draft)) > limit:
        raise ValueError(f"{name} drafted a path of {max(depths(draft))} tokens, the limit was {limit}")
    return draft
