"""The measurements of `zeroth/estimators`: problems whose gradient is known, and how estimates compare with it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from dlopt.experiments.zeroth._common import DTYPES, Cast, Estimator, flat
from dlopt.lab.log import Log
from dlopt.tasks import named
from dlopt.tasks.classification import TASKS
from dlopt.zeroth.directions import draw, mix
from dlopt.zeroth.estimators import shifted

LEVELS = (1, 4, 16, 64)  # numbers of directions
EPS = tuple(10 ** (k / 2) for k in range(-14, 1))  # 1e-7 to 1, two in a decade
MATRICES = {"mnist-lenet": "classifier.2", "digits": "layers.2"}  # the layer whose weight part "rank" looks at


@dataclass(frozen=True)
class Problem:
    """params: what is estimated. loss: at the weights as they are. gradient: (d,) the truth."""

    params: list[Tensor]
    loss: Callable[[], Tensor]
    gradient: Tensor


def _quadratic(cfg: Any) -> Problem:
    """sum_i x_i^2 / (2 i) at a point of N(0, 1) numbers: curvatures that fall as 1/i."""
    x = torch.empty(cfg.size, dtype=torch.float64).normal_(generator=torch.Generator().manual_seed(cfg.seed))
    curvature = 1 / torch.arange(1, cfg.size + 1, dtype=torch.float64)
    x.requires_grad_()
    return Problem([x], lambda: 0.5 * (curvature * x * x).sum(), curvature * x.detach())


def _network(cfg: Any) -> tuple[Any, Any]:
    """(built task in float64 and eval mode, one batch)."""
    task = named(cfg.task, TASKS)
    if cfg.width != 1:
        task = replace(task, options={**task.options, "width": cfg.width})
    built = task.build(cfg.seed, cfg.batch)
    built.model.double().eval()
    return built, built.batches.batch(0)


def problem(cfg: Any) -> Problem:
    if cfg.task == "quadratic":
        return _quadratic(cfg)
    built, (x, y) = _network(cfg)
    params, x = list(built.model.parameters()), x.double()

    def loss() -> Tensor:
        value: Tensor = built.criterion(built.model(x), (x, y))
        return value

    return Problem(params, loss, flat(torch.autograd.grad(loss(), params)))


def matrix(cfg: Any) -> Problem:
    """One weight matrix of the network; layers before it are computed once."""
    built, (x, y) = _network(cfg)
    above, _, place = MATRICES[cfg.task].rpartition(".")
    layers = built.model.get_submodule(above)
    inputs: list[Tensor] = []
    handle = layers[int(place)].register_forward_pre_hook(lambda module, given: inputs.append(given[0].detach()))
    built.model(x.double())
    handle.remove()
    tail: nn.Module = layers[int(place) :]
    weight = layers[int(place)].weight

    def loss() -> Tensor:
        value: Tensor = built.criterion(tail(inputs[0]), (x, y))
        return value

    return Problem([weight], loss, flat(torch.autograd.grad(loss(), [weight])))


class Running:
    """Mean and standard error of numbers that come one by one."""

    def __init__(self) -> None:
        self.n, self.total, self.squares = 0, 0.0, 0.0

    def add(self, value: float) -> None:
        self.n, self.total, self.squares = self.n + 1, self.total + value, self.squares + value * value

    @property
    def mean(self) -> float:
        return self.total / self.n

    @property
    def error(self) -> float:
        if self.n < 2:
            return 0.0
        return math.sqrt(max(0.0, self.squares / self.n - self.mean**2) / (self.n - 1))


def law(cfg: Any, log: Log, problem: Problem) -> dict[str, Any]:
    """Mean over the blocks of q directions: |ghat - g|^2 / |g|^2 and cos^2, beside the formulas."""
    g, d = problem.gradient, len(problem.gradient)
    length = float(g.square().sum())
    estimator = Estimator(cfg.method, cfg.params, problem.params, cfg.seed)
    sums = {q: torch.zeros_like(g) for q in LEVELS}
    errors, angles = {q: Running() for q in LEVELS}, {q: Running() for q in LEVELS}
    whole = torch.zeros_like(g)
    for k in range(1, cfg.draws + 1):
        estimate = estimator.draw(problem.loss)
        whole += estimate
        for q in LEVELS:
            sums[q] += estimate
            if k % q == 0:
                mean = sums[q] / q
                errors[q].add(float((mean - g).square().sum()) / length)
                angles[q].add(float(mean @ g) ** 2 / (float(mean.square().sum()) * length))
                sums[q].zero_()
        log.progress(k, cfg.draws)
    gaussian = cfg.params.get("direction", "gaussian") == "gaussian"
    excess = 1 if gaussian else -1  # E|c z|^2 is d + 2 times |g|^2 for normal numbers, d times for |z|^2 = d
    for q in LEVELS:
        predicted = (d + excess) / q
        log.row(q, mse=errors[q].mean, mse_predicted=predicted, ratio=errors[q].mean / predicted,
                ratio_error=errors[q].error / predicted, blocks=errors[q].n, cosine2=angles[q].mean,
                cosine2_error=angles[q].error, cosine2_predicted=q / (d + q + excess))  # fmt: skip
    bias = float((whole / cfg.draws - g).norm()) / math.sqrt(length)
    return {"d": d, "mean_error": bias, "mean_error_predicted": math.sqrt((d + excess) / cfg.draws),
            "gradient_norm": math.sqrt(length)}  # fmt: skip


def angles(cfg: Any, log: Log, problem: Problem) -> dict[str, Any]:
    """Of single directions: d E cos^2 (1 in theory) and E|ghat|^2 / |g|^2, beside the formula."""
    g, d = problem.gradient, len(problem.gradient)
    length = float(g.square().sum())
    estimator = Estimator(cfg.method, cfg.params, problem.params, cfg.seed)
    angle, second = Running(), Running()
    for k in range(1, cfg.draws + 1):
        estimate = estimator.draw(problem.loss)
        size = float(estimate.square().sum())
        angle.add(d * float(estimate @ g) ** 2 / (size * length))
        second.add(size / length)
        log.progress(k, cfg.draws)
    predicted, found = float(d + 2), {}
    if cfg.part == "rank":
        m, n = problem.params[0].shape
        values = torch.linalg.svdvals(g.view(m, n))
        found = {"m": m, "n": n, "stable_rank": float(values.square().sum() / values[0].square())}
        if cfg.method == "lozo":
            r = cfg.params.get("rank", 2)
            predicted = m * n + 2 * (m + n + r + 1) / r
    return {"d": d, "scaled_cosine2": angle.mean, "scaled_cosine2_error": angle.error, "second": second.mean,
            "second_error": second.error, "second_predicted": predicted, **found}  # fmt: skip


def eps(cfg: Any, log: Log) -> dict[str, Any]:
    """Median of |c - z.g| / |z.g| over directions for each eps, and the bias along the gradient.

    Weights are rounded to the precision first, and the truth is that of the rounded weights.
    """
    built, (x, y) = _network(cfg)
    dtype = DTYPES[cfg.dtype]
    with torch.no_grad():
        for p in built.model.parameters():
            p.copy_(p.to(dtype).double())
    exact = list(built.model.parameters())
    g = torch.autograd.grad(built.criterion(built.model(x.double()), (x, y)), exact)
    low = Cast(built.model, dtype)
    params = list(low.parameters())

    def loss() -> float:
        return float(built.criterion(low(x), (x, y)).detach())

    with torch.no_grad():
        directions = []
        for k in range(cfg.draws):
            zs = [draw("gaussian", p, mix(cfg.seed, k, i)) for i, p in enumerate(params)]
            directions.append(sum(float((z.double() * w).sum()) for z, w in zip(zs, g)))
        usable = []
        for number, eps in enumerate(EPS):
            errors, bias = [], 0.0
            for k, slope in enumerate(directions):
                zs = [draw("gaussian", p, mix(cfg.seed, k, i)) for i, p in enumerate(params)]
                losses = []
                for shift in (eps, -eps):
                    with shifted(params, zs, shift):
                        losses.append(loss())
                c = (losses[0] - losses[1]) / (2 * eps)
                errors.append(abs(c - slope) / abs(slope) if math.isfinite(c) else math.inf)
                bias += (c - slope) * slope
            middle = float(torch.tensor(errors, dtype=torch.float64).median())
            log.row(number, eps=eps, error=middle if math.isfinite(middle) else None,
                    bias=bias / sum(s * s for s in directions))  # fmt: skip
            usable.append(middle)
            log.progress(number + 1, len(EPS))
    return {"best_error": min(usable), "best_eps": EPS[usable.index(min(usable))], "loss": loss(),
            "d": sum(p.numel() for p in params)}  # fmt: skip
