"""The commands `dlopt app`, `dlopt poem` and `dlopt model train`. Nothing heavy is imported before one of them runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Model = Annotated[
    Path | None, typer.Option(help="A model of poems (safetensors); else the one trained here or shipped.")
]


def add(app: typer.Typer, model_app: typer.Typer) -> None:
    """Put the commands into the command line."""
    app.command("app")(serve)
    app.command("poem")(poem)
    model_app.command("train")(train)


def serve(
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes any that is free.")] = 8765,
    host: Annotated[str, typer.Option(help="The address to listen on; 0.0.0.0 lets others in.")] = "127.0.0.1",
    model: Model = None,
) -> None:
    """Serve the pages (the poem assistant, decoding with drafts) on this machine, until interrupted."""
    from dlopt.apps import commands

    commands.serve(host, port, model)


def poem(
    text: Annotated[str, typer.Argument(help="A first line, the line to answer, or the word to hide.")] = "",
    form: Annotated[
        str, typer.Option(help="续下句, 绝句, 律诗, 藏头诗, 对联; 五绝, 七绝, 五律, 七律 set the length too.")
    ] = "绝句",
    title: Annotated[str, typer.Option(help="What it is about, at most 8 characters.")] = "",
    length: Annotated[int, typer.Option(help="Characters in a line, 5 or 7; 0: as the text.")] = 0,
    rhyme: Annotated[str | None, typer.Option(help="A level rhyme group, such as 东.")] = None,
    count: Annotated[int, typer.Option(min=1, max=16, help="How many.")] = 1,
    temperature: Annotated[float, typer.Option(min=0, max=2, help="0 takes the likeliest character each time.")] = 0.9,
    best_of: Annotated[int, typer.Option(min=1, max=8, help="Candidates for each poem; the likeliest stays.")] = 1,
    seed: Annotated[int | None, typer.Option(min=0, help="The same seed writes the same poem. Else drawn.")] = None,
    script: Annotated[str, typer.Option(help="auto (as the text), simplified or traditional.")] = "auto",
    model: Model = None,
    json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Write a poem that keeps tone and rhyme: `dlopt poem "春眠不觉晓"`."""
    from dlopt.apps import commands
    from dlopt.poetry.wish import Wish

    wish = Wish(form, text, title, length, rhyme, script)
    commands.poem(wish, count, temperature, best_of, seed, model, json)


def train(
    name: Annotated[str, typer.Argument(help="What to train: poetry.")],
    scale: Annotated[str, typer.Option(help="cpu (an hour or two), gpu, or smoke (seconds: only to try it).")] = "cpu",
    minutes: Annotated[float | None, typer.Option(min=0, help="Stop at a checkpoint after this time.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="setting=value, such as steps=500. Repeatable.")
    ] = None,
    results: Annotated[Path | None, typer.Option(help="Folder of the record; else one in the cache.")] = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads; recorded.")] = 1,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
) -> None:
    """Train a model that an application uses. The same command resumes."""
    from dlopt.apps import commands

    raise typer.Exit(commands.train(name, scale, minutes, set_, results, threads, device))
