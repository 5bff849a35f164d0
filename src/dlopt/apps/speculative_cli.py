"""The commands `dlopt speculative build-store` and `distill`. Nothing heavy is imported before one of them runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

MODEL = "smollm2-135m-instruct-q4_1"
group = typer.Typer(no_args_is_help=True, help="What drafters need for speculative decoding: stores and small models.")


def add(app: typer.Typer) -> None:
    """Put the group into the command line."""
    app.add_typer(group, name="speculative")


@group.command("build-store")
def build_store(
    corpus: Annotated[
        Path,
        typer.Argument(
            help='A file of text (one document), of JSON lines with "text" (one document each), both also .gz or .xz, '
            "or a folder of such files."
        ),
    ],
    out: Annotated[Path, typer.Option(help="The file of the store; it must not exist.")],
    tokenizer: Annotated[str, typer.Option(help="The target's name or folder, whose tokenizer is taken.")] = MODEL,
) -> None:
    """Build the datastore of REST from a corpus: `DatastoreDrafter(PATH)` drafts from it."""
    from dlopt.apps import speculative

    speculative.build_store(corpus, tokenizer, out)


@group.command()
def distill(
    target: Annotated[str, typer.Argument(help="The target: a pretrained model's name, or a folder.")] = MODEL,
    out: Annotated[Path, typer.Option(help="The folder of the drafter; it must not exist.")] = Path("drafter"),
    layers: Annotated[int, typer.Option(help="Layers of the drafter; 2 to 4 are usual.")] = 2,
    steps: Annotated[int, typer.Option(help="Steps of training.")] = 400,
    data: Annotated[str, typer.Option(help="A data set of text, or text:FILE.")] = "gutenberg-books",
    batch: Annotated[int, typer.Option(help="Windows in a step.")] = 4,
    window: Annotated[int, typer.Option(help="Tokens in a window.")] = 128,
    lr: Annotated[float, typer.Option(help="The largest learning rate.")] = 5e-4,
    seed: Annotated[int, typer.Option(help="Of the windows.")] = 0,
    minutes: Annotated[float | None, typer.Option(min=0, help="Stop at a checkpoint after this time.")] = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads.")] = 1,
) -> None:
    """Train a small drafter on a model's own laws. The same command goes on where it stopped."""
    from dlopt.apps import speculative

    recipe = {"layers": layers, "steps": steps, "batch": batch, "window": window, "lr": lr, "seed": seed}
    raise typer.Exit(speculative.distill(target, out, data, recipe, minutes, threads))
