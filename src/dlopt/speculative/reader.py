"""A drafting model that reads any continuation of a text, with one cache that follows what it is asked."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

BEHIND = 2  # tokens: after a draft that was accepted whole, its last one and the bonus token are unread


def logits_kept(model: Any) -> bool:
    """Whether `forward` can leave out the logits of all but the last tokens, which of a prompt are most of the work."""
    return "logits_to_keep" in inspect.signature(model.forward).parameters


class Reader:
    """A model and its cache on one row. The cache holds some text; what differs from the text asked for is cropped.

    It keeps every token, also where the model looks back through a window only (the mask sees to that): a window's
    cache could be cropped once in a round, and here it is cropped many times.
    """

    def __init__(self, model: Any) -> None:
        from transformers import DynamicCache

        self.model = model
        self.cache = DynamicCache()
        self.cuts = logits_kept(model)
        self.held: list[int] = []
        self.sure = 0  # tokens of `held` that belong to the text for good

    @property
    def room(self) -> int:
        """Tokens that the model's context holds."""
        limit = getattr(self.model.config, "max_position_embeddings", None)
        return 1 << 30 if limit is None else limit

    @torch.no_grad()
    def read(self, text: Sequence[int], count: int) -> Tensor:
        """Logits (count, V) after each of the last `count` tokens of a text. At least as precise as float32."""
        same = self._agreement(text, len(text) - count)
        self._crop(same)
        ids = torch.tensor([text[same:]], device=self.model.device)
        last = {"logits_to_keep": count} if self.cuts else {}
        logits = self.model(input_ids=ids, past_key_values=self.cache, use_cache=True, **last).logits[0, -count:]
        self.held = list(text)
        return logits.float() if logits.dtype.itemsize < 4 else logits

    def catch_up(self, text: Sequence[int]) -> None:
        """Read a text but for its last token, if more than one pass of a draft would read anyway is missing."""
        if len(text) - self._agreement(text, len(text)) > BEHIND and len(text) <= self.room:
            self.read(text[:-1], 1)

    def settle(self, text: Sequence[int]) -> None:
        """This is the text so far, for good: forget what was read beyond it or against it."""
        self._crop(self._agreement(text, len(text)))
        self.sure = len(self.held)

    def _agreement(self, text: Sequence[int], most: int) -> int:
        same, most = min(self.sure, most), min(len(self.held), most)
        while same < most and self.held[same] == text[same]:
            same += 1
        return same

    def _crop(self, count: int) -> None:
        if count < len(self.held):
            self.cache.crop(count - len(self.held))
            self.held = self.held[:count]
