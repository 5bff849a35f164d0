"""When a row ends: an end token, a stop string or stop sequence, a criterion of `transformers`. Also inside a draft."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import Tensor


class Stops:
    """The rules that end a row, asked after every token in turn, so that drafts change nothing.

    eos: token ids that end a row. stop: strings, looked for in the text of the new tokens, and sequences of token ids,
    compared with the last new tokens; what ends the row stays in it. criteria: `StoppingCriteria`, called with the
    row's tokens (1, t) and None.
    """

    def __init__(
        self,
        eos: Iterable[int] = (),
        stop: str | Sequence[str | Sequence[int]] = (),
        tokenizer: Any = None,
        criteria: Iterable[Callable[..., Any]] = (),
    ) -> None:
        self.eos = frozenset(eos)
        stop = [stop] if isinstance(stop, str) else list(stop)
        self.texts = [s for s in stop if isinstance(s, str)]
        if numbers := [s for s in stop if isinstance(s, int)]:
            raise ValueError(
                f"stop takes strings and sequences of token ids, got the number {numbers[0]}; write [[...]]"
            )
        self.sequences = [list(s) for s in stop if not isinstance(s, str)]
        self.criteria = list(criteria)
        self.tokenizer = tokenizer
        if not all(self.texts) or not all(self.sequences):
            raise ValueError("stop must not have an empty string or sequence")
        if self.texts and tokenizer is None:
            raise ValueError("stop strings need tokenizer=, or give sequences of token ids")

    def first(self, new: list[int], count: int, ids: Tensor | None = None) -> int | None:
        """How many of the last `count` new tokens stay, if the row ends within them; else None.

        ids: the whole row (t,), which only criteria need.
        """
        for i in range(len(new) - count + 1, len(new) + 1):
            if self._ends(new, i) or (ids is not None and self._criterion(ids, len(ids) - len(new) + i)):
                return i - (len(new) - count)
        return None

    def _ends(self, new: list[int], i: int) -> bool:
        if new[i - 1] in self.eos:
            return True
        if any(new[max(i - len(s), 0) : i] == s for s in self.sequences):
            return True
        if not self.texts:
            return False
        text = self.tokenizer.decode(new[:i], skip_special_tokens=False)
        return any(s in text for s in self.texts)

    def _criterion(self, ids: Tensor, length: int) -> bool:
        return any(bool(c(ids[None, :length], None).all()) for c in self.criteria)


def eos_of(model: Any) -> list[int]:
    """The end tokens that a model names in its generation settings."""
    eos = getattr(model.generation_config, "eos_token_id", None)
    return [] if eos is None else [eos] if isinstance(eos, int) else list(eos)
