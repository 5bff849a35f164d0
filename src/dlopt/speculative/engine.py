"""The loop behind `generate`: prefill, then rounds of drafting, one pass of the target, verifying and rolling back."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dlopt.speculative.costs import synchronize
from dlopt.speculative.draft import Draft, Session, chain, checked, children, depths
from dlopt.speculative.gate import Gate, Row
from dlopt.speculative.rollback import Store
from dlopt.speculative.sampling import Sampling
from dlopt.speculative.stats import Stats
from dlopt.speculative.stopping import Stops
from dlopt.speculative.verify import verify


class Round(NamedTuple):
    """What one round added to one row, for streaming.

    tokens: accepted ones first, the target's own last. accepted: how many came from the draft. drafted: tokens of the
    draft. kind: of the last token: "bonus" after a draft that was accepted to its end, "corrected" where the target
    chose otherwise, "plain" without a draft (and for the prefill), "accepted" where the row ended inside the draft.
    """

    row: int
    tokens: list[int]
    accepted: int
    drafted: int
    kind: str


class Decoding:
    """One row at work: its tokens, its session, its side of the gate."""

    def __init__(
        self, number: int, prompt: list[int], pads: list[int], sampling: Sampling, room: int, device: torch.device
    ) -> None:
        self.number, self.prompt, self.sampling = number, prompt, sampling
        self.new: list[int] = []
        self.session: Session | None = None
        self.watch: Row | None = None
        self.pads = len(pads)
        # the row as processors and criteria see it, only where there are any
        self.ids: Tensor | None = None
        if room:
            self.ids = torch.tensor([*pads, *prompt, *[0] * room], device=device)

    @property
    def position(self) -> int:
        """Of the next token, counted from the row's first one."""
        return len(self.prompt) + len(self.new)

    @property
    def last(self) -> int:
        return (self.new or self.prompt)[-1]

    @property
    def context(self) -> Tensor | None:
        return None if self.ids is None else self.ids[: self.pads + self.position]

    def add(self, tokens: list[int]) -> None:
        if self.ids is not None:
            start = self.pads + self.position
            self.ids[start : start + len(tokens)] = torch.tensor(tokens, device=self.ids.device)
        self.new += tokens


@torch.no_grad()
def decode(
    model: Any,
    rows: list[Decoding],
    drafter: Any,
    cache: Any,
    max_new_tokens: int,
    stops: Stops,
    gate: Gate | None,
    stream: Callable[[Round], object] | None,
) -> Stats:
    """Continue rows until each has ended; fills in `row.new`."""
    stats = Stats(rows=len(rows), costs=None if gate is None else gate.costs)
    begun = time.perf_counter()
    store = Store(model, cache, len(rows))
    if drafter is not None and (why := store.refusal()):
        raise ValueError(why)
    for row in rows:
        row.watch = None if gate is None else gate.row()
        row.session = None if drafter is None else drafter.begin(list(row.prompt), row.sampling)
    loop = _Loop(model, store, drafter, max_new_tokens, stops, stream, stats)
    logits = store.prefill([row.prompt for row in rows])
    synchronize(model)
    loop.logits_on(rows, logits[:, None])
    active = loop.finish(rows, [Draft()] * len(rows), logits[:, None], first=True)
    stats.prefill_seconds = time.perf_counter() - begun
    stats.draft_seconds = 0.0  # what sessions did until here is part of the prefill, and counted there
    if drafter is not None and active:
        store.record()
        for row in active:
            if callable(attach := getattr(row.session, "attach", None)):
                attach(model, cache)
    try:
        while active:
            active = loop.round(active)
    finally:
        store.release()
    stats.total_seconds = time.perf_counter() - begun
    stats.tokens = sum(len(row.new) for row in rows)
    return stats


