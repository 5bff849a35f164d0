"""The steps of `zeroth/lm`, and what they cost: bytes of one step by kind, seconds with the methods taking turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from dlopt import catalog
from dlopt.experiments._steps import Schedule, make_optimizer, step_bytes
from dlopt.experiments.zeroth._common import SVRG
from dlopt.lab.log import Log
from dlopt.lab.meter import peak_live

BACKWARD = 2  # forward passes that a backward pass is worth
SIGNS = {"direction": "rademacher"}
TOGETHER = 8  # batches in one pass over the whole set: weights are shifted once for all of them
INTERVAL = 50  # of MeZO-SVRG's anchors and of LOZO's V
# {series: (method, what is fixed)}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "mezo": ("mezo", SIGNS),
    "lozo": ("lozo", {"rank": 2, "interval": INTERVAL}),
    "lozo-m": ("lozo", {"rank": 2, "interval": INTERVAL, "momentum": 0.7}),
    SVRG: (SVRG, {**SIGNS, "interval": INTERVAL}),
    "adamw": ("adamw", {"weight_decay": 0.0}),
    "sgd": ("sgd", {}),
}


def given(cfg: Any) -> dict[str, Any]:
    """A config's params, with the run's seed for a method that draws."""
    seeded = "seed" in catalog.find(cfg.method).parameters()
    return {**cfg.params, "seed": cfg.seed} if seeded else dict(cfg.params)


def step(cfg: Any, built: Any, optimizer: Any, rates: Schedule, log: Log) -> Callable[[Any], dict[str, Any]]:
    """step(batch) for the training loop; time in forward passes is told apart."""

    def loss_of(batch: Any) -> torch.Tensor:
        with log.meter.phase("forward"):
            found: torch.Tensor = built.criterion(built.forward(built.model, batch), batch)
        return found

    if catalog.find(cfg.method).kind == "optimizer":

        def first(batch: Any) -> dict[str, Any]:
            rates.apply()
            optimizer.zero_grad(set_to_none=True)
            loss = loss_of(batch)
            with log.meter.phase("backward"):
                loss.backward()
            with log.meter.phase("optimizer"):
                optimizer.step()
            return {"loss": float(loss.detach()), "forwards": 1 + BACKWARD, **built.consumed(batch)}

        return first

    # the batches of one epoch are the whole training set, once; one pass takes several, and is counted as several
    whole = [built.batches.batch(i) for i in range(built.batches.per_epoch)] if cfg.method == SVRG else []
    groups = [whole[i : i + TOGETHER] for i in range(0, len(whole), TOGETHER)]
    closures = [(partial(loss_of, joined(group)), len(group)) for group in groups]
    full = {"full": closures} if closures else {}

    def zeroth(batch: Any) -> dict[str, Any]:
        rates.apply()
        before, share = optimizer.forwards, 1
        if closures and optimizer.renews:
            share = len(whole) // len(closures)
        with log.meter.phase("optimizer"):
            loss = optimizer.step(lambda: loss_of(batch), **full)
        return {"loss": float(loss), "forwards": share * (optimizer.forwards - before), **built.consumed(batch)}

    return zeroth


def joined(batches: Sequence[Any]) -> tuple[torch.Tensor, ...]:
    """Several batches as one."""
    return tuple(torch.cat(parts) for parts in zip(*batches))


# what part "cost" measures: as trained, MeZO with normal numbers too
COSTED: dict[str, tuple[str, dict[str, Any]]] = {
    "mezo": VARIANTS["mezo"],
    "mezo:gaussian": ("mezo", {}),
    **{s: VARIANTS[s] for s in ("lozo", "lozo-m", SVRG, "sgd", "adamw")},
}


def cost(cfg: Any, built: Any, log: Log) -> dict[str, Any]:
    """Bytes of one step by kind, counted and by formula; median seconds of a step, methods taking turns."""
    found: dict[str, Any] = {}
    batch = built.batches.batch(0)

    @torch.no_grad()
    def forward() -> torch.Tensor:
        loss: torch.Tensor = built.criterion(built.forward(built.model, batch), batch)
        return loss

    plain = peak_live(forward, built.model, log.device)
    weights = sum(p.numel() * p.element_size() for p in built.model.parameters())
    largest = max(p.numel() * p.element_size() for p in built.model.parameters())
    found |= {"weights": weights, "forward_peak": plain.peak, "largest_parameter": largest}
    for series, (method, fixed) in COSTED.items():
        counted = step_bytes(method, {**fixed, "lr": 1e-9}, built)
        found[f"{series}.bytes"] = counted.as_dict()
        found[f"{series}.counted"] = counted.total
        if catalog.find(method).kind == "zeroth":
            needed = catalog.find(method).load().memory(built.model, **fixed)
            found[f"{series}.formula"] = plain.peak + needed.state + needed.scratch
        else:  # AdamW keeps two numbers a weight, plain SGD none; activations have no formula here
            kept = 2 * weights if method == "adamw" else 0
            found[f"{series}.formula"] = 2 * weights + kept + counted.saved
        built.model.zero_grad(set_to_none=True)
    times: dict[str, list[float]] = {s: [] for s in ("forward", *COSTED)}
    for turn in range(cfg.steps + 1):
        batch = built.batches.batch(turn)
        begin = time.perf_counter()
        forward()
        times["forward"].append(time.perf_counter() - begin)
        for series, (method, fixed) in COSTED.items():
            # built anew each turn: the state of one method must not crowd the memory of the next
            own = replace(cfg, method=method, params={**fixed, "lr": 1e-9})
            optimizer = make_optimizer(method, given(own), built.model)
            one = step(own, built, optimizer, Schedule(optimizer, "constant", 2), Log())
            for timed in (False, True) if series in (SVRG, "lozo-m", "adamw") else (True,):
                if method == SVRG and not timed:  # an anchor from this batch alone: the step after it is the usual one
                    optimizer.step(forward)
                    continue
                begin = time.perf_counter()
                one(batch)
                spent = time.perf_counter() - begin
            times[series].append(spent)
            built.model.zero_grad(set_to_none=True)
            del optimizer, one
        log.progress(turn + 1, cfg.steps + 1)
    # the first turn warms up
    return found | {f"{s}.seconds": statistics.median(t[1:] or t) for s, t in times.items()}
