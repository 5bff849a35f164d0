"""A drafter for a model, trained on the model's own laws: few of its layers, its embedding, its head.

The drafter starts as the target without most layers. For windows of text it learns the target's law at every token,
by the Kullback-Leibler divergence KL(p || q), with p the target's and q its own. Embedding and head are the target's:
they stay as they are, in the same memory, and are not trained. So what is learned, and saved in a checkpoint, is small.
"""

from __future__ import annotations

import copy
import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dlopt.speculative.sublayers import sublayers


@dataclass(frozen=True)
class Recipe:
    """How a drafter is trained.

    layers: of the drafter, at least 1, fewer than the target's; they begin as target layers at even distances, first
    and last included. steps, batch, window: at least 1, 1 and 2; tokens seen are their product. lr: the largest
    learning rate of AdamW (no decay, betas 0.9 and 0.95), reached after 5 % of the steps, from there along a cosine
    down to a tenth. seed: of the windows.
    """

    layers: int = 2
    steps: int = 400
    batch: int = 4
    window: int = 128
    lr: float = 5e-4
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("layers", 1), ("steps", 1), ("batch", 1), ("window", 2), ("seed", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if not 0 < self.lr < math.inf:
            raise ValueError(f"lr must be above 0, got {self.lr}")


@dataclass
class Distillation:
    """A drafter in training; `drafter` is a model of the target's class, in eval mode (no dropout).

    target: a causal language model in eval mode. tokens: (n,) token ids of a corpus, at least one window. recipe: see
    there. identity: plain facts that tell which target and corpus these are; a checkpoint of others is refused.

    Example: `Distillation(target, tokens, Recipe(steps=200)).run()`, then `ModelDrafter(distillation.drafter)`.
    """

    target: Any
    tokens: Tensor
    recipe: Recipe = field(default_factory=Recipe)
    identity: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.target.training:
            raise ValueError("the target is in training mode; call .eval() on it")
        self.tokens = torch.as_tensor(self.tokens, dtype=torch.long)
        if self.tokens.ndim != 1 or len(self.tokens) < self.recipe.window:
            raise ValueError(
                f"tokens must be (n,) token ids, at least a window of {self.recipe.window}, got shape "
                f"{tuple(self.tokens.shape)}"
            )
        if int(self.tokens.min()) < 0 or int(self.tokens.max()) >= self.target.config.vocab_size:
            raise ValueError(f"tokens must be ids of the target's vocabulary of {self.target.config.vocab_size}")
        self.drafter = shortened(self.target, self.recipe.layers)
        self.learned = {name: p for name, p in self.drafter.named_parameters() if p.requires_grad}
        self.optimizer = torch.optim.AdamW(
            self.learned.values(), lr=self.recipe.lr, betas=(0.9, 0.95), weight_decay=0.0
        )
        self.done = 0

    @property
    def facts(self) -> dict[str, Any]:
        """What makes two trainings the same."""
        return {**asdict(self.recipe), **self.identity}

    def step(self) -> float:
        """One step; the loss, in nats per token."""
        recipe, n = self.recipe, len(self.tokens)
        rng = np.random.default_rng([recipe.seed, self.done])  # of the step alone: nothing to save
        starts = torch.from_numpy(rng.integers(0, n - recipe.window + 1, recipe.batch))
        ids = self.tokens[starts[:, None] + torch.arange(recipe.window)].to(self.target.device)
        warm = max(1, round(0.05 * recipe.steps))
        left = math.cos(math.pi * max(0, self.done - warm) / max(1, recipe.steps - warm))
        rate = recipe.lr * min((self.done + 1) / warm, 0.55 + 0.45 * left)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        with torch.no_grad():
            wanted = _log_law(self.target, ids)
        loss = F.kl_div(_log_law(self.drafter, ids), wanted, reduction="batchmean", log_target=True)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.learned.values(), 1.0)
        self.optimizer.step()
        self.done += 1
        return float(loss.detach())

    def run(
        self,
        checkpoint: Path | None = None,
        seconds: float = 60.0,
        deadline: float | None = None,
        progress: Callable[[int, int, float], object] | None = None,
    ) -> bool:
        """Train to the end, from the checkpoint if there is one. True if it came to the end.

        checkpoint: a file that is written every `seconds` seconds and at the deadline (`time.monotonic`). A run that
        was killed goes on from it and ends with the same bits. progress(done, steps, loss) after each step.
        """
        if checkpoint is not None and checkpoint.exists():
            self.load_state_dict(_read(checkpoint))
        saved = time.monotonic()
        while self.done < self.recipe.steps:
            if deadline is not None and time.monotonic() >= deadline:
                if checkpoint is not None:
                    _write(self.state_dict(), checkpoint)
                return False
            loss = self.step()
            if not math.isfinite(loss):
                raise ValueError(f"the loss is {loss} at step {self.done}; try a smaller lr than {self.recipe.lr}")
            if checkpoint is not None and time.monotonic() - saved >= seconds:
                _write(self.state_dict(), checkpoint)
                saved = time.monotonic()
            if progress is not None:
                progress(self.done, self.recipe.steps, loss)
        return True

    def state_dict(self) -> dict[str, Any]:
        """Plain values and tensors: steps done, learned weights, optimizer, facts."""
        weights = {name: parameter.detach().clone() for name, parameter in self.learned.items()}
        return {"facts": self.facts, "done": self.done, "weights": weights, "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """ValueError, with the fact, if the state is of another training."""
        facts = state.get("facts", {})
        for name in sorted({*self.facts, *facts}):
            if facts.get(name) != self.facts.get(name):
                raise ValueError(
                    f"the checkpoint is of a training with {name} = {facts.get(name)!r}, this one has "
                    f"{self.facts.get(name)!r}; give the same settings, or delete it"
                )
        with torch.no_grad():
            for name, parameter in self.learned.items():
                parameter.copy_(state["weights"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        self.done = int(state["done"])

    @torch.no_grad()
    def acceptance(self, tokens: Tensor, windows: int = 16) -> dict[str, float]:
        """On windows at even distances in other tokens (n,): what drafts of one token would have accepted.

        acceptance: mean of sum_x min(p(x), q(x)), at temperature 1. agreement: share of equal likeliest tokens.
        """
        size = min(self.recipe.window, len(tokens))
        starts = torch.linspace(0, len(tokens) - size, min(windows, max(1, len(tokens) // size))).long()
        kept, same = [], []
        for start in starts.tolist():
            ids = torch.as_tensor(tokens[start : start + size], dtype=torch.long, device=self.target.device)[None]
            p, q = _log_law(self.target, ids), _log_law(self.drafter, ids)
            kept.append(torch.minimum(p, q).exp().sum(-1))
            same.append((p.argmax(-1) == q.argmax(-1)).double())
        return {"acceptance": float(torch.cat(kept).mean()), "agreement": float(torch.cat(same).mean())}


def shortened(target: Any, layers: int) -> Any:
    """A model of the target's class with some of its layers, at even distances, and its own everything else.

    Float32, or float64 as the target; in eval mode. Embedding and head share the target's memory where the type allows
    it, and need no gradient.
    """
    where = sublayers(target)
    if not 1 <= layers < where.count:
        raise ValueError(f"layers must be from 1 to {where.count - 1}, fewer than the target's, got {layers}")
    chosen = torch.linspace(0, where.count - 1, layers).round().long().tolist()
    config = copy.deepcopy(target.config)
    config.num_hidden_layers = layers
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[i] for i in chosen]
    dtype = target.dtype if target.dtype.itemsize >= 4 else torch.float32
    drafter = type(target)(config).to(target.device, dtype).eval()
    drafter.generation_config = copy.deepcopy(target.generation_config)
    source, prefix = target.state_dict(), where.path + "."
    wanted = {}
    for name in drafter.state_dict():
        place = name
        if name.startswith(prefix):
            number, rest = name[len(prefix) :].split(".", 1)
            place = f"{prefix}{chosen[int(number)]}.{rest}"
        wanted[name] = source[place]
    drafter.load_state_dict(wanted)
    for mine, theirs in zip(_ends(drafter), _ends(target)):
        mine.weight.requires_grad_(False)
        if mine.weight.dtype == theirs.weight.dtype:
            mine.weight.data = theirs.weight.data
    return drafter


def _ends(model: Any) -> tuple[Any, Any]:
    return model.get_input_embeddings(), model.get_output_embeddings()


def _log_law(model: Any, ids: Tensor) -> Tensor:
    """Logarithms of a model's laws after each token of (b, t), as (b t, V), at least in float32."""
    logits = model(input_ids=ids, use_cache=False).logits.flatten(0, 1)
    return (logits.float() if logits.dtype.itemsize < 4 else logits).log_softmax(-1)


def _read(path: Path) -> dict[str, Any]:
    try:
        state: dict[str, Any] = torch.load(path, weights_only=True)
    except Exception as error:
        # torch raises many types for a truncated or foreign file: zip, pickle and runtime errors
        raise ValueError(f"{path} cannot be read as a checkpoint ({type(error).__name__}); delete it") from error
    return state


def _write(state: dict[str, Any], path: Path) -> None:
    temporary = path.with_name(path.name + ".tmp")
    try:
        torch.save(state, temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
