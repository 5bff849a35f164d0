"""A small decoder-only language model in the manner of Llama, built from `dlopt.transformer`."""

from __future__ import annotations

import inspect
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dlopt.transformer.attention import Attention
from dlopt.transformer.feedforward import SwiGLU
from dlopt.transformer.norm import RMSNorm
from dlopt.transformer.positions import RoPE


@dataclass(frozen=True)
class LMConfig:
    """Shape of an `LM`.

    vocabulary: number of tokens (256 for bytes). width: channels of a token. layers, heads: their numbers. kv_heads:
    key/value heads, a divisor of heads; None means as many. hidden: channels of the feed-forward layer; None means 8/3
    of the width, rounded up to a multiple of 8. tied: input and output share the embedding. plain: attention written
    out, instead of `F.scaled_dot_product_attention`.
    """

    vocabulary: int = 256
    width: int = 128
    layers: int = 4
    heads: int = 4
    kv_heads: int | None = None
    hidden: int | None = None
    tied: bool = True
    rope_base: float = 10_000.0
    norm_eps: float = 1e-5
    plain: bool = False

    def __post_init__(self) -> None:
        for name in ("vocabulary", "width", "layers", "heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


class DecoderLayer(nn.Module):
    """x + attention(norm(x)), then x + feed-forward(norm(x)). Shapes: (b, t, width). Names are those of Llama."""

    def __init__(self, config: LMConfig) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.width, config.norm_eps)
        self.self_attn = Attention(config.width, config.heads, config.kv_heads, plain=config.plain)
        self.post_attention_layernorm = RMSNorm(config.width, config.norm_eps)
        self.mlp = SwiGLU(config.width, config.hidden)

    def forward(self, x_btd: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
        x_btd = x_btd + self.self_attn(self.input_layernorm(x_btd), rotation)
        return x_btd + self.mlp(self.post_attention_layernorm(x_btd))


class LM(nn.Module):
    """Tokens (b, t), int64, to logits (b, t, vocabulary) of the next token.

    Pre-norm, RoPE, grouped queries, SwiGLU, no bias (Touvron et al. 2023, arXiv:2302.13971). Parameters are named as
    in `transformers`' Llama without the prefix "model.", so its weights can be loaded. Weights start normal with
    standard deviation 0.02; those that write to the residual stream are divided by sqrt(2 * layers), as in GPT-2.
    """

    def __init__(self, config: LMConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocabulary, config.width)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.layers))
        self.norm = RMSNorm(config.width, config.norm_eps)
        self.lm_head = nn.Linear(config.width, config.vocabulary, bias=False)
        self.rope = RoPE(config.width // config.heads, config.rope_base)
        if config.tied:
            self.lm_head.weight = self.embed_tokens.weight
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                writes = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * config.layers) if writes else 0.02)

    def forward(self, tokens_bt: Tensor) -> Tensor:
        x_btd = self.embed_tokens(tokens_bt)
        rotation = self.rope(torch.arange(tokens_bt.shape[1], device=tokens_bt.device), x_btd.dtype)
        for layer in self.layers:
            x_btd = layer(x_btd, rotation)
        return self.lm_head(self.norm(x_btd))


def lm(**options: Any) -> LM:
    """An `LM` from the fields of `LMConfig`."""
    return LM(LMConfig(**options))


lm.__signature__ = inspect.signature(LMConfig)  # type: ignore[attr-defined]  # so that its options can be listed

MODELS = {"lm": lm}
