"""The measurements of `zeroth/official`: one function for each fault."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from dlopt import catalog
from dlopt.experiments.zeroth._common import DTYPES, Estimator, cosine, flat
from dlopt.experiments.zeroth._rules import OfficialLOZO, aliased_correction, walk
from dlopt.lab.log import Diverged, Log
from dlopt.tasks import named
from dlopt.tasks.classification import TASKS

NUMBERS = 1 << 17  # weights that wander
MARKS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
DISTANCES = (0.0, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)  # from the anchor, relative to its norm
SHOWN = 160  # steps of the picture of angles
LOST = 10 * math.log(10)
# LOZO in the scale of the official code, for both rules
MATRIX = {"rank": 2, "scale": "official"}


def drift(cfg: Any, log: Log) -> dict[str, Any]:
    """Root mean square and largest shift of N(0, spread^2) weights after so many steps at lr = 0."""
    generator = torch.Generator().manual_seed(cfg.seed)
    weights = torch.empty(256, NUMBERS // 256).normal_(generator=generator).mul_(cfg.spread).to(DTYPES[cfg.dtype])
    start = weights.double()
    weights.requires_grad_()
    eps = cfg.params.get("eps", 1e-3)
    optimizer: Any = catalog.find(cfg.method).load()([weights], lr=0.0, seed=cfg.seed, **cfg.params)
    found: dict[str, Any] = {}
    with torch.no_grad():
        for step in range(1, cfg.steps + 1):
            if cfg.rule == "ours":
                optimizer.step(lambda: weights[0, 0])
            else:
                walk(weights, eps, 1_000_003 * cfg.seed + step)
            if step in MARKS or step == cfg.steps:
                shift = weights.double() - start
                moved = {"rms": float(shift.square().mean().sqrt()), "largest": float(shift.abs().max())}
                log.row(step, **moved, moved_share=float((shift != 0).double().mean()))
                found = moved
                log.progress(step, cfg.steps)
    return {"rms_shift": found["rms"], "largest_shift": found["largest"], "numbers": NUMBERS}


def _problem(cfg: Any, dtype: torch.dtype) -> tuple[Any, list[Tensor], Callable[[int], Callable[[], Tensor]]]:
    """(built task, its weights, number of a batch -> closure)."""
    built = named(cfg.task, TASKS).build(cfg.seed, cfg.batch)
    built.model.to(dtype).eval()

    def closure(number: int) -> Callable[[], Tensor]:
        x, y = built.batches.batch(number)
        return lambda: built.criterion(built.model(x.to(dtype)), (x, y))

    return built, list(built.model.parameters()), closure


def _lozo(cfg: Any, params: Sequence[Tensor]) -> Callable[[Callable[[], Tensor]], tuple[float, Tensor, Tensor]]:
    """step(closure) -> (loss, the perturbation that the loss was measured along, the update), as vectors."""
    settings = {**MATRIX, **cfg.params}
    if cfg.rule == "official":
        both = {k: v for k, v in settings.items() if k in ("rank", "interval", "eps")}
        rule = OfficialLOZO(params, cfg.lr, seed=cfg.seed, **both)

        def official(closure: Callable[[], Tensor]) -> tuple[float, Tensor, Tensor]:
            loss, seen, used = rule.step(closure)
            return loss, flat(seen), flat(used)

        return official
    optimizer: Any = catalog.find(cfg.method).load()(list(params), lr=cfg.lr, seed=cfg.seed, **settings)

    def ours(closure: Callable[[], Tensor]) -> tuple[float, Tensor, Tensor]:
        before, seen = flat(params).clone(), []

        def watched() -> Tensor:
            if not seen:
                seen.append(flat(params) - before)
            return closure()

        loss = float(optimizer.step(watched))
        return loss, seen[0], before - flat(params)

    return ours


def change(cfg: Any, log: Log) -> dict[str, Any]:
    """|cosine| between perturbation and update at every step, and its mean at changes of V and between."""
    _, params, closure = _problem(cfg, torch.float64)
    step = _lozo(cfg, params)
    period = cfg.params.get("interval", 50)
    signed: dict[bool, list[float]] = {True: [], False: []}
    for t in range(cfg.steps):
        _, seen, used = step(closure(t))
        angle = cosine(seen, used)
        if cfg.rule == "ours":
            angle = abs(angle)  # c may be negative, and the update is c times the direction
        signed[t % period == 0].append(angle)
        if t < SHOWN:
            log.row(t, cosine=angle)
        log.progress(t + 1, cfg.steps)
    return {
        "cosine_at_change": sum(signed[True]) / len(signed[True]),
        "cosine_between": min(signed[False]) if signed[False] else None,
        "changes": len(signed[True]),
    }


def interval(cfg: Any, log: Log) -> dict[str, Any]:
    """Validation loss along a run."""
    built, params, closure = _problem(cfg, torch.float32)
    step = _lozo(cfg, params)
    log.row(0, **(first := built.evaluate()))
    every = max(1, cfg.steps // 20)
    for t in range(cfg.steps):
        loss, _, _ = step(closure(t))
        if not loss <= LOST:
            log.row(t + 1, loss=loss)
            raise Diverged(f"the training loss is {loss:.4g} at step {t + 1} of {cfg.steps}")
        if (t + 1) % every == 0:
            log.row(t + 1, loss=loss, **built.evaluate())
        log.progress(t + 1, cfg.steps)
    last = built.evaluate()
    if not last["val_loss"] <= LOST:
        raise Diverged(f"the validation loss is {last['val_loss']:.4g} at the end")
    return {"first_val_loss": first["val_loss"], **last}


def anchor(cfg: Any, log: Log) -> dict[str, Any]:
    """E|correction|^2 at each distance from the anchor, over the variance of one estimate from one batch there."""
    built, params, closure = _problem(cfg, torch.float64)
    x, y = built.batches.tensors
    every = built.batches.transform((x, y), torch.Generator()) if built.batches.transform else (x, y)
    eps = cfg.params["eps"]

    def whole() -> Tensor:
        gradients = torch.autograd.grad(built.criterion(built.model(every[0].double()), every), params)
        return flat(gradients)

    start = flat(params).clone()
    direction = -whole()
    direction *= start.norm() / direction.norm()
    ratio, error = math.nan, math.nan
    # an anchor that is the live weights has no distance: all draws are spent at once
    distances, draws = (DISTANCES[:1], cfg.draws * len(DISTANCES)) if cfg.rule == "official" else (DISTANCES, cfg.draws)
    for number, distance in enumerate(distances):
        _write(params, start)
        ours = Estimator(cfg.method, cfg.params, params, cfg.seed)
        # the anchor is set where F is the constant 0: its own gradient is 0, and what steps show is the correction
        ours.optimizer.step(lambda: 0.0, full=lambda: 0.0)
        _write(params, start + distance * direction)
        ours.start = [p.detach().clone() for p in params]
        single = Estimator("mezo", {"eps": eps}, params, cfg.seed + 1)
        truth, corrections, estimates = whole(), [], []
        for k in range(draws):
            batch = closure(k)
            if cfg.rule == "official":
                seeds = (2 * (cfg.seed * draws + k), 2 * (cfg.seed * draws + k) + 1)
                moved = flat(aliased_correction(params, batch, eps, seeds))
            else:
                moved = ours.draw(batch)
            corrections.append(float(moved.square().sum()))
            estimates.append(float(single.draw(batch).square().sum()))
        log.progress(number + 1, len(distances))
        a, b = torch.tensor(corrections).double(), torch.tensor(estimates).double()
        variance = float(b.mean()) - float(truth.square().sum())
        ratio = float(a.mean()) / variance
        spread = [float(v.std() / math.sqrt(draws)) for v in (a, b)]
        error = ratio * math.hypot(spread[0] / float(a.mean()), spread[1] / variance) if ratio else 0.0
        log.row(number, distance=distance, ratio=ratio, ratio_error=error, single=variance)
        if number == 0:
            at_anchor = (ratio, error)
    return {"ratio_at_anchor": at_anchor[0], "ratio_at_anchor_error": at_anchor[1], "ratio_far": ratio,
            "parameters": len(start)}  # fmt: skip


@torch.no_grad()
def _write(params: Sequence[Tensor], values: Tensor) -> None:
    start = 0
    for p in params:
        p.copy_(values[start : start + p.numel()].view(p.shape))
        start += p.numel()
