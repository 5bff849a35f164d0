"""What the parts of topic `sampling` share: the samplers that meet, how they are built, and the choice of a step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np

from dlopt import catalog
from dlopt.lab.experiment import Earlier, Pending
from dlopt.lab.record import Record
from dlopt.sampling import FiniteSum

# what importance sampling samples by: L_i, sqrt(L_i), or running gradient norms
BY = ("", "smoothness", "root", "norms")
ONLINE = {"online": True}

# {series: (method, by, its parameters)}; for squares sqrt(L_i) is the norm of row i
VARIANTS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "with-replacement": ("with-replacement", "", {}),
    "importance": ("importance", "smoothness", {}),
    "importance:row norms": ("importance", "root", {}),
    "importance:online": ("importance", "norms", ONLINE),
    "fixed-order": ("fixed-order", "", {}),
    "shuffle-once": ("shuffle-once", "", {}),
    "random-reshuffling": ("random-reshuffling", "", {}),
    "class-blocks": ("class-blocks", "", {}),
    "class-balanced": ("class-balanced", "", {"correct": True}),
    "grab": ("grab", "", {}),
}
NAMES = {
    "with-replacement": "有放回均匀",
    "importance": "重要性 ∝ L",
    "importance:row norms": "重要性 ∝ √L",
    "importance:online": "重要性 ∝ 梯度模",
    "fixed-order": "固定顺序",
    "shuffle-once": "打乱一次",
    "random-reshuffling": "每幕重排",
    "class-blocks": "逐类",
    "class-balanced": "类均衡",
    "grab": "GraB",
    "saga": "SAGA",
    "coordinate descent": "坐标下降",
}
_IMPORTANCE = {by: series for series, (_, by, _) in VARIANTS.items() if by}
# of these the seed changes nothing
DETERMINISTIC = ("fixed-order", "coordinate descent")


def variant(series: str) -> dict[str, Any]:
    """The settings `method`, `by` and `params` of a series."""
    method, by, params = VARIANTS[series]
    return {"method": method, "by": by, "params": dict(params)}


def series_of(config: Mapping[str, Any]) -> str:
    """The series that a record's config belongs to."""
    if config.get("solver") == "coordinate-descent":
        return "coordinate descent"
    if config["method"] != "importance":
        return str(config["method"])
    return _IMPORTANCE.get(config["by"], "importance:exact norms")


def series(record: Record) -> str:
    return series_of(record.config)


def check_sampler(method: str, by: str, params: Mapping[str, Any]) -> None:
    """Raise ValueError for a method that is no sampler, or a `by` that does not go with it."""
    entry = catalog.find(method)
    if entry.kind != "sampler":
        kinds = ", ".join(name for name in catalog.methods("sampling", "sampler"))
        raise ValueError(f"{method} is a {entry.kind}, not a sampler; samplers are {kinds}")
    if wrong := {"seed", "rank", "world_size"} & set(params):
        raise ValueError(f"a sampler draws from the seed of its run, alone: params.{min(wrong)} cannot be set")
    if by not in BY:
        raise ValueError(f"by takes smoothness, root or norms, not {by!r}")
    if (method == "importance") != bool(by):
        raise ValueError(f"method {method} with by={by!r}: by says what importance samples by, and only that needs it")
    if by and (by == "norms") != bool(params.get("online")):
        raise ValueError(f"by={by} needs params.online={str(by == 'norms').lower()}: running norms are learned online")
    make(method, by, params, 6, 0, labels=np.arange(6) % 3, smoothness=np.ones(6))


def make(
    method: str,
    by: str,
    params: Mapping[str, Any],
    n: int,
    seed: int,
    *,
    labels: Any = None,
    smoothness: np.ndarray | None = None,
) -> Any:
    """A sampler over n examples; labels and smoothness constants (n,) go to those that ask for them."""
    given = dict(params)
    entry = catalog.find(method)
    if "labels" in entry.parameters():
        given["labels"] = labels
    if by in ("smoothness", "root"):
        if smoothness is None:
            raise ValueError(f"by={by} needs the smoothness constants of the examples")
        given["weights"] = smoothness if by == "smoothness" else np.sqrt(smoothness)
    return entry.load()(range(n), seed=seed, **given)


def quantile_labels(b: np.ndarray, classes: int = 5) -> np.ndarray:
    """(n,): 0 for the smallest fifth of the targets, ..., 4 for the largest: "classes" for regression."""
    return np.argsort(np.argsort(b, kind="stable"), kind="stable") * classes // len(b)


def best(
    earlier: Earlier, stage: str, trials: Sequence[Any], name: str, metric: str, maximise: bool = False
) -> float | Pending:
    """The value of the setting `name` in the trial with the best `metric`; `Pending` while trials are missing.

    As `Earlier.best`, for a tuned setting that is not a hyper-parameter of the method (samplers have no step).
    """
    from dlopt.lab import search  # imports torch

    names = [f.name for f in fields(trials[0]) if f.name != "params"]
    records = {tuple(r.config.get(n) for n in names): r for r in earlier.records(stage)}
    scores = []
    for trial in trials:
        record = records.get(tuple(getattr(trial, n) for n in names))
        if record is None:
            return Pending(f"stage {stage} lacks runs of {series_of(vars(trial))}")
        value = record.summary.get(metric) if record.status == "done" else None
        scores.append((getattr(trial, name), np.nan if value is None else float(value)))
    try:
        return search.best(scores, maximise)
    except ValueError:
        return Pending(f"no trial of {series_of(vars(trials[0]))} in stage {stage} ended well")


def rounded(values: Mapping[str, Any], digits: int = 6) -> dict[str, Any]:
    """Floats to so many significant digits: records of thousands of rows stay small."""
    return {k: float(f"{v:.{digits}g}") if isinstance(v, float) else v for k, v in values.items()}


def chosen_epochs(epochs: int, points: int = 24) -> set[int]:
    """Epochs at which a curve is kept: the first five, then evenly spread in the logarithm, and the last."""
    spread = np.geomspace(5, max(epochs, 5), points)
    return {e for e in (*range(6), *(round(float(e)) for e in spread), epochs) if e <= epochs}


def skew(problem: FiniteSum) -> float:
    """max L_i / mean L_i: how much importance sampling by smoothness can improve the bound."""
    smoothness = problem.smoothness()
    return float(smoothness.max() / smoothness.mean())
