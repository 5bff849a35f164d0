"""How a poem stands before the assistant's model: one row of tokens for every form, with a title or without.

    bos <form> [title] <sep> line ， line 。 ... eos

One model serves all forms: the form's token says what is wanted, the title what it is about.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from dlopt.poetry.script import HAN
from dlopt.poetry.vocabulary import PUNCTUATION, Vocabulary

TITLE = 8
"""Most characters of a title that the model reads."""
LONGEST = 3 + TITLE + 8 * 8 + 1
"""Tokens of the longest row: a 七律 with a title and its eos."""
_NUMBERED = re.compile("[一二三四五六七八九十百]+[首絕绝章]$|其[一二三四五六七八九十]+$|^[一二三四五六七八九十]+$")


def clean_title(title: str) -> str:
    """The part of a title that says what a poem is about: up to the first break, without its number in a series.

    Only Chinese characters; '' where nothing is left or the rest is longer than `TITLE`: such titles are not learned,
    rather than cut in the middle.
    """
    head = re.split(f"[^{HAN}]", title.strip(), maxsplit=1)[0]
    head = _NUMBERED.sub("", _NUMBERED.sub("", head))
    return head if len(head) <= TITLE else ""


def prefix(vocabulary: Vocabulary, form: str, title: str = "") -> list[int]:
    """The tokens before the poem's first character. Characters of the title that the vocabulary lacks are left out."""
    known = [i for i in vocabulary.encode(title[:TITLE]) if i != vocabulary.unk]
    return [vocabulary.bos, vocabulary.id(f"<{form}>"), *known, vocabulary.sep]


def encode(vocabulary: Vocabulary, form: str, lines: Sequence[str], title: str = "") -> list[int]:
    """A whole poem as the model learns it."""
    body: list[int] = []
    for number, line in enumerate(lines):
        body += [*vocabulary.encode(line), vocabulary.id(PUNCTUATION[number % 2])]
    return [*prefix(vocabulary, form, title), *body, vocabulary.eos]
