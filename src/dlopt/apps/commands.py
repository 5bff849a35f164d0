"""What the commands of `apps.cli` do."""

from __future__ import annotations

import json as jsons
import secrets
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from dlopt.commands import Usage
from dlopt.poetry.wish import Wish

if TYPE_CHECKING:  # they are heavy to import
    from dlopt.poetry.assistant import Assistant

MODELS = {"poetry": "transformer/assistant"}


def trained() -> Path:
    """Where `dlopt model train poetry` leaves the model that the assistant then uses."""
    from dlopt.experiments._artifacts import artifacts

    return artifacts() / "poetry" / "model.safetensors"


def assistant(model: Path | None) -> Assistant:
    """The assistant with the model that is named, else the one trained here, else the shipped one."""
    from dlopt.poetry import checkpoint
    from dlopt.poetry.assistant import Assistant

    return Assistant(checkpoint.load(model) if model is not None else checkpoint.find(trained()))


def serve(host: str, port: int, model: Path | None) -> None:
    """Serve until interrupted. Without a model the pages say how to get one; a model that is named must be there."""
    try:
        from dlopt.apps import server
    except ImportError as error:
        raise Usage(f"the pages need the extra packages of the app: pip install 'dlopt[app]' ({error})") from error
    from dlopt.poetry.checkpoint import NoModel

    found, missing = None, ""
    try:
        found = assistant(model)
    except NoModel as error:
        if model is not None:
            raise Usage(str(error)) from error
        missing = (
            "还没有写诗的模型：请先运行 dlopt model train poetry（约一小时，可随时停下再续），或用 --model 指定一个"
        )
        print(f"dlopt: {error}", file=sys.stderr)
    except ValueError as error:
        raise Usage(str(error)) from error
    everyone = host in ("0.0.0.0", "::")
    hosts = ("*",) if everyone else tuple(dict.fromkeys((*server.LOCAL, host)))
    try:
        server.serve(server.create(found, missing=missing, hosts=hosts), host, port)
    except OSError as error:
        raise Usage(f"cannot listen on {host}:{port}: {error.strerror or error}") from error


def poem(
    wish: Wish, count: int, temperature: float, best_of: int, seed: int | None, model: Path | None, json: bool
) -> None:
    """Print poems, or one JSON object: of one poem, or with a list under "poems"."""
    from dlopt.poetry.checkpoint import NoModel
    from dlopt.poetry.wish import Refused

    seed = secrets.randbelow(2**31) if seed is None else seed
    try:
        poems = assistant(model).write(
            wish, count=count, temperature=temperature, best_of=best_of, seed=seed
        )  # fmt: skip
    except (NoModel, Refused, ValueError) as error:
        raise Usage(str(error)) from error
    if json:
        found = [{**p.as_dict(), "seed": seed} for p in poems]
        print(jsons.dumps(found[0] if count == 1 else {"poems": found}, ensure_ascii=False))
        return
    for number, made in enumerate(poems):
        if number:
            print()
        if made.title:
            print(f"《{made.title}》")
        for first in range(0, len(made.lines), 2):
            couplet = list(zip(made.lines, made.tones))[first : first + 2]
            print("，".join(line for line, _ in couplet) + "。    " + " ".join(tones for _, tones in couplet))
        print(f"{made.form}，{made.pattern or '格式不成立'}，押{made.rhyme[3:]}" if made.rhyme else made.form)
        for fault in made.faults:
            print(f"  {fault.message}")
        for note in made.notes:
            print(f"  注：{note.message}")
    print(f"dlopt: --seed {seed} writes the same again", file=sys.stderr)


def train(
    name: str,
    scale: str,
    minutes: float | None,
    set_: list[str] | None,
    results: Path | None,
    threads: int,
    device: str,
) -> int:
    """Do the run that trains a model, with its progress bar; at the end put the model where the assistant looks."""
    from dlopt import catalog
    from dlopt.commands import conduct, study_of
    from dlopt.experiments._artifacts import artifacts
    from dlopt.experiments.transformer.assistant import artifact
    from dlopt.lab.run import recorded

    if name not in MODELS:
        raise Usage(f"no model to train is called {name!r}{catalog.suggest(name, list(MODELS))}; there is poetry")
    study = study_of(MODELS[name], scale, None, set_, device)
    folder = (results or artifacts() / "records") / study.experiment.topic
    (stage,) = study.plan(folder)
    (run,) = stage.runs
    path = artifact(run.key)
    record = recorded(run, folder)
    if record is not None and record.status == "done" and not path.is_file():
        raise Usage(
            f"{folder / run.key}.json says that the model was trained, but {path} is not here; give another --results "
            "to train it again"
        )
    if code := conduct(study, folder, 1, None, threads, minutes, retry=True):
        return code
    record = recorded(run, folder)
    if record is None or record.status != "done":
        print("dlopt: the model is not finished; the same command goes on from the last checkpoint", file=sys.stderr)
        return 0
    used = path
    if scale != "smoke":
        used = trained()
        partial = used.with_suffix(".tmp")
        shutil.copyfile(path, partial)
        partial.replace(used)
    print(used)
    figure = record.summary["val_perplexity"]
    hint = "`dlopt poem` uses it" if used != path else f"try it with `dlopt poem --model {path}`"
    print(f"dlopt: validation perplexity {figure:.1f} per character; {hint}", file=sys.stderr)
    return 0
