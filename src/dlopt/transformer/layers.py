"""What the models are stacked from: embeddings with positions, one layer, and the stack of layers."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlopt.transformer.attention import Attention
from dlopt.transformer.cache import Cache, LayerCache
from dlopt.transformer.config import TransformerConfig
from dlopt.transformer.feedforward import FeedForward
from dlopt.transformer.norm import Residual, make_norm
from dlopt.transformer.positions import RoPE, alibi_slopes, sinusoid
from dlopt.transformer.scope import Scope
from dlopt.transformer.shaw import Shaw
from dlopt.transformer.sparse import Pattern, patterns

if TYPE_CHECKING:
    from dlopt.transformer.model import Memory


class Embedding(nn.Module):
    """x = sqrt(width) E[token] + PE(position), or sqrt(width) (E[token] + P[position]) for learned positions.

    Vaswani et al. 2017, section 3.4. Relative positions add nothing here; `enter` hands them to the layers.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.tokens = nn.Embedding(config.vocabulary, config.width)
        learned = config.positions == "learned"
        self.positions = nn.Embedding(config.max_length, config.width) if learned else None
        self.rope = RoPE(config.head_width, config.rope_base) if config.positions == "rope" else None
        self._waves: Tensor | None = None  # sinusoids of the first positions, kept between calls

    def forward(self, tokens_bt: Tensor, positions: Tensor, end: int) -> Tensor:
        """(b, t, width) for tokens at integer positions (t,) or (b, t), all below `end`."""
        x = self.tokens(tokens_bt)
        if self.positions is not None:
            x = x + self.positions(positions)
        x = x * math.sqrt(self.config.width)
        if self.config.positions == "sinusoid":
            x = x + self._sinusoids(positions, end, x)
        return F.dropout(x, self.config.dropout, self.training)

    def _sinusoids(self, positions: Tensor, end: int, like: Tensor) -> Tensor:
        waves = self._waves
        if waves is None or len(waves) < end or (waves.dtype, waves.device) != (like.dtype, like.device):
            room = torch.arange(max(end, self.config.max_length), device=like.device)
            waves = self._waves = sinusoid(room, self.config.width, like.dtype)
        return waves[positions]

    def enter(
        self, tokens_bt: Tensor, cache: Cache | None, pad_mask: Tensor | None, causal: bool
    ) -> tuple[Tensor, Scope]:
        """Embedded tokens, and what they see: themselves and what the cache holds."""
        if tokens_bt.ndim != 2 or tokens_bt.shape[1] < 1:
            raise ValueError(f"tokens must be (batch, at least 1 position), got the shape {tuple(tokens_bt.shape)}")
        if pad_mask is not None and (pad_mask.shape != tokens_bt.shape or pad_mask.dtype != torch.bool):
            raise ValueError(
                f"a padding mask must be bool of the tokens' shape {tuple(tokens_bt.shape)}, "
                f"got {pad_mask.dtype} of {tuple(pad_mask.shape)}"
            )
        first = cache.length if cache is not None else 0
        real = _extended(cache, tokens_bt, pad_mask) if cache is not None else pad_mask
        keys = first + tokens_bt.shape[1]
        if real is None:
            key = torch.arange(keys, device=tokens_bt.device)
            query, longest = key[first:], keys
        else:
            key = (real.cumsum(1) - 1).clamp_(min=0)
            query = key[:, first:]
            longest = int(key.max()) + 1 if self.positions is not None else 0
        if self.positions is not None and longest > self.config.max_length:
            raise ValueError(
                f"learned positions end at max_length {self.config.max_length}, but there are {longest} tokens"
            )
        x = self(tokens_bt, query, keys)
        rotation = None
        if self.rope is not None:
            cosine, sine = self.rope(query, x.dtype)
            rotation = (cosine, sine) if query.ndim == 1 else (cosine[:, None], sine[:, None])
        slopes = None
        if self.config.positions == "alibi":
            slopes = torch.tensor(alibi_slopes(self.config.heads), dtype=x.dtype, device=x.device)
        return x, Scope(query, key, first, real, causal, rotation, slopes)


