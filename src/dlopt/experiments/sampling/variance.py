"""What theory says of importance sampling on the LASSO sets: the variance at the optimum over that of uniform draws.

At equal small steps the floors of F stand in the ratio tr R_p / tr R_uniform (Yuan et al. 2016), where
R_p = sum_i g_i g_i'/(n^2 p_i) - g g' with the gradients g_i of the data term at the certified optimum and their mean g.
It is exact and needs no run, so it can be held against the floors that `sampling/lasso` measured.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dlopt import catalog
from dlopt.experiments._present import partial_note, stages_table
from dlopt.experiments._series import grouped
from dlopt.experiments.sampling._common import BY, VARIANTS, make, series, skew
from dlopt.experiments.sampling._shown import title
from dlopt.experiments.sampling.lasso import DATA, SMOKE_DATA, reference
from dlopt.experiments.sampling.theory import gradient_norms
from dlopt.lab.experiment import Earlier, Experiment, Stage
from dlopt.lab.log import Log
from dlopt.lab.report import Presentation
from dlopt.lab.study import Results
from dlopt.tasks.lasso import TASKS

SERIES = {by: series for series, (_, by, _) in VARIANTS.items() if by}


@dataclass(frozen=True)
class Config:
    """by: what importance sampling samples by (the norms are those at the optimum). data: of `tasks.lasso`."""

    method: str = "importance"
    by: str = "smoothness"
    data: str = "abalone"


def check(cfg: Config) -> None:
    """Refuse what has no meaning, before anything is written."""
    if cfg.method != "importance":
        raise ValueError(f"the variance of importance sampling is compared with uniform draws; {cfg.method} has none")
    if cfg.by not in BY or not cfg.by:
        raise ValueError(f"by takes smoothness, root or norms, not {cfg.by!r}")
    if cfg.data not in TASKS:
        raise ValueError(f"no LASSO task is called {cfg.data!r}{catalog.suggest(cfg.data, TASKS)}; "
                         f"there are {', '.join(TASKS)}")  # fmt: skip
    TASKS[cfg.data].ready()


def run(cfg: Config, log: Log) -> Mapping[str, Any]:
    """The ratio of variances, and its logarithm: the predicted shift of the floor."""
    ref = reference(cfg.data)
    problem, norms = ref.problem, gradient_norms(ref.problem, ref.x)
    weights = norms if cfg.by == "norms" else problem.smoothness()
    by = "root" if cfg.by == "root" else "smoothness"
    p = make("importance", by, {}, problem.n, 0, smoothness=weights).probabilities()
    mean = np.asarray(problem.slopes(problem.A @ ref.x, problem.b) @ problem.A) / problem.n
    common = float(mean @ mean)
    ratio = (float((norms**2 / (problem.n**2 * p)).sum()) - common) / (float((norms**2).mean()) - common)
    return {"variance_ratio": ratio, "log_variance_ratio": math.log10(ratio), "skew": skew(problem)}


def every(datasets: Sequence[str]) -> Any:
    """The three probabilities on each set."""

    def configs(earlier: Earlier) -> Sequence[Config]:
        return [Config(by=by, data=d) for d in datasets for by in SERIES]

    return configs


def present(results: Results) -> Presentation:
    """One table: sets beside probabilities."""
    import pandas as pd

    shown = Presentation(notes=partial_note(results))
    sets = grouped(results.stages["exact"], lambda r: str(r.config["data"]))
    rows = []
    for d, records in sets.items():
        found = {r.config["by"]: r.summary for r in records if r.status == "done"}
        some = next(iter(found.values()), {})
        rows.append((d, some.get("skew"), *(found.get(by, {}).get("log_variance_ratio") for by in SERIES)))
    frame = pd.DataFrame(rows, columns=["数据", "max L / mean L", *map(title, SERIES.values())])
    frame.attrs["styles"] = {"max L / mean L": "fixed:1"} | dict.fromkeys(frame.columns[2:], "fixed:2")
    shown.tables["exact"] = frame
    shown.tables["runs"] = stages_table(results, {"exact": "方差（精确）"}, series)
    return shown


def _stages(datasets: Sequence[str]) -> tuple[Stage, ...]:
    return (Stage("exact", every(datasets), lambda cfg: 0.01, "exact variance at the certified optimum"),)


experiment = Experiment(
    name="sampling/variance",
    config=Config,
    run=run,
    version=1,
    stages={"smoke": _stages(SMOKE_DATA), "cpu": _stages(DATA)},
    identity=lambda cfg: TASKS[cfg.data].identity() if cfg.data in TASKS else {},
    check=check,
    present=present,
    primary="variance_ratio",
)
