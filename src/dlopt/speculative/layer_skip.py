"""Draft & Verify: the target drafts for itself, without some of its sub-layers (Zhang et al. 2024)."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import Cache
from transformers.cache_utils import DynamicLayer

from dlopt.catalog import method
from dlopt.speculative.draft import Draft, whole
from dlopt.speculative.sampling import DRAFT, Sampling
from dlopt.speculative.sublayers import checked, skipping

START = {"greedy": 0.8, "sampled": 0.5}  # threshold, as in the official code
WANTED, STEP = 0.9, 0.01  # share of drafted tokens that should be accepted, and how far the threshold tends to move
RATE_MEMORY, THRESHOLD_MEMORY = 0.5, 0.9


@method(
    "draft-and-verify",
    topic="speculative",
    kind="drafter",
    cite="zhang2024draftverify",
    summary="the target drafts for itself with some attention and MLP sub-layers skipped, and stops when unsure",
    search={"length": (2, 16, "int"), "threshold": (0.2, 0.95, "linear")},
    needs=("transformers",),
)
class LayerSkipDrafter:
    """The target, less the sub-layers that are named, drafts up to `length` tokens, x_i ~ q_i.

    q_i is what the target's settings (processors, temperature, top-k, top-p) make of the reduced model's logits, and
    x_i is drawn from it (greedy: its likeliest token). The official code takes the likeliest token under sampling too
    and calls its softmax the law, which changes the text's law; it can do neither here.

    Exit: c_i is the largest probability of the reduced model at temperature 1. The draft ends with x_i if c_i is below
    the threshold g. c_i is known before x_i is drawn, so the length tells nothing about the tokens. With `adaptive`,
    after every verified draft of which a share m was accepted::

        M <- 0.5 M + 0.5 m                                      (begins at 0)
        g' = g + 0.01 if M < 0.9;  g if the draft had all tokens that it might have;  else g - 0.01
        g <- 0.9 g + 0.1 g'

    No part of the model is changed: the reduced model shares its weights (`sublayers.skipping`). It reads the target's
    own cache, of which every draft gets a view: the drafted tokens' entries go into the view and never into the cache.
    A full cache is viewed without copying, and one more copy of its keys and values lives while a draft is written,
    which is what the concatenation of new keys makes anyway. Other caches have their contents copied for each draft.

    model: the target, in eval mode. attention, mlp: numbers of layers whose sub-layers are skipped, at least one in
    all, not all attention; `find_skips` looks for good ones. length: at least 1 (the paper: 12). threshold: from 0
    (never exit) to 1; None begins at 0.8, sampling at 0.5, as the official code. adaptive: False keeps it.
    """

    one_row = True

    def __init__(
        self,
        model: Any,
        attention: Sequence[int] = (),
        mlp: Sequence[int] = (),
        length: int = 12,
        threshold: float | None = None,
        adaptive: bool = True,
    ) -> None:
        whole("length", length)
        if threshold is not None and not 0 <= threshold <= 1:
            raise ValueError(f"threshold must be from 0 (never exit) to 1, got {threshold}")
        self.attention, self.mlp = checked(model, attention, mlp)
        if not self.attention and not self.mlp:
            raise ValueError("name at least one attention or mlp sub-layer to skip; nothing is gained otherwise")
        if model.training:
            raise ValueError("the model is in training mode; call .eval() on it")
        self.model, self.length, self.threshold, self.adaptive = model, length, threshold, adaptive
        self.reduced = skipping(model, self.attention, self.mlp)

    def check(self, model: Any, tokenizer: Any) -> None:
        """ValueError if the target is another model than the one that was given."""
        if model is not self.model:
            raise ValueError(
                "this LayerSkipDrafter was made for another model object; it skips sub-layers of the target itself"
            )

    def begin(self, prompt: list[int], sampling: Sampling) -> LayerSkipSession:
        return LayerSkipSession(self, prompt, sampling)


class LayerSkipSession:
    """Draft & Verify on one row."""

    costly = True

    def __init__(self, drafter: LayerSkipDrafter, prompt: list[int], sampling: Sampling) -> None:
        self.sampling, self.length, self.adaptive = sampling, drafter.length, drafter.adaptive
        self.stochastic = not sampling.greedy
        start = START["greedy" if sampling.greedy else "sampled"]
        self.threshold = start if drafter.threshold is None else drafter.threshold
        self.model = drafter.reduced
        self.skipped = {*drafter.attention}
        self.cache: Any = None
        self.text = list(prompt)
        self.drafted: list[int] = []
        self.most = 0
        self.accepted = 0.0  # M
        self.rounds = 0

    def attach(self, model: Any, cache: Any) -> None:
        self.cache = cache

    @torch.no_grad()
    def propose(self, limit: int) -> Draft:
        view = Cache(layers=[_view(layer) for i, layer in enumerate(self.cache.layers) if i not in self.skipped])
        tokens: list[int] = []
        laws: list[np.ndarray] = []
        self.rounds += 1
        self.most = min(limit, self.length)
        while len(tokens) < self.most:
            ids = torch.tensor([[(tokens or self.text)[-1]]], device=self.model.device)
            logits = self.model(input_ids=ids, past_key_values=view, use_cache=True).logits[0, -1]
            text = self.text + tokens
            context = torch.tensor(text, device=logits.device) if self.sampling.processors else None
            scores = self.sampling.scores(logits.float() if logits.dtype.itemsize < 4 else logits, context)
            if self.sampling.greedy:
                tokens.append(int(scores.argmax()))
            else:
                laws.append(self.sampling.law(logits, context))
                # fresh numbers in every round: whether a position is drafted again may depend on its last draft
                tokens.append(self.sampling.draw(laws[-1], len(text), DRAFT, self.rounds))
            if float(scores.softmax(-1).max()) < self.threshold:
                break
        self.drafted = tokens
        return Draft(tokens, probs=laws or None)

    def observe(self, tokens: list[int]) -> None:
        if self.drafted and self.adaptive:
            right = 0
            while right < min(len(tokens), len(self.drafted)) and tokens[right] == self.drafted[right]:
                right += 1
            self.accepted = RATE_MEMORY * self.accepted + (1 - RATE_MEMORY) * right / len(self.drafted)
            full = len(self.drafted) == self.most
            aim = STEP if self.accepted < WANTED else 0.0 if full else -STEP
            self.threshold = THRESHOLD_MEMORY * self.threshold + (1 - THRESHOLD_MEMORY) * (self.threshold + aim)
        self.drafted = []
        self.text += tokens


def _view(layer: Any) -> Any:
    """A layer of a cache that can be written to without a trace in the original."""
    view = copy.copy(layer)
    if not isinstance(layer, DynamicLayer):  # those only ever replace their tensors, never write into them
        view.store = copy.deepcopy(layer.store)
    return view
