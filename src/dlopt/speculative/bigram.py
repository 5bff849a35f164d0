"""Bigram: the likeliest token after the last, from a table: the cheapest drafter of CS Drafting (Chen et al. 2024)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch

from dlopt.catalog import method
from dlopt.speculative.draft import Draft, whole
from dlopt.speculative.sampling import Sampling


@method(
    "bigram",
    topic="speculative",
    kind="drafter",
    cite="chen2024cascade",
    summary="a table of the likeliest successor of each token, counted in a corpus or asked from a model",
    search={"length": (1, 8, "int")},
    needs=("transformers",),
)
class Bigram:
    """Drafts x_1 = table[last token], x_2 = table[x_1], ... until a token has no successor. Deterministic.

    table: (V,) token ids, -1 where none is known; `counted` and `of_model` make one. length: tokens of a draft, at
    least 1 (4; inside a `CascadeDrafter` its lengths count).

    Example:
        >>> from dlopt.speculative import Bigram, Sampling
        >>> drafter = Bigram.counted([[1, 2, 3, 1, 2]], vocabulary=5)
        >>> drafter.begin([4, 1], Sampling()).propose(3).tokens
        [2, 3, 1]
    """

    def __init__(self, table: Sequence[int] | np.ndarray, length: int = 4) -> None:
        found = np.asarray(table)
        if found.ndim != 1 or not len(found) or found.dtype.kind not in "iu":
            raise ValueError(f"table must be (V,) whole numbers, got shape {found.shape} of {found.dtype}")
        if found.min() < -1 or found.max() >= len(found):
            raise ValueError(
                f"table must hold token ids from 0 to {len(found) - 1}, or -1, got {found.min()} to {found.max()}"
            )
        whole("length", length)
        self.table, self.length = found.astype(np.int32), length

    @classmethod
    def counted(cls, documents: Iterable[Sequence[int]], vocabulary: int, length: int = 4) -> Bigram:
        """The most frequent successor of each token in documents of token ids; of equal ones the smallest id.

        Pairs do not reach from one document into the next. vocabulary: at least 1; ids are below it.
        """
        whole("vocabulary", vocabulary)
        parts = []
        for number, document in enumerate(documents):
            ids = np.asarray(document, dtype=np.int64)
            if ids.ndim != 1 or (len(ids) and (ids.min() < 0 or ids.max() >= vocabulary)):
                raise ValueError(f"document {number} must be token ids from 0 to {vocabulary - 1}")
            parts.append(ids[:-1] * vocabulary + ids[1:])
        pairs, counts = np.unique(np.concatenate(parts or [np.zeros(0, np.int64)]), return_counts=True)
        first, second = np.divmod(pairs, vocabulary)
        order = np.lexsort((-second, counts))  # what stands last is kept: the highest count, then the smallest id
        table = np.full(vocabulary, -1)
        table[first[order]] = second[order]
        return cls(table, length)

    @classmethod
    @torch.no_grad()
    def of_model(
        cls, model: Any, length: int = 4, batch: int = 256, progress: Callable[[int, int], object] | None = None
    ) -> Bigram:
        """What a model thinks likeliest after each token alone: one pass over all V tokens, `batch` at a time."""
        size, table = model.config.vocab_size, []
        for start in range(0, size, batch):
            ids = torch.arange(start, min(start + batch, size), device=model.device)[:, None]
            table += model(input_ids=ids, use_cache=False).logits[:, -1].argmax(-1).tolist()
            if progress is not None:
                progress(len(table), size)
        return cls(table, length)

    def check(self, model: Any, tokenizer: Any) -> None:
        """ValueError if the table is for another vocabulary."""
        if len(self.table) != model.config.vocab_size:
            raise ValueError(
                f"the bigram table is for a vocabulary of {len(self.table)}, the target has {model.config.vocab_size}"
            )

    def begin(self, prompt: list[int], sampling: Sampling) -> BigramSession:
        return BigramSession(self, prompt)


class BigramSession:
    """Bigrams on one row."""

    def __init__(self, drafter: Bigram, prompt: list[int]) -> None:
        self.table, self.length = drafter.table, drafter.length
        self.last = prompt[-1]

    def after(self, more: Sequence[int], count: int) -> list[int]:
        """Up to `count` tokens that may follow the text and `more` tokens behind it."""
        return chain(self.table, more[-1] if more else self.last, count)

    def propose(self, limit: int) -> Draft:
        return Draft(self.after((), min(limit, self.length)))

    def observe(self, tokens: list[int]) -> None:
        self.last = tokens[-1]


def chain(table: np.ndarray, last: int, count: int) -> list[int]:
    """Up to `count` tokens of which each is the successor of the one before, in a table (V,)."""
    found: list[int] = []
    while len(found) < count and (last := int(table[last])) >= 0:
        found.append(last)
    return found
