"""The two models: decoder-only and encoder-decoder. Shapes: b batch, s source, t target positions, v vocabulary."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlopt.transformer.cache import Cache
from dlopt.transformer.config import TransformerConfig
from dlopt.transformer.layers import Embedding, Stack, initialise


class Memory(NamedTuple):
    """An encoded source: states (b, s, width), and real (b, s), False at padding, or None for no padding."""

    states: Tensor
    real: Tensor | None

    def reorder(self, rows: Tensor) -> Memory:
        """Keep rows of the batch, in this order."""
        real = None if self.real is None else self.real.index_select(0, rows)
        return Memory(self.states.index_select(0, rows), real)


class Decoder(nn.Module):
    """Tokens (b, t), int64, to logits (b, t, v) of the next token, as `config` describes.

    Rows of different lengths: pad on the right and pass nothing (later tokens are never seen), or pad on the left, as
    decoding needs it, and pass pad_mask.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = Embedding(config)
        self.decoder = Stack(config)
        self.lm_head = None if config.tied else nn.Linear(config.width, config.vocabulary, bias=False)
        initialise(self, config)

    def forward(self, tokens_bt: Tensor, cache: Cache | None = None, pad_mask: Tensor | None = None) -> Tensor:
        """cache: holds earlier tokens and takes these too. pad_mask: bool (b, t), True at real tokens."""
        return self._logits(tokens_bt, cache, pad_mask, None)

    def attention_maps(self, tokens_bt: Tensor, pad_mask: Tensor | None = None) -> list[Tensor]:
        """Attention weights (b, h, t, t) of every layer, first to last, from the plain path."""
        maps: list[Tensor] = []
        self._logits(tokens_bt, None, pad_mask, maps)
        return maps

    def _logits(
        self, tokens_bt: Tensor, cache: Cache | None, pad_mask: Tensor | None, maps: list[Tensor] | None
    ) -> Tensor:
        x, scope = self.embed.enter(tokens_bt, cache, pad_mask, causal=True)
        x = self.decoder(x, scope, cache=cache, maps=maps)
        return F.linear(x, self.embed.tokens.weight) if self.lm_head is None else self.lm_head(x)


class Seq2Seq(nn.Module):
    """Source (b, s) and target (b, t), int64, to logits (b, t, v) of the target token after each.

    The target starts with a token that says so; it is the caller's. Source tokens equal to config.pad are padding,
    on either side. Targets are padded on the right, which needs no mask, or on the left with target_mask.
    The pattern of config.attention holds in the decoder's self-attention; the encoder and cross-attention see all.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = Embedding(config)
        self.source_embed = None if config.tied else Embedding(config)
        self.encoder = Stack(config, encoder=True)
        self.decoder = Stack(config, cross=True)
        self.lm_head = None if config.tied else nn.Linear(config.width, config.vocabulary, bias=False)
        initialise(self, config)

    def forward(
        self, source_bs: Tensor, target_bt: Tensor, source_mask: Tensor | None = None, target_mask: Tensor | None = None
    ) -> Tensor:
        """source_mask, target_mask: bool, True at real tokens; source_mask None: wherever it is not config.pad."""
        return self.decode(target_bt, self.encode(source_bs, source_mask), pad_mask=target_mask)

    def encode(self, source_bs: Tensor, source_mask: Tensor | None = None) -> Memory:
        """What `decode` attends to."""
        return self._encode(source_bs, source_mask, None)

    def decode(
        self, target_bt: Tensor, memory: Memory, cache: Cache | None = None, pad_mask: Tensor | None = None
    ) -> Tensor:
        """Logits (b, t, v). cache: where earlier target tokens stand, which then also takes these."""
        return self._decode(target_bt, memory, cache, pad_mask, None, None)

    def attention_maps(
        self, source_bs: Tensor, target_bt: Tensor, source_mask: Tensor | None = None
    ) -> dict[str, list[Tensor]]:
        """Attention weights of every layer: "encoder" (b, h, s, s), "decoder" (b, h, t, t) and "cross" (b, h, t, s)."""
        maps: dict[str, list[Tensor]] = {"encoder": [], "decoder": [], "cross": []}
        memory = self._encode(source_bs, source_mask, maps["encoder"])
        self._decode(target_bt, memory, None, None, maps["decoder"], maps["cross"])
        return maps

    def _encode(self, source_bs: Tensor, source_mask: Tensor | None, maps: list[Tensor] | None) -> Memory:
        real = source_bs != self.config.pad if source_mask is None else source_mask
        if not real.any(1).all():
            raise ValueError("a source row holds nothing but padding")
        mask = None if real.all() else real
        embed = self.embed if self.source_embed is None else self.source_embed
        x, scope = embed.enter(source_bs, None, mask, causal=False)
        return Memory(self.encoder(x, scope, maps=maps), mask)

    def _decode(
        self,
        target_bt: Tensor,
        memory: Memory,
        cache: Cache | None,
        pad_mask: Tensor | None,
        maps: list[Tensor] | None,
        cross_maps: list[Tensor] | None,
    ) -> Tensor:
        if memory.states.shape[0] != target_bt.shape[0]:
            raise ValueError(f"{target_bt.shape[0]} targets cannot attend to {memory.states.shape[0]} sources")
        x, scope = self.embed.enter(target_bt, cache, pad_mask, causal=True)
        x = self.decoder(x, scope, memory, cache, maps, cross_maps)
        return F.linear(x, self.embed.tokens.weight) if self.lm_head is None else self.lm_head(x)


def parameter_count(config: TransformerConfig, model: str = "decoder") -> int:
    """Parameters of `Decoder(config)` or, with model="seq2seq", `Seq2Seq(config)`; a shared table counts once."""
    if model not in ("decoder", "seq2seq"):
        raise ValueError(f"model must be decoder or seq2seq, got {model!r}")
    with torch.device("meta"):
        built = Decoder(config) if model == "decoder" else Seq2Seq(config)
    return sum(p.numel() for p in built.parameters())
