"""Batches by any sampler, as the training loop wants them: endless, and resumed exactly in the middle of an epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from dlopt.tasks.data.batches import generator

Transform = Callable[[tuple[Tensor, ...], torch.Generator], tuple[Tensor, ...]]


class SampledBatches:
    """An endless stream of (*tensors of the batch, weights (B,), indices (B,)) in a sampler's order.

    tensors: each (n, ...), rows belong together. sampler: of `dlopt.sampling`, over n examples; one without weights
    gives weights 1. The last batch of an epoch is shorter where the batch size does not divide it, so that every
    sampler uses the same number of examples. transform(batch, generator): augmentation whose generator depends on
    (seed, batch number) alone, as in `tasks.data.Batches`.

    Exactly one batch is drawn per step, so what an online sampler has drawn ahead is known when a state is taken.
    """

    def __init__(
        self, tensors: Sequence[Tensor], sampler: Any, batch_size: int, seed: int, transform: Transform | None = None
    ) -> None:
        n = len(tensors[0])
        if sampler.n != n or any(len(t) != n for t in tensors):
            raise ValueError(f"tensors of {[len(t) for t in tensors]} rows do not go with a sampler over {sampler.n}")
        if not 1 <= batch_size <= len(sampler):
            raise ValueError(f"batch_size must be between 1 and the {len(sampler)} of an epoch, got {batch_size}")
        self.tensors, self.sampler, self.batch_size = tuple(tensors), sampler, batch_size
        self.seed, self.transform = seed, transform
        self.per_epoch = -(-len(sampler) // batch_size)
        self._position = 0  # number of the batch that comes first after (re)starting

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        number = self._position
        while True:
            self.sampler.set_epoch(number // self.per_epoch)  # naming the resumed epoch keeps the place in it
            stream = iter(self.sampler)
            while keys := list(islice(stream, self.batch_size)):
                yield self._batch(keys, number)
                number += 1

    def _batch(self, keys: list[Any], number: int) -> tuple[Tensor, ...]:
        pairs = keys if self.sampler.weighted else [(key, 1.0) for key in keys]
        indices = torch.tensor([index for index, _ in pairs])
        found = tuple(tensor[indices] for tensor in self.tensors)
        if self.transform:
            found = self.transform(found, generator(self.seed, "transform", number))
        return (*found, torch.tensor([weight for _, weight in pairs], dtype=torch.float32), indices)

    def state_dict(self, consumed: int) -> dict[str, Any]:
        """Where to go on after `consumed` batches in all. ValueError if that is in an epoch that the sampler has left
        behind and cannot name again, since it learns (online importance, GraB)."""
        epoch, place = divmod(consumed, self.per_epoch)
        if epoch == self.sampler.epoch + 1 and not place:
            epoch, place = self.sampler.epoch, self.per_epoch  # at its end: the next epoch has not begun
        used = min(place * self.batch_size, len(self.sampler))
        learns = getattr(self.sampler, "online", False) or hasattr(self.sampler, "step")
        if learns and epoch != self.sampler.epoch:
            raise ValueError(
                f"after {consumed} batches this is epoch {epoch}, but the sampler, which learns, is in epoch "
                f"{self.sampler.epoch}: take the state before the next batch is asked for"
            )
        return {
            "consumed": consumed,
            "seed": self.seed,
            "batch_size": self.batch_size,
            "sampler": self.sampler.state_dict(used) | {"epoch": epoch},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state. ValueError if it is of other batches: their order would not be the same."""
        mine = {"seed": self.seed, "batch_size": self.batch_size}
        wrong = [f"{key} {state.get(key)!r} (here {mine[key]!r})" for key in mine if state.get(key) != mine[key]]
        if wrong:
            raise ValueError(f"this state is of other batches: {', '.join(wrong)}")
        self.sampler.load_state_dict(state["sampler"])
        self._position = state["consumed"]
