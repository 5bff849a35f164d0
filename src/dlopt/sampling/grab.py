"""GraB: the next epoch's order from this epoch's gradients, so that their running sums stay small (herding)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sized
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Sampler

from dlopt.catalog import method
from dlopt.memory import Bytes
from dlopt.sampling.base import Resumable, generator, numbers


@method(
    "grab",
    topic="sampling",
    kind="sampler",
    cite="lu2022grab",
    summary="orders by balancing the last epoch's gradients; a permutation, needs per-example gradients",
)
class GraB(Resumable, Sampler[int]):
    """A permutation in every epoch: the first random, each next one found by balancing the gradients of the last.

    A vector z gets the sign e = +1 if |r + z| < |r - z|, else -1, and r += e z; an example with + goes to the next
    free place from the front of the next order, one with - from the back. Each time the herding bound
    max_k |sum_{j<=k} (g_j - mean g)| about halves, down to a floor without n in it; the rate becomes (nK)^{-2/3}, where
    reshuffling has n^{-1/3} K^{-2/3}.

    balance: "pair" (default; z is the difference of two successive gradients, no mean needed) or "mean" (the
    first paper: z is the gradient less the mean of the last epoch's). data_source, seed, rank, world_size, tail: as
    in `FixedOrder`; each rank keeps its shard of the first epoch and orders it by itself.

        for epoch in range(epochs):
            grab.set_epoch(epoch)
            for x, y in loader:                                   # DataLoader(data, batch_size, sampler=grab)
                gradients = per_example_gradients(model, loss_fn, x, y)    # (B, d)
                grab.step(gradients)                              # in the order of the batch
                ...                                               # the mean of them is the batch's gradient

    Examples without a gradient (a last batch that was dropped) keep their order between front and back. A new epoch
    without any gradient is a RuntimeError.

    Memory: 2 d numbers ("pair") or 3 d ("mean") in the gradients' dtype and on their device, for d parameters, and
    two orders of n integers; per-example gradients themselves cost B d. Work: B d per batch and B^2 d / 4 for
    inner products (B^2 d for "mean").

    Reference: Lu, Guo, De Sa, "GraB: finding provably better data permutations than random reshuffling", 2022;
    pair balance: Cooper et al., "Coordinating distributed example orders for provably accelerated training", 2023.
    """

    renewed = ""  # the order follows from gradients, whatever the epoch is called

    def __init__(
        self,
        data_source: Sized,
        *,
        balance: str = "pair",
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        tail: str = "keep",
    ) -> None:
        if balance not in ("pair", "mean"):
            raise ValueError(f"balance must be 'pair' or 'mean', not {balance!r}")
        self._place(data_source, seed, rank, world_size, tail)
        self.balance = balance
        self._order = self._own(generator(self.seed).permutation(self.n))
        self._next = np.empty_like(self._order)
        self._fed = self._front = self._back = 0  # gradients seen; places taken from the front and from the back
        # r; for "pair" an odd gradient that waits for its partner; for "mean" the last mean and this epoch's sum
        self._vectors: dict[str, Tensor] = {}

    def step(self, gradients: Tensor | Mapping[str, Tensor], indices: Any = None) -> None:
        """Take the gradients of the next B examples, in the order in which the sampler gave them.

        gradients: (B, d) or (B, ...), or {parameter: (B, ...)} as `torch.func` gives them. indices: give them,
        if the data set yields them, to have the order checked.
        """
        parts = gradients.values() if isinstance(gradients, Mapping) else [gradients]
        g = torch.cat([part.detach().flatten(1) for part in parts], dim=1)
        stop = self._fed + len(g)
        if stop > len(self._order):
            raise ValueError(f"this epoch has {len(self._order)} examples; {stop} gradients were given")
        examples = self._order[self._fed : stop]
        if indices is not None and not np.array_equal(torch.as_tensor(indices).cpu().numpy(), examples):
            raise ValueError(f"these are gradients of {list(indices)}, but {examples.tolist()} came next")
        if not bool(torch.isfinite(g).all()):
            raise ValueError(f"a gradient of examples {examples.tolist()} is not finite; no order follows from it")
        if self._vectors and self._vectors["sum"].numel() != g.shape[1]:
            raise ValueError(f"gradients have {g.shape[1]} numbers; before, they had {self._vectors['sum'].numel()}")
        self._fed = stop
        if self.balance == "pair":
            self._pair(g, examples)
        else:
            self._mean(g, examples)

    def _pair(self, g: Tensor, examples: np.ndarray) -> None:
        v = self._vectors or {"sum": torch.zeros_like(g[0]), "odd": torch.zeros_like(g[0])}
        self._vectors = v
        if (self._fed - len(g)) % 2:  # the first of the pair came at the end of the last batch
            g = torch.cat([v["odd"][None], g])
            examples = self._order[self._fed - len(g) : self._fed]
        if len(g) % 2:
            v["odd"] = g[-1].clone()
            if self._fed < len(self._order):
                g, examples = g[:-1], examples[:-1]
        pairs = len(g) // 2
        signs = self._balance(g[0 : 2 * pairs : 2] - g[1 : 2 * pairs : 2])
        for sign, first, second in zip(signs, examples[0::2], examples[1::2]):
            self._put(first, sign)
            self._put(second, -sign)
        if len(examples) % 2:
            self._put(examples[-1], 1)  # the very last of an odd number has no partner

    def _mean(self, g: Tensor, examples: np.ndarray) -> None:
        names = ("sum", "stale", "fresh")
        v = self._vectors = self._vectors or {name: torch.zeros_like(g[0]) for name in names}
        v["fresh"] += g.sum(0)
        for sign, example in zip(self._balance(g - v["stale"]), examples):
            self._put(example, sign)

    def _balance(self, z: Tensor) -> list[int]:
        """Signs of some vectors in a row, and r moved on; inner products are taken together, signs one by one."""
        if not len(z):
            return []
        with_r = (z @ self._vectors["sum"]).double().cpu().numpy()
        among = (z @ z.T).double().cpu().numpy()
        signs: list[int] = []
        for k in range(len(z)):
            signs.append(1 if with_r[k] + among[k, :k] @ np.array(signs, dtype=np.float64) < 0 else -1)
        self._vectors["sum"] += torch.tensor(signs, dtype=z.dtype, device=z.device) @ z
        return signs

    def _put(self, example: int, sign: int) -> None:
        if sign > 0:
            self._next[self._front] = example
            self._front += 1
        else:
            self._back += 1
            self._next[-self._back] = example

    def _restart(self) -> None:
        """Make the new order the current one."""
        if not self._fed and not (self._begun and len(self._order)):
            return
        if not self._fed:
            raise RuntimeError(
                "GraB got no gradient in the last epoch: call step(gradients) after each batch, "
                "or use RandomReshuffling where gradients per example cannot be had"
            )
        rest = len(self._order) - self._back
        placed = self._front + self._back
        self._next[self._front : rest] = self._order[placed:]
        self._order, self._next = self._next, np.empty_like(self._next)
        if self.balance == "mean":
            self._vectors["stale"] = self._vectors["fresh"] / self._fed
            self._vectors["fresh"] = torch.zeros_like(self._vectors["fresh"])
        self._vectors["sum"] = torch.zeros_like(self._vectors["sum"])
        self._fed = self._front = self._back = 0

    def _pieces(self, start: int) -> Iterator[Iterable[int]]:
        yield numbers(self._order[start:])

    def memory(self, parameters: int, itemsize: int = 4) -> Bytes:
        """What it keeps, for gradients of so many parameters, of `itemsize` bytes each."""
        return Bytes(state=(2 if self.balance == "pair" else 3) * parameters * itemsize + 16 * len(self._order))

    def state_dict(self, consumed: int) -> dict[str, Any]:
        """As for all samplers, with the orders and sums. `consumed` must be the number of gradients given."""
        state = super().state_dict(consumed)
        if consumed != self._fed:
            raise ValueError(f"consumed is {consumed}, but {self._fed} gradients were given; save after step")
        return state | {
            "rank": self.rank,
            "balance": self.balance,
            "order": torch.tensor(self._order),
            "next": torch.tensor(self._next),
            "places": [self._front, self._back],
            "vectors": {name: v.clone() for name, v in self._vectors.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        theirs = (state.get("balance"), state.get("rank"), state["world_size"])
        if "balance" in state and theirs != (self.balance, self.rank, self.world_size):
            raise ValueError(
                "a state of balance={!r}, rank {} of {} cannot be loaded into ".format(*theirs)
                + f"balance={self.balance!r}, rank {self.rank} of {self.world_size}: each rank orders its own shard"
            )
        super().load_state_dict(state)
        self._order, self._next = state["order"].numpy().copy(), state["next"].numpy().copy()
        self._fed = state["consumed"]
        self._front, self._back = state["places"]
        self._vectors = {name: v.clone() for name, v in state["vectors"].items()}
