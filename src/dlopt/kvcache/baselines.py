"""What the others are compared with: everything kept, and a window that forgets its beginning."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from dlopt.catalog import method
from dlopt.kvcache.frame import KVCache
from dlopt.kvcache.layer import appended
from dlopt.kvcache.rows import Rows
from dlopt.kvcache.shape import Shape, whole
from dlopt.kvcache.sinks import Sinks
from dlopt.memory import Bytes


class Full:
    """All tokens of one layer, as the model gave them."""

    kinds: ClassVar = {"keys": "residual", "values": "residual"}
    facts: ClassVar = ()
    waits: ClassVar = False

    def __init__(self) -> None:
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    @property
    def length(self) -> int:
        return 0 if self.keys is None else self.keys.shape[2]

    def start(self, keys: Tensor, values: Tensor) -> None:
        """Nothing to learn."""

    def append(self, keys: Tensor, values: Tensor, rows: Rows) -> tuple[Tensor, Tensor]:
        self.keys, self.values = appended((self.keys, self.values), (keys, values))
        return self.keys, self.values

    def commit(self, rows: Rows) -> None:
        """Nothing is compressed."""

    def drop(self, count: int, rows: Rows) -> None:
        left = self.length - count
        self.keys, self.values = self.keys[:, :, :left].clone(), self.values[:, :, :left].clone()

    def reversible(self, count: int, rows: Rows) -> bool:
        return True


@method(
    "full",
    topic="kvcache",
    kind="cache",
    cite="vaswani2017attention",
    summary="everything kept, as in DynamicCache",
    needs=("transformers",),
)
def FullCache(config: Any, attention_mask: Tensor | None = None) -> KVCache:
    """The full cache: every key and value in the model's precision, equal to transformers' `DynamicCache` to the bit.

    Bytes: 2 layers heads size T numbers. `attention_mask` changes nothing here; it is taken so that all caches are made
    alike.

    Example:
        >>> from transformers import LlamaConfig
        >>> config = LlamaConfig(hidden_size=32, num_attention_heads=4, num_hidden_layers=2)
        >>> FullCache(config).nbytes().total
        0
    """
    return KVCache("full", {}, config, lambda layer: Full(), attention_mask)


def memory_full(shape: Shape, tokens: int, dtype: torch.dtype, *, batch: int = 1, generated: int = 0) -> Bytes:
    """Bytes kept after `tokens` columns."""
    return Bytes(residual=shape.numbers(tokens, batch) * dtype.itemsize)


@method(
    "window",
    topic="kvcache",
    kind="cache",
    cite="beltagy2020longformer",
    summary="the newest tokens alone, no sinks",
    needs=("transformers",),
)
def WindowCache(config: Any, window: int = 256, attention_mask: Tensor | None = None) -> KVCache:
    """A sliding window over the newest tokens: what `SinkCache` is without its sinks.

    Once the first tokens leave, models trained without such a window fail: that is what sinks are for.

    Args:
        config: a transformers model or its config. window: tokens kept, at least 1.
        attention_mask: (B, T) of the prompts, where rows are padded at the left.
    """
    window = whole("window", window, 1)
    return KVCache("window", {"window": window}, config, lambda layer: Sinks(0, window, None), attention_mask)


def memory_window(
    shape: Shape, tokens: int, dtype: torch.dtype, *, batch: int = 1, generated: int = 0, window: int = 256
) -> Bytes:
    """Bytes kept after `tokens` columns."""
    return Bytes(residual=shape.numbers(min(tokens, window), batch) * dtype.itemsize)
