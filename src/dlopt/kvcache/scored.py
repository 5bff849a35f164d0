"""Keeping the tokens with the best scores: the one store of H2O, SnapKV, PyramidKV, TOVA and Knorm.

A method is a scoring function and a budget; what is scored, when, and how columns are chosen is here. Scores that need
the queries are computed at the commit, from the queries of the tokens that are committed, so a rejected draft never
counts.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from dlopt.kvcache.layer import appended
from dlopt.kvcache.rows import Rows, pick
from dlopt.kvcache.watched import UNSEEN, watched

WHEN = ("always", "prompt", "blocks")
LOGITS = 1 << 22  # of one piece of recomputed attention


class Scored:
    """The tokens of one layer, per head those with the best scores and the newest.

    Args:
        score: score(store, rows) -> (B, H, length) or (B, 1, length), higher is kept; it reads `keys`,
            `queries`, `scaling`.
        budget: columns left after an eviction. recent: so many of the newest are kept whatever their score.
        queries: whether `score` reads them. adds: scores are sums over all passes and computed at every commit.
        when: evict at every commit ("always"), at the first one ("prompt"), or at those of two tokens or
            more ("blocks").
    """

    kinds: ClassVar = {"keys": "residual", "values": "residual", "queries": "scores", "scores": "scores"}
    facts: ClassVar = ("scaling", "unseen", "begun")

    def __init__(
        self,
        score: Callable[[Scored, Rows], Tensor],
        budget: int,
        recent: int,
        *,
        queries: bool = True,
        adds: bool = False,
        when: str = "always",
    ):
        self.score, self.budget, self.recent, self.adds, self.when = score, budget, recent, adds, when
        self.waits = queries
        self.keys: Tensor | None = None
        self.values: Tensor | None = None
        self.queries: Tensor | None = None  # (B, Hq, m, D) of the m tokens that are not committed
        self.scores: Tensor | None = None  # (B, H, length) sums, where the method adds
        self.scaling = 1.0
        self.unseen = 0  # new tokens whose queries have not been seen
        self.begun = False  # whether anything was committed

    @property
    def length(self) -> int:
        return 0 if self.keys is None else self.keys.shape[2]

    def start(self, keys: Tensor, values: Tensor) -> None:
        """Nothing to learn."""

    def append(self, keys: Tensor, values: Tensor, rows: Rows) -> tuple[Tensor, Tensor]:
        if self.unseen:
            raise RuntimeError(UNSEEN)
        self.keys, self.values = appended((self.keys, self.values), (keys.detach(), values.detach()))
        self.unseen = keys.shape[2] if self.waits else 0
        return self.keys, self.values

    def mark(self, keys: Tensor, layer: Any) -> Tensor:
        return watched(keys, layer.observe)

    def observe(self, queries: Tensor, scaling: float, rows: Rows) -> None:
        # sdpa may have folded the query heads of a key head into the places of one query
        queries = queries.reshape(queries.shape[0], -1, self.unseen, queries.shape[-1])
        (self.queries,) = appended((self.queries,), (queries,))
        self.scaling, self.unseen = scaling, 0

    def commit(self, rows: Rows) -> None:
        if self.unseen:
            raise RuntimeError(UNSEEN)
        if self.keys is None or (self.waits and self.queries is None):
            return
        many = self.queries is None or self.queries.shape[2] > 1
        due = self.when == "always" or (many if self.when == "blocks" else not self.begun)
        evicts = due and self.length > self.budget
        if self.adds:
            new = self.score(self, rows)
            if self.scores is not None:
                new = new + torch.nn.functional.pad(self.scores, (0, self.length - self.scores.shape[2]))
            self.scores = new
        if evicts:
            score = self.scores if self.adds else self.score(self, rows)
            columns = self.best(score.expand(self.keys.shape[:3]), rows)
            self.keys, self.values = pick(self.keys, columns), pick(self.values, columns)
            if self.adds:
                self.scores = self.scores.gather(2, columns)
        self.queries, self.begun = None, True

    def best(self, score: Tensor, rows: Rows) -> Tensor:
        """(B, H, budget) columns to keep, in order of time. Pads come last: only rows that have nothing else keep one.

        The older of two equals wins (max pooling makes many), so that a choice does not depend on the columns around
        it.
        """
        score = score.masked_fill(~rows.valid(self.length, score.device)[:, None], -math.inf)
        score[..., self.length - self.recent :] = math.inf
        ranked = score.sort(dim=-1, descending=True, stable=True).indices
        return ranked[..., : self.budget].sort(dim=-1).values

    def drop(self, count: int, rows: Rows) -> None:
        left = self.length - count
        for name in ("keys", "values"):
            setattr(self, name, getattr(self, name)[:, :, :left].clone() if left > 0 else None)
        if self.queries is not None:
            left = self.queries.shape[2] - count
            self.queries = self.queries[:, :, :left].clone() if left > 0 else None
        self.unseen = max(0, self.unseen - count)
        self.begun = self.begun and self.keys is not None

    def reversible(self, count: int, rows: Rows) -> bool:
        return not count or (rows.seen == self.length and not self.adds)


def attention(store: Scored, rows: Rows, first: int, end: int | None = None) -> Tensor:
    """(B, H, g, m, length) attention of the uncommitted queries number `first` to `end`, g query heads per key head.

    Recomputed from q . k: sdpa gives no probabilities away. Every query sees the valid columns up to its own. Queries
    of pads give 0. float32, or float64 if the model is.
    """
    queries, keys, length = store.queries, store.keys, store.length
    wide = torch.promote_types(keys.dtype, torch.float32)
    count, heads = queries.shape[2], keys.shape[1]
    grouped = queries[:, :, first:end].to(wide).unflatten(1, (heads, -1)) * store.scaling
    logits = grouped @ keys.to(wide).transpose(2, 3)[:, :, None]
    column = torch.arange(length, device=keys.device)
    own = column[length - count :][first:end, None]
    allowed = (column <= own) & rows.valid(length, keys.device)[:, None, None, None]
    return logits.masked_fill_(~allowed, -math.inf).softmax(-1).masked_fill_(~allowed, 0)
