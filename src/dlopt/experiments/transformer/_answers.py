"""What a model's answers to half-lines are measured by: length, tones, repeats, variety, and what was copied."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

from dlopt.experiments.transformer._common import CHARACTERS, Halves, halves, joined, step_of
from dlopt.experiments.transformer._writing import members
from dlopt.poetry.checker import check
from dlopt.poetry.constrained import ProsodyConstraint
from dlopt.poetry.request import Request, continuation
from dlopt.poetry.tables import Tables
from dlopt.poetry.vocabulary import SPECIALS
from dlopt.transformer.beam import beam_search
from dlopt.transformer.decoding import generate

EVEN = (1, 3, 5)  # places whose tones must be opposite, from 0


@dataclass(frozen=True)
class Questions:
    """Test couplets whose first half is regular and known, so that rules can be asked for. rows: of the test part."""

    rows: Tensor
    requests: tuple[Request, ...]
    asked: int  # couplets looked at

    def lengths(self, source: Tensor, pad: int) -> Tensor:
        return (source[self.rows] != pad).sum(1)


@cache
def questions(corpus: str, poems: int, each: int = 4, characters: int = CHARACTERS) -> Questions:
    """Of the first `poems` test poems up to `each` couplets whose first half fits the rules."""
    found = halves(corpus, characters)
    rows: list[int] = []
    requests: list[Request] = []
    taken: dict[int, int] = {}
    asked = 0
    tables = tables_of(corpus, characters)
    for row, (owner, (first, _)) in enumerate(zip(found.owner.tolist(), found.texts)):
        if owner >= poems:
            break
        asked += 1
        if (found.test[1][row] == found.vocabulary.unk).any():
            continue  # the poet's own answer is to be measured beside the models'
        request = continuation(first, judge_given=True)
        try:
            ProsodyConstraint(found.vocabulary, request, skip_lines=1, punctuation=False, tables=tables)
        except ValueError:  # the half-line is irregular, or holds a character whose tone is not known
            continue
        if taken.get(owner, 0) < each:
            taken[owner] = taken.get(owner, 0) + 1
            rows.append(row)
            requests.append(request)
    if not rows:
        raise ValueError(f"none of {asked} test couplets of {corpus} begins with a regular half-line")
    return Questions(torch.tensor(rows), tuple(requests), asked)


@cache
def tables_of(corpus: str, characters: int = CHARACTERS) -> Tables:
    """Tones and rhymes of the vocabulary."""
    return Tables(halves(corpus, characters).vocabulary)


@dataclass(frozen=True)
class Answered:
    """tokens: (n, 8) up to and with eos, then pad. cost: (n, 8) -log Z of each token, where rules were kept."""

    tokens: Tensor
    cost: Tensor | None = None


def answers(model: object, found: Halves, asked: Questions, decoder: str, seed: int, corpus: str) -> Answered:
    """Answers by "beam" (4 beams), "masked" (under the rules, temperature 1) or "t0.7" (that temperature)."""
    vocabulary = found.vocabulary
    source = found.test[0][asked.rows]
    draws = torch.Generator().manual_seed(seed)
    tokens, costs = [], []
    for start in range(0, len(source), 256):
        rows = source[start : start + 256]
        prompt = torch.full((len(rows), 1), vocabulary.bos)
        common = {"eos": vocabulary.eos, "pad": vocabulary.pad}
        if decoder == "beam":
            made = beam_search(step_of(model, rows), prompt, 8, 4, **common).tokens[:, 0]
            tokens.append(_wide(made, vocabulary.pad))
            continue
        rules = []
        if decoder == "masked":
            requests = asked.requests[start : start + 256]
            tables = tables_of(corpus, _characters(found))
            rules = [ProsodyConstraint(vocabulary, requests, skip_lines=1, punctuation=False, tables=tables)]
        out = generate(step_of(model, rows), prompt, 8, temperature=1.0 if rules else float(decoder[1:]),
                       processors=rules, generator=draws, **common)  # fmt: skip
        tokens.append(_wide(out.tokens, vocabulary.pad))
        costs.append(_wide((out.drawn - out.log_probs).double(), 0.0))
    return Answered(torch.cat(tokens), torch.cat(costs) if decoder == "masked" else None)


def inside(answered: Answered, found: Halves, asked: Questions, corpus: str) -> Tensor:
    """(n,): whether the masks of an answer's own request would have let all of it pass."""
    vocabulary, tables = found.vocabulary, tables_of(corpus, _characters(found))
    right = torch.zeros(len(answered.tokens), dtype=torch.bool)
    for i, request in enumerate(asked.requests):
        rules = ProsodyConstraint(vocabulary, request, skip_lines=1, punctuation=False, tables=tables)
        row = torch.cat((torch.tensor([vocabulary.bos]), answered.tokens[i]))[None]
        right[i] = bool(members(rules, row)[0])
    return right


