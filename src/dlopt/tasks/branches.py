"""Log-likelihoods of several continuations of many prompts behind one cached prefix, in few passes and no padding.

All prompts of a pass lie in one row, each followed by its continuations. A 4D mask lets a token see the prefix, its own
prompt and its own continuation; positions go on from the prefix in every branch. So a prefix is read once, is not
repeated for each prompt, and a cache that expands what it holds (codes to floats) does so once a pass.

The cache is told that the pass will be taken back (`activate_past_recording`, then `crop`): it neither evicts nor codes
any of it, and stands for the next pass as it was. That is the score from a copy of the cache, without a copy.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from dlopt.tasks.packing import check_model


class Branching(Protocol):
    """A prompt and its continuations, as tokens."""

    @property
    def stem(self) -> tuple[int, ...]: ...
    @property
    def choices(self) -> tuple[tuple[int, ...], ...]: ...


class Packed:
    """Prompts with all their continuations in one row.

    tokens, positions: (t,). allowed: (t, t), True where the row's token sees the column's. keep: places whose logits
    predict the continuations, in the order prompt, choice, token. targets: the tokens there. sizes: [prompt][choice]
    tokens. The last token of a continuation predicts nothing, so it is left out.
    """

    def __init__(self, items: Sequence[Branching]) -> None:
        tokens: list[int] = []
        positions: list[int] = []
        owner: list[int] = []
        branch: list[int] = []
        keep: list[int] = []
        self.sizes = [[len(choice) for choice in item.choices] for item in items]
        for number, item in enumerate(items):
            if not item.stem or not all(item.choices):
                raise ValueError("a prompt and each of its continuations must have at least one token")
            end = len(tokens) + len(item.stem)
            tokens += item.stem
            positions += range(len(item.stem))
            owner += [number] * len(item.stem)
            branch += [-1] * len(item.stem)
            for place, choice in enumerate(item.choices):
                keep += [end - 1, *range(len(tokens), len(tokens) + len(choice) - 1)]
                tokens += choice[:-1]
                positions += range(len(item.stem), len(item.stem) + len(choice) - 1)
                owner += [number] * (len(choice) - 1)
                branch += [place] * (len(choice) - 1)
        self.tokens, self.positions, self.keep = map(torch.tensor, (tokens, positions, keep))
        self.targets = torch.tensor([t for item in items for choice in item.choices for t in choice])
        whose, which, place_ = torch.tensor(owner), torch.tensor(branch), torch.arange(len(tokens))
        self.allowed = (
            (whose[:, None] == whose)
            & ((which == -1) | (which[:, None] == which))
            & (place_[:, None] >= place_)
        )  # fmt: skip


def groups(items: Sequence[Branching], tokens: int = 512) -> Iterator[list[int]]:
    """Numbers of prompts, in order, in groups of at most so many tokens (a longer prompt is a group of its own)."""
    group: list[int] = []
    held = 0
    for number, item in enumerate(items):
        size = len(item.stem) + sum(len(choice) - 1 for choice in item.choices)
        if group and held + size > tokens:
            yield group
            group, held = [], 0
        group.append(number)
        held += size
    if group:
        yield group


@torch.no_grad()
def predicted(model: nn.Module, cache: Any, row: Packed) -> Tensor:
    """(len(row.keep), vocabulary) log-probabilities, float32 or wider, behind what `cache` holds; None for no prefix.

    The cache, of one row without pads, is as before afterwards.
    """
    check_model(model)
    device = next(model.parameters()).device
    count, seen, stored = len(row.tokens), 0, 0
    if cache is not None:
        cache.activate_past_recording()
        seen = cache.get_seq_length()
        stored = cache.get_mask_sizes(count, 0)[0] - count
    allowed = torch.cat([torch.ones(count, stored, dtype=torch.bool), row.allowed], dim=1)
    if model.config._attn_implementation == "eager":  # it adds the mask to the scores
        dtype = next(model.parameters()).dtype
        allowed = torch.zeros(allowed.shape, dtype=dtype).masked_fill(~allowed, torch.finfo(dtype).min)
    found = model(
        input_ids=row.tokens[None].to(device),
        attention_mask=allowed[None, None].to(device),
        position_ids=(seen + row.positions)[None].to(device),
        logits_to_keep=row.keep.to(device),
        past_key_values=cache,
        use_cache=cache is not None,
    ).logits[0]
    if cache is not None:
        cache.crop(-count)
    wide = torch.promote_types(found.dtype, torch.float32)
    return found.to(wide).log_softmax(-1)


@torch.no_grad()
def stepwise(model: nn.Module, cache: Any, item: Branching) -> Tensor:
    """The same log-probabilities for one prompt, in the order of use; the cache is spent afterwards.

    The prompt goes into the cache, which may evict or code some of it, then the cache is repeated for the continuations
    and each is read from a row of its own. A cache that loses nothing gives what `predicted` gives.
    """
    device = next(model.parameters()).device
    count = len(item.choices)
    before = model(input_ids=torch.tensor([item.stem], device=device), past_key_values=cache, logits_to_keep=1)
    rows = torch.zeros(count, max(len(choice) for choice in item.choices) - 1, dtype=torch.long)
    for place, choice in enumerate(item.choices):
        rows[place, : len(choice) - 1] = torch.tensor(choice[:-1])  # what stands behind them is seen by none of them
    wide = torch.promote_types(before.logits.dtype, torch.float32)
    first = before.logits[0].to(wide).log_softmax(-1)
    if not rows.shape[1]:
        return first.repeat(count, 1)
    cache.batch_repeat_interleave(count)
    found = model(input_ids=rows.to(device), past_key_values=cache).logits.to(wide).log_softmax(-1)
    pieces = [t for place, choice in enumerate(item.choices) for t in (first, found[place, : len(choice) - 1])]
    return torch.cat(pieces)


def split(row: Packed, values: Tensor) -> list[list[Tensor]]:
    """[prompt][choice] pieces of a tensor that has a row for each predicted token."""
    pieces = iter(values.split([size for sizes in row.sizes for size in sizes]))
    return [[next(pieces) for _ in sizes] for sizes in row.sizes]


def likelihoods(row: Packed, found: Tensor) -> list[list[float]]:
    """[prompt][choice] sums of the log-probabilities of the continuations' tokens."""
    each = found.gather(1, row.targets.to(found.device)[:, None])[:, 0]
    return [[float(piece.sum()) for piece in pieces] for pieces in split(row, each)]
