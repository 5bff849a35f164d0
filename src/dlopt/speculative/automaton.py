"""A suffix automaton that grows with a text: every substring, how often it occurs, what follows it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

BORDER = -1  # between texts; no pattern has it


class SuffixAutomaton:
    """States stand for substrings that end at the same places (Blumer et al. 1985). State 0 is the empty string.

    follow[s]: {token: state}. link[s]: the state of the longest end of s that also occurs at other places. length[s]:
    of the longest string of s; its others are the ends of that down to length[link[s]] + 1. count[s]: how often they
    occur. last: the state of the whole text. At most 2 states a token; some 0.5 kB a token in all.
    """

    def __init__(self) -> None:
        self.follow: list[dict[int, int]] = [{}]
        self.link = [-1]
        self.length = [0]
        self.count = [0]
        self._ends = [0]  # 1 for a state that some prefix of the text belongs to first
        self.last = 0

    def extend(self, tokens: Sequence[int]) -> None:
        """Tokens that continue the text. Amortised constant time for each, and counting."""
        # one by one every new token is counted along its chain of links, which is long in periodic texts
        many = 8 * len(tokens) > len(self.link)
        for token in tokens:
            state = self._add(token)
            while not many and state > 0:
                self.count[state] += 1
                state = self.link[state]
        if many:
            self._recount()

    def match(self, text: Iterable[int]) -> tuple[int, int]:
        """(state, length) of the longest end of a text that occurs here."""
        state = matched = 0
        for token in text:
            while state and token not in self.follow[state]:
                state = self.link[state]
                matched = self.length[state]
            if token in self.follow[state]:
                state = self.follow[state][token]
                matched += 1
        return state, matched

    def _state(self, length: int, follow: dict[int, int], link: int, count: int, ends: int) -> int:
        self.follow.append(follow)
        self.link.append(link)
        self.length.append(length)
        self.count.append(count)
        self._ends.append(ends)
        return len(self.link) - 1

    def _add(self, token: int) -> int:
        follow, link, length = self.follow, self.link, self.length
        new = self._state(length[self.last] + 1, {}, 0, 0, 1)
        state, self.last = self.last, new
        while state >= 0 and token not in follow[state]:
            follow[state][token] = new
            state = link[state]
        if state < 0:
            return new
        known = follow[state][token]
        if length[state] + 1 != length[known]:  # only the shorter strings of `known` end here too: split it
            twin = self._state(length[state] + 1, dict(follow[known]), link[known], self.count[known], 0)
            while state >= 0 and follow[state].get(token) == known:
                follow[state][token] = twin
                state = link[state]
            link[known] = twin
            known = twin
        link[new] = known
        return new

    def _recount(self) -> None:
        self.count = list(self._ends)
        for state in sorted(range(1, len(self.link)), key=self.length.__getitem__, reverse=True):
            self.count[self.link[state]] += self.count[state]
