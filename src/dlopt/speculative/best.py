"""The best of several drafters, chosen in every round by what was accepted before."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from dlopt.catalog import method
from dlopt.speculative.draft import Draft, Drafter, depths
from dlopt.speculative.sampling import Sampling


@method(
    "best-of-drafts",
    topic="speculative",
    kind="drafter",
    cite="leviathan2023speculative",
    summary="asks several drafters and takes the draft that promises most tokens",
    needs=("transformers",),
)
class Best:
    """Asks every drafter in every round and verifies the draft from which most tokens are expected.

    For each drafter and level of its draft it keeps the rate a at which a next token is right, learned from all drafts,
    also from those that were not taken, by comparing them with the text. Depth d promises a + a^2 + ... + a^d tokens.

    drafters: at least one, deterministic (lookups, or a model with coupling="shared"): choosing among drawn drafts
    after seeing them would change the law of the text.
    """

    def __init__(self, drafters: Sequence[Drafter]) -> None:
        if not len(drafters):
            raise ValueError("Best needs at least one drafter")
        self.drafters = tuple(drafters)
        self.one_row = any(getattr(drafter, "one_row", False) for drafter in self.drafters)

    def check(self, model: Any, tokenizer: Any) -> None:
        for drafter in self.drafters:
            if callable(check := getattr(drafter, "check", None)):
                check(model, tokenizer)

    def begin(self, prompt: list[int], sampling: Sampling) -> BestSession:
        sessions = [drafter.begin(list(prompt), sampling) for drafter in self.drafters]
        for session in sessions:
            if getattr(session, "stochastic", False):
                raise ValueError(
                    f"Best chooses after it has seen the drafts, which is exact for deterministic drafts only, and "
                    f"{type(session).__name__} draws its own; use coupling='shared' or temperature 0"
                )
        return BestSession(sessions)


class BestSession:
    """Several sessions on one row."""

    def __init__(self, sessions: list[Any]) -> None:
        self.sessions = sessions
        self.costly = any(getattr(session, "costly", False) for session in sessions)
        self.right: defaultdict[tuple[int, int], float] = defaultdict(float)
        self.asked: defaultdict[tuple[int, int], float] = defaultdict(float)
        self.offers: list[Draft] = []
        self.written = 0  # tokens of the longest draft that took time to write

    def catch_up(self) -> None:
        for session in self.sessions:
            if callable(catch_up := getattr(session, "catch_up", None)):
                catch_up()

    def propose(self, limit: int) -> Draft:
        self.offers = [session.propose(limit) for session in self.sessions]
        costly = [len(o.tokens) for s, o in zip(self.sessions, self.offers) if getattr(s, "costly", False)]
        self.written = max(costly, default=0)
        return max(enumerate(self.offers), key=lambda pair: self._promise(*pair))[1]

    def _promise(self, number: int, draft: Draft) -> float:
        key = (number, draft.level)
        assumed = draft.level / (draft.level + 1) if draft.level > 0 else 0.5
        a = (self.right[key] + 2 * assumed) / (self.asked[key] + 2)
        return sum(a**d for d in range(1, max(depths(draft), default=0) + 1))

    def observe(self, tokens: list[int]) -> None:
        for number, draft in enumerate(self.offers):
            key = (number, draft.level)
            right, deepest = _agreement(draft, tokens)
            if deepest:
                self.right[key] += right
                # where it ran out of tokens on either side, nothing went wrong
                self.asked[key] += right + (right < min(deepest, len(tokens)))
        self.offers = []
        for session in self.sessions:
            session.observe(tokens)

    def attach(self, model: Any, cache: Any) -> None:
        for session in self.sessions:
            if callable(attach := getattr(session, "attach", None)):
                attach(model, cache)

    def learn(self, inputs: list[int], logits: Any) -> None:
        for session in self.sessions:
            if callable(learn := getattr(session, "learn", None)):
                learn(inputs, logits)


def _agreement(draft: Draft, tokens: list[int]) -> tuple[int, int]:
    """(how many of the tokens the draft has along one path, its deepest path)."""
    parents = range(-1, len(draft.tokens) - 1) if draft.parents is None else draft.parents
    depth = depths(draft)
    right = {-1: 0}  # nodes that agree with the text so far, and how deep
    for i, parent in enumerate(parents):
        if parent in right and depth[i] <= len(tokens) and draft.tokens[i] == tokens[depth[i] - 1]:
            right[i] = depth[i]
    return max(right.values()), max(depth, default=0)
