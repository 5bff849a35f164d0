"""What changes the logits of the next token before one is chosen: repetition control, top-k and top-p.

Shapes: b rows, v tokens of the vocabulary, t tokens so far. -inf means that a token cannot be chosen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Processor = Callable[[Tensor, Tensor], Tensor]
"""(logits (b, v), all tokens so far (b, t)) to logits (b, v)."""


def repetition_penalty(logits: Tensor, tokens: Tensor, penalty: float, real: Tensor | None = None) -> Tensor:
    """Divide positive logits of tokens seen before by the penalty, multiply negative ones (Keskar et al. 2019).

    arXiv:1909.05858, section 4.1; logits are not signed there, so this is the usual reading. penalty: above 0; 1 does
    nothing. real: bool (b, t), False where a token is padding and does not count.
    """
    counted = torch.ones_like(tokens) if real is None else real.to(tokens.dtype)
    seen = torch.zeros_like(logits, dtype=tokens.dtype).scatter_add(1, tokens, counted) > 0
    return torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


def no_repeat_ngram(logits: Tensor, tokens: Tensor, n: int, real: Tensor | None = None) -> Tensor:
    """Forbid every token that would complete an n-gram which stands among the tokens already. n: at least 1."""
    if tokens.shape[1] < n:
        return logits
    grams = tokens.unfold(1, n, 1)
    hit = (grams[..., :-1] == tokens[:, None, tokens.shape[1] - n + 1 :]).all(-1)
    if real is not None:
        hit &= real.unfold(1, n, 1).all(-1)
    count = torch.zeros_like(logits, dtype=tokens.dtype).scatter_add(1, grams[..., -1], hit.to(tokens.dtype))
    return logits.masked_fill(count > 0, -math.inf)


def top_k(logits: Tensor, k: int) -> Tensor:
    """Only the k largest logits (Fan et al. 2018, arXiv:1805.04833); exactly k, also where some are equal."""
    if not 1 <= k <= logits.shape[-1]:
        raise ValueError(f"top_k must be from 1 to the vocabulary's {logits.shape[-1]} tokens, got {k}")
    values, places = logits.topk(k, dim=-1)
    return torch.full_like(logits, -math.inf).scatter(-1, places, values)


def top_p(logits: Tensor, p: float) -> Tensor:
    """The fewest tokens, likeliest first, whose probabilities sum to at least p (Holtzman et al. 2020, 1904.09751)."""
    values, places = logits.sort(dim=-1, descending=True, stable=True)
    probability = values.softmax(-1)
    before = probability.cumsum(-1) - probability
    values = values.masked_fill(before >= p, -math.inf)
    values[..., :1] = logits.amax(-1, keepdim=True)  # the likeliest stays, whatever the rounding
    return torch.full_like(logits, -math.inf).scatter(-1, places, values)


class Controls:
    """Repetition control and the caller's processors, in that order; checks their ranges once.

    penalty: as `repetition_penalty`. ngram: as `no_repeat_ngram`; None: off. pad_mask: bool (b, t) of the prompt.
    """

    def __init__(
        self, penalty: float, ngram: int | None, processors: Sequence[Processor], pad_mask: Tensor | None
    ) -> None:
        if not 0 < penalty < math.inf:
            raise ValueError(f"repetition_penalty must be above 0 (1 is none), got {penalty}")
        if ngram is not None and ngram < 1:
            raise ValueError(f"no_repeat_ngram must be at least 1 token or None, got {ngram}")
        self.penalty, self.ngram, self.processors, self.real = penalty, ngram, tuple(processors), pad_mask

    def __call__(self, logits: Tensor, tokens: Tensor) -> Tensor:
        real = None
        if self.real is not None:
            rows = self.real.repeat_interleave(
                tokens.shape[0] // self.real.shape[0], 0
            )  # beams of a row stand together
            ones = rows.new_ones(tokens.shape[0], tokens.shape[1] - rows.shape[1])
            real = torch.cat((rows, ones), dim=1)
        if self.penalty != 1:
            logits = repetition_penalty(logits, tokens, self.penalty, real)
        if self.ngram is not None:
            logits = no_repeat_ngram(logits, tokens, self.ngram, real)
        for processor in self.processors:
            logits = processor(logits, tokens)
        return logits


def checked(logits: Tensor, expected: int) -> Tensor:
    """The logits, at least in float32, or a ValueError if they are not (b, v) for `expected` rows or hold a NaN."""
    if logits.ndim != 2 or logits.shape[0] != expected:
        raise ValueError(f"a step must give logits (b, v) for {expected} rows, got the shape {tuple(logits.shape)}")
    if logits.isnan().any():
        raise ValueError("the model's logits hold NaN: it has diverged, or its weights are broken")
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def check_prompt(prompt: Tensor, new: int, pad_mask: Tensor | None) -> None:
    """Raise ValueError unless the prompt is (b, t) with t at least 1 and at least one new token is asked for."""
    if prompt.ndim != 2 or prompt.shape[1] < 1 or prompt.is_floating_point():
        raise ValueError(f"a prompt must be integer tokens (b, at least 1), got {prompt.dtype} {tuple(prompt.shape)}")
    if new < 1:
        raise ValueError(f"max_new_tokens must be at least 1, got {new}")
    if pad_mask is not None and pad_mask.shape != prompt.shape:
        raise ValueError(f"the padding mask {tuple(pad_mask.shape)} must have the prompt's shape {tuple(prompt.shape)}")
