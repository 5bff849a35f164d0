"""The assistant's model as one file: fp16 safetensors with vocabulary, shape, licence and the record that made it.

Nothing in the file is executed: safetensors holds tensors and text. All text stands in one JSON object, so that equal
models make equal files.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from dlopt.poetry.vocabulary import SPECIALS, Vocabulary
from dlopt.transformer.config import TransformerConfig
from dlopt.transformer.model import Decoder

FORMAT = "dlopt-poetry-1"
SHIPPED = Path(__file__).with_name("model.safetensors")
LARGEST = 64 * 2**20  # bytes that are read at most: five times what is shipped
LICENCE = "MIT; trained on poems in the public domain, from chinese-poetry (MIT)"


class NoModel(LookupError):
    """There is no model of poems where one was looked for. The message says how to make one."""


@dataclass(frozen=True)
class Card:
    """What is known of a model. key: of the record that made it. figures: measured there, such as val_perplexity."""

    key: str = ""
    licence: str = LICENCE
    data: str = ""
    figures: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Checkpoint:
    """A model in float32, in evaluation mode, with its vocabulary and card."""

    model: Decoder
    vocabulary: Vocabulary
    card: Card


def save(path: str | Path, model: Decoder, vocabulary: Vocabulary, card: Card) -> Path:
    """Write weights, rounded to fp16, and all that `load` needs, under a temporary name that is then renamed.

    ValueError if the model and the vocabulary differ in size, or a weight does not fit into fp16.
    """
    path = Path(path)
    if model.config.vocabulary != len(vocabulary):
        raise ValueError(f"a model of {model.config.vocabulary} tokens has a vocabulary of {len(vocabulary)}")
    tensors = rounded(model)
    for name, value in tensors.items():
        if not value.isfinite().all():
            raise ValueError(
                f"{name} holds values that fp16 cannot: the largest is {model.state_dict()[name].abs().max()}"
            )
    about = {
        "format": FORMAT,
        "config": model.config.to_dict(),
        "specials": SPECIALS,
        "characters": "".join(vocabulary.chars),
        "key": card.key,
        "licence": card.licence,
        "data": card.data,
        "figures": dict(card.figures),
    }
    text = json.dumps(about, ensure_ascii=False, sort_keys=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        _library("torch").save_file(tensors, temporary, metadata={"dlopt": text})
        temporary.chmod(0o644)  # safetensors makes a file that nobody else may read
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
    return path


def rounded(model: Decoder) -> dict[str, torch.Tensor]:
    """The weights as the file holds them: float16, on the CPU."""
    return {name: value.detach().cpu().half().contiguous() for name, value in model.state_dict().items()}


def load(path: str | Path) -> Checkpoint:
    """Read what `save` wrote. `NoModel` if there is no such file, ValueError if it is something else."""
    path = Path(path)
    if not path.is_file():
        raise NoModel(f"there is no model of poems at {path}; `dlopt model train poetry` makes one")
    if path.stat().st_size > LARGEST:
        raise ValueError(f"{path} has {path.stat().st_size:,} bytes; a model of poems has at most {LARGEST:,}")
    try:
        with _library().safe_open(str(path), framework="pt") as file:
            about: dict[str, Any] = json.loads((file.metadata() or {})["dlopt"])
            tensors = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118 (no mapping)
        if about["format"] != FORMAT or tuple(about["specials"]) != SPECIALS:
            raise ValueError(
                f"it has the format {about['format']!r}, made with other special tokens or another version"
            )
        vocabulary = Vocabulary(about["characters"])
        config = TransformerConfig.from_dict(about["config"])
        _compare(config, tensors)
        model = Decoder(config)
        model.load_state_dict(tensors)
        if model.config.vocabulary != len(vocabulary):
            raise ValueError(f"it has {model.config.vocabulary} tokens but {len(vocabulary)} characters and marks")
        card = Card(str(about["key"]), str(about["licence"]), str(about["data"]), dict(about["figures"]))
    except Exception as error:  # safetensors, JSON and torch raise many types for a foreign file
        text = re.sub(r"\s+", " ", str(error))[:200]
        raise ValueError(
            f"{path} is no model of poems that this version reads ({type(error).__name__}: {text})"
        ) from error
    return Checkpoint(model.eval(), vocabulary, card)


def _compare(config: TransformerConfig, tensors: Mapping[str, torch.Tensor]) -> None:
    """ValueError unless a model of this shape has these tensors; before anything of that size is made."""
    if config.layers > len(tensors):  # each layer has several
        raise ValueError(f"{config.layers:,} layers, but only {len(tensors)} tensors")
    with torch.device("meta"):
        wanted = {name: tuple(value.shape) for name, value in Decoder(config).state_dict().items()}
    found = {name: tuple(value.shape) for name, value in tensors.items()}
    for name in sorted(wanted.keys() | found.keys()):
        if wanted.get(name) != found.get(name):
            raise ValueError(f"{name} has the shape {found.get(name)}, the model's is {wanted.get(name)}")


def find(*places: str | Path | None) -> Checkpoint:
    """The first model that is there: of `places`, then the shipped one. A place that is None is passed over."""
    looked = [Path(p) for p in (*places, SHIPPED) if p is not None]
    for path in looked:
        if path.is_file():
            return load(path)
    raise NoModel(
        f"no model of poems is here (looked for {', '.join(map(str, looked))}): train one with `dlopt model train "
        "poetry`, or name one with --model"
    )


def _library(part: str = "") -> Any:
    try:
        return importlib.import_module(f"safetensors.{part}" if part else "safetensors")
    except ImportError as error:
        raise ImportError("models of poems are stored with safetensors: pip install 'dlopt[poetry]'") from error
