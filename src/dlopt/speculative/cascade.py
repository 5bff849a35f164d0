"""CS Drafting: drafters that are drafted for themselves, and cheaper ones for later tokens (Chen et al. 2024)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dlopt.catalog import method
from dlopt.speculative.draft import Draft
from dlopt.speculative.model_draft import same_vocabulary
from dlopt.speculative.reader import Reader
from dlopt.speculative.sampling import DRAFT, Sampling, generator
from dlopt.speculative.verify import residual

# of the paper, by (models, drafters): Llama 7B with 160M and max-gram, FLAN-T5 XXL with base, small and max-gram
LENGTHS = {(1, 2): ((13, 10), (10,)), (2, 3): ((5, 14, 10), (1, 10), (10,))}


@method(
    "cascade",
    topic="speculative",
    kind="drafter",
    cite="chen2024cascade",
    summary="models draft for each other, the smallest served by max-gram; cheaper drafters write the later tokens",
    search={"lenience": (1.0, 5.0, "linear")},
    needs=("transformers",),
)
class CascadeDrafter:
    """Drafters M_1, ..., M_n from the largest to the smallest: models, then `MaxGram` or `Bigram`.

    Horizontal: of a draft for the target, M_1 writes the first lengths[0][0] tokens, M_2 the next lengths[0][1], and so
    on: the first tokens are verified most often, so they get the better drafter. Vertical: a model M_i writes tokens by
    decoding with drafts itself; what it reviews is a draft of M_(i+1), ..., M_n with lengths lengths[i]. The target is
    no part of this: what is proposed to it is verified by the common rule, without lenience.

    Review inside the cascade, with lenience l: M_i has the law p (after the target's own settings), the draft token x
    was drawn from q. Sampling keeps x with probability min(1, l p(x) / q(x)), else it draws from
    r = max(p - q, 0) / sum. So the token that stands there in the end has the law::

        a(y) = min(q(y), l p(y)),    q'(y) = a(y) + (1 - sum_z a(z)) r(y)

    given its path and all that was drawn before it, and q' is what M_(i-1), or the target, is told. With l = 1, q' = p.
    The target's rule is lossless for every q' that is true, also where q' depends on how the path came about. A fixed
    token of max-gram is a q with one 1. Greedy decoding keeps x if it is M_i's likeliest token or l p(x) > q(x), with
    p and q at temperature 1 (as the paper's code).

    drafters: at least one; models in eval mode, on the target's device, with its vocabulary; behind them at most the
    `MaxGram` and `Bigram` that they need. lengths: row 0 has n numbers of at least 0, not all 0; row i >= 1, for model
    i, has n - i. None takes the paper's for one model or two with one other drafter behind: 13, 10 | 10 and
    5, 14, 10 | 1, 10 | 10. lenience: at least 1; 1 is strict (the paper: 2 to 5). order: who writes first, second, ...
    of a draft for the target, as places in `drafters`; None is the paper's, from the largest to the smallest.
    tokenizer: of the models, compared with the target's if `generate` got that.

    A model reads no further than its own context; then the smaller drafters write what is left.
    """

    def __init__(
        self,
        drafters: Sequence[Any],
        lengths: Sequence[Sequence[int]] | None = None,
        lenience: float = 2.0,
        *,
        order: Sequence[int] | None = None,
        tokenizer: Any = None,
    ) -> None:
        if not len(drafters):
            raise ValueError("CascadeDrafter needs at least one drafter")
        written = [hasattr(drafter, "begin") for drafter in drafters]
        if written != sorted(written):
            raise ValueError("drafters must be models first, then MaxGram or Bigram")
        for drafter in drafters[written.count(False) :]:
            if not hasattr(drafter.begin([0], Sampling()), "after"):
                raise ValueError(f"behind the models stand MaxGram or Bigram, got {type(drafter).__name__}")
        if not 1 <= lenience < math.inf:
            raise ValueError(f"lenience must be at least 1 (1 is strict), got {lenience}")
        self.models, self.others = list(drafters[: written.count(False)]), list(drafters[written.count(False) :])
        self.lengths = _checked(lengths, len(self.models), len(drafters))
        self.order = list(range(len(drafters))) if order is None else list(order)
        if sorted(self.order) != list(range(len(drafters))):
            raise ValueError(f"order must name each of the places 0 to {len(drafters) - 1} once, got {order}")
        self.lenience, self.tokenizer = float(lenience), tokenizer

    def check(self, model: Any, tokenizer: Any) -> None:
        """ValueError with names where a drafter and the target do not fit."""
        for drafter in self.models:
            same_vocabulary(model, drafter, tokenizer, self.tokenizer)
            if drafter.device != model.device:
                raise ValueError(f"a drafter is on {drafter.device}, the target on {model.device}; move one of them")
            if drafter.training:
                raise ValueError("a drafter is in training mode; call .eval() on it")
        for drafter in self.others:
            drafter.check(model, tokenizer)

    def begin(self, prompt: list[int], sampling: Sampling) -> CascadeSession:
        return CascadeSession(self, prompt, sampling)


def _checked(lengths: Sequence[Sequence[int]] | None, models: int, count: int) -> list[list[int]]:
    if lengths is None:
        if (models, count) not in LENGTHS:
            raise ValueError(f"lengths must be given for {models} models and {count - models} other drafters")
        lengths = LENGTHS[models, count]
    rows = [list(row) for row in lengths]
    wanted = [count, *(count - i for i in range(1, models + 1))]
    if [len(row) for row in rows] != wanted:
        raise ValueError(f"lengths needs {len(wanted)} rows of {wanted} numbers, got {rows}")
    if any(number < 0 for row in rows for number in row) or not sum(rows[0]):
        raise ValueError(f"lengths must be at least 0, and not all 0 in the first row, got {rows}")
    return rows


def lenient_law(law: np.ndarray, given: np.ndarray, lenience: float) -> np.ndarray:
    """The law of the token that a lenient review leaves: drawn from `given`, reviewed by `law`; both (V,).

    It is kept with probability min(1, lenience law / given), else replaced by a draw from `residual(law, given)`.
    """
    kept = np.minimum(given, lenience * law)
    return kept + (given - kept).sum() * residual(law, given)


class Written(NamedTuple):
    """One token of a chain: the law that it was drawn from (None: fixed), and greedy its probability q(x)."""

    token: int
    law: np.ndarray | None
    chance: float


class CascadeSession:
    """A cascade on one row: each model has a cache of its own."""

    def __init__(self, drafter: CascadeDrafter, prompt: list[int], sampling: Sampling) -> None:
        self.lengths, self.order = drafter.lengths, drafter.order
        self.lenience, self.sampling = drafter.lenience, sampling
        self.readers = [Reader(model) for model in drafter.models]
        self.others = [other.begin(prompt, sampling) for other in drafter.others]
        self.costly = bool(self.readers)
        self.stochastic = self.costly and not sampling.greedy
        self.text = list(prompt)
        self.draws = 0

    def catch_up(self) -> None:
        for reader in self.readers:
            reader.catch_up(self.text)

    def propose(self, limit: int) -> Draft:
        chain = self._row(0, [], limit)
        laws = [written.law for written in chain]
        return Draft([written.token for written in chain], probs=None if all(law is None for law in laws) else laws)

    def observe(self, tokens: list[int]) -> None:
        self.text += tokens
        for reader in self.readers:
            reader.settle(self.text)
        for other in self.others:
            other.observe(tokens)

    def _row(self, row: int, more: list[int], limit: int) -> list[Written]:
        """A draft of at most `limit` tokens behind the text and `more`, by drafters row, row + 1, ... (horizontal)."""
        chain: list[Written] = []
        for number in range(row, len(self.order)) if row else self.order:
            count = min(self.lengths[row][number - row], limit - len(chain))
            if count > 0:
                chain += self._write(number, [*more, *(written.token for written in chain)], count)
        return chain

    def _write(self, number: int, more: list[int], count: int) -> list[Written]:
        """`count` tokens by one drafter, a model helped by the smaller ones (vertical); fewer if it has no more."""
        if number >= len(self.readers):
            return [Written(token, None, 1.0) for token in self.others[number - len(self.readers)].after(more, count)]
        reader = self.readers[number]
        count = min(count, reader.room - len(self.text) - len(more) + 1)
        chain: list[Written] = []
        while len(chain) < count:
            path = [*more, *(written.token for written in chain)]
            draft = self._row(number + 1, path, count - len(chain) - 1)
            text = self.text + path
            logits = reader.read([*text, *(written.token for written in draft)], len(draft) + 1)
            for place, known in enumerate((*draft, None)):
                written, kept = self._review(known, logits[place], text)
                chain.append(written)
                text.append(written.token)
                if not kept:
                    break
        return chain

    def _review(self, known: Written | None, logits: Tensor, text: list[int]) -> tuple[Written, bool]:
        """What a model writes where a draft has a token (None: it has none), and whether it is the draft's."""
        context = torch.tensor(text, device=logits.device) if self.sampling.processors else None
        if self.sampling.greedy:
            return self._greedy(known, self.sampling.scores(logits, context))
        law = self.sampling.law(logits, context)
        if known is None:
            return Written(self._draw(law, len(text)), law, 1.0), False
        given = known.law
        if given is None:
            given = np.zeros_like(law)
            given[known.token] = 1
        true = lenient_law(law, given, self.lenience)
        if self._coin(min(1.0, self.lenience * law[known.token] / given[known.token]), len(text)):
            return Written(known.token, true, 1.0), True
        return Written(self._draw(residual(law, given), len(text)), true, 1.0), False

    def _greedy(self, known: Written | None, scores: Tensor) -> tuple[Written, bool]:
        token, chance = int(scores.argmax()), 1.0
        if self.lenience > 1:
            chances = scores.double().softmax(-1)
            if known is not None and self.lenience * float(chances[known.token]) > known.chance:
                token = known.token
            chance = float(chances[token])
        return Written(token, None, chance), known is not None and token == known.token

    # every number has a counter of its own: whether a position is drafted again may depend on what was drawn for it
    def _draw(self, law: np.ndarray, position: int) -> int:
        self.draws += 1
        return self.sampling.draw(law, position, DRAFT, self.draws)

    def _coin(self, chance: float, position: int) -> bool:
        self.draws += 1
        return float(generator(self.sampling.seed, position, DRAFT, self.draws).random()) < chance
