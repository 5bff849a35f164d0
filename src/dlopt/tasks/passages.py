"""Long passages of text as tokens of any tokenizer: what streams are made of."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dlopt.tasks import data
from dlopt.tasks.packing import encode

SPACING = 1_400_000  # bytes between two passages: in the books' test part, one in each of its two
FIRST = 100_000  # bytes before the first: past titles and tables of contents


def passage(source: str, number: int, tokens: int, tokenizer: Any) -> Tensor:
    """(tokens,) of the `number`-th passage of a text's test part, which begins at a line.

    ValueError if the text is too short for it.
    """
    raw = data.get(source).test
    start = min(FIRST, len(raw) // 10) + number * SPACING
    taken = bytes(raw[start : start + 8 * tokens + 4096].tolist())
    begin = taken.find(b"\n") + 1
    ids = encode(tokenizer, taken[begin:].decode("utf-8", errors="ignore"))[:tokens]
    if len(ids) < tokens:
        raise ValueError(
            f"passage {number} of {source} has only {len(ids)} tokens where {tokens} are wanted: it begins at byte "
            f"{start} of {len(raw)}"
        )
    return torch.tensor(ids)