def originals(found: Halves, asked: Questions) -> Answered:
    """What the poets answered."""
    return Answered(found.test[1][asked.rows][:, 1:])


def measure(answered: Answered, found: Halves, asked: Questions, corpus: str, prefix: str) -> dict[str, object]:
    """Shares over all couplets, and counts by poem for the bootstrap, as figures of a summary."""
    vocabulary, tables = found.vocabulary, tables_of(corpus, _characters(found))
    source, tokens = found.test[0][asked.rows], answered.tokens
    length = asked.lengths(found.test[0], vocabulary.pad)
    right = _right_length(tokens, length, vocabulary.eos)
    opposite = torch.ones(len(tokens), dtype=torch.bool)
    level, oblique = tables.tone
    for j in EVEN:
        fits = (level[source[:, j]] & oblique[tokens[:, j]]) | (oblique[source[:, j]] & level[tokens[:, j]])
        opposite &= fits | (length <= j)
    last = tokens.gather(1, (length - 1)[:, None])[:, 0]
    unlike = _no_repeats(source, tokens, length)
    seen = copies(corpus, _characters(found))
    hits = seen.whole(tokens, length) & right
    runs = seen.longest(tokens, length)
    regular = torch.tensor([right[i].item() and _regular(found, asked, tokens[i], i) for i in range(len(tokens))])
    flags = {"length": right, "opposite": right & opposite, "level": right & level[last], "unlike": right & unlike,
             "hit": hits, "regular": regular, "proper": regular & unlike}  # fmt: skip
    result: dict[str, object] = {f"{prefix}.{name}": float(flag.double().mean()) for name, flag in flags.items()}
    both = level & oblique
    chars = [t for row, n in zip(tokens.tolist(), length.tolist()) for t in row[:n] if t >= len(SPECIALS)]
    result[f"{prefix}.either"] = float(both[torch.tensor(chars)].double().mean()) if chars else None
    result[f"{prefix}.longest"] = float(runs.double().mean())
    result |= {f"{prefix}.distinct{n}": distinct(tokens, length, n) for n in (1, 2)}
    owner = found.owner[asked.rows]
    poems, place = owner.unique(return_inverse=True)
    for name in ("opposite", "hit", "length", "proper"):
        counts = torch.zeros(len(poems)).scatter_add(0, place, flags[name].float())
        result[f"{prefix}.poem_{name}"] = joined(counts)
    result["poem_couplets"] = joined(torch.bincount(place))
    return result


def _regular(found: Halves, asked: Questions, tokens: Tensor, i: int) -> bool:
    """Whether the checker finds no fault in the couplet."""
    first, _ = found.texts[int(asked.rows[i])]
    second = found.vocabulary.decode(tokens.tolist())
    if len(second) != len(first) or "□" in second:
        return False
    return check((first, second), asked.requests[i].form, script="traditional").ok


def _characters(found: Halves) -> int:
    """Back from the vocabulary to the number it was made with."""
    return len(found.vocabulary.chars) - 2


def _wide(rows: Tensor, value: float) -> Tensor:
    return torch.nn.functional.pad(rows, (0, 8 - rows.shape[1]), value=value)


def _right_length(tokens: Tensor, length: Tensor, eos: int) -> Tensor:
    """Exactly so many characters, then eos."""
    ends = tokens.gather(1, length[:, None])[:, 0] == eos
    inside = torch.arange(tokens.shape[1]) < length[:, None]
    return ends & ((tokens >= len(SPECIALS)) | ~inside).all(1)


