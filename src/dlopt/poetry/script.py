"""Traditional and simplified script, through OpenCC; and what counts as a Chinese character."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterable
from functools import cache
from typing import Any

SCRIPTS = ("traditional", "simplified")
HAN = "〇\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af"  # inside [] of a regular expression
_HAN = re.compile(f"[{HAN}]")


def is_han(char: str) -> bool:
    """Whether `char` is one Chinese character (the blocks of CJK ideographs, and 〇)."""
    return _HAN.fullmatch(char) is not None


def traditional(text: str) -> str:
    """`text` in traditional characters. One simplified character may stand for several: OpenCC decides by context."""
    return _converter("s2t").convert(text)


def simplified(text: str) -> str:
    """`text` in simplified characters."""
    return _converter("t2s").convert(text)


def script_of(text: str) -> str:
    """ "simplified" if every character already is and some have a traditional form; else "traditional".

    A text in which both scripts look alike is "traditional".
    """
    return "simplified" if simplified(text) == text and traditional(text) != text else "traditional"


def each_simplified(chars: Iterable[str]) -> list[str]:
    """The simplified form of every character by itself, without the words that OpenCC knows."""
    joined = "\n".join(chars)
    return simplified(joined).split("\n") if joined else []


@cache
def _converter(config: str) -> Any:
    try:
        return importlib.import_module("opencc").OpenCC(config)
    except ImportError as error:
        raise ImportError("telling scripts apart needs OpenCC: pip install 'dlopt[poetry]'") from error
