"""What an experiment is: a frozen dataclass of settings, a function that runs one of them, and stages of runs.

An experiment file joins methods, a task and the lab::

    @dataclass(frozen=True)
    class Config:
        method: str = "adamw"
        params: dict = field(default_factory=dict)   # the method's hyper-parameters, checked against its signature
        seed: int = 0

    def run(cfg, log): ...; return {"accuracy": 0.97}

    experiment = Experiment("demo", Config, run, version=1, stages={"smoke": (tune, report)}, ...)
"""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from typing import Any, get_origin, get_type_hints

from dlopt import catalog
from dlopt.lab.record import Record, canonical, make_key, plain, same


class ConfigError(ValueError):
    """Settings that an experiment cannot run: an unknown name, a wrong type, a value out of range."""


@dataclass(frozen=True)
class Stage:
    """A group of runs that may depend on the records of earlier stages.

    configs: the runs, given what earlier stages found. minutes: estimated time of one run on one core.
    about: one line for the run table.
    """

    name: str
    configs: Callable[[Earlier], Sequence[Any]]
    minutes: Callable[[Any], float]
    about: str = ""


@dataclass(frozen=True)
class Experiment:
    """One question: how the methods of a topic compare on a task.

    name: topic, or "topic/part". config: the frozen dataclass. run(cfg, log) -> summary. version: raised whenever
    the meaning of a config changes. stages: {scale: stages in order}. identity(cfg) -> {data or weights: sha256}.
    check(cfg): raises `ValueError` for what cannot run, before anything is written. present(results): values,
    tables and figures for the report. primary: the summary figure shown for a finished run.
    """

    name: str
    config: type
    run: Callable[[Any, Any], Mapping[str, Any]]
    version: int
    stages: Mapping[str, Sequence[Stage]]
    identity: Callable[[Any], Mapping[str, str]]
    check: Callable[[Any], None]
    present: Callable[[Any], Any] | None = None
    primary: str = ""

    @property
    def topic(self) -> str:
        return self.name.split("/")[0]

    def configure(self, values: Mapping[str, Any], base: Any = None) -> Any:
        """A config from named values over the defaults or a base; `params.lr` sets one hyper-parameter."""
        known = {f.name for f in fields(self.config)}
        hints = get_type_hints(self.config)
        base = self.config() if base is None else base
        changed: dict[str, Any] = {}
        params = dict(getattr(base, "params", {}))
        for name, value in values.items():
            if name.startswith("params.") and "params" in known:
                params[name.removeprefix("params.")] = value
            elif name == "params" and "params" in known:
                params |= _typed(name, value, dict)
            elif name in known:
                changed[name] = _typed(name, value, hints[name])
            else:
                raise ConfigError(f"{self.name} has no setting {name!r}{catalog.suggest(name, known)}; it has "
                                  f"{', '.join(f.name for f in fields(self.config))}")  # fmt: skip
        if "params" in known:
            changed["params"] = params
        return replace(base, **changed)


@dataclass(frozen=True)
class Run:
    """One config of one experiment on one device class, with the key that names its record."""

    experiment: Experiment
    config: Any
    stage: str
    device: str
    overrides: Mapping[str, Any] = field(repr=False, default_factory=dict)
    identity: Mapping[str, str] = field(repr=False, default_factory=dict)
    key: str = ""
    minutes: float = 0.0

    @classmethod
    def of(cls, experiment: Experiment, config: Any, stage: str, device: str, minutes: float = 0.0) -> Run:
        try:
            changed = overrides(config)
            identity = dict(experiment.identity(config))
            key = make_key(experiment.name, experiment.version, changed, identity, device)
        except ConfigError:
            raise
        except ValueError as error:
            raise ConfigError(f"{experiment.name}: {_sentence(error)}") from error
        return cls(experiment, config, stage, device, changed, identity, key, minutes)

    def check(self) -> None:
        """Raise `ConfigError` if the config cannot run. Nothing has been written by then."""
        method = getattr(self.config, "method", None)
        try:
            if method is not None:
                entry = catalog.find(method)
                if not entry.missing():
                    entry.check(getattr(self.config, "params", {}))
            if not 0 <= (seed := getattr(self.config, "seed", 0)) < 2**32:
                raise ConfigError(f"{self.experiment.name}: seed must be between 0 and {2**32 - 1}, got {seed}")
            self.experiment.check(self.config)
        except ConfigError:
            raise
        except (ValueError, TypeError) as error:
            raise ConfigError(f"{self.experiment.name}: {_sentence(error)}") from error
        except (LookupError, AttributeError, ArithmeticError, AssertionError) as error:
            # what a method's constructor raises for a value it did not expect, such as betas=[0.9]
            text = f"{method} refuses its settings: {type(error).__name__}: {_sentence(error)}"
            raise ConfigError(f"{self.experiment.name}: {text}") from error

    def stale(self, record: Record) -> str:
        """'' or a sentence: the record was made when a default had another value than today.

        The key holds only what differs from the defaults, so a changed default would otherwise go unseen.
        """
        now, then = plain(resolved(self.config)), record.config
        both = [(k, then[k], now[k]) for k in now if k in then and k != "params"]
        old, new = then.get("params", {}), now.get("params", {})
        both += [(f"params.{k}", old[k], new[k]) for k in new if k in old]
        changed = [(k, a, b) for k, a, b in both if not same(a, b)]
        if not changed:
            return ""
        name, a, b = changed[0]
        return (f"record {record.key} was made with {name}={a}, whose default is {b} today: "
                f"raise the version of experiment {self.experiment.name!r}")  # fmt: skip