def _no_repeats(source: Tensor, tokens: Tensor, length: Tensor) -> Tensor:
    """No character of the answer stands twice in it or in the first half."""
    inside = torch.arange(tokens.shape[1]) < length[:, None]
    again = ((tokens[:, :, None] == tokens[:, None, :]) & inside[:, :, None] & inside[:, None, :]).sum((1, 2)) > length
    shared = ((tokens[:, :, None] == source[:, None, :]) & inside[:, :, None]).any(2).any(1)
    return ~again & ~shared


def distinct(tokens: Tensor, length: Tensor, n: int) -> float:
    """Different n-grams over all n-grams of the answers."""
    grams: list[tuple[int, ...]] = []
    for row, size in zip(tokens.tolist(), length.tolist()):
        grams += [tuple(row[i : i + n]) for i in range(size - n + 1)]
    return len(set(grams)) / max(1, len(grams))


class Copies:
    """What stands in the half-lines of the training part, as sorted keys of all runs of 2 to 7 characters.

    Keys are numbers in the base of the vocabulary: exact up to five characters; for six and seven they wrap at 64
    bits, where a chance collision has a probability below 1e-12.
    """

    def __init__(self, found: Halves) -> None:
        self.base = np.uint64(len(found.vocabulary) | 1)
        lines = torch.cat((found.train[0], found.train[1][:, 1:8]))
        lines = lines.masked_fill(lines < len(SPECIALS), 0).numpy().astype(np.uint64)
        self.runs = {
            n: np.unique(np.concatenate([self._keys(lines, n, at) for at in range(8 - n)])) for n in range(2, 8)
        }
        short = (lines[:, 5:] == 0).all(1)
        self.lines = {5: np.unique(self._keys(lines[short], 5, 0)), 7: np.unique(self._keys(lines[~short], 7, 0))}

    def _keys(self, lines: np.ndarray, n: int, at: int) -> np.ndarray:
        """Keys of the runs of n that begin at a place, of those lines that have such a run."""
        part = lines[:, at : at + n]
        part = part[(part > 0).all(1)]
        return self._key(part)

    def _key(self, part: np.ndarray) -> np.ndarray:
        keys = np.zeros(len(part), dtype=np.uint64)
        for column in part.T:
            keys = keys * self.base + column
        return keys

    def whole(self, tokens: Tensor, length: Tensor) -> Tensor:
        """(n,): whether an answer is a half-line of the training part, character by character."""
        found = torch.zeros(len(tokens), dtype=torch.bool)
        for n, lines in self.lines.items():
            rows = (length == n).nonzero()[:, 0]
            found[rows] = torch.from_numpy(_in(lines, self._key(tokens[rows, :n].numpy().astype(np.uint64))))
        return found

    def longest(self, tokens: Tensor, length: Tensor) -> Tensor:
        """(n,): characters of the longest run that the training part has too; 1 where there is none of two."""
        best = torch.ones(len(tokens), dtype=torch.long)
        clean = tokens.masked_fill(tokens < len(SPECIALS), 0).numpy().astype(np.uint64)
        for n, runs in self.runs.items():
            for at in range(8 - n):
                part = clean[:, at : at + n]
                fits = torch.from_numpy((part > 0).all(1)) & (length >= at + n)
                best[fits & torch.from_numpy(_in(runs, self._key(part)))] = n
        return best


def _in(known: np.ndarray, keys: np.ndarray) -> np.ndarray:
    if not len(known):
        return np.zeros(len(keys), dtype=bool)
    at = np.minimum(np.searchsorted(known, keys), len(known) - 1)
    return np.asarray(known[at] == keys)


@cache
def copies(corpus: str, characters: int = CHARACTERS) -> Copies:
    """The training part's runs; kept, as they take seconds."""
    return Copies(halves(corpus, characters))


def by_place(cost: Tensor, length: Tensor, n: int) -> list[float]:
    """Mean -log Z at each of the n places of the answers of n characters, and at their end."""
    rows = cost[length == n][:, : n + 1]
    return [float(v) for v in rows.mean(0)] if len(rows) else []
