"""An index of token n-grams that grows with the text: where did the last n tokens stand before, and what came next?"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

LONGEST_MATCH = 16  # matches are measured up to this length


class NgramIndex:
    """n-grams of a growing list of tokens, for n from `shortest` to `longest`, each with one place behind it.

    A place is where the token after the n-gram stands; only n-grams that have one are in the index, so the end of the
    text never finds itself. latest: of several places keep the last one, else the first. Adding a token costs one
    dictionary entry for each n; nothing is ever scanned again.
    """

    def __init__(self, shortest: int, longest: int, *, latest: bool = True) -> None:
        if not 1 <= shortest <= longest:
            raise ValueError(f"n-grams need 1 <= shortest <= longest, got {shortest} and {longest}")
        self.shortest, self.longest, self.latest = shortest, longest, latest
        self.tokens: list[int] = []
        self._places: list[dict[tuple[int, ...], int]] = [{} for _ in range(longest - shortest + 1)]
        self._starts = [0]  # of the texts; no n-gram reaches over one

    def extend(self, tokens: Sequence[int]) -> None:
        """Tokens that continue the text."""
        for token in tokens:
            place = len(self.tokens)
            for n, known in enumerate(self._places, self.shortest):
                if place - n < self._starts[-1]:
                    break
                gram = tuple(self.tokens[place - n :])
                if self.latest or gram not in known:
                    known[gram] = place
            self.tokens.append(token)

    def divide(self) -> None:
        """Begin another text: no n-gram reaches over this border."""
        if self.tokens:
            self._starts.append(len(self.tokens))

    def find(self, text: Sequence[int]) -> tuple[int, int] | None:
        """(place of the token that may come next, length of the match) for the longest n-gram that ends `text`.

        The length goes beyond `longest` where more tokens agree, up to 16.
        """
        for n in range(min(self.longest, len(text)), self.shortest - 1, -1):
            place = self._places[n - self.shortest].get(tuple(text[-n:]))
            if place is not None:
                most = min(place - self._starts[bisect_left(self._starts, place) - 1], len(text), LONGEST_MATCH)
                while n < most and self.tokens[place - n - 1] == text[-n - 1]:
                    n += 1
                return place, n
        return None
