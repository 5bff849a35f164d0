"""Characters and their numbers for a model of poems."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from dlopt.poetry.patterns import FORMS

SPECIALS = ("<pad>", "<bos>", "<eos>", "<unk>", "<sep>", *(f"<{name}>" for name in FORMS))
PUNCTUATION = "，。"


class Vocabulary:
    """A fixed list of tokens: special ones, then single characters.

    pad = 0, bos = 1, eos = 2, unk = 3, sep = 4, then one token for each form ("<五绝>"), then ， and 。, then
    characters by falling frequency (equals by code point).

    Args:
        chars: the characters, each once, in the order of their numbers. ValueError otherwise.
    """

    pad, bos, eos, unk, sep = range(5)

    def __init__(self, chars: Iterable[str]) -> None:
        self.chars = tuple(chars)
        wrong = [c for c in self.chars if len(c) != 1]
        if wrong or len(set(self.chars)) != len(self.chars):
            twice = [c for c, n in Counter(self.chars).items() if n > 1]
            raise ValueError(
                f"a vocabulary is made of single characters, each once; got {(wrong or twice)[:5]} among them"
            )
        self.tokens = (*SPECIALS, *self.chars)
        self._ids = {token: i for i, token in enumerate(self.tokens)}

    @classmethod
    def build(cls, texts: Iterable[str], min_count: int = 1) -> Vocabulary:
        """All characters that occur at least `min_count` times (at least 1) in `texts`, and the punctuation."""
        if min_count < 1:
            raise ValueError(f"min_count must be at least 1, got {min_count}")
        counts: Counter[str] = Counter()
        for text in texts:
            counts.update(text)
        found = [c for c, n in counts.items() if n >= min_count and c not in PUNCTUATION and not c.isspace()]
        return cls([*PUNCTUATION, *sorted(found, key=lambda c: (-counts[c], c))])

    def __len__(self) -> int:
        return len(self.tokens)

    def __contains__(self, token: str) -> bool:
        return token in self._ids

    def id(self, token: str) -> int:
        """The number of a token that must be there, special or not; a ValueError that names it if it is not."""
        if token not in self._ids:
            raise ValueError(f"{token!r} is not in the vocabulary of {len(self)} tokens")
        return self._ids[token]

    def encode(self, text: str) -> list[int]:
        """One number per character; `unk` for characters that are not there. Special tokens are not parsed."""
        return [self._ids.get(char, self.unk) for char in text]

    def decode(self, ids: Iterable[int]) -> str:
        """Characters of the numbers. Special tokens are left out, but for <unk>, which becomes □."""
        found = []
        for i in ids:
            if not 0 <= i < len(self):
                raise ValueError(f"a token must be between 0 and {len(self) - 1}, got {i}")
            found.append("□" if i == self.unk else self.tokens[i] if i >= len(SPECIALS) else "")
        return "".join(found)

    def coverage(self, texts: Iterable[str]) -> float:
        """The share, 0 to 1, of the characters of `texts` that are here. ValueError if there are none."""
        total = known = 0
        for text in texts:
            total += len(text)
            known += sum(char in self._ids for char in text)
        if not total:
            raise ValueError("there is no character to cover")
        return known / total

    def save(self, path: str | Path) -> None:
        """Write JSON, under a temporary name that is then renamed."""
        path = Path(path)
        content = {"format": "dlopt-vocabulary-1", "specials": SPECIALS, "chars": "".join(self.chars)}
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        temporary.write_text(json.dumps(content, ensure_ascii=False, indent=0) + "\n", encoding="utf-8")
        os.replace(temporary, path)

    @classmethod
    def load(cls, path: str | Path) -> Vocabulary:
        """Read what `save` wrote. ValueError if it is something else, or was made with other special tokens."""
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            form, specials, chars = content["format"], tuple(content["specials"]), content["chars"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is no vocabulary of dlopt: {error}") from error
        if form != "dlopt-vocabulary-1" or specials != SPECIALS or not isinstance(chars, str):
            raise ValueError(f"{path} holds a vocabulary of another version ({form}, specials {specials})")
        return cls(chars)
