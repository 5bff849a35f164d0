"""How a token is chosen: greedy, temperature, top-k, top-p, any `LogitsProcessor`, with numbers keyed by position.

The random numbers behind a token depend on the seed, its position in the text and what they are for, on nothing that
happened before. So a text drawn with drafts can be the same, token for token, as the text drawn without.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

TARGET, ACCEPT, RESIDUAL, DRAFT = range(4)  # what a number is for; each has a stream of its own
Processor = Callable[[Tensor, Tensor], Tensor]
_FEW = 1024  # tokens among which the nucleus is looked for first: sorting a whole vocabulary costs milliseconds


def generator(seed: int, position: int, stream: int, number: int = 0) -> np.random.Generator:
    """Random numbers for one use at one position of a text, the same on every machine.

    SFC64 fills a vocabulary with clocks in about 0.6 of the time of the counter-based Philox.
    """
    key = np.random.SeedSequence(seed, spawn_key=(stream, number, position))
    return np.random.Generator(np.random.SFC64(key))


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen from logits.

    Per token: processors in order; division by the temperature; top-k; top-p. temperature: at least 0; 0 takes the
    likeliest token (of several, the first), and then top_k and top_p change nothing. top_k: at least 1; tokens as
    likely as the k-th stay. top_p: above 0, at most 1; the fewest likeliest tokens that together reach it stay.
    processors: as in `transformers`, called with the row's tokens so far (1, t) and scores (1, V). seed: at least 0.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    processors: tuple[Processor, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"temperature must be at least 0 (0 is greedy), got {self.temperature}")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k must be at least 1, got {self.top_k}")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1, got {self.top_p}")
        if not 0 <= self.seed < 1 << 64:
            raise ValueError(f"seed must be at least 0 and below 2^64, got {self.seed}")

    @property
    def greedy(self) -> bool:
        return self.temperature == 0

    def scores(self, logits: Tensor, context: Tensor | None = None) -> Tensor:
        """Logits (V,) after the processors. context: all tokens so far (t,), which only processors need."""
        if not self.processors:
            return logits
        if context is None:
            raise ValueError("processors need the tokens so far")
        scores = logits.clone()[None]  # some processors write into what they get
        for processor in self.processors:
            scores = processor(context[None], scores)
        return scores[0]

    def best(self, logits: Tensor, context: Tensor | None = None) -> int:
        """The likeliest token. ValueError for NaN and where every token is forbidden."""
        top, token = self.scores(logits, context).max(-1)
        possible(float(top))
        return int(token)

    def law(self, logits: Tensor, context: Tensor | None = None) -> np.ndarray:
        """The probabilities (V,) in float64 that a token is drawn from; greedy: 1 at the likeliest.

        ValueError for NaN and where every token is forbidden.
        """
        scores = self.scores(logits, context).detach().to("cpu", torch.float64)
        top = float(scores.max())
        possible(top)
        if self.greedy:
            law = np.zeros(len(scores))
            law[int(scores.argmax())] = 1
            return law
        # the top is taken off first: at a tiny temperature the quotients would overflow
        law = ((scores - top) / self.temperature).softmax(-1).numpy()
        if self.top_k is not None and self.top_k < len(law):
            law[law < np.partition(law, -self.top_k)[-self.top_k]] = 0
        if self.top_p is not None and self.top_p < 1:
            law = _nucleus(law, self.top_p)
        return law / law.sum()

    def draw(self, law: np.ndarray, position: int, stream: int = TARGET, number: int = 0) -> int:
        """A token from weights (V,), by a race of exponential clocks: the first of E_x / law_x, with E_x ~ Exp(1).

        The clocks belong to (seed, position, stream, number), so two laws that are alike mostly give the same token.
        """
        clocks = generator(self.seed, position, stream, number).standard_exponential(len(law))
        with np.errstate(divide="ignore"):
            return int(np.argmin(clocks / law))

    def uniform(self, position: int, number: int) -> float:
        """A number in [0, 1) for the decision about the draft token with this number at this position."""
        return float(generator(self.seed, position, ACCEPT, number).random())


def _nucleus(law: np.ndarray, top_p: float) -> np.ndarray:
    """The weights, with 0 outside the fewest likeliest tokens that together reach top_p of the sum."""
    wanted = top_p * law.sum()
    order = np.arange(len(law))
    if len(law) > 4 * _FEW:
        few = np.argpartition(law, -_FEW)[-_FEW:]
        if law[few].sum() >= wanted:
            order = np.sort(few)
    order = order[np.argsort(-law[order], kind="stable")]
    kept = order[: np.searchsorted(np.cumsum(law[order]), wanted) + 1]
    cut = np.zeros_like(law)
    cut[kept] = law[kept]
    return cut


def possible(top: float) -> None:
    """ValueError unless the largest logit is a number."""
    if not math.isfinite(top):
        what = "the logits are not finite" if math.isnan(top) or top > 0 else "every token is forbidden"
        raise ValueError(f"no token can be drawn: {what}")
