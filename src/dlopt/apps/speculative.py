"""What the commands of `apps.speculative_cli` do."""

from __future__ import annotations

import gzip
import json
import lzma
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from dlopt.commands import Usage
from dlopt.lab import bars

EVERY = 60.0  # seconds between checkpoints
PER_TOKEN = 8  # bytes of text for a token, more than English needs
EXCERPTS = 64


def build_store(corpus: Path, model: str, out: Path) -> None:
    """Read a corpus, tokenize it, sort it and write the store; or one sentence, and nothing is written."""
    _free(out)
    if not corpus.exists():
        raise Usage(f"there is no corpus {corpus}")
    files = [file for file in sorted(corpus.rglob("*")) if file.is_file()] if corpus.is_dir() else [corpus]
    if not files:
        raise Usage(f"the folder {corpus} holds no files")
    tokenizer, size = _tokenizer(model)
    from dlopt.speculative.datastore import Datastore

    total = sum(file.stat().st_size for file in files)
    with bars.work_bar() as tell:

        def documents() -> Iterator[list[int]]:
            read = 0
            for file in files:
                for number, text in _texts(file):
                    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
                    if not ids:
                        raise Usage(f"{file}: document {number} has no tokens")
                    yield ids
                read += file.stat().st_size
                tell("reading and tokenizing", read, total, "")

        try:
            store = Datastore.build(documents(), size, tokenizer, lambda done, all_: tell("sorting", done, all_, ""))
        except ValueError as error:
            raise error if isinstance(error, Usage) else Usage(f"{corpus}: {error}") from error
    store.save(out)
    print(out)
    print(f"dlopt: {store.documents:,} documents, {store.tokens:,} tokens, {store.nbytes:,} bytes", file=sys.stderr)


def distill(target: str, out: Path, data: str, recipe: Mapping[str, Any], minutes: float | None, threads: int) -> int:
    """Train a drafter to the end, or to the deadline; the exit code."""
    try:
        from dlopt.speculative.distill import Distillation, Recipe

        plan = Recipe(**recipe)
    except ImportError as error:
        raise Usage(f"this needs the extra packages for language models: pip install 'dlopt[llm]' ({error})") from error
    except ValueError as error:
        raise Usage(str(error)) from error
    checkpoint, partial = out.with_name(out.name + ".checkpoint"), out.with_name(out.name + ".partial")
    if checkpoint.is_dir():
        raise Usage(f"{checkpoint} is a folder; the checkpoint of this training would be a file there")
    _free(out)
    import torch

    from dlopt.tasks import data as datasets
    from dlopt.tasks.models import pretrained

    torch.set_num_threads(threads)
    try:
        known = {**pretrained.identity(target), **datasets.identity(data)}
    except ValueError as error:
        raise error if isinstance(error, datasets.DataUnavailable) else Usage(str(error)) from error
    text = datasets.get(data)
    if not isinstance(text, datasets.Text):
        raise Usage(f"{data} is no data set of text; text:FILE takes a file of yours")
    network, tokenizer = _loaded(target)
    wanted = plan.steps * plan.batch * plan.window * PER_TOKEN
    tokens = _tokens(text.train, wanted, tokenizer)
    held_out = _tokens(text.valid, 64 * plan.window * PER_TOKEN, tokenizer)
    try:
        training = Distillation(network, tokens, plan, known)
        deadline = None if minutes is None else time.monotonic() + 60 * minutes
        with bars.work_bar() as tell:
            ended = training.run(
                checkpoint, EVERY, deadline, lambda done, all_, loss: tell("distilling", done, all_, f"loss {loss:.3f}")
            )
    except ValueError as error:
        raise Usage(str(error)) from error
    except KeyboardInterrupt:
        print("\ndlopt: interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130
    if not ended:
        print(f"dlopt: {training.done} of {plan.steps} steps are done; the same command goes on", file=sys.stderr)
        return 0
    figures = training.acceptance(held_out)
    try:
        shutil.rmtree(partial, ignore_errors=True)
        training.drafter.save_pretrained(partial, max_shard_size="100GB")
        tokenizer.save_pretrained(partial)
        card = {"target": target, "data": data, **training.facts, **figures}
        (partial / "distilled.json").write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
        os.replace(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    checkpoint.unlink(missing_ok=True)
    print(out)
    print(
        f"dlopt: on other text it agrees with the target on {figures['agreement']:.1%} of the likeliest tokens; of "
        f"drawn ones {figures['acceptance']:.1%} would be accepted",
        file=sys.stderr,
    )
    return 0


def _free(out: Path) -> None:
    if out.exists():
        raise Usage(f"{out} is there already; delete it, or give another --out")
    if not out.absolute().parent.is_dir():
        raise Usage(f"there is no folder {out.absolute().parent} for {out.name}")


def _loaded(model: str) -> tuple[Any, Any]:
    from dlopt.tasks.models import pretrained

    try:
        return pretrained.load(model)
    except ValueError as error:
        raise Usage(str(error)) from error


def _tokenizer(model: str) -> tuple[Any, int]:
    """A model's tokenizer and the size of its vocabulary; its weights are not read."""
    from dlopt.tasks.data.files import require
    from dlopt.tasks.models import pretrained

    transformers = require("transformers", "a tokenizer", "llm")
    try:
        folder = pretrained.locate(model)
        options = {"local_files_only": True, "trust_remote_code": False}
        config = transformers.AutoConfig.from_pretrained(folder, **options)
        return transformers.AutoTokenizer.from_pretrained(folder, **options), int(config.vocab_size)
    except (OSError, ValueError, KeyError) as error:
        raise Usage(f"{model} gives no tokenizer: {' '.join(str(error).split())}") from error


def _texts(file: Path) -> Iterator[tuple[int, str]]:
    """(number, text) of the documents of a file."""
    opener: Callable[..., Any] = {".gz": gzip.open, ".xz": lzma.open}.get(file.suffix, open)
    kind = file.with_suffix("").suffix if file.suffix in (".gz", ".xz") else file.suffix
    try:
        with opener(file, "rt", encoding="utf-8") as lines:
            if kind not in (".jsonl", ".ndjson"):
                yield 0, lines.read()
                return
            for number, line in enumerate(lines):
                if line.strip():
                    text = json.loads(line)["text"]
                    if not isinstance(text, str):
                        raise TypeError("its text is no string")
                    yield number, text
    except (OSError, EOFError, lzma.LZMAError, UnicodeDecodeError) as error:
        raise Usage(f"{file} cannot be read as text: {error}") from error
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise Usage(f'{file}: line {number + 1} is no JSON object with a "text": {error}') from error


def _tokens(raw: Any, wanted: int, tokenizer: Any) -> Any:
    """Token ids of a text of bytes, or of excerpts at even distances, `wanted` bytes together."""
    import torch

    from dlopt.tasks.data import Text

    if len(raw) <= wanted:
        parts = [raw]
    else:
        size = -(-wanted // EXCERPTS)
        starts = torch.linspace(0, len(raw) - size, EXCERPTS).long().tolist() if size < len(raw) else [0]
        parts = [raw[start : start + size] for start in starts]
    texts = [Text.decode(part).strip("�") for part in parts]
    ids = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    return torch.tensor([token for row in ids for token in row], dtype=torch.long)
