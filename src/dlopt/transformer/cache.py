"""The keys and values of earlier tokens, so that decoding computes each token once."""

from __future__ import annotations

import torch
from torch import Tensor


class LayerCache:
    """Keys and values of one layer: self-attention grows, cross-attention is set once.

    Shapes: (b, g, n, d), with g key/value heads and n cached tokens. Room doubles when it is used up.
    """

    def __init__(self) -> None:
        self.length = 0
        self.cross: tuple[Tensor, Tensor] | None = None
        self._keys: Tensor | None = None
        self._values: Tensor | None = None

    @property
    def rows(self) -> int:
        """Rows of the batch; 0 before anything is cached."""
        return 0 if self._keys is None else self._keys.shape[0]

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Add new tokens; returns all keys and values. With gradients, earlier tensors are left as they were."""
        end = self.length + k.shape[-2]
        if self._keys is None or self._values is None:
            self._keys, self._values = k, v
        elif torch.is_grad_enabled() and k.requires_grad:
            self._keys = torch.cat((self._keys[:, :, : self.length], k), dim=2)
            self._values = torch.cat((self._values[:, :, : self.length], v), dim=2)
        else:
            # what a graph remembers is not written into
            if end > self._keys.shape[2] or self._keys.requires_grad:
                self._keys, self._values = self._grown(self._keys, end), self._grown(self._values, end)
            self._keys[:, :, self.length : end] = k
            self._values[:, :, self.length : end] = v
        self.length = end
        return self._keys[:, :, :end], self._values[:, :, :end]

    def _grown(self, old: Tensor, end: int) -> Tensor:
        new = old.new_empty(*old.shape[:2], max(2 * old.shape[2], end), old.shape[3])
        new[:, :, : self.length] = old[:, :, : self.length].detach()
        return new

    def crop(self, length: int) -> None:
        """Forget all but the first `length` tokens; with none left another batch may come."""
        self.length = length
        if not length:
            self._keys = self._values = None

    def reorder(self, rows: Tensor) -> None:
        """Keep rows of the batch, in this order."""
        if self._keys is not None and self._values is not None:
            self._keys = self._keys[:, :, : self.length].index_select(0, rows)
            self._values = self._values[:, :, : self.length].index_select(0, rows)
        if self.cross is not None:
            self.cross = self.cross[0].index_select(0, rows), self.cross[1].index_select(0, rows)


class Cache:
    """Decoding state of a `Decoder` or of the decoder of a `Seq2Seq`: start with `Cache()`, one for a batch.

    Keys are stored as attention uses them (turned by RoPE). `real` (b, n) remembers padding; None means none.
    """

    def __init__(self) -> None:
        self.layers: list[LayerCache] = []
        self.real: Tensor | None = None

    @property
    def length(self) -> int:
        """Tokens cached, padding counted."""
        return self.layers[0].length if self.layers else 0

    def layer(self, index: int) -> LayerCache:
        """The cache of a layer, made when first asked for."""
        while len(self.layers) <= index:
            self.layers.append(LayerCache())
        return self.layers[index]

    def reorder(self, rows: Tensor) -> None:
        """Keep rows of the batch in this order; one row may be taken several times, as beam search does."""
        for layer in self.layers:
            layer.reorder(rows)
        if self.real is not None:
            self.real = self.real.index_select(0, rows)

    def crop(self, length: int) -> None:
        """Forget all but the first `length` tokens."""
        if not 0 <= length <= self.length:
            raise ValueError(f"a cache of {self.length} tokens cannot be cropped to {length}")
        for layer in self.layers:
            layer.crop(length)
        if self.real is not None:
            self.real = self.real[:, :length]

    def nbytes(self) -> int:
        """Bytes that are held, room for later tokens included."""
        tensors = [
            x for layer in self.layers for x in (layer._keys, layer._values, *(layer.cross or ())) if x is not None
        ]
        return sum(x.untyped_storage().nbytes() for x in tensors)
