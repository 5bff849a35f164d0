"""The tones and rhymes of a whole vocabulary as boolean tables, computed once."""

from __future__ import annotations

import torch

from dlopt.poetry.rhymebook import LEVEL, OBLIQUE, level_groups, level_rhymes, tones
from dlopt.poetry.script import is_han
from dlopt.poetry.vocabulary import SPECIALS, Vocabulary


class Tables:
    """Of V tokens: `tone` bool (2, V), rows level and oblique; `group` bool (30, V); `legal` bool (V,).

    Characters that the table of rhymes lacks, punctuation and special tokens have no tone and are not legal, so they
    are never written. script: of the vocabulary; see `rhymebook.tones`.
    """

    def __init__(self, vocabulary: Vocabulary, script: str = "traditional") -> None:
        size = len(vocabulary)
        self.names = level_groups()
        self.tone = torch.zeros(2, size, dtype=torch.bool)
        self.group = torch.zeros(len(self.names), size, dtype=torch.bool)
        self.tones: dict[int, frozenset[str]] = {}
        self.groups: dict[int, tuple[int, ...]] = {}
        self._any: dict[frozenset[int], torch.Tensor] = {}
        place = {name: g for g, name in enumerate(self.names)}
        for token, char in enumerate(vocabulary.chars, len(SPECIALS)):
            found = tones(char, script) if is_han(char) else frozenset()
            if found:
                self.tones[token] = found
                self.groups[token] = tuple(sorted(place[name] for name in level_rhymes(char, script)))
                self.tone[0, token], self.tone[1, token] = LEVEL in found, OBLIQUE in found
                self.group[list(self.groups[token]), token] = True
        self.legal = self.tone.any(0)
        self.sizes = tuple(self.group.sum(1).tolist())  # characters per group

    def of(self, tone: str) -> torch.Tensor:
        """bool (V,): characters that can have the tone 平 or 仄; 中 means any."""
        return self.legal if tone == "中" else self.tone[0] if tone == LEVEL else self.tone[1]

    def rhyming(self, groups: frozenset[int]) -> torch.Tensor:
        """bool (V,): characters of any of the groups. Kept, since the same sets come again and again."""
        if groups not in self._any:
            self._any[groups] = self.group[sorted(groups)].any(0)
        return self._any[groups]

    def common(self, groups: frozenset[int]) -> torch.Tensor:
        """bool (V,): characters that stand in all of the groups."""
        return self.group[sorted(groups)].all(0)
