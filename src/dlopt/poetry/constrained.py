"""Decoding under the rules of prosody: a mask over the logits, whatever model they come from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dlopt.poetry.patterns import find_form
from dlopt.poetry.plan import Plan, State
from dlopt.poetry.request import FREE, Request
from dlopt.poetry.tables import Tables
from dlopt.poetry.vocabulary import PUNCTUATION, Vocabulary


@dataclass(frozen=True)
class Cost:
    """What the rules cost, per row, in nats. free: log-probability of the poem's tokens under the model alone.

    masked: under the model with the mask. masked - free is at least 0: the log of what the mask shut out.
    """

    free: Tensor
    masked: Tensor


class ProsodyConstraint:
    """A logits processor: `constraint(logits_bv, tokens_bt)` gives logits with all that breaks the rules at -inf.

    It keeps the tones of each place, the rhyme group once it is chosen, given characters, and no repeats; punctuation
    and eos stand where they belong, then pad follows. Among what is allowed, the model's own proportions stay as they
    are, so sampling still samples from the model. There is always something allowed: groups with too few unused
    characters are never entered, and what cannot be satisfied is a ValueError at construction. Put it before
    top-k and top-p.

    Args:
        vocabulary: of the model.
        requests: one for each row, or one for all rows. Where rows are a multiple of the requests, as with beams, those
            of one request stand together.
        start: how many tokens stand before the poem's first in `tokens_bt` (bos, the form's token); at least 0.
        skip_lines: lines at the beginning that are not among the tokens, since the model reads them elsewhere (the
            source of a `Seq2Seq`); they must be given whole.
        punctuation: whether ， and 。 stand after lines, by turns.
        script: of the vocabulary, "traditional" or "simplified".
        tables: of the same vocabulary, where they were made before.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        requests: Request | Sequence[Request],
        *,
        start: int = 1,
        skip_lines: int = 0,
        punctuation: bool = True,
        script: str = "traditional",
        tables: Tables | None = None,
    ) -> None:
        self.requests = [requests] if isinstance(requests, Request) else list(requests)
        if not self.requests:
            raise ValueError("there is no request")
        if start < 0:
            raise ValueError(f"start must be at least 0, got {start}")
        self.vocabulary, self.start = vocabulary, start
        self.tables = tables or Tables(vocabulary, script)
        # equal requests share one plan
        plans = {request: Plan(request, vocabulary, self.tables) for request in dict.fromkeys(self.requests)}
        self.plans = [plans[request] for request in self.requests]
        self.layouts = [self._layout(request, skip_lines, punctuation) for request in self.requests]
        self._first = [self._skip(plan, skip_lines) for plan in self.plans]
        self._seen: dict[tuple[int, int], tuple[list[int], State]] = {}

    @property
    def length(self) -> int:
        """Tokens of the longest poem, with its eos: how many the model has to write."""
        return max(map(len, self.layouts))

    def __call__(self, logits_bv: Tensor, tokens_bt: Tensor) -> Tensor:
        """Logits (b, V) with -inf where a token is not allowed after tokens (b, t)."""
        allowed = self.allowed(tokens_bt).to(logits_bv.device)
        if logits_bv.shape != allowed.shape:
            raise ValueError(f"logits must be {tuple(allowed.shape)}, got {tuple(logits_bv.shape)}")
        masked = logits_bv.masked_fill(~allowed, -torch.inf)
        if (masked == -torch.inf).all(1).any():
            raise ValueError("the model leaves no allowed token a chance; put the constraint before top-k and top-p")
        return masked

    def allowed(self, tokens_bt: Tensor) -> Tensor:
        """bool (b, V): what may come after tokens (b, t). ValueError if they already break the rules."""
        rows = tokens_bt.tolist()
        if len(rows) % len(self.requests):
            raise ValueError(
                f"{len(rows)} rows for {len(self.requests)} requests; one request, or as many rows for each request"
            )
        beams = len(rows) // len(self.requests)
        return torch.stack([self._row(r // beams, r % beams, t[self.start :]) for r, t in enumerate(rows)])

    def cost(self, logits_bnv: Tensor, tokens_bt: Tensor) -> Cost:
        """The cost of finished poems. logits_bnv[:, i]: the model's own, for the token tokens_bt[:, start + i]."""
        free = masked = torch.zeros(len(tokens_bt), dtype=torch.float64)
        beams = max(1, len(tokens_bt) // len(self.requests))
        for i in range(min(logits_bnv.shape[1], tokens_bt.shape[1] - self.start)):
            before, chosen = tokens_bt[:, : self.start + i], tokens_bt[:, self.start + i]
            logits = logits_bnv[:, i].double().cpu()
            live = torch.tensor([i < len(self.layouts[r // beams]) for r in range(len(tokens_bt))])  # after eos: free
            pair = []
            for scores in (logits, self(logits, before)):
                found = scores.log_softmax(-1).gather(1, chosen[:, None].cpu())[:, 0]
                pair.append(torch.where(live, found, 0.0))
            free, masked = free + pair[0], masked + pair[1]
        return Cost(free, masked)

    def lines(self, row: int, tokens: Sequence[int]) -> tuple[str, ...]:
        """The lines of a finished row (t,), with those that were skipped."""
        _, layout = self._of(row)
        body = list(tokens)[self.start : self.start + len(layout)]
        written = [t for t, item in zip(body, layout) if item < 0]
        form = find_form(self.requests[self._index(row)].form)
        skipped = form.size - sum(item < 0 for item in layout)
        text = self.requests[self._index(row)].characters[:skipped] + self.vocabulary.decode(written)
        return tuple(text[i : i + form.length] for i in range(0, len(text), form.length))

    def _index(self, row: int) -> int:
        return row if len(self.requests) > 1 else 0

    def _of(self, row: int) -> tuple[Plan, list[int]]:
        return self.plans[self._index(row)], self.layouts[self._index(row)]

    def _row(self, request: int, beam: int, tokens: list[int]) -> Tensor:
        plan, layout = self.plans[request], self.layouts[request]
        place = len(tokens)
        if place >= len(layout) or layout[place] >= 0:
            mask = torch.zeros(len(self.vocabulary), dtype=torch.bool)
            mask[self.vocabulary.pad if place >= len(layout) else layout[place]] = True
            return mask
        before, state = self._seen.get((request, beam), ([], self._first[request]))
        if tokens[: len(before)] != before:  # rows were put in another order: begin again
            before, state = [], self._first[request]
        for i in range(len(before), place):
            if layout[i] < 0:
                state = plan.advance(state, tokens[i])
        self._seen[request, beam] = (tokens, state)
        return plan.allowed(state)

    def _layout(self, request: Request, skip_lines: int, punctuation: bool) -> list[int]:
        """Per token: -1 for a character, else the one token that must stand there."""
        form = find_form(request.form)
        head = request.characters[: skip_lines * form.length]
        if not 0 <= skip_lines < form.lines or FREE in head:
            raise ValueError(
                f"skip_lines must be between 0 and {form.lines - 1} for {form.name}, and those lines given whole; got "
                f"{skip_lines} and {head!r}"
            )
        found: list[int] = []
        for line in range(skip_lines, form.lines):
            found += [-1] * form.length
            if punctuation:
                found.append(self.vocabulary.id(PUNCTUATION[line % 2]))
        return [*found, self.vocabulary.eos]

    def _skip(self, plan: Plan, lines: int) -> State:
        state = plan.initial
        for token in plan.given[: lines * plan.form.length]:
            state = plan.advance(state, token)
        return state
