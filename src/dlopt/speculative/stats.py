"""What a decoding run did and what it cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

from dlopt.speculative.costs import Costs


@dataclass
class Stats:
    """Counts over all rows and seconds of one `generate` call.

    tokens: new ones. rounds: passes of the target after the prefill, which gives the first token of every row.
    row_rounds: passes, counted once for every row that took part. drafted, accepted: tokens. offered[d], taken[d]: the
    same by depth, d = 0 next to the text; of a tree, a depth that was drafted counts once. widths: {tokens in a pass:
    passes}. Seconds, none counted twice: prefill (with what drafters do before it ends), draft (drafters and gate; a
    model that drafts reads the prompt when it first drafts), target (its forward passes), verify (choosing tokens,
    rolling the cache back), total. costs: v(k) as calibrated, if there was a gate.
    """

    rows: int = 1
    tokens: int = 0
    rounds: int = 0
    row_rounds: int = 0
    drafted: int = 0
    accepted: int = 0
    offered: list[int] = field(default_factory=list)
    taken: list[int] = field(default_factory=list)
    widths: Counter[int] = field(default_factory=Counter)
    prefill_seconds: float = 0.0
    draft_seconds: float = 0.0
    target_seconds: float = 0.0
    verify_seconds: float = 0.0
    total_seconds: float = 0.0
    costs: Costs | None = None

    @property
    def tokens_per_round(self) -> float:
        """New tokens of a row per pass of the target, the first token of every row left out; plain decoding: 1."""
        return (self.tokens - self.rows) / self.row_rounds if self.row_rounds else 1.0

    @property
    def acceptance(self) -> float:
        """Share of drafted tokens that were accepted; 0 where nothing was drafted."""
        return self.accepted / self.drafted if self.drafted else 0.0

    @property
    def decode_seconds(self) -> float:
        """All after the prefill."""
        return self.total_seconds - self.prefill_seconds

    @property
    def overhead_per_round(self) -> float:
        """Seconds per round that neither the target nor the drafter used: the engine's own."""
        own = self.decode_seconds - self.target_seconds - self.draft_seconds
        return own / self.rounds if self.rounds else 0.0

    @property
    def predicted_speedup(self) -> float | None:
        """Plain decoding's seconds over these, from v(k) and the measured draft seconds; for one row with a gate."""
        if self.costs is None or self.rows != 1 or not self.rounds:
            return None
        ours = sum(count * self.costs.at(width) for width, count in self.widths.items()) + self.draft_seconds
        return (self.tokens - 1) * self.costs.at(1) / ours

    def speedup(self, plain: Stats) -> float:
        """Measured: seconds per token after the prefill of plain decoding over those of this run."""
        if plain.tokens <= plain.rows or self.tokens <= self.rows:
            raise ValueError("a speed-up needs at least two new tokens in each run")
        return (plain.decode_seconds / (plain.tokens - plain.rows)) / (self.decode_seconds / (self.tokens - self.rows))

    @classmethod
    def sum(cls, parts: Sequence[Stats]) -> Stats:
        """The counts and seconds of several runs together, one after the other."""
        whole = cls(rows=0, costs=parts[0].costs)
        for part in parts:
            for name in ("rows", "tokens", "rounds", "row_rounds", "drafted", "accepted", "prefill_seconds",
                         "draft_seconds", "target_seconds", "verify_seconds", "total_seconds"):  # fmt: skip
                setattr(whole, name, getattr(whole, name) + getattr(part, name))
            whole.widths += part.widths
            for name in ("offered", "taken"):
                pairs = zip_longest(getattr(whole, name), getattr(part, name), fillvalue=0)
                setattr(whole, name, [a + b for a, b in pairs])
        return whole

    def count(self, depths: list[int], accepted: int) -> None:
        """One row's draft, by the depths of its tokens, and how many tokens of it were accepted."""
        deepest = max(depths, default=0)
        while len(self.offered) < deepest:
            self.offered.append(0)
            self.taken.append(0)
        self.row_rounds += 1
        self.drafted += len(depths)
        self.accepted += accepted
        for d in range(deepest):
            self.offered[d] += 1
            self.taken[d] += d < accepted

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers, lists and dicts, for records."""
        names = ("rows", "tokens", "rounds", "row_rounds", "drafted", "accepted", "offered", "taken", "prefill_seconds",
                 "draft_seconds", "target_seconds", "verify_seconds", "total_seconds", "tokens_per_round", "acceptance",
                 "overhead_per_round", "predicted_speedup")  # fmt: skip
        found = {name: getattr(self, name) for name in names}
        found["widths"] = {str(width): count for width, count in sorted(self.widths.items())}
        found["costs"] = None if self.costs is None else self.costs.as_dict()
        return found
