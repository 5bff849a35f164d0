"""One layer of a cache: it counts, checks, takes back and saves; a store keeps the tokens.

A method of this topic is a store, one object per layer, and a function that makes a `KVCache` of such stores. The store
says what to keep and how; everything else is here and in `dlopt.kvcache.frame`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin

from dlopt.kvcache.rows import Rows
from dlopt.memory import tensor_bytes

STATE = ("seen", "fresh", "pads", "batch", "transient", "record_past", "is_initialized")  # of a layer, saved


class Store(Protocol):
    """What a method writes: the tokens of one layer.

    kinds: {attribute: kind of `Bytes`} of all its tensors, each batch first (or None while there is none); they own
    their storage, no views. facts: names of its plain attributes (int, str, bool, None, lists of them) that a saved
    state needs. waits: True where it can commit only after it has seen the queries. Then it has two methods more:
    mark(keys, layer) -> the keys of the last `append`, in a form that makes attention call `layer.observe(...)`, and
    observe(..., rows=), which gets what attention passed.
    """

    kinds: ClassVar[dict[str, str]]
    facts: ClassVar[tuple[str, ...]]
    waits: ClassVar[bool]

    @property
    def length(self) -> int:
        """Columns held, the same for all rows (`dlopt.kvcache.rows` has the rule)."""

    def start(self, keys: Tensor, values: Tensor) -> None:
        """Before the first tokens: learn dtype and device from (B, H, T, D) keys and values, of which none is kept."""

    def append(self, keys: Tensor, values: Tensor, rows: Rows) -> tuple[Tensor, Tensor]:
        """Keep new tokens, whole; return all keys and values for attention. `rows` counts the new ones already."""

    def commit(self, rows: Rows) -> None:
        """All tokens are final: evict or quantize."""

    def drop(self, count: int, rows: Rows) -> None:
        """Forget the last `count` columns. `rows` still counts them."""

    def reversible(self, count: int, rows: Rows) -> bool:
        """Whether the last `count` columns can be dropped without a trace though they were committed."""


class Layer(CacheLayerMixin):
    """One layer of a `KVCache`: counts tokens, forwards to its store, commits unless a roll-back may come.

    seen: columns so far, pads included. fresh: columns at the end that are not yet committed. pads: left pads by row.
    """

    def __init__(self, make_store: Callable[[], Any], pads: tuple[int, ...] | None = None):
        super().__init__()
        self.make_store, self.made_with = make_store, pads
        self.reset()

    def reset(self) -> None:
        """Forget all tokens; the pads are again those given at construction."""
        self.store = self.make_store()
        self.seen = self.fresh = self.transient = self.batch = 0
        self.pads = self.made_with
        self.is_initialized = self.record_past = False

    @property
    def rows(self) -> Rows:
        return Rows(self.seen, self.pads)

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.batch = key_states.shape[0]
        if self.pads is not None and len(self.pads) != self.batch:
            times, left = divmod(self.batch, len(self.pads))
            if left or not times:
                raise ValueError(f"attention_mask has {len(self.pads)} rows, the batch has {self.batch}")
            # beams and returned sequences: `generate` repeats each row before the first pass
            self.pads = tuple(p for p in self.pads for _ in range(times))
        self.store.start(key_states, value_states)
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Keep (B, H, q, D) keys and values; return those that attention reads."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        if key_states.shape[0] != self.batch:
            raise ValueError(f"the cache holds {self.batch} rows, the new tokens have {key_states.shape[0]}")
        self.seen += key_states.shape[2]
        self.fresh += key_states.shape[2]
        keys, values = self.store.append(key_states, value_states, self.rows)
        if not (self.record_past or self.store.waits):
            self.commit()
        held = list(self.tensors().values())
        self.transient = max(self.transient, tensor_bytes([keys, values, *held]) - tensor_bytes(held))
        return (self.store.mark(keys, self) if self.store.waits else keys), values

    def observe(self, *args: Any, **kwargs: Any) -> None:
        """For stores that wait: hand them what attention saw, then commit."""
        self.store.observe(*args, rows=self.rows, **kwargs)
        if not self.record_past:
            before = list(self.tensors().values())
            self.commit()
            held = list(self.tensors().values())
            self.transient = max(self.transient, tensor_bytes([*before, *held]) - tensor_bytes(held))

    def commit(self) -> None:
        """Everything so far is final: let the store evict or quantize."""
        self.store.commit(self.rows)
        self.fresh = 0

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        length = self.store.length if self.is_initialized else 0
        return length + query_length, self.seen - length

    def get_seq_length(self) -> int:
        """Columns seen, stored or not: the position of the next token."""
        return self.seen

    def get_max_length(self) -> int:
        return -1  # a stream may go on for ever

    def activate_past_recording(self) -> None:
        """From now on keep new tokens as they are until `crop` says how many of them are final.

        It stays so, as in transformers: after assisted decoding, `record_past = False` or `reset` ends it.
        """
        self.record_past = True

    @property
    def is_croppable(self) -> bool:
        """Whether a roll-back leaves no trace now: it is announced (`record_past`), or nothing was lost yet."""
        return self.record_past or not self.is_initialized or self.store.reversible(self.seen, self.rows)

    def crop(self, tokens_to_remove: int) -> None:
        """Take back the last -tokens_to_remove columns (0 or negative, as in transformers), then commit the rest."""
        if tokens_to_remove > 0:
            raise ValueError(f"crop takes 0 or minus the number of tokens to remove, not {tokens_to_remove}")
        count = -tokens_to_remove
        if not self.is_initialized:
            return
        if count > self.seen:
            raise ValueError(f"cannot take back {count} tokens: the cache has seen {self.seen}")
        if count > self.fresh and not self.store.reversible(count, self.rows):
            raise ValueError(
                f"cannot take back {count} tokens: all but the last {self.fresh} are compressed for good; call "
                "activate_past_recording() before the pass that may be taken back"
            )
        if count:
            self.store.drop(count, self.rows)
            self.seen -= count
            self.fresh = max(0, self.fresh - count)
        self.commit()

    def tensors(self) -> dict[str, Tensor]:
        """{name: tensor} of all that is kept."""
        found = {name: getattr(self.store, name) for name in self.store.kinds}
        return {name: tensor for name, tensor in found.items() if tensor is not None}

    def _each_row(self, choose: Callable[[Tensor], Tensor]) -> None:
        for name, tensor in self.tensors().items():
            setattr(self.store, name, choose(tensor))
        if self.pads is not None:
            self.pads = tuple(choose(torch.tensor(self.pads)).tolist())
        if self.is_initialized:
            self.batch = len(choose(torch.empty(self.batch)))

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self._each_row(lambda t: t.index_select(0, beam_idx.to(t.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        self._each_row(lambda t: t.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: Tensor) -> None:
        self._each_row(lambda t: t[indices.to(t.device) if isinstance(indices, Tensor) else indices])

    def state_dict(self) -> dict[str, Any]:
        return {
            **{name: getattr(self, name) for name in STATE},
            "tensors": {name: tensor.detach().clone() for name, tensor in self.tensors().items()},
            "facts": {name: getattr(self.store, name) for name in self.store.facts},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.reset()
        for name in STATE:
            setattr(self, name, state[name])
        for name, tensor in state["tensors"].items():
            setattr(self.store, name, tensor.clone())
        for name, fact in state["facts"].items():
            setattr(self.store, name, fact)


def appended(old: Iterable[Tensor | None], new: Iterable[Tensor]) -> list[Tensor]:
    """New columns behind old ones, tensor by tensor. Where there are no old ones, a copy: stores own their storage."""
    return [n.clone() if o is None else torch.cat([o, n], dim=2) for o, n in zip(old, new, strict=True)]