class _Loop:
    def __init__(
        self,
        model: Any,
        store: Store,
        drafter: Any,
        max_new_tokens: int,
        stops: Stops,
        stream: Callable[[Round], object] | None,
        stats: Stats,
    ) -> None:
        self.model, self.store, self.drafter = model, store, drafter
        self.most, self.stops, self.stream, self.stats = max_new_tokens, stops, stream, stats
        self.room: int | None = None
        self.trees = store.trees

    def round(self, rows: list[Decoding]) -> list[Decoding]:
        """One pass of the target for all rows; the rows that go on."""
        start = time.perf_counter()
        self.room = self.store.room()
        drafts = [self._propose(row) for row in rows]
        drafted = time.perf_counter()
        logits = self.store.forward([[row.last, *d.tokens] for row, d in zip(rows, drafts)], drafts)
        synchronize(self.model)
        passed = time.perf_counter()
        self.stats.draft_seconds += drafted - start
        self.stats.target_seconds += passed - drafted
        self.stats.rounds += 1
        self.stats.widths[logits.shape[1]] += 1
        learned = self.stats.draft_seconds
        self.logits_on(rows, logits, drafts)
        going = self.finish(rows, drafts, logits)
        # what sessions and gates did in there was drafting
        self.stats.verify_seconds += time.perf_counter() - passed - (self.stats.draft_seconds - learned)
        return going

    def _propose(self, row: Decoding) -> Draft:
        limit = self.most - len(row.new) - 1  # the target adds one token of its own
        if self.room is not None:
            limit = min(limit, self.room)
        if row.session is None or limit < 1:
            return Draft()
        if row.watch is None:
            return self._drafted(row.session, limit)
        limit = row.watch.limit(row.session, limit)
        if limit < 1:
            return Draft()
        costly = getattr(row.session, "costly", False)
        if costly and callable(catch_up := getattr(row.session, "catch_up", None)):
            catch_up()
        start = time.perf_counter()
        draft = self._drafted(row.session, limit)
        if costly:
            row.watch.gate.drafted(getattr(row.session, "written", len(draft.tokens)), time.perf_counter() - start)
        return row.watch.cut(row.session, draft)

    def _drafted(self, session: Session, limit: int) -> Draft:
        draft = checked(session.propose(limit), limit, self.model.config.vocab_size, session)
        return draft if self.trees else chain(draft)

    def logits_on(self, rows: list[Decoding], logits: Tensor, drafts: list[Draft] | None = None) -> None:
        """Show the logits of a pass to the sessions that learn from them."""
        start = time.perf_counter()
        for i, row in enumerate(rows):
            if callable(learn := getattr(row.session, "learn", None)):
                inputs = [row.last, *(drafts[i].tokens if drafts else ())]
                learn(inputs, logits[i, : len(inputs)])
        self.stats.draft_seconds += time.perf_counter() - start

    def finish(self, rows: list[Decoding], drafts: list[Draft], logits: Tensor, first: bool = False) -> list[Decoding]:
        """Verify, cut at ends, roll back, tell the sessions; the rows that go on. first: these are the prefill's."""
        if not rows[0].sampling.greedy and not rows[0].sampling.processors:
            logits = logits.cpu()  # at once: the verifier looks at one token after the other
        places, going, told = [], [], []
        for i, (row, draft) in enumerate(zip(rows, drafts)):
            context = row.context if row.sampling.processors else None
            tokens, path = verify(draft, logits[i, : len(draft.tokens) + 1], row.sampling, row.position, context)
            row.add(tokens)
            stay = self.stops.first(row.new, len(tokens), row.context)
            if stay is not None:
                row.new = row.new[: len(row.new) - len(tokens) + stay]
                tokens = tokens[:stay]
            places.append([0, *(node + 1 for node in path[: len(tokens) - 1])])
            told.append((row, draft, tokens, path))
            if stay is None and len(row.new) < self.most:
                going.append(i)
        if not first:
            self.store.keep(places)
        if going:
            self.store.select(going)
        start = time.perf_counter()
        for row, draft, tokens, path in told:
            accepted = min(len(path), len(tokens))
            if not first:
                self.stats.count(depths(draft), accepted)
            if row.watch is not None:
                row.watch.emitted(tokens, draft, accepted)
            if row.session is not None:
                row.session.observe(tokens)
        self.stats.draft_seconds += time.perf_counter() - start
        if self.stream is not None:
            for row, draft, tokens, path in told:
                accepted = min(len(path), len(tokens))
                self.stream(Round(row.number, tokens, accepted, len(draft.tokens), _kind(draft, tokens, path)))
        return [rows[i] for i in going]


def _kind(draft: Draft, tokens: list[int], path: Sequence[int]) -> str:
    if not draft.tokens:
        return "plain"
    if len(tokens) <= len(path):
        return "accepted"
    return "bonus" if path and not children(draft)[path[-1] + 1] else "corrected"
