"""Speculative sampling: a smaller model drafts (Leviathan et al. 2023; Chen et al. 2023)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from dlopt.catalog import method
from dlopt.speculative.draft import Draft, whole
from dlopt.speculative.reader import BEHIND, logits_kept
from dlopt.speculative.sampling import DRAFT, Sampling

COUPLINGS = ("residual", "shared")


@method(
    "speculative-sampling",
    topic="speculative",
    kind="drafter",
    cite="leviathan2023speculative",
    summary="a smaller model drafts a chain, token by token, with a cache of its own",
    search={"length": (1, 12, "int")},
    needs=("transformers",),
)
class ModelDrafter:
    """A causal language model with the target's vocabulary drafts `length` tokens, x_i ~ q_i.

    q_i is what the target's own settings (processors, temperature, top-k, top-p) make of the drafter's logits; greedy
    decoding drafts its likeliest tokens. With acceptance rate a and cost c (one pass of the drafter over one of the
    target), tokens per second grow by (1 - a^(g+1)) / ((1 - a)(g c + v(g+1)/v(1))) for length g.

    model: in eval mode, on the target's device. length: at least 1 (the papers: 3 to 7). coupling: how drawn tokens
    are tied to the target's. "residual": the papers' rule, accepted with probability min(1, p/q). "shared": drafter and
    target run the same race of exponential clocks (`Sampling.draw`) and the draft counts as fixed, so the text is that
    of plain sampling token for token (Daliri et al. 2024). Fewer are accepted: at least (1 - TV) / (1 + TV) of them,
    with TV the total variation between p and q, where the papers' rule accepts 1 - TV. tokenizer: of the drafter,
    compared with the target's if `generate` got that.

    The gate may ask for fewer tokens. Under "residual" the text then depends on it, its law does not.
    """

    def __init__(self, model: Any, length: int = 5, *, coupling: str = "residual", tokenizer: Any = None) -> None:
        whole("length", length)
        if coupling not in COUPLINGS:
            raise ValueError(f"coupling must be one of {', '.join(COUPLINGS)}, got {coupling!r}")
        self.model, self.length, self.coupling, self.tokenizer = model, length, coupling, tokenizer

    def check(self, model: Any, tokenizer: Any) -> None:
        """ValueError with names where drafter and target do not fit."""
        same_vocabulary(model, self.model, tokenizer, self.tokenizer)
        if self.model.device != model.device:
            raise ValueError(f"the drafter is on {self.model.device}, the target on {model.device}; move one of them")
        if self.model.training:
            raise ValueError("the drafter is in training mode; call .eval() on it")

    def begin(self, prompt: list[int], sampling: Sampling) -> ModelSession:
        return ModelSession(self, prompt, sampling)


def same_vocabulary(target: Any, drafter: Any, target_tokenizer: Any = None, drafter_tokenizer: Any = None) -> None:
    """ValueError, with names, if token ids do not mean the same to two models."""
    names = [getattr(m.config, "_name_or_path", "") or type(m).__name__ for m in (target, drafter)]
    if target_tokenizer is not None and drafter_tokenizer is not None:
        ours, theirs = target_tokenizer.get_vocab(), drafter_tokenizer.get_vocab()
        if ours != theirs:
            odd = [token for token in {**ours, **theirs} if ours.get(token) != theirs.get(token)]
            raise ValueError(
                f"the tokenizers of the target {names[0]} and the drafter {names[1]} differ in {len(odd)} tokens, "
                f"first {odd[0]!r}; a drafter needs the target's tokenizer"
            )
    sizes = target.config.vocab_size, drafter.config.vocab_size
    if sizes[0] != sizes[1]:
        raise ValueError(
            f"the target {names[0]} has a vocabulary of {sizes[0]}, the drafter {names[1]} one of {sizes[1]}; "
            "a drafter needs the target's vocabulary"
        )


class ModelSession:
    """A drafting model on one row. Its cache holds a prefix of the text; what it drafted in vain is cropped."""

    costly = True

    def __init__(self, drafter: ModelDrafter, prompt: list[int], sampling: Sampling) -> None:
        from transformers import DynamicCache

        self.model, self.length, self.sampling = drafter.model, drafter.length, sampling
        self.shared = drafter.coupling == "shared"
        self.stochastic = not sampling.greedy and not self.shared
        self.cache = DynamicCache(config=self.model.config)
        self.recording = False
        self.text = list(prompt)
        self.drafted: list[int] = []
        self.held = 0  # tokens in the cache: of the text, then of the draft
        self.rounds = 0
        self.cuts = logits_kept(self.model)

    @torch.no_grad()
    def catch_up(self) -> None:
        if len(self.text) - self.held > BEHIND and self._room() > 0:
            self._read(self.text[:-1])

    def _read(self, text: list[int]) -> torch.Tensor:
        """Logits (V,) after a text that begins with what the cache holds."""
        ids = torch.tensor([text[self.held :]], device=self.model.device)
        last = {"logits_to_keep": 1} if self.cuts else {}
        logits = self.model(input_ids=ids, past_key_values=self.cache, use_cache=True, **last).logits[0, -1]
        if not self.recording:  # after the first pass, so that no window keeps a whole prompt
            self.cache.activate_past_recording()
            self.recording = True
        self.held = len(text)
        return logits.float() if logits.dtype.itemsize < 4 else logits

    @torch.no_grad()
    def propose(self, limit: int) -> Draft:
        tokens: list[int] = []
        laws: list[np.ndarray | None] = []
        self.rounds += 1
        limit = min(limit, self.length, self._room())
        for _ in range(limit):
            text = self.text + tokens
            logits = self._read(text)
            context = torch.tensor(text, device=logits.device) if self.sampling.processors else None
            if self.sampling.greedy:
                tokens.append(self.sampling.best(logits, context))
                continue
            law = self.sampling.law(logits, context)
            if self.shared:
                tokens.append(self.sampling.draw(law, len(text)))
            else:
                # fresh numbers in every round: whether a position is drafted again may depend on its last draft
                tokens.append(self.sampling.draw(law, len(text), DRAFT, self.rounds))
                laws.append(law)
        self.drafted = tokens
        return Draft(tokens, probs=laws or None)

    def observe(self, tokens: list[int]) -> None:
        right = 0  # the last new token is never in the cache: it is what the next draft starts from
        while right < min(len(tokens) - 1, len(self.drafted)) and tokens[right] == self.drafted[right]:
            right += 1
        surplus = self.held - min(self.held, len(self.text) + right)
        if self.recording:
            self.cache.crop(-surplus)
        self.held -= surplus
        self.text += tokens
        self.drafted = []

    def _room(self) -> int:
        """Tokens that still fit into the drafter's context."""
        limit = getattr(self.model.config, "max_position_embeddings", None)
        return 1 << 30 if limit is None else max(limit - len(self.text) + 1, 0)
