"""Text for byte-level language models: tokens are the 256 bytes of UTF-8.

`stdlib-text` (the source of Python's own standard library: needs no file), `tinyshakespeare`, `gutenberg-books`, and
`text:PATH` for any file of text.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import lzma
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dlopt.tasks.data.files import DataUnavailable, File, digest
from dlopt.tasks.data.registry import Dataset


@dataclass(frozen=True)
class Text:
    """Bytes of text in three parts. train, valid, test: uint8 (number of bytes,). vocabulary: 256."""

    train: Tensor
    valid: Tensor
    test: Tensor
    vocabulary: int = 256

    @staticmethod
    def decode(tokens: Tensor) -> str:
        """Tokens (n,) of any integer type as text; bytes that are not UTF-8 become U+FFFD."""
        return bytes(tokens.tolist()).decode("utf-8", errors="replace")


def contiguous(raw: bytes) -> Text:
    """The first 90 % for training, the next 5 % for validation, the last 5 % for the test."""
    first, second = len(raw) * 18 // 20, len(raw) * 19 // 20
    return Text(_tokens(raw[:first]), _tokens(raw[first:second]), _tokens(raw[second:]))


def load_stdlib(paths: Mapping[str, Path]) -> Text:
    """Whole modules: of ten that follow each other by name, eight train, the ninth validates, the tenth tests."""
    parts: dict[str, list[bytes]] = {"train": [], "valid": [], "test": []}
    for i, path in enumerate(_stdlib()):
        parts["valid" if i % 10 == 8 else "test" if i % 10 == 9 else "train"].append(path.read_bytes())
    return Text(**{name: _tokens(b"".join(texts)) for name, texts in parts.items()})


def load_shakespeare(paths: Mapping[str, Path]) -> Text:
    """All of tinyshakespeare.txt, split as by `contiguous` (90 % for training, as is usual)."""
    return contiguous(gzip.decompress(paths[SHAKESPEARE.path].read_bytes()))


def load_books(paths: Mapping[str, Path]) -> Text:
    """The books in the order of the file, with an empty line between two; `split` says which part a book is in."""
    parts: dict[str, list[str]] = {"train": [], "validation": [], "test": []}
    with lzma.open(paths[BOOKS.path], "rt", encoding="utf-8") as lines:
        for line in lines:
            book = json.loads(line)
            parts[book["split"]].append(book["text"])
    train, valid, test = (_tokens("\n\n".join(texts).encode()) for texts in parts.values())
    return Text(train, valid, test)


def open_text(path: str) -> Dataset:
    """The data set `text:PATH`: a file of text (".gz" and ".xz" are unpacked), named in records by name and sha256."""
    file = Path(path).expanduser()
    if not file.is_file():
        raise DataUnavailable(f"data set 'text:{path}' is not here: there is no file {file.absolute()}")
    opener = {".gz": gzip.open, ".xz": lzma.open}.get(file.suffix, open)

    def load(paths: Mapping[str, Path]) -> Text:
        with opener(file, "rb") as stream:
            return contiguous(stream.read())

    return Dataset(
        name=f"text:{path}",
        summary=f"the text of {file.name}",
        licence="as the user knows",
        load=load,
        fingerprint=lambda: {file.name: digest(file)},
    )


def _tokens(raw: bytes) -> Tensor:
    return torch.from_numpy(np.frombuffer(raw, dtype=np.uint8).copy())


def _stdlib() -> list[Path]:
    # only modules named by Python itself: what a distribution adds (sitecustomize, _sysconfigdata) holds local paths
    root = Path(os.__file__).parent
    found = [path for path in sorted(root.glob("*.py")) if path.stem in sys.stdlib_module_names]
    if len(found) < 100:
        raise DataUnavailable(f"data set 'stdlib-text' is not here: {root} holds {len(found)} source files of Python")
    return found


def _stdlib_fingerprint() -> dict[str, str]:
    total = hashlib.sha256()
    for path in _stdlib():
        raw = path.read_bytes()
        total.update(f"{path.name} {len(raw)}\n".encode() + raw)
    return {"stdlib-text": total.hexdigest()}


SHAKESPEARE = File(
    "lm_text/tinyshakespeare.txt.gz",
    "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
    (
        "https://raw.githubusercontent.com/karpathy/char-rnn/6f9487a6fe5b420b7ca9afb0d7c078e37c1d1b4e"
        "/data/tinyshakespeare/input.txt",
    ),
    packed="gz",
)
BOOKS = File("lm_text/gutenberg_books.jsonl.xz", "94c987eb653de8b6bf659b36bff6aa3fbf2b882ef32325caf75395e29ddf0342")

OPENERS = {"text": open_text}
DATASETS = (
    Dataset(
        name="stdlib-text",
        summary="source of the top modules of this Python's standard library, about 4.6 MB; differs between versions",
        licence="PSF License 2.0",
        load=load_stdlib,
        fingerprint=_stdlib_fingerprint,
    ),
    Dataset(
        name="tinyshakespeare",
        summary="1,115,394 characters of Shakespeare's plays",
        licence="public domain",
        load=load_shakespeare,
        files=(SHAKESPEARE,),
    ),
    Dataset(
        name="gutenberg-books",
        summary="13 long books, 23.3 million characters: 10 train, War and Peace validates, Moby Dick and Ulysses test",
        licence="public domain in the USA",
        load=load_books,
        files=(BOOKS,),
        help=(
            "it was put together from Project Gutenberg texts 135, 145, 766, 996, 1023, 1342, 1399, 1400, 1661, 2600, "
            "2701, 4300 and 28054 (github.com/GITenberg), with the headers removed"
        ),
    ),
)