class Pending(dict[str, Any]):
    """Hyper-parameters that a stage will only know when an earlier one is complete."""

    def __init__(self, reason: str):
        super().__init__({"<pending>": reason})
        self.reason = reason


class Earlier:
    """What the stages before this one found; asked by a stage's `configs`."""

    def __init__(self, records: Mapping[str, Sequence[Record]], planned: Mapping[str, Sequence[Run]]):
        self._records = records
        self._planned = planned

    def records(self, stage: str) -> list[Record]:
        """The finished records of an earlier stage."""
        return list(self._records.get(stage, ()))

    def best(self, stage: str, metric: str, *, maximise: bool, **where: Any) -> dict[str, Any]:
        """The hyper-parameters with the best mean `metric` over seeds, among runs whose config matches `where`.

        A trial of which a seed diverged or failed does not count. `Pending` while runs are missing, or if no trial
        is left. Of equal trials the first wins.
        """

        def fits(run: Run) -> bool:
            return all(same(getattr(run.config, name), value) for name, value in where.items())

        planned = [run for run in self._planned.get(stage, ()) if fits(run)]
        mine = {r.key: r for r in self.records(stage)}
        label = ", ".join(f"{k}={v}" for k, v in where.items())
        if missing := sum(run.key not in mine for run in planned):
            return Pending(f"stage {stage} lacks {missing} runs of {label}")
        scores = []
        for run in planned:
            record = mine[run.key]
            value = record.summary.get(metric) if record.status == "done" else None
            scores.append((dict(run.config.params), math.nan if value is None else float(value)))
        from dlopt.lab import search  # imports torch

        try:
            return search.best(scores, maximise)
        except ValueError:
            return Pending(f"no trial of {label} in stage {stage} ended well")


def overrides(config: Any) -> dict[str, Any]:
    """The values of a config that differ from its defaults; hyper-parameters that equal the method's default too."""
    changed = {}
    for f in fields(config):
        default = f.default_factory() if f.default_factory is not MISSING else f.default
        value = getattr(config, f.name)
        if f.name == "params":
            usual = _defaults(config)
            value = {k: v for k, v in value.items() if k not in usual or not same(usual[k], v)}
        if not same(value, default):
            changed[f.name] = value
    return changed


def resolved(config: Any) -> dict[str, Any]:
    """Every value of a config, the method's own defaults filled in; what cannot stand in JSON as its name."""
    values = {f.name: getattr(config, f.name) for f in fields(config)}
    if "params" in values:
        values["params"] = _defaults(config) | values["params"]
    return values


def _defaults(config: Any) -> dict[str, Any]:
    method = getattr(config, "method", None)
    if method is None or catalog.find(method).missing():
        return {}
    usual = {}
    for name, default in catalog.find(method).parameters().items():
        if default is not inspect.Parameter.empty:
            try:
                plain(default)
                usual[name] = default
            except TypeError:
                usual[name] = getattr(default, "__name__", type(default).__name__)
    return usual


def parse(text: str) -> Any:
    """A value from the command line: JSON if it reads as JSON, else the text itself."""
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return text if isinstance(value, float) and not math.isfinite(value) else value


def _typed(name: str, value: Any, hint: Any) -> Any:
    origin = get_origin(hint) or hint
    if origin is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if origin is str and not isinstance(value, str):
        return canonical(value)
    if origin is tuple and isinstance(value, list | tuple):
        return tuple(value)
    wrong_bool = isinstance(value, bool) and origin is not bool
    if origin in (int, float, bool, str, tuple, dict) and (wrong_bool or not isinstance(value, origin)):
        raise ConfigError(f"{name} takes {_article(origin.__name__)}, not {value!r}")
    return value


def _article(word: str) -> str:
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"


def _sentence(error: BaseException) -> str:
    return " ".join(str(error).split())
