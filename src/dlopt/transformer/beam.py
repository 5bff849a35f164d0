"""Beam search with GNMT's length penalty."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor

from dlopt.transformer.filters import Controls, Processor, check_prompt, checked
from dlopt.transformer.model import Decoder, Seq2Seq
from dlopt.transformer.steps import Step, as_step, left_padded


class Beams(NamedTuple):
    """The best hypotheses of each row, best first; k beams, n new tokens at most.

    tokens: (b, k, n), the pad token after eos. log_probs: (b, k), sums over the tokens, eos included. scores: (b, k),
    log_probs over the length penalty. Where fewer than k were found, the rest is pad at -inf.
    """

    tokens: Tensor
    log_probs: Tensor
    scores: Tensor


class _Found:
    """The k best finished hypotheses of every row."""

    def __init__(self, rows: int, beams: int, room: int, pad: int, like: Tensor, alpha: float) -> None:
        self.beams, self.alpha = beams, alpha
        self.tokens = torch.full((rows, beams, room), pad, dtype=torch.long, device=like.device)
        self.log_probs = like.new_full((rows, beams), -math.inf)
        self.scores = self.log_probs.clone()
        self.count = torch.zeros(rows, dtype=torch.long, device=like.device)
        self.pad = pad

    def add(self, tokens: Tensor, log_probs: Tensor) -> None:
        """tokens (b, m, n), log_probs (b, m), -inf where there is none."""
        length = tokens.shape[-1]
        self.count = self.count + log_probs.isfinite().sum(1)
        room = self.tokens.shape[-1] - length
        tokens = torch.cat((self.tokens, torch.nn.functional.pad(tokens, (0, room), value=self.pad)), dim=1)
        scores = torch.cat((self.scores, log_probs / ((5 + length) / 6) ** self.alpha), dim=1)
        log_probs = torch.cat((self.log_probs, log_probs), dim=1)
        self.scores, best = scores.topk(self.beams, dim=1)
        self.log_probs = log_probs.gather(1, best)
        self.tokens = tokens.gather(1, best[..., None].expand(-1, -1, tokens.shape[-1]))


@torch.no_grad()
def beam_search(
    step: Decoder | Step,
    prompt_ids: Tensor,
    max_new_tokens: int,
    beams: int,
    *,
    length_penalty: float = 0.6,
    repetition_penalty: float = 1.0,
    no_repeat_ngram: int | None = None,
    processors: Sequence[Processor] = (),
    eos: int | None = None,
    pad: int = 0,
    pad_mask: Tensor | None = None,
) -> Beams:
    """Keep the `beams` likeliest unfinished continuations of every prompt (b, t); return the best finished ones.

    A hypothesis Y scores log P(Y) / ((5 + |Y|) / 6)^length_penalty (Wu et al. 2016, arXiv:1609.08144, equation 14,
    without coverage). Of the 2 * beams best candidates of a step, eos finishes those that are among the first `beams`,
    and the first `beams` of the others live on. A row ends with `beams` finished hypotheses or at max_new_tokens, where
    the living count as finished. One beam is greedy decoding.

    P is the model's own: a processor that forbids tokens restricts the search but does not renormalise; one that shifts
    logits shifts log P as much. The arguments are those of `generate`; beams: at least 1. length_penalty: at least 0;
    0 compares sums, larger prefers longer. step: a `Decoder`, or a `Step` with `reorder`.

    Raises ValueError as `generate` does, and where no continuation of a row is allowed.
    """
    check_prompt(prompt_ids, max_new_tokens, pad_mask)
    if beams < 1:
        raise ValueError(f"beams must be at least 1, got {beams}")
    if not 0 <= length_penalty < math.inf:
        raise ValueError(f"length_penalty must be at least 0, got {length_penalty}")
    controls = Controls(repetition_penalty, no_repeat_ngram, processors, left_padded(pad_mask))
    if not isinstance(step, Decoder | Seq2Seq) and not hasattr(step, "reorder"):
        raise ValueError("beam search needs a step with reorder(rows): a Decoder, a Seq2SeqStep or your own")
    driven = cast(Step, as_step(step, pad_mask))
    rows, start = prompt_ids.shape
    tokens, alive, found = prompt_ids, prompt_ids.new_zeros(rows, 1, dtype=torch.float), None
    for n in range(max_new_tokens):
        raw = checked(driven(tokens if n == 0 else tokens[:, -1:]), tokens.shape[0])
        if found is None:
            alive = alive.to(raw.dtype)
            found = _Found(rows, beams, max_new_tokens, pad, raw, length_penalty)
        gain = controls(raw, tokens) - raw.logsumexp(-1, keepdim=True)
        total = (alive[..., None] + gain.view(rows, -1, gain.shape[-1])).flatten(1)
        best, place = total.topk(min(2 * beams, total.shape[1]), dim=1)
        ended = best[:, :1] == -math.inf  # nothing more is allowed in the row
        stuck = ended[:, 0] & (found.count == 0)
        if stuck.any():
            raise ValueError(f"no continuation of row {int(stuck.nonzero()[0])} is allowed")
        # what goes on for such a row is its best beam and pad, so that processors never see forbidden text
        chosen = (place % gain.shape[-1]).masked_fill(ended, pad)
        parent = (place // gain.shape[-1]).masked_fill(ended, 0)
        ends = chosen == eos if eos is not None else torch.zeros_like(chosen, dtype=torch.bool)
        origin = parent + torch.arange(rows, device=parent.device)[:, None] * alive.shape[1]
        grown = torch.cat((tokens[origin], chosen[..., None]), dim=-1)  # (b, m, t)
        finished = found.count >= beams
        first = torch.arange(best.shape[1], device=best.device) < beams
        kept = ends & first & ~finished[:, None]
        found.add(grown[..., start:], best.masked_fill(~kept, -math.inf))
        alive, order = best.masked_fill(ends, -math.inf).topk(min(beams, best.shape[1]), dim=1)
        # a dead beam carries the text of a living one; where none lives, that of the best finished one
        lead = order[:, :1].masked_fill(alive[:, :1] == -math.inf, 0)
        order = torch.where(alive == -math.inf, lead, order)
        tokens = grown.gather(1, order[..., None].expand(-1, -1, grown.shape[-1])).flatten(0, 1)
        finished = (found.count >= beams) | (alive == -math.inf).all(1)
        if finished.all():
            break
        if n + 1 < max_new_tokens:
            driven.reorder(origin.gather(1, order).flatten())
        else:
            found.add(
                tokens.view(rows, -1, tokens.shape[-1])[..., start:], alive.masked_fill(finished[:, None], -math.inf)
            )
    assert found is not None
    lost = found.scores[:, 0] == -math.inf
    if lost.any():
        raise ValueError(f"no continuation of row {int(lost.nonzero()[0])} is allowed")
    tokens = found.tokens.masked_fill((found.log_probs == -math.inf)[..., None], pad)
    return Beams(tokens, found.log_probs, found.scores)
