"""Synthetic sequences whose answer stands at a known distance: associative recall and copying.

Every row is drawn from (seed, number) alone, so training never sees the rows that it is measured on.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

KEYS = VALUES = 32  # tokens 2.. are keys, then values, then fillers; 0 is never used, 1 asks
ASK, FIRST = 1, 2
FILLERS = 16
VOCABULARY = FIRST + KEYS + VALUES + FILLERS


@dataclass(frozen=True)
class Recall:
    """Rows of `length` tokens: fillers, in which pairs (key, value) stand; at the end of the row keys are asked.

    A question is (ASK, key) and its answer the value that stood after that key, `distance` positions before the
    answer's question. distances: one question for each, so every row asks at all of them. Keys of a row differ.
    """

    length: int
    distances: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.distances or min(self.distances) < 8 or sorted(set(self.distances)) != list(self.distances):
            raise ValueError(f"distances must rise and be at least 8, got {self.distances}")
        pairs = [p for at, far in zip(self._places(), self.distances) for p in (at - far - 1, at - far)]
        if len(self.distances) > KEYS or min(pairs) < 0 or max(pairs) >= self._start() or len(set(pairs)) < len(pairs):
            raise ValueError(f"pairs at the distances {self.distances} collide or do not fit into {self.length} tokens")

    def rows(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """(tokens (b, t), targets (b, t) with -100 where nothing is asked, distance (t,) with 0 there)."""
        t = self.length
        tokens = torch.randint(FILLERS, (count, t), generator=generator) + FIRST + KEYS + VALUES
        targets = torch.full((count, t), -100)
        distance = torch.zeros(t, dtype=torch.long)
        keys = torch.rand(count, KEYS, generator=generator).argsort(1)[:, : len(self.distances)] + FIRST
        values = torch.randint(VALUES, (count, len(self.distances)), generator=generator) + FIRST + KEYS
        asked = self._places()
        for i, (far, at) in enumerate(zip(self.distances, asked)):
            # the asked key stands at `at`, its value is due there; the value stood `far` positions before
            tokens[:, at - 1], tokens[:, at] = ASK, keys[:, i]
            tokens[:, at - far - 1], tokens[:, at - far] = keys[:, i], values[:, i]
            targets[:, at], distance[at] = values[:, i], far
        return tokens, targets, distance

    def _start(self) -> int:
        """Where the questions begin."""
        return self.length - 2 * len(self.distances)

    def _places(self) -> list[int]:
        """Where each key is asked again: every second of the last positions, the nearest pair first."""
        return [self._start() + 2 * i + 1 for i in range(len(self.distances))]


@dataclass(frozen=True)
class Copy:
    """A random word of half the length, then the same again: what is due stood `length / 2` - 1 positions before."""

    length: int

    def rows(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """As `Recall.rows`."""
        half = self.length // 2
        word = torch.randint(KEYS, (count, half), generator=generator) + FIRST
        tokens = torch.cat((word, word), dim=1)
        targets = torch.full_like(tokens, -100)
        targets[:, half - 1 : -1] = tokens[:, half:]
        distance = torch.zeros(2 * half, dtype=torch.long)
        distance[half - 1 : -1] = half - 1
        return tokens, targets, distance


class Endless:
    """Batches drawn anew from (seed, number): nothing is seen twice."""

    def __init__(self, task: Any, batch_size: int, seed: int) -> None:
        self.task, self.batch_size, self.seed, self.position = task, batch_size, seed, 0

    def batch(self, number: int) -> tuple[Tensor, Tensor, Tensor]:
        """Batch `number`, counted from 0."""
        return self.task.rows(self.batch_size, torch.Generator().manual_seed(self.seed * 1_000_003 + number))

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        return self

    def __next__(self) -> tuple[Tensor, Tensor, Tensor]:
        self.position += 1
        return self.batch(self.position - 1)

    def state_dict(self, consumed: int) -> dict[str, Any]:
        return {"position": consumed, "seed": self.seed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["seed"] != self.seed:
            raise ValueError(f"this state is of seed {state['seed']}, not of {self.seed}")
        self.position = int(state["position"])
