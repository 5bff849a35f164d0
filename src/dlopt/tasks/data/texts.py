"""Labelled texts for prompted classification: SST-2, RTE, CB and TREC, as JSON lines.

`label` is the class's number in the order of `classes`, whatever the file says. The parts are those of the sources:
SST-2 and TREC also have a labelled test part; the test labels of RTE and CB were never published.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from dlopt.tasks.data.files import DataUnavailable, File
from dlopt.tasks.data.registry import Dataset


@dataclass(frozen=True)
class Texts:
    """parts: {"train", "validation", "test"} of those that exist, each rows of {field: text, "label": int}.
    fields: names of the text fields. classes: names of the classes; `label` counts in this order."""

    parts: Mapping[str, tuple[Mapping[str, Any], ...]]
    fields: tuple[str, ...]
    classes: tuple[str, ...]


def load(paths: Mapping[str, Path], *, name: str, fields: tuple[str, ...], classes: tuple[str, ...]) -> Texts:
    """`Texts` from {text_classification/NAME/PART.jsonl.gz: file}."""
    parts = {}
    for place, path in paths.items():
        rows = []
        for row in read_lines(path):
            label = row["label"]
            number = classes.index(label) if label in classes else label
            if number not in range(len(classes)) or not all(isinstance(row[field], str) for field in fields):
                raise DataUnavailable(
                    f"{path} has a row with the label {label!r} or without text; replace or delete it"
                )
            rows.append({**{field: row[field] for field in fields}, "label": number})
        parts[Path(place).name.split(".")[0]] = tuple(rows)
    return Texts(parts, fields, classes)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a gzipped file of JSON lines."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def _declare(
    name: str, summary: str, fields: tuple[str, ...], classes: tuple[str, ...], parts: dict[str, str], source: str
) -> Dataset:
    return Dataset(
        name=name,
        summary=summary,
        licence="no licence stated; published for research",
        load=partial(load, name=name, fields=fields, classes=classes),
        files=tuple(
            File(f"text_classification/{name}/{part}.jsonl.gz", sha256, packed="gz") for part, sha256 in parts.items()
        ),
        help=f"one gzipped file of JSON lines a part, with {', '.join(fields)} and label; {source}",
    )


_PAIR = ("premise", "hypothesis")

DATASETS = (
    _declare(
        "sst2",
        "SST-2: film reviews, 67,349 phrases + 872 + 1,821 sentences, 2 classes",
        ("sentence",),
        ("negative", "positive"),
        {
            "train": "c51722db84800c7b326f2539bbd020cbcd9d7ab92fbd72c6d42d6520ec1d39fa",
            "validation": "6a086ccf150628f40f94b1f5fc9f09836f0e9815f55c8474772c65c94bd7e79a",
            "test": "0a525a5568955d4ed0e8e555ada1a31604422265157ef636d5813a050caa4e59",
        },
        "the parts are those of GLUE, the test labels those of the treebank",
    ),
    _declare(
        "rte",
        "RTE: does a text entail a sentence? (SuperGLUE), 2,490 + 277, 2 classes",
        _PAIR,
        ("entailment", "not_entailment"),
        {
            "train": "aaf7d0226a5c96d26afaccf35cd5a6e5cf3664b85519178e15cbbf264adf4539",
            "validation": "de7bcb85066f00f2fcd51f8e4f4a64ab6322906d4603f08ab60f0060ccafabee",
        },
        "the parts are those of SuperGLUE",
    ),
    _declare(
        "cb",
        "CB: does a speaker hold a sentence to be true? (CommitmentBank in SuperGLUE), 250 + 56, 3 classes",
        _PAIR,
        ("entailment", "contradiction", "neutral"),
        {
            "train": "32017480d3a10508646e3efd64502c639f13d4d15077f278d2fd0992c33a3126",
            "validation": "c6125587e9601560cb16ea223c33964c5a915568d2af68a81f651b6ef25395ec",
        },
        "the parts are those of SuperGLUE",
    ),
    _declare(
        "trec",
        "TREC: what a question asks for, 5,452 + 500, 6 classes",
        ("text",),
        ("ABBR", "ENTY", "DESC", "HUM", "LOC", "NUM"),
        {
            "train": "ced9a3c75f4400ab443020815b1fe889aa850234aadb3534d407c2d0adf00940",
            "test": "02db48036c74eec0c042c8b775ff0516349828305b1e3850073186dbd31a0384",
        },
        "the parts are the authors'",
    ),
)
