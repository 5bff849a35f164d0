"""Decoding: greedy and sampled here, beam search in `beam`. Both drive a `Decoder` or a `Seq2Seq` step by step."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dlopt.transformer.beam import Beams, beam_search
from dlopt.transformer.filters import Controls, Processor, check_prompt, checked
from dlopt.transformer.filters import top_k as keep_k
from dlopt.transformer.filters import top_p as keep_p
from dlopt.transformer.model import Decoder
from dlopt.transformer.steps import DecoderStep, Seq2SeqStep, Step, as_step, left_padded

__all__ = ["Beams", "DecoderStep", "Generated", "Seq2SeqStep", "Step", "beam_search", "generate"]


class Generated(NamedTuple):
    """Decoded text: all (b, n), n new tokens; after a row's eos come the pad token and log-probabilities of 0.

    tokens: without the prompt. log_probs: of each under the model alone. drawn: under the distribution that it was
    drawn from, after processors, temperature and cuts; 0 for greedy decoding.
    """

    tokens: Tensor
    log_probs: Tensor
    drawn: Tensor


@torch.no_grad()
def generate(
    step: Decoder | Callable[[Tensor], Tensor],
    prompt_ids: Tensor,
    max_new_tokens: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    repetition_penalty: float = 1.0,
    no_repeat_ngram: int | None = None,
    processors: Sequence[Processor] = (),
    generator: torch.Generator | None = None,
    eos: int | None = None,
    pad: int = 0,
    pad_mask: Tensor | None = None,
    stream: Callable[[Tensor], object] | None = None,
) -> Generated:
    """Continue prompts (b, t) token by token.

    Per step: logits; repetition control; processors; division by the temperature; top-k; top-p; one token is drawn.

    step: a `Decoder`; a `Seq2SeqStep`, whose prompt is the first target tokens; or any function from the tokens not
    seen before (first the prompt, then (b, 1)) to the logits (b, v) of the next. max_new_tokens: at least 1.
    temperature: at least 0; 0 is greedy. top_k: 1 to v. top_p: above 0, at most 1. repetition_penalty, no_repeat_ngram:
    see `filters`; the prompt counts. processors: functions (logits (b, v), all tokens so far (b, t)) to logits, -inf
    where a token is forbidden. generator: of the draws. eos: token that ends a row. pad: what follows it. pad_mask:
    bool (b, t), True at real tokens; prompts of different lengths are padded on the left. stream: called with the
    tokens (b,) of every step.

    Raises ValueError for a value out of range, for NaN logits and where every token of a row is forbidden.

    Example:
        >>> import torch
        >>> from dlopt.transformer import Decoder, TransformerConfig, generate
        >>> model = Decoder(TransformerConfig(vocabulary=50, width=32, positions="rope", norm="rms")).eval()
        >>> prompts = torch.tensor([[3, 1, 4], [0, 2, 7]])  # the second is padded on the left
        >>> mask = torch.tensor([[True, True, True], [False, True, True]])
        >>> generate(model, prompts, 5, temperature=0.8, top_p=0.9, pad_mask=mask).tokens.shape
        torch.Size([2, 5])
    """
    check_prompt(prompt_ids, max_new_tokens, pad_mask)
    if not 0 <= temperature < math.inf:
        raise ValueError(f"temperature must be at least 0 (0 is greedy), got {temperature}")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p must be above 0 and at most 1, got {top_p}")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k must be at least 1, got {top_k}")
    controls = Controls(repetition_penalty, no_repeat_ngram, processors, left_padded(pad_mask))
    step = as_step(step, pad_mask)
    tokens, rows = prompt_ids, prompt_ids.shape[0]
    done = torch.zeros(rows, dtype=torch.bool, device=prompt_ids.device)
    own, drawn = [], []
    for n in range(max_new_tokens):
        raw = checked(step(tokens if n == 0 else tokens[:, -1:]), rows)
        logits = controls(raw, tokens)
        stuck = (logits == -math.inf).all(-1) & ~done
        if stuck.any():
            raise ValueError(f"every token is forbidden after {n} new tokens in row {int(stuck.nonzero()[0])}")
        logits = logits.masked_fill(done[:, None], 0)  # their tokens are replaced below
        if temperature == 0:
            chosen = logits.argmax(-1)
            weighed = torch.zeros_like(raw[:, 0])
        else:
            # the largest is 0 whatever the temperature, which may be too small for a quotient or for the dtype
            logits = logits - logits.amax(-1, keepdim=True)
            logits = torch.where(logits == 0, 0, logits / temperature)
            logits = logits if top_k is None else keep_k(logits, top_k)
            logits = logits if top_p is None else keep_p(logits, top_p)
            chosen = torch.multinomial(logits.softmax(-1), 1, generator=generator).squeeze(1)
            weighed = _of(logits, chosen)
        own.append(_of(raw, chosen).masked_fill(done, 0))
        drawn.append(weighed.masked_fill(done, 0))
        chosen = chosen.masked_fill(done, pad)
        tokens = torch.cat((tokens, chosen[:, None]), dim=1)
        if stream is not None:
            stream(chosen)
        if eos is not None:
            done = done | (chosen == eos)
            if done.all():
                break
    return Generated(tokens[:, prompt_ids.shape[1] :], torch.stack(own, 1), torch.stack(drawn, 1))


def _of(logits: Tensor, chosen: Tensor) -> Tensor:
    return logits.log_softmax(-1).gather(1, chosen[:, None]).squeeze(1)
