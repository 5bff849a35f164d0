"""Which sub-layers to skip in Draft & Verify: a search by agreement, in one parallel pass over given texts per trial.

The paper measures tokens per second of real decoding in every trial, which takes hours and depends on the machine's
mood. Here a trial runs each text once, all its tokens in parallel, and counts how often the reduced model's likeliest
next token is that of the full model (the objective of SWIFT, Xia et al. 2025): so many greedy drafts would be accepted.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dlopt.speculative.costs import Costs
from dlopt.speculative.sublayers import checked, skipping, sublayers

LONGEST = 12  # tokens of a draft for which a speed-up is predicted


@dataclass(frozen=True)
class Skips:
    """A set of skipped sub-layers: `LayerSkipDrafter(model, skips.attention, skips.mlp)`.

    attention, mlp: numbers of layers. agreement: share of tokens, 0 to 1. cost: bytes of weights that the reduced model
    reads for a token over those of the full one. speedup: predicted at the best length of drafts, 1.0 if none pays.
    layers: of the model. trials, seed: of the search.
    """

    attention: tuple[int, ...]
    mlp: tuple[int, ...]
    agreement: float
    cost: float
    speedup: float
    layers: int
    trials: int
    seed: int

    def save(self, path: str | PathLike[str]) -> None:
        """Write JSON."""
        Path(path).write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Skips:
        """Read what `save` wrote. ValueError, with the path, if it is something else."""
        try:
            facts = json.loads(Path(path).read_text(encoding="utf-8"))
            found = cls(**{**facts, "attention": tuple(facts["attention"]), "mlp": tuple(facts["mlp"])})
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{path} is not a saved set of skipped sub-layers: {error}") from error
        return found


def find_skips(
    model: Any,
    texts: Sequence[Sequence[int] | Tensor],
    share: float | None = 0.5,
    *,
    trials: int = 100,
    seed: int = 0,
    costs: Costs | None = None,
    progress: Callable[[int, int, float], object] | None = None,
) -> Skips:
    """Search with Optuna's tree-structured Parzen estimator over one number in [0, 1] for each sub-layer.

    model: in eval mode. texts: token ids, best prompts with what the model itself answers; each at least 1. share: of
    all sub-layers, that many are skipped, those with the largest numbers, and agreement is maximised; above 0, below 1.
    None skips those above 0.5, as the paper does, and maximises the predicted speed-up
    max_g (1 - a^(g+1)) / ((1 - a) (g c + v(g+1) / v(1))) with agreement a and cost c. trials: at least 1; the first set
    tried is the one around the middle of the model. seed: the same seed finds the same set on the same machine. costs:
    v(k); None takes v = 1. progress(done, trials, best value) after each trial.

    Needs Optuna. Time: trials + 1 passes over the texts.
    """
    try:
        import optuna
    except ImportError as error:
        raise ImportError("find_skips needs Optuna: pip install 'dlopt[llm]'") from error
    if trials < 1:
        raise ValueError(f"trials must be at least 1, got {trials}")
    if share is not None and not 0 < share < 1:
        raise ValueError(f"share must be above 0 and below 1, or None, got {share}")
    if model.training:
        raise ValueError("the model is in training mode; call .eval() on it")
    rows = [torch.as_tensor(text, dtype=torch.long, device=model.device)[None] for text in texts]
    if not rows or not all(row.ndim == 2 and row.shape[1] for row in rows):
        raise ValueError("texts must be sequences of token ids, at least one, none of them empty")
    layers = sublayers(model).count
    count = None if share is None else round(2 * layers * share)
    if count is not None and not 0 < count < 2 * layers:
        raise ValueError(f"share {share} of {2 * layers} sub-layers is {count}; it must be from 1 to {2 * layers - 1}")
    full = _likeliest(model, rows)
    known: dict[tuple[tuple[int, ...], tuple[int, ...]], float] = {}

    def judged(attention: tuple[int, ...], mlp: tuple[int, ...]) -> tuple[float, float, float]:
        """(agreement, cost, predicted speed-up) of a set."""
        if (attention, mlp) not in known:
            own = _likeliest(skipping(model, attention, mlp), rows)
            known[attention, mlp] = float((own == full).double().mean())
        agreement, cost = known[attention, mlp], cost_of(model, attention, mlp)
        return agreement, cost, predicted(agreement, cost, costs)

    def chosen(numbers: dict[str, float]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        order = sorted(numbers, key=lambda name: (-numbers[name], name))
        names = order[:count] if count is not None else [name for name in order if numbers[name] > 0.5]
        parts = [sorted(int(n.split()[1]) for n in names if n.startswith(kind)) for kind in ("attention", "mlp")]
        return tuple(parts[0]), tuple(parts[1])

    def objective(trial: Any) -> float:
        numbers = {name: trial.suggest_float(name, 0.0, 1.0) for name in _middle(layers)}
        attention, mlp = chosen(numbers)
        if len(attention) == layers:
            return 0.0  # a model without attention is not run
        if not attention and not mlp:
            return 1.0  # only where the speed-up counts
        agreement, _, speedup = judged(attention, mlp)
        return speedup if count is None else agreement

    def report(study: Any, trial: Any) -> None:
        if progress is not None:
            progress(trial.number + 1, trials, study.best_value)

    told = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed))
        study.enqueue_trial(_middle(layers))
        study.optimize(objective, n_trials=trials, callbacks=[report])
    finally:
        optuna.logging.set_verbosity(told)
    attention, mlp = chosen(study.best_params)
    if len(attention) == layers:
        raise ValueError(f"{trials} trials found no set that leaves attention; try more trials or a smaller share")
    return Skips(attention, mlp, *judged(attention, mlp), layers, trials, seed)


def predicted(agreement: float, cost: float, costs: Costs | None = None) -> float:
    """The largest speed-up over lengths 0 to 12: tokens of a round over its time, in passes of the full model."""
    best, tokens, reached = 1.0, 1.0, 1.0
    for length in range(1, LONGEST + 1):
        reached *= agreement
        tokens += reached
        verify = 1.0 if costs is None else costs.at(length + 1) / costs.at(1)
        best = max(best, tokens / (length * cost + verify))
    return best


def cost_of(model: Any, attention: Sequence[int], mlp: Sequence[int]) -> float:
    """Weights that one token reads in the reduced model over those in the full one: layers and head, no embeddings."""
    attention, mlp = checked(model, attention, mlp)
    where = sublayers(model)
    layers = model.get_submodule(where.path)
    head = _size(model.get_output_embeddings())
    saved = sum(_size(getattr(layers[i], where.attention)) for i in attention)
    saved += sum(_size(getattr(layers[i], where.mlp)) for i in mlp)
    return 1 - saved / (_size(layers) + head)


def _size(module: Any) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _middle(layers: int) -> dict[str, float]:
    """Numbers that are larger the nearer a layer is to the middle; attention a little before MLP."""
    near = [1 - abs(2 * i - (layers - 1)) / layers for i in range(layers)]  # 1 / layers to 1
    return {
        f"{kind} {i}": factor * near[i] for kind, factor in (("attention", 0.9), ("mlp", 0.8)) for i in range(layers)
    }


@torch.no_grad()
def _likeliest(model: Any, rows: Sequence[Tensor]) -> Tensor:
    """The likeliest next token after every token of the texts, end to end."""
    return torch.cat([model(input_ids=row, use_cache=False).logits[0].argmax(-1) for row in rows])
