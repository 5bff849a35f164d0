"""A small experiment for tests of the lab: a regression with dropout, momentum and every kind of random generator."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from dlopt.lab.experiment import Experiment, Stage
from dlopt.lab.log import Log
from dlopt.lab.search import sobol
from dlopt.lab.train import train
from dlopt.memory import Bytes
from dlopt.tasks.data.batches import Batches


@dataclass(frozen=True)
class Config:
    method: str = "sgd"
    params: dict[str, Any] = field(default_factory=dict)
    steps: int = 30
    pause: float = 0.0
    fail: str = ""
    seed: int = 0


def run(cfg: Config, log: Log) -> dict[str, Any]:
    if cfg.fail == "error":
        raise RuntimeError("this run was told to fail")
    generator = torch.Generator().manual_seed(cfg.seed)
    x = torch.randn(64, 4, generator=generator)
    y = x @ torch.tensor([1.0, -2.0, 3.0, 0.5])
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Dropout(0.2), torch.nn.Linear(8, 1))
    rate = float("inf") if cfg.fail == "diverge" else cfg.params.get("lr", 0.01)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9)

    def step(batch):
        time.sleep(cfg.pause)
        inputs, targets = batch
        noise = 0.01 * (random.random() + float(np.random.rand()))  # noqa: NPY002 (global on purpose)
        loss = ((model(inputs).squeeze(1) - targets) ** 2).mean() + noise
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return {"loss": float(loss.detach()), "forwards": 1, "examples": len(targets)}

    def evaluate():
        model.eval()
        with torch.no_grad():
            loss = float(((model(x).squeeze(1) - y) ** 2).mean())
        model.train()
        return {"val_loss": loss}

    state = {"model": model, "optimizer": optimizer}
    batches = Batches((x, y), 8, cfg.seed)
    train(step, batches, state, steps=cfg.steps, log=log, evaluate=evaluate, eval_every=10, log_every=2)
    log.bytes = Bytes(weights=sum(p.nbytes for p in model.parameters()))
    return evaluate() | {"forwards": log.meter.forwards}


def check(cfg: Config) -> None:
    if cfg.steps < 1:
        raise ValueError(f"steps must be at least 1, got {cfg.steps}")


def tune(earlier):
    return [Config(params=point, seed=9) for point in sobol({"lr": (1e-3, 5e-2, "log")}, 3, seed=1)]


def report(earlier):
    params = earlier.best("tune", "val_loss", maximise=False, method="sgd")
    return [Config(params=params, seed=seed) for seed in (0, 1)]


experiment = Experiment(
    name="toy",
    config=Config,
    run=run,
    version=1,
    stages={
        "smoke": (
            Stage("tune", tune, lambda cfg: 0.01, "three trials"),
            Stage("report", report, lambda cfg: 0.01, "two seeds"),
        )
    },
    identity=lambda cfg: {"toy": "0" * 64},
    check=check,
    primary="val_loss",
)
