"""Prompts for speculative decoding: `spec-bench` (Xia et al. 2024) and the summaries of LLMA, `llma-cnndm`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dlopt.tasks.data.files import DataUnavailable, File
from dlopt.tasks.data.registry import Dataset
from dlopt.tasks.data.texts import read_lines


@dataclass(frozen=True)
class Question:
    """category: of the source. turns: what the user says, one text a turn."""

    category: str
    turns: tuple[str, ...]


@dataclass(frozen=True)
class Article:
    """A news article, and a summary of it that a large language model wrote."""

    text: str
    summary: str


def load_questions(paths: Mapping[str, Path]) -> tuple[Question, ...]:
    """All 480 questions, in the order of the file."""
    (path,) = paths.values()
    try:
        return tuple(Question(row["category"], tuple(row["turns"])) for row in read_lines(path))
    except KeyError as error:
        raise DataUnavailable(f"{path} has a row without {error}; replace or delete it") from error


def load_articles(paths: Mapping[str, Path]) -> tuple[Article, ...]:
    """All 100 articles, in the order of the file."""
    (path,) = paths.values()
    try:
        # the summary follows a number and four hashes
        return tuple(Article(row["docs"][0], row["result"]["text"].split("####", 1)[-1]) for row in read_lines(path))
    except (KeyError, IndexError) as error:
        raise DataUnavailable(f"{path} has a row without {error}; replace or delete it") from error


DATASETS = (
    Dataset(
        name="spec-bench",
        summary="Spec-Bench: 480 prompts (translation, summaries, questions, mathematics, retrieval, MT-bench)",
        licence="Apache-2.0 (repository)",
        load=load_questions,
        files=(
            File(
                "spec_decoding/spec_bench_question.jsonl.gz",
                "4b6d33e79484f9841c487ee87d1cf6aa8c6066f61d5d482ff09e5a007fafdf04",
                packed="gz",
            ),
        ),
        help="data/spec_bench/question.jsonl of github.com/hemingkx/Spec-Bench, gzipped",
    ),
    Dataset(
        name="llma-cnndm",
        summary="100 CNN/DailyMail articles with summaries by a large model (the prompts of LLMA)",
        licence="MIT (repository)",
        load=load_articles,
        files=(
            File(
                "spec_decoding/llma_cnndm.jsonl.gz",
                "fd51233f1a787583f4ccade47b262fee6997929a342fcf50293666b7096ae136",
                packed="gz",
            ),
        ),
        help="the CNN/DailyMail file of LLMA in github.com/microsoft/LMOps, gzipped",
    ),
)
