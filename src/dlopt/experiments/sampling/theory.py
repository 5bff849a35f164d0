"""Where theory is exact: quadratics with known optimum. One run is one point of one of four pictures.

floor: error at a constant step against the step; epochs: error at tuned steps against the number of passes; formula:
measured mean-square deviation and excess risk against those of Yuan et al. (2016); skew: variance of importance
sampling over that of uniform draws against the spread of the row norms.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dlopt.experiments.sampling._common import check_sampler, make, rounded, skew
from dlopt.lab.experiment import Earlier, Experiment, Stage
from dlopt.lab.log import Log
from dlopt.lab.report import Presentation
from dlopt.lab.study import Results
from dlopt.sampling import FiniteSum, prox_sgd

PARTS = ("floor", "epochs", "formula", "skew")
ORDERS = ("with-replacement", "fixed-order", "shuffle-once", "random-reshuffling", "grab")
STEPS = (0.04, 0.02, 0.01, 0.005)
PASSES = (16, 32, 64, 128, 256)
SPREADS = (0.0, 0.25, 0.5, 0.75, 1.0)
CHAINS = {"floor": 60, "epochs": 12, "formula": 200, "skew": 1}
MIX: dict[str, float] = {}
PURE = {"mix": 1.0}
# {what the probabilities follow: (by, parameters)}; "gradient" stands for the exact norms at the point of measurement
PROBABILITIES = {"smoothness": PURE, "root": PURE, "mixed": MIX, "gradient": PURE}


@dataclass(frozen=True)
class Config:
    """part: one of `PARTS`. method, params: the sampler. by: of importance, "smoothness", "root" or "gradient" (exact
    gradient norms at the point of measurement). step: constant. epochs: passes. spread: deviation of the logarithm of
    the row norms. normalised: rows scaled to norm 1. at: "start" (x = 0) or "optimum". chains: independent runs side
    by side. seed: of the problem and of the draws."""

    part: str = "floor"
    method: str = "random-reshuffling"
    params: dict[str, Any] = field(default_factory=dict)
    by: str = ""
    step: float = 0.0
    epochs: int = 0
    spread: float = 0.0
    normalised: bool = False
    at: str = "start"
    chains: int = 1
    seed: int = 0


def ridge(n: int, d: int, spread: float, seed: int, l2: float, normalised: bool = False) -> tuple[FiniteSum, Any, Any]:
    """Least squares with log-normal row norms and noise of deviation 1: problem, optimum, Hessian."""
    random = np.random.default_rng([seed, 8])
    A = random.normal(size=(n, d)) * np.exp(spread * random.normal(size=(n, 1)))
    b = A @ random.normal(size=d) + random.normal(size=n)
    if normalised:
        norms = np.linalg.norm(A, axis=1)
        A, b = A / norms[:, None], b / norms
    hessian = A.T @ A / n + l2 * np.eye(d)
    return FiniteSum(A, b, l2=l2), np.linalg.solve(hessian, A.T @ b / n), hessian


def check(cfg: Config) -> None:
    """Refuse what cannot run, before anything is written."""
    if cfg.part not in PARTS:
        raise ValueError(f"part takes {', '.join(PARTS)}, not {cfg.part!r}")
    if cfg.at not in ("start", "optimum"):
        raise ValueError(f"at takes start or optimum, not {cfg.at!r}")
    if not (cfg.spread >= 0 and cfg.step >= 0 and cfg.epochs >= 0 and cfg.chains >= 1):
        raise ValueError("spread, step and epochs must be at least 0 and chains at least 1, got "
                         f"{cfg.spread}, {cfg.step}, {cfg.epochs} and {cfg.chains}")  # fmt: skip
    if cfg.part in ("floor", "formula") and not (cfg.step > 0 and cfg.epochs):
        raise ValueError(f"part {cfg.part} needs a step and a number of epochs above 0")
    if cfg.part == "epochs" and not cfg.epochs:
        raise ValueError("part epochs needs a number of epochs above 0")
    check_sampler(cfg.method, "smoothness" if cfg.by == "gradient" else cfg.by, cfg.params)


def run(cfg: Config, log: Log) -> Mapping[str, Any]:
    """One point of one picture."""
    parts = {"floor": _floor, "epochs": _epochs, "formula": _formula, "skew": _skew}
    return rounded(parts[cfg.part](cfg, log), 10)


def _samplers(cfg: Config, problem: FiniteSum, at: np.ndarray) -> list[Any]:
    weights, by = problem.smoothness(), cfg.by
    if cfg.by == "gradient":
        weights, by = gradient_norms(problem, at), "smoothness"
    seeds = range(cfg.seed * cfg.chains, (cfg.seed + 1) * cfg.chains)
    return [make(cfg.method, by, cfg.params, problem.n, s, smoothness=weights) for s in seeds]


def gradient_norms(problem: FiniteSum, x: np.ndarray) -> np.ndarray:
    """(n,): |grad f_i(x)| of the data terms."""
    return np.abs(problem.slopes(problem.A @ x, problem.b)) * problem.row_norms()


def _descend(
    cfg: Config, log: Log, problem: FiniteSum, best: np.ndarray, step: float, from_optimum: bool
) -> list[dict[str, Any]]:
    done = iter(range(cfg.epochs + 1))
    optimum = problem.value(best)

    def watch(x: np.ndarray) -> dict[str, Any]:
        log.progress(next(done), cfg.epochs)
        return {"distance": ((x - best) ** 2).sum(-1), "excess": problem.value(x) - optimum}

    samplers = _samplers(cfg, problem, best)
    x0 = best if from_optimum else None
    return prox_sgd(problem, samplers, epochs=cfg.epochs, step=step, average_from=None, x0=x0, watch=watch).history


def _mean(rows: Sequence[Mapping[str, Any]], name: str) -> tuple[float, float]:
    """Mean over the rows and chains, and its standard error over chains."""
    by_chain = np.array([row[name] for row in rows]).mean(0)
    return float(by_chain.mean()), float(by_chain.std(ddof=1) / math.sqrt(len(by_chain))) if len(by_chain) > 1 else 0.0


def _floor(cfg: Config, log: Log) -> dict[str, Any]:
    """n = 50, d = 5: from the optimum, the mean squared distance after the first third of the passes."""
    problem, best, _ = ridge(50, 5, cfg.spread, cfg.seed, l2=0.2)
    rows = _descend(cfg, log, problem, best, cfg.step, True)
    distance, error = _mean(rows[cfg.epochs // 3 :], "distance")
    return {"distance": distance, "standard_error": error, "skew": skew(problem)}


def _epochs(cfg: Config, log: Log) -> dict[str, Any]:
    """n = 100, d = 10: from 0, step min(1/L_max, 2 ln(nK)/(mu n K)), mean over the last quarter of K passes."""
    problem, best, hessian = ridge(100, 10, cfg.spread, cfg.seed, l2=0.1)
    mu, n, k = float(np.linalg.eigvalsh(hessian)[0]), problem.n, cfg.epochs
    step = min(1 / float(problem.smoothness().max()), 2 * math.log(n * k) / (mu * n * k))
    rows = _descend(cfg, log, problem, best, step, False)
    distance, error = _mean(rows[-max(1, k // 4) :], "distance")
    return {"distance": distance, "standard_error": error, "step": step, "skew": skew(problem)}


def _formula(cfg: Config, log: Log) -> dict[str, Any]:
    """n = 200, d = 8: measured and predicted MSD = (g/2) tr(H^-1 R) and excess risk (g/4) tr(R), g = step / max L_i.

    R = sum_i g_i g_i'/(n^2 p_i) - g g' is the covariance of the weighted data gradients at the optimum.
    """
    problem, best, hessian = ridge(200, 8, cfg.spread, cfg.seed, l2=0.1)
    step = cfg.step / float(problem.smoothness().max())
    rows = _descend(cfg, log, problem, best, step, True)[cfg.epochs // 3 :]
    sampler = _samplers(cfg, problem, best)[0]
    p = sampler.probabilities() if hasattr(sampler, "probabilities") else np.full(problem.n, 1 / problem.n)
    gradients = problem.slopes(problem.A @ best, problem.b)[:, None] * problem.A
    centre = gradients.mean(0)
    noise = (gradients.T / (problem.n**2 * p)) @ gradients - np.outer(centre, centre)
    msd, msd_error = _mean(rows, "distance")
    risk, risk_error = _mean(rows, "excess")
    predicted = step / 2 * float(np.trace(np.linalg.solve(hessian, noise)))
    predicted_risk = step / 4 * float(np.trace(noise))
    return {
        "msd": msd, "msd_error": msd_error, "msd_predicted": predicted, "msd_ratio": msd / predicted,
        "risk": risk, "risk_error": risk_error, "risk_predicted": predicted_risk, "risk_ratio": risk / predicted_risk,
        "skew": skew(problem),
    }  # fmt: skip


def _skew(cfg: Config, log: Log) -> dict[str, Any]:
    """n = 1000, d = 10: sum |g_i|^2/(n^2 p_i) over that of uniform draws, exact, and from 20,000 draws."""
    problem, best, _ = ridge(1000, 10, cfg.spread, cfg.seed, l2=0.0, normalised=cfg.normalised)
    x = best if cfg.at == "optimum" else np.zeros(problem.d)
    norms = gradient_norms(problem, x)
    weights = norms if cfg.by == "gradient" else problem.smoothness()
    by = "smoothness" if cfg.by == "gradient" else cfg.by
    sampler = make(cfg.method, by, cfg.params | {"num_samples": 20_000}, problem.n, cfg.seed, smoothness=weights)
    uniform = float((norms**2).mean())
    exact = float((norms**2 / (problem.n**2 * sampler.probabilities())).sum())
    indices, w = np.array(list(sampler)).T
    drawn = float(((w * norms[indices.astype(int)]) ** 2).mean())
    return {"variance_ratio": exact / uniform, "drawn_ratio": drawn / uniform, "skew": skew(problem)}


def _chains(method: str, chains: int) -> int:
    """GraB takes several times as long for a chain, and its chains differ little."""
    return max(4, chains // 4) if method == "grab" else chains


def floor(steps: Sequence[float], chains: int, epochs: float = 2.0) -> Any:
    """Every order at every step, for 2/step passes."""
    return lambda earlier: [
        Config("floor", m, step=s, epochs=round(epochs / s), chains=_chains(m, chains)) for m in ORDERS for s in steps
    ]


def epochs(passes: Sequence[int], chains: int, seeds: Sequence[int]) -> Any:
    """Every order but the fixed one for every number of passes, on several problems."""
    orders = [m for m in ORDERS if m != "fixed-order"]
    return lambda earlier: [
        Config("epochs", m, epochs=k, chains=_chains(m, chains), seed=s) for m in orders for k in passes for s in seeds
    ]


def formula(chains: int, passes: int, seeds: Sequence[int]) -> Any:
    """Uniform draws and the two optimal kinds of probabilities."""
    kinds: list[tuple[str, dict[str, Any], str]] = [("with-replacement", {}, ""), ("importance", PURE, "gradient")]
    kinds.append(("importance", MIX, "smoothness"))
    return lambda earlier: [
        Config("formula", m, p, by, step=0.06, epochs=passes, spread=0.7, chains=chains, seed=s)
        for m, p, by in kinds
        for s in seeds
    ]


def skews(spreads: Sequence[float], seeds: Sequence[int]) -> Any:
    """Four kinds of probabilities over the spread of the row norms, at the start and at the optimum, and normalised."""

    def configs(earlier: Earlier) -> Sequence[Config]:
        cases = [(s, False, at) for s in spreads for at in ("start", "optimum")]
        cases += [(spreads[-1], True, "start")]
        return [
            Config("skew", "importance", dict(params), "smoothness" if kind == "mixed" else kind, spread=spread,
                   normalised=normalised, at=at, seed=seed)
            for kind, params in PROBABILITIES.items()
            for spread, normalised, at in cases
            for seed in seeds
        ]  # fmt: skip

    return configs


def minutes(cfg: Config) -> float:
    """On one core of a 2026 server."""
    n = {"floor": 50, "epochs": 100, "formula": 200, "skew": 0}[cfg.part]
    a_step = 6.5e-5 * cfg.chains if cfg.method == "grab" else 1.8e-5 + 5e-7 * cfg.chains
    return 0.005 + n * cfg.epochs * a_step / 60


def present(results: Results) -> Presentation:
    """Values, tables and figures of the report."""
    from dlopt.experiments.sampling._report_theory import present as made

    return made(results)


experiment = Experiment(
    name="sampling/theory",
    config=Config,
    run=run,
    version=1,
    stages={
        "smoke": (
            Stage("floor", floor((0.04, 0.02), 8, 0.5), minutes, "two steps, 8 chains"),
            Stage("epochs", epochs((8, 16), 4, (0,)), minutes, "two numbers of passes"),
            Stage("formula", formula(20, 12, (0,)), minutes, "one problem"),
            Stage("skew", skews((0.0, 1.0), (0,)), minutes, "two spreads"),
        ),
        "cpu": (
            Stage("floor", floor(STEPS, CHAINS["floor"]), minutes, f"{len(STEPS)} steps, {CHAINS['floor']} chains"),
            Stage("epochs", epochs(PASSES, CHAINS["epochs"], (0, 1, 2)), minutes, "five numbers of passes, 3 problems"),
            Stage("formula", formula(CHAINS["formula"], 120, (0, 1, 2)), minutes, "three kinds of draws, 3 problems"),
            Stage("skew", skews(SPREADS, (0, 1, 2)), minutes, "four kinds of probabilities, 3 problems"),
        ),
    },
    identity=lambda cfg: {},
    check=check,
    present=present,
    primary="distance",
)
