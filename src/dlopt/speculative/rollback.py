"""The target's cache while drafts are verified: run a block of tokens, then keep only what was accepted.

One row with a chain needs nothing but `crop`. A tree needs a mask in which a token sees its own path only, positions by
depth, and a gather of the accepted path. Rows of a batch accept different counts: each row marks which columns of the
cache are its own, the others are masked, and columns that no row needs are squeezed out from time to time.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import Cache

from dlopt.speculative import caches
from dlopt.speculative.draft import Draft, ancestors, depths

MASKED = ("eager", "sdpa")  # attention that takes a mask of four dimensions
_SPARE = 64  # columns without use that a batch carries along before it is squeezed


class Store:
    """The cache of some rows and what each row has in it.

    lengths: tokens of each row in the cache. valid: (b, columns), True where a column is the row's own, or None for one
    row whose columns all are.
    """

    def __init__(self, model: Any, cache: Any, rows: int) -> None:
        if not isinstance(cache, Cache):
            raise ValueError(f"cache must be a transformers.Cache, got {type(cache).__name__}")
        if not hasattr(cache, "layers"):
            raise ValueError(f"{type(cache).__name__} is no cache of a decoder alone; drafts need one that is")
        self.model, self.cache = model, cache
        self.lengths = [0] * rows
        self.valid: Tensor | None = None
        self.width = 0
        self._recording = False
        self._before: list[bool] = []  # whether each layer was recording before `record`
        self._accepts = set(inspect.signature(model.forward).parameters)
        if rows > 1:
            self._need_mask("a batch")

    def prefill(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Run the prompts, or what the cache does not hold of them yet; logits (b, V) after each one's last token."""
        before = self.cache.get_seq_length()
        rows, device = len(prompts), self.model.device
        if rows == 1:
            if before >= len(prompts[0]):
                raise ValueError(
                    f"the cache holds {before} tokens, the prompt has {len(prompts[0])}: the prompt must begin with "
                    "the cached tokens and have at least one more"
                )
            ids = torch.tensor([list(prompts[0][before:])], device=device)
            logits = self._run(ids, last=True)
        else:
            if before:
                raise ValueError(f"the cache holds {before} tokens already; a batch must start with an empty one")
            width = max(map(len, prompts))
            ids = torch.zeros((rows, width), dtype=torch.long)
            self.valid = torch.zeros((rows, width), dtype=torch.bool)
            for row, prompt in enumerate(prompts):  # padded on the left: the last column is everybody's last token
                ids[row, width - len(prompt) :] = torch.tensor(list(prompt))
                self.valid[row, width - len(prompt) :] = True
            self.valid = self.valid.to(device)
            # padding sees itself, so that it computes numbers; nobody sees it
            seen = (
                self.valid[:, None, :] & torch.ones(width, width, dtype=torch.bool, device=device).tril()
            ) | torch.eye(width, dtype=torch.bool, device=device)
            positions = (self.valid.cumsum(-1) - 1).clamp_min(0)
            logits = self._run(ids.to(device), seen, positions, last=True)
        self.lengths = [len(prompt) for prompt in prompts]
        if any(getattr(layer, "record_past", False) for layer in self.cache.layers):
            self.cache.crop(0)  # it came recording: the prompt is no draft
        return logits[:, -1]

    def forward(self, tokens: Sequence[Sequence[int]], drafts: Sequence[Draft]) -> Tensor:
        """Run blocks, each a row's last token and its draft; logits (b, width, V). Short rows are padded."""
        self.width = width = max(map(len, tokens))
        device = self.model.device
        ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in tokens], device=device)
        if self.valid is None and drafts[0].parents is None:
            window = caches.windowed(self.cache, width) if width > 1 else None
            if window is None:
                return self._run(ids)
            self._need_attention("a draft in a window")
            positions = torch.arange(self.lengths[0], self.lengths[0] + width, device=device)[None]
            return self._run(ids, window.to(device), positions)
        if self.valid is None:
            self._need_mask("a draft that is a tree")
        block = torch.from_numpy(np.stack([ancestors(draft, width) for draft in drafts])).to(device)
        if self.valid is None:
            past = block.new_ones((1, width, self.lengths[0]))
        else:
            past = self.valid[:, None, :].expand(-1, width, -1)
        places = [[n + d for d in (0, *depths(draft))] for n, draft in zip(self.lengths, drafts)]
        positions = torch.tensor([[*p, *[p[0]] * (width - len(p))] for p in places], device=device)
        return self._run(ids, torch.cat((past, block), -1), positions)

    def keep(self, places: Sequence[Sequence[int]]) -> None:
        """Of the last block keep these places of each row (0 is the row's last token), in order; drop the rest."""
        count = max(map(len, places))
        if self.valid is None:
            self._keep_one(places[0])
        else:
            self._keep_rows(places, count)
        for row, kept in enumerate(places):
            self.lengths[row] += len(kept)
        if self.valid is not None and self.valid.shape[1] > max(self.lengths) + max(_SPARE, max(self.lengths) // 4):
            self._squeeze()

    def select(self, rows: Sequence[int]) -> None:
        """Go on with these rows only."""
        if len(rows) == len(self.lengths):
            return
        index = torch.tensor(list(rows), device=self.model.device)
        self.cache.batch_select_indices(index)
        self.lengths = [self.lengths[row] for row in rows]
        if self.valid is not None:
            self.valid = self.valid[index]
            if len(rows) == 1:
                self._squeeze()
                self.valid = None

    def record(self) -> None:
        """After the prefill, before a block that may be rolled back: windows now keep what they would forget."""
        if why := self.refusal():
            raise ValueError(why)
        if not self._recording and not caches.dense(self.cache):
            self._before = [getattr(layer, "record_past", False) for layer in self.cache.layers]
            self.cache.activate_past_recording()
        self._recording = True

    def release(self) -> None:
        """When decoding ends: windows forget again as they did before, in whatever the cache is used for next."""
        for layer, before in zip(self.cache.layers, self._before):
            if hasattr(layer, "record_past"):
                layer.record_past = before
        self._before = []

    @property
    def trees(self) -> bool:
        """Whether a draft may be a tree: every token has to see its own path and nothing else."""
        return (
            caches.dense(self.cache)
            and caches.full(self.model)
            and self.model.config._attn_implementation in MASKED
            and "position_ids" in self._accepts
        )

    def refusal(self) -> str:
        """'' if drafts can be verified with this cache and these rows, else a sentence that says why not."""
        why = caches.refusal(self.cache)
        if not why and len(self.lengths) > 1 and not caches.dense(self.cache):
            return f"{type(self.cache).__name__} verifies drafts of one row only; decode the rows one by one"
        return why

    def room(self) -> int | None:
        """The most draft tokens that the next pass verifies exactly; None is any number."""
        most = caches.room(self.cache)
        return None if most is None else most - 1

    def _need_attention(self, what: str) -> None:
        kind = self.model.config._attn_implementation
        if kind not in MASKED:
            raise ValueError(f"{what} needs attention with a mask ({' or '.join(MASKED)}), the model uses {kind!r}")
        if "position_ids" not in self._accepts:
            raise ValueError(f"{what} needs a model that takes position_ids, {type(self.model).__name__} does not")

    def _need_mask(self, what: str) -> None:
        self._need_attention(what)
        if not caches.dense(self.cache):
            raise ValueError(f"{what} needs the full cache (DynamicCache of full attention), got {self.cache}")
        if not caches.full(self.model):
            raise ValueError(
                f"{what} needs a model of full attention, {type(self.model).__name__} looks back through a window; "
                "decode the rows one by one"
            )

    def _run(
        self, ids: Tensor, seen: Tensor | None = None, positions: Tensor | None = None, last: bool = False
    ) -> Tensor:
        """Logits in at least float32. seen: (b, queries, columns), True where a query may look."""
        more: dict[str, Any] = {}
        if seen is not None:
            dtype = self.model.dtype
            mask = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
            more = {
                "attention_mask": mask.masked_fill(~seen, torch.finfo(dtype).min)[:, None],
                "position_ids": positions,
            }
        if last and "logits_to_keep" in self._accepts:
            more["logits_to_keep"] = 1
        logits = self.model(input_ids=ids, past_key_values=self.cache, use_cache=True, **more).logits
        return logits.float() if logits.dtype.itemsize < 4 else logits

    def _keep_one(self, kept: Sequence[int]) -> None:
        same = next((i for i, place in enumerate(kept) if i != place), len(kept))
        if same == len(kept):
            if self._recording:
                self.cache.crop(same - self.width)
            return
        rest = torch.tensor(list(kept[same:]), device=self.model.device)
        for layer in self._filled():
            start = layer.keys.shape[-2] - self.width
            for name in ("keys", "values"):
                full = getattr(layer, name)
                parts = full[..., : start + same, :], full.index_select(-2, start + rest)
                setattr(layer, name, torch.cat(parts, dim=-2))

    def _keep_rows(self, places: Sequence[Sequence[int]], count: int) -> None:
        assert self.valid is not None
        device = self.valid.device
        index = torch.tensor([[*kept, *[0] * (count - len(kept))] for kept in places], device=device)
        own = torch.arange(count, device=device) < torch.tensor([[len(kept)] for kept in places], device=device)
        moved = bool((index != torch.arange(count, device=device))[own].any())
        for layer in self._filled():
            start = layer.keys.shape[-2] - self.width
            for name in ("keys", "values"):
                full = getattr(layer, name)
                if moved:
                    picked = full[..., start:, :].take_along_dim(index[:, None, :, None], dim=-2)
                    setattr(layer, name, torch.cat((full[..., :start, :], picked), dim=-2))
                else:
                    setattr(layer, name, full[..., : start + count, :])
        self.valid = torch.cat((self.valid, own), dim=1)

    def _squeeze(self) -> None:
        """Bring every row's own columns to the right end, in order, and drop the columns that are left over."""
        assert self.valid is not None
        width = max(self.lengths)
        order = self.valid.to(torch.int8).argsort(dim=1, stable=True)[:, -width:]
        self.valid = self.valid.gather(1, order)
        for layer in self._filled():
            layer.keys = layer.keys.take_along_dim(order[:, None, :, None], dim=-2)
            layer.values = layer.values.take_along_dim(order[:, None, :, None], dim=-2)

    def _filled(self) -> list[Any]:
        return [layer for layer in self.cache.layers if layer.is_initialized]
