"""The steps of `zeroth/vision`: by backpropagation, by random directions, by a method's own estimates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from dlopt import catalog
from dlopt.experiments._steps import Schedule, make_optimizer, zeroth_order
from dlopt.lab.log import Log
from dlopt.zeroth.estimators import random_gradient

BACKWARD = 2  # forward passes that a backward pass is worth
Q = 16  # directions of a random gradient


def make(cfg: Any, model: torch.nn.Module) -> Any:
    """The optimizer of a config."""
    given = dict(cfg.params)
    if "seed" in catalog.find(cfg.method).parameters():
        given["seed"] = cfg.seed
    if catalog.find(cfg.method).kind == "zeroth-model":
        return catalog.find(cfg.method).load()(model, F.cross_entropy, **given)
    return make_optimizer(cfg.method, given, model)


def step(cfg: Any, built: Any, optimizer: Any, rates: Schedule, log: Log) -> Callable[[Any], dict[str, Any]]:
    """step(batch) for the training loop."""
    if catalog.find(cfg.method).kind == "zeroth":
        return zeroth_order(built, optimizer, log.meter, rates)

    def deepzero(batch: Any) -> dict[str, Any]:
        rates.apply()
        before = optimizer.forwards
        with log.meter.phase("optimizer"):
            loss = optimizer.step(*batch)
        return {"loss": float(loss), "forwards": optimizer.forwards - before, **built.consumed(batch)}

    def backpropagation(batch: Any) -> dict[str, Any]:
        rates.apply()
        optimizer.zero_grad(set_to_none=True)
        with log.meter.phase("optimizer"):
            loss = built.criterion(built.forward(built.model, batch), batch)
            loss.backward()
            optimizer.step()
        return {"loss": float(loss.detach()), "forwards": 1 + BACKWARD, **built.consumed(batch)}

    params = [p for p in built.model.parameters() if p.requires_grad]

    def random_directions(batch: Any) -> dict[str, Any]:
        rates.apply()
        with log.meter.phase("optimizer"):
            found = random_gradient(
                lambda: built.criterion(built.forward(built.model, batch), batch),
                params, q=Q, seed=cfg.seed * 1_000_003 + log.meter.forwards,
            )  # fmt: skip
            for p, g in zip(params, found.gradients):
                p.grad = g.to(p.dtype)
            optimizer.step()
        return {"loss": found.loss, "forwards": found.forwards, **built.consumed(batch)}

    if catalog.find(cfg.method).kind == "zeroth-model":
        return deepzero
    return random_directions if cfg.gradient else backpropagation
