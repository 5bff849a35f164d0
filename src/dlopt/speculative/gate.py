"""The gate: draft as many tokens as give the most tokens per second, none included.

It changes speed, never the law of the text; with drafts that are not drawn, not the text either. For one round with a
draft of n tokens, of which token i is reached with probability P_i::

    tokens per second (n) = (1 + P_1 + ... + P_n) / (v(n + 1) + seconds of drafting)

P_i is a product of acceptance rates along the path of token i, one rate for each (level of the draft, depth, rank
among siblings), learned while decoding. A deterministic draft teaches even where it is cut or not verified at all: the
tokens that the text turns out to have are compared with those that it would have offered. v comes from `costs`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from dlopt.speculative.costs import Costs
from dlopt.speculative.draft import Draft, children, depths, first

Key = tuple[int, int, int]  # level, depth, rank
_WEIGHT = 2.0  # how many trials the assumed rate counts for
_SHADOWS = 8  # drafts of one row that are compared at the same time
_WAIT, _LONGEST = 16, 256  # rounds without a draft before a costly drafter is tried again, doubled up to


class Gate:
    """Statistics of acceptance and the choice of a length. Give one object to several requests and it goes on learning.

    costs: v(k); None calibrates each model and number of rows when decoding begins. decay: in (0, 1]; what an old trial
    still counts after a newer one of the same kind.
    """

    def __init__(self, costs: Costs | None = None, *, decay: float = 0.98) -> None:
        if not 0 < decay <= 1:
            raise ValueError(f"decay must be above 0 and at most 1, got {decay}")
        self.costs, self.decay = costs, decay
        self.given = costs is not None
        self._trials: defaultdict[Key, float] = defaultdict(float)
        self._wins: defaultdict[Key, float] = defaultdict(float)
        self._seconds_per_token: float | None = None

    def rate(self, level: int, depth: int, rank: int = 0) -> float:
        """Estimated probability that such a token is accepted, given that its parent was.

        Depths lean on the level's rate over all depths, and that on level / (level + 1), or 1/2 for level 0: one token
        of agreement promises little, a long match much. Later siblings start lower.
        """
        assumed = (level / (level + 1) if level > 0 else 0.5) / (1 + rank)
        pooled = self._estimate((level, 0, rank), assumed)
        return self._estimate((level, depth, rank), pooled)

    def _estimate(self, key: Key, assumed: float) -> float:
        return (self._wins[key] + _WEIGHT * assumed) / (self._trials[key] + _WEIGHT)

    def learn(self, level: int, depth: int, rank: int, accepted: bool) -> None:
        """One trial: a token was offered after an accepted parent, and was the right one or not."""
        for key in ((level, depth, rank), (level, 0, rank)):  # depth 0 is the pool of all depths
            self._trials[key] = self.decay * self._trials[key] + 1
            self._wins[key] = self.decay * self._wins[key] + accepted

    def drafted(self, tokens: int, seconds: float) -> None:
        """What a costly drafter took for a draft."""
        if tokens:
            each = seconds / tokens
            old = self._seconds_per_token
            self._seconds_per_token = each if old is None else 0.8 * old + 0.2 * each

    def best(self, chances: Sequence[float], seconds_per_token: float = 0.0) -> int:
        """How many of some tokens to draft: the n with the most tokens per second. chances: P_1, P_2, ..."""
        if self.costs is None:
            raise ValueError("this gate has no cost table")
        expected, best, most = 1.0, 0, 1.0 / self.costs.at(1)
        for n, chance in enumerate(chances, 1):
            expected += chance
            speed = expected / (self.costs.at(n + 1) + n * seconds_per_token)
            if speed > most:
                best, most = n, speed
        return best

    def row(self) -> Row:
        """The gate's memory of one row."""
        return Row(self)

    def state_dict(self) -> dict[str, Any]:
        """What was learned, as JSON holds it: trials and wins by (level, depth, rank), seconds per drafted token.

        The cost table is not in it: it belongs to a machine, and `Costs.save` writes it.
        """
        learned = [[*key, trials, self._wins[key]] for key, trials in self._trials.items()]
        return {"learned": learned, "seconds_per_token": self._seconds_per_token}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what another gate had learned; what this one knew is forgotten."""
        self._trials.clear()
        self._wins.clear()
        for level, depth, rank, trials, wins in state["learned"]:
            key = (int(level), int(depth), int(rank))
            self._trials[key], self._wins[key] = float(trials), float(wins)
        seconds = state["seconds_per_token"]
        self._seconds_per_token = None if seconds is None else float(seconds)


class Row:
    """One row's side of a gate: what was offered and is not decided yet."""

    def __init__(self, gate: Gate) -> None:
        self.gate = gate
        self._shadows: list[_Shadow] = []
        self._idle = 0
        self._wait = _WAIT

    def limit(self, session: Any, limit: int) -> int:
        """The longest draft to ask for. Costly drafters are limited here, before they work."""
        if not getattr(session, "costly", False) or limit < 1:
            return limit
        each = self.gate._seconds_per_token
        if each is None:
            return 1  # unknown: try once
        chances, reached = [], 1.0
        for depth in range(1, limit + 1):
            reached *= self.gate.rate(0, depth)
            chances.append(reached)
        best = self.gate.best(chances, each)
        if best:
            self._idle, self._wait = 0, _WAIT
            return best
        self._idle += 1
        if self._idle > self._wait:  # times change: look again, ever more seldom
            self._idle, self._wait = 0, min(2 * self._wait, _LONGEST)
            return 1
        return 0

    def cut(self, session: Any, draft: Draft) -> Draft:
        """The part of a draft that is worth a pass. Drafts of costly or stochastic drafters stay whole."""
        if not draft.tokens:
            return draft
        if not getattr(session, "stochastic", False):
            self._shadows = [*self._shadows[1 - _SHADOWS :], _Shadow(draft)]
        if getattr(session, "costly", False) or getattr(session, "stochastic", False):
            return draft
        ranks = _ranks(draft)
        chances: list[float] = []
        for i, depth in enumerate(depths(draft)):
            parent = i - 1 if draft.parents is None else draft.parents[i]
            reached = chances[parent] if parent >= 0 else 1.0
            chances.append(reached * self.gate.rate(draft.level, depth, ranks[i]))
        return first(draft, self.gate.best(chances))

    def emitted(self, tokens: list[int], draft: Draft, accepted: int) -> None:
        """The tokens that a round added. draft: what was verified, of which `accepted` tokens were taken."""
        if draft.probs is not None:  # drawn tokens: only what the verifier decided tells something
            deepest = max(depths(draft), default=0)
            for depth in range(1, min(accepted + 1, deepest) + 1):
                self.gate.learn(0, depth, 0, depth <= accepted)
        for token in tokens:
            for shadow in self._shadows:
                shadow.see(token, self.gate)
            self._shadows = [shadow for shadow in self._shadows if shadow.alive]


class _Shadow:
    """A deterministic draft, followed against the text as it really goes on."""

    def __init__(self, draft: Draft) -> None:
        self.draft, self.below, self.node, self.depth = draft, children(draft), 0, 0
        self.alive = True

    def see(self, token: int, gate: Gate) -> None:
        self.depth += 1
        onward = None
        for rank, child in enumerate(self.below[self.node]):
            hit = self.draft.tokens[child] == token
            gate.learn(self.draft.level, self.depth, rank, hit)
            if hit:
                onward = child + 1
                break
        self.alive = onward is not None and bool(self.below[onward])
        self.node = onward or 0


def _ranks(draft: Draft) -> list[int]:
    ranks = [0] * len(draft.tokens)
    for nodes in children(draft):
        for rank, child in enumerate(nodes):
            ranks[child] = rank
    return ranks
