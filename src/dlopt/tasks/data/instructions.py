"""Instructions with answers, for fine-tuning of causal language models: `alpaca-en`, `alpaca-zh`, `code-alpaca`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dlopt.tasks.data.files import DataUnavailable, File
from dlopt.tasks.data.registry import Dataset
from dlopt.tasks.data.texts import read_lines


@dataclass(frozen=True)
class Instruction:
    """What is asked, what it is asked about ("" for nothing), and the answer."""

    instruction: str
    input: str
    output: str


def load(paths: Mapping[str, Path]) -> tuple[Instruction, ...]:
    """All rows of the one file, in its order."""
    (path,) = paths.values()
    try:
        return tuple(Instruction(row["instruction"], row["input"], row["output"]) for row in read_lines(path))
    except KeyError as error:
        raise DataUnavailable(f"{path} has a row without {error}; replace or delete it") from error


def _declare(name: str, summary: str, file: str, sha256: str, home: str) -> Dataset:
    return Dataset(
        name=name,
        summary=summary,
        licence="CC BY-NC 4.0 (data)",
        load=load,
        files=(File(f"instructions/{file}.jsonl.gz", sha256, packed="gz"),),
        help=f"a gzipped file of JSON lines with instruction, input and output, made from {home}",
    )


DATASETS = (
    _declare(
        "alpaca-en",
        "999 English instructions, answered by GPT-4 (Peng et al. 2023)",
        "alpaca_en_1k",
        "ac3bd6790a648104c87aabfb93fb88ac94c84b8ac796741d4a86593b516d0ef0",
        "data/alpaca_en_demo.json of github.com/hiyouga/LLaMA-Factory",
    ),
    _declare(
        "alpaca-zh",
        "1,000 Chinese instructions, answered by GPT-4 (Peng et al. 2023)",
        "alpaca_zh_1k",
        "f6c75ec424b51bf654e571a4bc8c36947354dc76980d20255f8decc4223d0fd8",
        "data/alpaca_zh_demo.json of github.com/hiyouga/LLaMA-Factory",
    ),
    _declare(
        "code-alpaca",
        "2,017 instructions about programs, answered by a language model (Code Alpaca)",
        "code_alpaca_2k",
        "6dbd5b461e4fa071a78bb1bb537ad58fa5cdb4bbf957adafabd6a6f16f9800cf",
        "data/code_alpaca_2k.json of github.com/sahil280114/codealpaca",
    ),
)
