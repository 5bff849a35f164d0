"""The one verifier: which tokens of a draft the target accepts, so that the text has the target's law exactly.

It is the only place where losslessness has to be shown, for chains and trees, for drawn and for fixed tokens. The rule
at one node of the draft, with the target's law p there (after all processors) and the node's children in order:

* no child was drawn (deterministic): y ~ p with the numbers that plain sampling uses at this position. A child that
  equals y is accepted, otherwise y itself is the corrected token. The text is that of plain sampling, token for token.
* else (Leviathan et al. 2023, Chen et al. 2023; with several children the recursion of SpecInfer, Miao et al. 2024):
  start with r = p. Child x, drawn from q, is accepted with probability min(1, r(x) / q(x)); if it is not, r becomes
  max(r - q, 0) divided by its sum. When no child is left, the corrected token is drawn from r.
* no children: the bonus token is drawn from p, with the same processors as every other token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dlopt.speculative.draft import Draft, children
from dlopt.speculative.sampling import RESIDUAL, Sampling, possible


class Verdict(NamedTuple):
    """tokens: what the round adds, accepted ones and then one of the target's own. path: indices of the accepted."""

    tokens: list[int]
    path: list[int]


@torch.no_grad()
def verify(draft: Draft, logits: Tensor, sampling: Sampling, position: int, context: Tensor | None = None) -> Verdict:
    """Walk down the draft as far as the target agrees.

    logits: (1 + n, V) of the target, in place 0 after the last token of the text, in place i + 1 after token i of the
    draft. position: of the first token that this round adds, counted from the row's first token. context: all tokens so
    far (t,), needed if `sampling` has processors.
    """
    if len(logits) != len(draft.tokens) + 1:
        raise ValueError(f"a draft of {len(draft.tokens)} tokens needs {len(draft.tokens) + 1} rows of logits")
    below = children(draft)
    best = None
    if sampling.greedy and not sampling.processors:  # of all places at once
        tops, likeliest = logits.max(-1)
        best = list(zip(tops.tolist(), likeliest.tolist()))
    known = 0
    if context is not None:  # a copy, in which the tokens of this round are written down
        known = len(context)
        context = torch.cat((context, context.new_zeros(len(draft.tokens) + 1)))
    tokens: list[int] = []
    path: list[int] = []
    node = 0
    while True:
        if best is not None:
            top, token = best[node]
            possible(top)
            child = _named(draft, below[node], token)
        else:
            seen = None if context is None else context[: known + len(tokens)]
            token, child = _choose(draft, below[node], logits[node], sampling, position + len(tokens), seen)
        if context is not None:
            context[known + len(tokens)] = token
        tokens.append(token)
        if child is None:
            return Verdict(tokens, path)
        path.append(child)
        node = child + 1


def _choose(
    draft: Draft, nodes: Sequence[int], logits: Tensor, sampling: Sampling, position: int, context: Tensor | None
) -> tuple[int, int | None]:
    """(token, index of the accepted child or None) at one node."""
    if sampling.greedy:
        token = sampling.best(logits, context)
        return token, _named(draft, nodes, token)
    rest = sampling.law(logits, context)
    drawn = [None if draft.probs is None else draft.probs[child] for child in nodes]
    if all(law is None for law in drawn):
        token = sampling.draw(rest, position)
        return token, _named(draft, nodes, token)
    for number, (child, law) in enumerate(zip(nodes, drawn)):
        token = draft.tokens[child]
        if law is None:
            law = np.zeros_like(rest)
            law[token] = 1
        if sampling.uniform(position, number) < acceptance(rest[token], law[token]):
            return token, child
        rest = residual(rest, law)
    return sampling.draw(rest, position, RESIDUAL), None


def _named(draft: Draft, nodes: Sequence[int], token: int) -> int | None:
    return next((child for child in nodes if draft.tokens[child] == token), None)


def acceptance(rest: np.ndarray, law: np.ndarray) -> np.ndarray:
    """Probability min(1, rest / law) that a token drawn from `law` is kept; numbers or arrays, 0 where law is 0."""
    return np.minimum(1, np.divide(rest, law, out=np.zeros_like(rest), where=law > 0))


def residual(rest: np.ndarray, law: np.ndarray) -> np.ndarray:
    """The law of what comes after a rejection: max(rest - law, 0), divided by its sum."""
    left = np.maximum(rest - law, 0)
    total = left.sum()
    # equal laws never reject; where rounding let one through, what was left before stands
    return left / total if total > 0 else rest


def step_law(target: np.ndarray, laws: Sequence[np.ndarray]) -> np.ndarray:
    """The law of the token that the rule gives at one node, in closed form; lossless means it equals `target`.

    laws: of the children in order, each drawn independently of the others; a fixed token is a law with one 1.
    """
    rest, mass, out = target, 1.0, np.zeros_like(target)
    for law in laws:
        kept = acceptance(rest, law)
        out = out + mass * law * kept
        mass = mass * float((law * (1 - kept)).sum())
        rest = residual(rest, law)
    return out + mass * rest
