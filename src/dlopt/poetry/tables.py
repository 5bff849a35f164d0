"""The tones and rhymes of a whole vocabulary as boolean tables, computed once."""

from __future__ import annotations

import torch

from dlopt.poetry.rhymebook import LEVEL, OBLIQUE, level_groups, level_rhymes, tones
from dlopt.poetry.script import each_simplified, is_han
from dlopt.poetry.vocabulary import SPECIALS, Vocabulary


class Tables:
    """Of V tokens: `tone` bool (2, V), rows level and oblique; `group` bool (30, V); `legal` bool (V,).

    Characters that the table of rhymes lacks, punctuation and special tokens have no tone and are not legal, so they
    are never written. script: of the vocabulary; see `rhymebook.tones`.

    alike: {token: itself and the legal tokens that have the same simplified form} (閑 and 閒, 遊 and 游): readers of
    simplified script see one character, so none comes beside another where a poem must not repeat. What is counted of a
    group, and held back for its rhymes, are such classes: `spent` {token: groups in which its class stands}.
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
        classes: dict[str, list[int]] = {}
        for token, char in zip(self.tones, each_simplified([vocabulary.tokens[t] for t in self.tones]), strict=True):
            classes.setdefault(char, []).append(token)
        self.alike: dict[int, frozenset[int]] = {}
        self.spent: dict[int, tuple[int, ...]] = {}
        self._held = self.group.clone()  # (30, V): whether the class of a token stands in a group
        for tokens in classes.values():
            groups = tuple(sorted({g for token in tokens for g in self.groups[token]}))
            for token in tokens:
                self.alike[token], self.spent[token] = frozenset(tokens), groups
                self._held[list(groups), token] = True
        firsts = [tokens[0] for tokens in classes.values()]
        self.sizes = tuple(self._held[:, firsts].sum(1).tolist())  # classes per group
        self.counts = [
            len({min(self.alike[t]) for t in self.tones if tone in self.tones[t]}) for tone in (LEVEL, OBLIQUE)
        ]

    def of(self, tone: str) -> torch.Tensor:
        """bool (V,): characters that can have the tone 平 or 仄; 中 means any."""
        return self.legal if tone == "中" else self.tone[0] if tone == LEVEL else self.tone[1]

    def rhyming(self, groups: frozenset[int]) -> torch.Tensor:
        """bool (V,): characters of any of the groups. Kept, since the same sets come again and again."""
        if groups not in self._any:
            self._any[groups] = self.group[sorted(groups)].any(0)
        return self._any[groups]

    def common(self, groups: frozenset[int]) -> torch.Tensor:
        """bool (V,): characters that stand in all of the groups, themselves or by one that looks alike."""
        return self._held[sorted(groups)].all(0)
