"""Endless, seeded, resumable batches. What batch number i holds depends on the seed and on i alone.

So a run that stopped after `consumed` batches goes on with exactly those that were left, whatever a worker had
prefetched, and two runs with one seed see the same data in the same order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

Transform = Callable[[tuple[Tensor, ...], torch.Generator], tuple[Tensor, ...]]


class Batches:
    """Batches of examples, in an order drawn anew for each epoch (random reshuffling).

    tensors: each (n, ...), rows belong together. batch_size: examples a batch. seed: any int. drop_last: leave out
    what does not fill a batch at the end of an epoch; else the last batch of an epoch is shorter. transform: called as
    transform(batch, generator) with a CPU generator that depends on (seed, batch number) only, for augmentation.

    Iterating never ends: `for batch in batches` needs a break. `per_epoch` batches make an epoch.
    """

    def __init__(
        self,
        tensors: Sequence[Tensor],
        batch_size: int,
        seed: int,
        drop_last: bool = True,
        transform: Transform | None = None,
    ) -> None:
        sizes = {len(tensor) for tensor in tensors}
        if len(sizes) != 1:
            raise ValueError(f"tensors must have equally many rows, got {[len(tensor) for tensor in tensors]}")
        (n,) = sizes
        if not 1 <= batch_size <= n:
            raise ValueError(f"batch_size must be between 1 and the {n} examples, got {batch_size}")
        self.tensors, self.batch_size, self.seed, self.transform = tuple(tensors), batch_size, seed, transform
        self.n, self.drop_last = n, drop_last
        self.per_epoch = n // batch_size if drop_last else -(-n // batch_size)
        self.position = 0  # number of the next batch
        self._order: tuple[int, Tensor] = (-1, torch.empty(0))

    def batch(self, number: int) -> tuple[Tensor, ...]:
        """Batch `number`, counted from 0 over all epochs, without moving the iterator."""
        epoch, place = divmod(number, self.per_epoch)
        if self._order[0] != epoch:
            self._order = (epoch, torch.randperm(self.n, generator=generator(self.seed, "order", epoch)))
        rows = self._order[1][place * self.batch_size : (place + 1) * self.batch_size]
        found = tuple(tensor[rows.to(tensor.device)] for tensor in self.tensors)
        return self.transform(found, generator(self.seed, "transform", number)) if self.transform else found

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        return self

    def __next__(self) -> tuple[Tensor, ...]:
        found = self.batch(self.position)
        self.position += 1
        return found

    def state_dict(self, consumed: int | None = None) -> dict[str, Any]:
        """Where to go on. consumed: how many batches the training loop has really used; None means all handed out."""
        position = self.position if consumed is None else consumed
        return {
            "position": position,
            "seed": self.seed,
            "n": self.n,
            "batch_size": self.batch_size,
            "drop_last": self.drop_last,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state. ValueError if it is of other batches: their order would not be the same."""
        mine = self.state_dict()
        wrong = [
            f"{key} {state.get(key)!r} (here {mine[key]!r})"
            for key in mine
            if key != "position" and state.get(key) != mine[key]
        ]
        if wrong:
            raise ValueError(f"this state is of other batches: {', '.join(wrong)}")
        if not isinstance(state["position"], int) or state["position"] < 0:
            raise ValueError(f"the position in this state must be a number of batches, got {state['position']!r}")
        self.position = state["position"]


class TextBatches:
    """Windows of a text for a language model: (inputs, targets), each int64 (batch_size, length).

    Targets are the inputs moved on by one. An epoch cuts the text into windows that do not overlap, from a start drawn
    for the epoch, and shuffles them, so each token is a target about once an epoch. tokens: (n,) of an integer type.
    Iteration and states are those of `Batches`.
    """

    def __init__(self, tokens: Tensor, batch_size: int, length: int, seed: int) -> None:
        if tokens.ndim != 1 or tokens.is_floating_point():
            raise ValueError(f"tokens must be integers (n,), got {tokens.dtype} {tuple(tokens.shape)}")
        count = (len(tokens) - length) // length if length >= 1 else 0
        if count < batch_size:
            raise ValueError(
                f"{len(tokens)} tokens hold {max(count, 0)} windows of length {length} (at least 1), fewer than a "
                f"batch of {batch_size}"
            )
        self.tokens, self.length, self.seed = tokens, length, seed
        self._windows = Batches((torch.arange(count),), batch_size, seed)
        self.per_epoch = self._windows.per_epoch

    def batch(self, number: int) -> tuple[Tensor, Tensor]:
        """Batch `number`, counted from 0 over all epochs, without moving the iterator."""
        (window,) = self._windows.batch(number)
        start = torch.randint(self.length, (1,), generator=generator(self.seed, "start", number // self.per_epoch))
        return _cut(self.tokens, start + window * self.length, self.length)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self

    def __next__(self) -> tuple[Tensor, Tensor]:
        found = self.batch(self._windows.position)
        self._windows.position += 1
        return found

    def state_dict(self, consumed: int | None = None) -> dict[str, Any]:
        """As in `Batches`, with the length of a window and of the text."""
        return {**self._windows.state_dict(consumed), "length": self.length, "tokens": len(self.tokens)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """As in `Batches`."""
        if (state.get("length"), state.get("tokens")) != (self.length, len(self.tokens)):
            raise ValueError(
                f"this state is of {state.get('tokens')} tokens in windows of {state.get('length')}, not of "
                f"{len(self.tokens)} in windows of {self.length}"
            )
        self._windows.load_state_dict(state)


def windows(tokens: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """All whole windows of a text in order, for evaluation: (inputs, targets), each int64 (count, length)."""
    if length < 1 or len(tokens) <= length:
        raise ValueError(f"length must be between 1 and {len(tokens) - 1}, one less than the tokens; got {length}")
    return _cut(tokens, torch.arange(0, len(tokens) - length, length), length)


def generator(seed: int, purpose: str, number: int) -> torch.Generator:
    """A CPU generator for one purpose and number. Hashing keeps neighbouring seeds and numbers unrelated."""
    hashed = hashlib.blake2b(f"{seed}/{purpose}/{number}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(hashed, "little") >> 1)


def _cut(tokens: Tensor, starts: Tensor, length: int) -> tuple[Tensor, Tensor]:
    places = (starts[:, None] + torch.arange(length + 1)).to(tokens.device)
    found = tokens[places].long()
    return found[:, :-1], found[:, 1:]
