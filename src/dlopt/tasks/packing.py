"""Batches of texts without padding: all texts of a batch lie one after the other in one row.

A block-diagonal causal mask keeps each text to itself and positions start at 0 in each, so logits are those of each
text alone. Short texts of very different lengths (SST-2 has a median of 10 tokens and a maximum near 60) would be two
thirds padding otherwise. Attention costs (tokens of the batch)^2 here, which is little up to about 1,500 tokens.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dlopt.tasks.data.batches import Batches


class PackedBatches:
    """Endless, seeded, resumable batches (tokens, lengths, notes): tokens (sum of lengths,) int64, one text after the
    other; lengths (batch_size,); notes: the rows of `notes` that belong to these texts, such as labels.

    Order and states are those of `Batches`. texts: each (length,) int64, at least one token. notes: (n, ...).
    """

    def __init__(self, texts: Sequence[Tensor], notes: Tensor, batch_size: int, seed: int) -> None:
        if not all(len(text) for text in texts):
            raise ValueError("each text must have at least one token")
        self.texts = list(texts)
        self._rows = Batches((torch.arange(len(self.texts)), notes), batch_size, seed)
        self.per_epoch, self.batch_size, self.seed = self._rows.per_epoch, batch_size, seed

    def batch(self, number: int) -> tuple[Tensor, Tensor, Tensor]:
        """Batch `number`, counted from 0 over all epochs, without moving the iterator."""
        rows, notes = self._rows.batch(number)
        return *pack([self.texts[row] for row in rows.tolist()]), notes

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        return self

    def __next__(self) -> tuple[Tensor, Tensor, Tensor]:
        found = self.batch(self._rows.position)
        self._rows.position += 1
        return found

    def state_dict(self, consumed: int | None = None) -> dict[str, Any]:
        """As in `Batches`."""
        return self._rows.state_dict(consumed)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """As in `Batches`."""
        self._rows.load_state_dict(state)


def pack(texts: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """(tokens, lengths) of some texts."""
    return torch.cat(list(texts)), torch.tensor([len(text) for text in texts])


def chunks(texts: Sequence[Tensor], tokens: int = 512) -> Iterator[list[int]]:
    """Rows of texts, in order, in groups of at most so many tokens (a longer text is a group of its own)."""
    group: list[int] = []
    held = 0
    for row, text in enumerate(texts):
        if group and held + len(text) > tokens:
            yield group
            group, held = [], 0
        group.append(row)
        held += len(text)
    if group:
        yield group


def check_model(model: nn.Module) -> None:
    """A ValueError unless a causal language model of `transformers` can take packed texts."""
    takes = inspect.signature(model.forward).parameters
    if lacking := [name for name in ("attention_mask", "position_ids", "logits_to_keep") if name not in takes]:
        raise ValueError(f"{type(model).__name__} does not take {', '.join(lacking)}, which packed texts need")
    kind = getattr(model.config, "_attn_implementation", None)
    if kind not in ("sdpa", "eager"):
        raise ValueError(f"packed texts need the attention 'sdpa' or 'eager', and this model has {kind!r}")
    kinds = set(getattr(model.config, "layer_types", None) or ()) - {"full_attention"}
    if getattr(model.config, "sliding_window", None):
        kinds.add("sliding_attention")
    if kinds:  # the given mask replaces a window's, and convolutions and recurrent layers see no mask at all
        raise ValueError(f"packed texts need full attention in every layer; {type(model).__name__} has "
                         f"{', '.join(sorted(kinds))}")  # fmt: skip


def packed_logits(model: nn.Module, tokens: Tensor, lengths: Tensor, keep: Tensor, device: str) -> Tensor:
    """Logits (len(keep), vocabulary) in float32 at the places `keep` of the row, in one forward pass.

    tokens (t,), lengths (b,) as from `pack`. Only these places go through the output layer.
    """
    text = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
    starts = torch.cumsum(lengths, 0) - lengths
    place = torch.arange(len(tokens))
    allowed = (text[:, None] == text) & (place[:, None] >= place)
    if model.config._attn_implementation == "eager":  # it adds the mask to the scores
        dtype = next(model.parameters()).dtype
        mask = torch.zeros(allowed.shape, dtype=dtype).masked_fill(~allowed, torch.finfo(dtype).min)
    else:
        mask = allowed
    found = model(
        input_ids=tokens[None].to(device),
        attention_mask=mask[None, None].to(device),
        position_ids=(place - starts[text])[None].to(device),
        logits_to_keep=keep.to(device),
        use_cache=False,
    )
    return found.logits[0].float()


def encode(tokenizer: Any, text: str) -> list[int]:
    """Token numbers of a text, with what the tokenizer puts before each text. It does not warn of long ones."""
    return tokenizer(text, verbose=False)["input_ids"]