class Layer(nn.Module):
    """Self-attention, cross-attention where there is a memory, and feed-forward, each with its residual."""

    def __init__(self, config: TransformerConfig, index: int, encoder: bool = False, cross: bool = False) -> None:
        super().__init__()

        def attention(seen: tuple[Pattern, ...], shaw: bool) -> Attention:
            return Attention(
                config.width, config.heads, config.kv_heads, dropout=config.attention_dropout, plain=config.plain,
                bias=config.bias, patterns=seen, shaw_clip=config.shaw_clip if shaw else None,
            )  # fmt: skip

        def residual() -> Residual:
            place = config.norm_position
            return Residual(config.norm, place, config.width, config.norm_eps, config.bias, config.dropout)

        self.self_attn = attention((Pattern(),) if encoder else patterns(config, index), config.positions == "shaw")
        self.self_attn_residual = residual()
        self.cross_attn = attention((Pattern(),), False) if cross else None
        self.cross_attn_residual = residual() if cross else None
        self.mlp = FeedForward(config.width, config.hidden, config.feedforward, config.bias)
        self.mlp_residual = residual()

    def forward(
        self,
        x: Tensor,
        scope: Scope,
        memory: tuple[Tensor, Scope] | None = None,
        cache: LayerCache | None = None,
        maps: list[Tensor] | None = None,
        cross_maps: list[Tensor] | None = None,
    ) -> Tensor:
        x = self.self_attn_residual(x, lambda y: self.self_attn(y, scope=scope, cache=cache, maps=maps))
        if self.cross_attn is not None and self.cross_attn_residual is not None:
            if memory is None:
                raise ValueError("this layer attends to an encoded source, but none was given")
            states, view = memory
            attend = self.cross_attn
            x = self.cross_attn_residual(
                x, lambda y: attend(y, scope=view, memory_bsd=states, cache=cache, maps=cross_maps)
            )
        return self.mlp_residual(x, self.mlp)


class Stack(nn.Module):
    """The layers of a decoder or an encoder, and the norm after the last one (none in post-norm)."""

    def __init__(self, config: TransformerConfig, encoder: bool = False, cross: bool = False) -> None:
        super().__init__()
        count = config.encoder_layers if encoder and config.encoder_layers is not None else config.layers
        self.layers = nn.ModuleList(Layer(config, i, encoder, cross) for i in range(count))
        last = config.norm_position != "post"
        self.norm = make_norm(config.norm, config.width, config.norm_eps, config.bias) if last else None

    def forward(
        self,
        x: Tensor,
        scope: Scope,
        memory: Memory | None = None,
        cache: Cache | None = None,
        maps: list[Tensor] | None = None,
        cross_maps: list[Tensor] | None = None,
    ) -> Tensor:
        """(b, t, width) to the same shape."""
        source = None
        if memory is not None:
            source = memory.states, Scope(scope.query, scope.key, real=memory.real, causal=False)
        for i, layer in enumerate(self.layers):
            x = layer(x, scope, source, None if cache is None else cache.layer(i), maps, cross_maps)
        return x if self.norm is None else self.norm(x)


def initialise(model: nn.Module, config: TransformerConfig) -> None:
    """Draw matrices as `config.init` says; biases are 0 and norms 1, embeddings have variance 1 / width."""
    modules = dict(model.named_modules())
    for name, module in modules.items():
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=config.width**-0.5)
        elif isinstance(module, nn.Linear):
            if config.init == "xavier":
                nn.init.xavier_normal_(module.weight)
            else:
                writes = config.init == "scaled" and name.endswith(("o_proj", "down_proj"))
                nn.init.normal_(module.weight, std=0.02 / math.sqrt(_sublayers(modules, name)) if writes else 0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, Shaw):
            nn.init.xavier_normal_(module.keys)
            nn.init.xavier_normal_(module.values)


def _sublayers(modules: dict[str, nn.Module], name: str) -> int:
    """How many sub-layers write to the residual stream of the stack that a module belongs to."""
    stack = name.split(".layers.")[0]
    return sum(isinstance(m, Residual) for key, m in modules.items() if key.startswith(stack + "."))


def _extended(cache: Cache, tokens_bt: Tensor, pad_mask: Tensor | None) -> Tensor | None:
    """The cache's padding with that of new tokens, kept in the cache; None where nothing is padded."""
    first = cache.length
    if first:
        rows = cache.layers[0].rows
        if rows != tokens_bt.shape[0]:
            raise ValueError(f"the cache holds {rows} rows, but {tokens_bt.shape[0]} were given")
    if pad_mask is None and cache.real is None:
        return None
    ones = torch.ones(tokens_bt.shape[0], first, dtype=torch.bool, device=tokens_bt.device)
    before = ones if cache.real is None else cache.real
    cache.real = torch.cat((before, torch.ones_like(tokens_bt, dtype=torch.bool) if pad_mask is None else pad_mask), 1)
    return cache.real
