"""Made-up records and a made-up presentation of the demo, for tests of figures, reports and the dashboard.

The numbers are invented: they have the shape of real ones and mean nothing.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dlopt.lab import figures
from dlopt.lab.record import Record
from dlopt.lab.report import Presentation

ROOT = Path(__file__).parents[2]
METHODS = ("adamw", "sgd", "adafactor", "mezo")
COUNT = 8970  # parameters of the made-up network


@dataclass(frozen=True)
class Interval:
    mean: float
    low: float
    high: float


def around(mean: float, half: float) -> Interval:
    return Interval(mean, mean - half, mean + half)


def record(
    method: str, seed: int = 0, status: str = "done", lr: float = 1e-3, points: int = 21, **config: Any
) -> Record:
    """One run whose curves decay at a pace of the method's own."""
    noise = np.random.default_rng([seed, len(method)])
    pace = {"adamw": 9.0, "sgd": 6.0, "adafactor": 8.0, "mezo": 2.5}.get(method, 5.0)
    forwards = 2 if method == "mezo" else 1
    step = np.linspace(0, 1000 * (5 if method == "mezo" else 1), points).round().astype(int)
    share = np.linspace(0, 1, points)
    loss = 2.3 * np.exp(-pace * share) + 0.08 + 0.02 * noise.random(points)
    if status == "diverged":
        loss = 2.3 * np.exp(4 * share)
    accuracy = (0.97 - 0.87 * np.exp(-pace * share) - 0.01 * noise.random(points)).clip(0, 1)
    curve: dict[str, list[Any]] = {
        "step": step.tolist(),
        "examples": [None, *(step[1:] * 64).tolist()],  # as the training loop writes it: nothing is counted yet at 0
        "forwards": [None, *(step[1:] * forwards).tolist()],
        "seconds": (step * (1e-3 + 1e-5 * seed)).tolist(),
        "loss": [None, *loss[1:].tolist()],
        "val_loss": (loss * 1.1).tolist(),
        "val_accuracy": accuracy.tolist(),
    }
    memory = {"weights": 4 * COUNT, "gradients": 4 * COUNT, "state": 8 * COUNT, "saved": 64 * 4 * 274}
    if method == "mezo":
        memory = {"weights": 4 * COUNT, "scratch": 4 * 64 * 128, "state": 8}
    elif method == "sgd":
        memory["state"] = 4 * COUNT
    elif method == "adafactor":
        memory |= {"state": 2400, "scratch": 4 * 64 * 128}
    summary = {} if status != "done" else {"accuracy": float(accuracy[-1]), "loss": float(loss[-1]), "seconds": 1.2}
    return Record(
        key=f"{zlib.crc32(repr((method, seed, lr)).encode()):016x}",
        experiment="demo",
        version=1,
        config={"method": method, "params": {"lr": lr}, "seed": seed, **config},
        overrides={},
        identity={},
        device="cpu",
        status=status,
        reason="" if status == "done" else "loss is not finite at step 900",
        summary=summary,
        curve=curve,
        bytes=memory,
    )


def records() -> list[Record]:
    """Four methods, three seeds; one run of SGD diverged."""
    found = [record(m, seed) for m in METHODS for seed in (10, 11, 12)]
    return [
        record("sgd", 12, "diverged") if r.config["method"] == "sgd" and r.config["seed"] == 12 else r for r in found
    ]


def trials() -> list[Record]:
    """A search over the learning rate."""
    rates = np.geomspace(1e-4, 1e-1, 8)
    return [
        record(m, i, "diverged" if lr > 0.04 and m != "mezo" else "done", lr)
        for m in METHODS
        for i, lr in enumerate(rates)
    ]


def presentation() -> Presentation:
    """Everything that reports/demo/report.typ asks for."""
    values: dict[str, Any] = {
        "target.accuracy": 0.9, "trials": 5, "seeds": 3, "steps.first": 600, "steps.mezo": 10_000,
        "parameters": COUNT, "batch": 64, "train_size": 1293, "test_size": 360,
        "p.adafactor_adamw": 0.41, "p.mezo_adamw": 0.0004,
    }  # fmt: skip
    for i, m in enumerate(METHODS):
        accuracy = 0.95 - 0.01 * i * i
        values |= {
            f"{m}.accuracy": around(accuracy, 0.004 + 0.002 * i),
            f"{m}.loss": around(0.15 + 0.05 * i, 0.013),
            f"{m}.state_bytes": (77_120, 38_560, 720, 8)[i],
            f"{m}.peak_bytes": (210_000, 170_000, 172_000, 70_000)[i],
            f"{m}.forwards": 600 if m != "mezo" else 20_000,
            f"{m}.seconds_per_step": around(0.00061 * (i + 1), 0.00002),
            f"{m}.lr": 0.00317 * 10 ** (-i),
            f"{m}.steps_to_target": around(120.0, 11.0) if m != "mezo" else "未达到",
        }
    for q in range(1, 6):
        values[f"verdict.q{q}"] = ("证实", "推翻", "未定")[q % 3]
        values[f"answer.q{q}"] = (
            f"第 {q} 句由记录生成的回答，这里是虚构的，只为检查版式；它可以长到需要换行，也可以很短。"
        )
    runs = pd.DataFrame(
        {
            "stage": ["tune", "report"],
            "method": ["4 种", "4 种"],
            "seeds": [1, 3],
            "trials": [5, 1],
            "runs": [20, 12],
            "minutes": [3.04, 1.82],
        }
    ).rename(columns={"stage": "阶段", "runs": "运行数", "minutes": "分钟"})
    main = pd.DataFrame(
        {"method": list(METHODS), "lr": [values[f"{m}.lr"] for m in METHODS]}
        | {f"test_{c}": [values[f"{m}.{c}"] for m in METHODS] for c in ("accuracy", "loss")}
        | {
            c: [values[f"{m}.{c}"] for m in METHODS]
            for c in ("state_bytes", "peak_bytes", "forwards", "seconds_per_step")
        }
    )
    tests = pd.DataFrame(
        {
            "method": ["sgd", "adafactor", "mezo"],
            "difference": [around(-0.012, 0.02), around(0.002, 0.01), around(-0.09, 0.01)],
            "p": [0.21, 0.41, 0.0001],
            "p_holm": [0.42, 0.41, 0.0003],
            "verdict": ["未定", "未定", "更差"],
        }
    ).rename(columns={"difference": "准确率之差", "verdict": "判定"})
    tests.attrs["styles"] = {"准确率之差": "percent"}
    shown = {
        "curves_examples": figures.curves(records(), "examples", ["val_loss", "val_accuracy"], log_y=True, target=0.9),
        "curves_forwards": figures.curves(records(), "forwards", ["val_loss", "val_accuracy"], log_x=True, log_y=True),
        "memory": figures.stacked({r.config["method"]: r.bytes for r in records()}),
        "tuning": figures.scatter(trials(), "lr", "accuracy", log_x=True, best="max"),
    }
    return Presentation(values, {"runs": runs, "main": main, "tests": tests}, shown, [])
