"""Regression for LASSO: fixed designs, standardised, on which solvers and samplers meet.

The objective is F(x) = |A x - b|^2/(2n) + lam |x|_1 without intercept, lam a fixed share of the smallest lam for which
0 is optimal. Columns of A are brought to mean 0 and variance 1 and b to mean 0 and variance 1: the missing intercept
then costs nothing, the penalty means the same for every column, and F(0) = 1/2 for every set. Rows are left as they
are, since the spread of their norms is what importance sampling lives on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from dlopt.tasks import data
from dlopt.tasks.data.files import locate


@dataclass(frozen=True)
class Design:
    """A: float64 (n, d). b: float64 (n,). ratio: lam over the smallest lam for which 0 is optimal."""

    A: np.ndarray
    b: np.ndarray
    ratio: float


@dataclass(frozen=True)
class Regression:
    """data: a name in `tasks.data`, or "" for a generated design of `rows` x `columns` with `support` true
    coefficients of +-1, log-normal row norms (deviation `spread` of the logarithm) and noise of deviation `noise`."""

    name: str
    data: str = ""
    ratio: float = 0.1
    rows: int = 0
    columns: int = 0
    support: int = 10
    spread: float = 0.5
    noise: float = 0.3

    def identity(self) -> dict[str, str]:
        """sha256 of the data; of a generated design its recipe, which rounding on another machine does not change."""
        return data.identity(self.data) if self.data else {"generated": repr(self)}

    def ready(self) -> None:
        """Raise `DataUnavailable` if the data is not on this machine."""
        if self.data:
            spec = data.find(self.data)
            locate(spec.name, spec.files, spec.help)

    def build(self) -> Design:
        """The design, the same for every seed."""
        if self.data:
            table: data.Table = data.get(self.data)
            x, y = table.standardised().x, table.y
        else:
            x, y = self._generated()
            x = (x - x.mean(0)) / x.std(0)
        return Design(x, (y - y.mean()) / y.std(), self.ratio)

    def _generated(self) -> tuple[np.ndarray, np.ndarray]:
        random = np.random.default_rng(20240612)
        x = random.normal(size=(self.rows, self.columns)) * np.exp(self.spread * random.normal(size=(self.rows, 1)))
        truth = np.zeros(self.columns)
        truth[random.permutation(self.columns)[: self.support]] = random.choice([-1.0, 1.0], self.support)
        return x, x @ truth + self.noise * random.normal(size=self.rows)


TASKS: Mapping[str, Regression] = {
    task.name: task
    for task in (
        Regression("abalone", "libsvm:abalone_scale"),
        Regression("cpusmall", "libsvm:cpusmall_scale"),
        Regression("housing", "libsvm:housing_scale"),
        Regression("mg", "libsvm:mg_scale"),
        Regression("wide", rows=200, columns=500),
        Regression("diabetes", "diabetes"),
        Regression("wide-small", rows=40, columns=80, support=5),
    )
}
