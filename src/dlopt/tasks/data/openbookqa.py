"""OpenBookQA: questions of elementary science with four choices, and the 1,326 facts of its book; and a tiny sample."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dlopt.tasks.data.files import DataUnavailable, File
from dlopt.tasks.data.registry import Dataset

ARCHIVE = File(
    "openbookqa/OpenBookQA-V1-Sep2018.zip", "82368cf05df2e3b309c17d162e10b888b4d768fad6e171e0a041954c8553be46"
)
FOLDER = "OpenBookQA-V1-Sep2018/Data"


@dataclass(frozen=True)
class Question:
    """stem: what is asked, or the beginning of a sentence. answer: number of the right choice. fact: of the book, that
    the question was written from."""

    stem: str
    choices: tuple[str, ...]
    answer: int
    fact: str = ""


@dataclass(frozen=True)
class OpenBook:
    """parts: {"train", "dev", "test"} of questions. facts: the book, one sentence each."""

    parts: Mapping[str, tuple[Question, ...]]
    facts: tuple[str, ...]


def load(paths: Mapping[str, Path]) -> OpenBook:
    """All three parts and the book, in the order of the archive."""
    (path,) = paths.values()
    try:
        with zipfile.ZipFile(path) as archive:
            parts = {
                part: tuple(map(_question, _lines(archive, f"Additional/{part}_complete.jsonl")))
                for part in ("train", "dev", "test")
            }
            book = archive.read(f"{FOLDER}/Main/openbook.txt").decode("utf-8")
    except (KeyError, ValueError, zipfile.BadZipFile) as error:
        raise DataUnavailable(f"{path} is not the release of OpenBookQA ({error}); replace or delete it") from error
    return OpenBook(parts, tuple(line.strip().strip('"') for line in book.splitlines() if line.strip()))


def _lines(archive: zipfile.ZipFile, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in archive.read(f"{FOLDER}/{name}").decode("utf-8").splitlines()]


def _question(row: Mapping[str, Any]) -> Question:
    choices = row["question"]["choices"]
    labels = [choice["label"] for choice in choices]
    texts = tuple(choice["text"] for choice in choices)
    return Question(row["question"]["stem"], texts, labels.index(row["answerKey"].strip()), row.get("fact1", ""))


# written for this package; (stem, choices with the right one first, fact)
_SAMPLE = (
    ("Ice put into warm water will", ("melt", "burn", "freeze more", "rust"), "ice melts in warm water"),
    ("A plant needs light to", ("make food", "hear sounds", "melt", "move iron"), "a plant makes food from light"),
    ("A magnet can pull", ("an iron nail", "a wooden spoon", "a paper cup", "a glass"), "a magnet pulls iron"),
    ("The Sun is a", ("star", "planet", "moon", "cloud"), "the Sun is a star"),
    ("A fish breathes with", ("gills", "leaves", "feathers", "roots"), "a fish breathes with gills"),
    ("Rain falls from", ("clouds", "stones", "roots", "magnets"), "rain falls from clouds"),
    ("A dropped ball falls because of", ("gravity", "light", "sound", "colour"), "gravity pulls things down"),
    ("Copper wire is good at", ("carrying current", "growing", "floating", "singing"), "copper carries current"),
)


def load_sample(paths: Mapping[str, Path]) -> OpenBook:
    """Eight questions, written for this package; half of them train. The right choice goes round the four places."""
    questions = []
    for row, (stem, choices, fact) in enumerate(_SAMPLE):
        place = row % 4
        questions.append(Question(stem, (*choices[1 : place + 1], choices[0], *choices[place + 1 :]), place, fact))
    parts = {"train": tuple(questions[::2]), "dev": (), "test": tuple(questions[1::2])}
    return OpenBook(parts, tuple(fact for *_, fact in _SAMPLE))


DATASETS = (
    Dataset(
        name="openbookqa",
        summary="OpenBookQA: 4,957 + 500 + 500 questions with 4 choices, and a book of 1,326 facts",
        licence="Apache-2.0 (the authors' repository; none inside the archive)",
        load=load,
        files=(ARCHIVE,),
        help="it is the authors' archive OpenBookQA-V1-Sep2018.zip, as in github.com/katulevskiy/NLP-OpenBookQA",
    ),
    Dataset(
        name="openbookqa-sample",
        summary="8 questions in the form of OpenBookQA, embedded: for trying things out",
        licence="MIT",
        load=load_sample,
        fingerprint=lambda: {"openbookqa-sample": hashlib.sha256(repr(_SAMPLE).encode()).hexdigest()},
    ),
)
