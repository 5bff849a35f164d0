"""One decoding step of a model: the tokens that are new in, logits of the next token out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from dlopt.transformer.cache import Cache
from dlopt.transformer.config import TransformerConfig
from dlopt.transformer.model import Decoder, Seq2Seq


class Step(Protocol):
    """What beam search drives. Sampling needs the call only, so any function will do there."""

    def __call__(self, tokens_bt: Tensor) -> Tensor:
        """Tokens (b, t) that follow those of earlier calls (first the prompt, then one each) to logits (b, v)."""
        ...

    def reorder(self, rows: Tensor) -> None:
        """Keep rows of the batch in this order; one row may be taken several times."""
        ...


class DecoderStep:
    """Steps of a `Decoder`, with a cache. pad_mask: bool (b, t) of the prompt, which is padded on the left.

    `cache` may be cropped or saved by the caller between calls. Raises ValueError if dropout is on.
    """

    def __init__(self, model: Decoder, pad_mask: Tensor | None = None) -> None:
        _refuse_dropout(model.training, model.config)
        self.model, self.pad_mask, self.cache = model, left_padded(pad_mask), Cache()

    def __call__(self, tokens_bt: Tensor) -> Tensor:
        mask = self.pad_mask if self.cache.length == 0 else None
        return self.model(tokens_bt, self.cache, mask)[:, -1]

    def reorder(self, rows: Tensor) -> None:
        """Keep rows of the batch in this order."""
        self.cache.reorder(rows)


class Seq2SeqStep:
    """Steps of a `Seq2Seq` on sources (b, s), which are encoded once. Prompts are the first target tokens."""

    def __init__(
        self, model: Seq2Seq, source_bs: Tensor, source_mask: Tensor | None = None, pad_mask: Tensor | None = None
    ) -> None:
        _refuse_dropout(model.training, model.config)
        self.model, self.pad_mask, self.cache = model, left_padded(pad_mask), Cache()
        with torch.no_grad():
            self.memory = model.encode(source_bs, source_mask)

    def __call__(self, tokens_bt: Tensor) -> Tensor:
        mask = self.pad_mask if self.cache.length == 0 else None
        return self.model.decode(tokens_bt, self.memory, self.cache, mask)[:, -1]

    def reorder(self, rows: Tensor) -> None:
        """Keep rows of the batch in this order."""
        self.cache.reorder(rows)
        self.memory = self.memory.reorder(rows)


def as_step(step: Decoder | Callable[[Tensor], Tensor], pad_mask: Tensor | None) -> Callable[[Tensor], Tensor]:
    """A `Decoder` with its prompt's padding as a step; anything else that can be called is one already."""
    if isinstance(step, Decoder):
        return DecoderStep(step, pad_mask)
    if isinstance(step, Seq2Seq):
        raise ValueError("a Seq2Seq decodes a source: pass Seq2SeqStep(model, source) instead of the model")
    return step


def left_padded(pad_mask: Tensor | None) -> Tensor | None:
    """The mask itself, or a ValueError if a row's padding is not on the left."""
    if pad_mask is None:
        return None
    if pad_mask.dtype != torch.bool or pad_mask.ndim != 2:
        raise ValueError(f"a padding mask must be bool (b, t), got {pad_mask.dtype} of {tuple(pad_mask.shape)}")
    if not pad_mask[:, -1].all() or (pad_mask[:, :-1] & ~pad_mask[:, 1:]).any():
        raise ValueError("prompts must be padded on the left and hold at least one token: the mask is False, then True")
    return pad_mask


def _refuse_dropout(training: bool, config: TransformerConfig) -> None:
    if training and (config.dropout or config.attention_dropout):
        raise ValueError("the model is in training mode, where dropout is on: call model.eval() before decoding")
