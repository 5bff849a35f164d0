"""Questions behind a cached prefix: log-likelihoods of the choices, and the distance from the full cache."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from dlopt.experiments.kvcache import _models
from dlopt.experiments.kvcache._common import Clock, again, fill, make
from dlopt.experiments.kvcache._pieces import each
from dlopt.lab.log import Log
from dlopt.tasks import data
from dlopt.tasks.branches import Packed, groups, likelihoods, predicted, split, stepwise
from dlopt.tasks.openbookqa import Encoded, Prefix, accuracies, chosen, encoded, prefix

ORDERS = ("packed", "stepwise")
DECODED = 12  # steps whose median is the time of one


@lru_cache(maxsize=4)
def questions(model: str, source: str, name: str, count: int) -> tuple[Prefix, tuple[Encoded, ...]]:
    """The prefix of that name and the first `count` test questions behind it."""
    _, tokenizer = _models.load(model)
    book = data.get(source)
    before = prefix(name, book, tokenizer)
    return before, tuple(encoded(question, before, tokenizer) for question in book.parts["test"][:count])


@lru_cache(maxsize=1)
def reference(model: str, device: str, source: str, name: str, count: int) -> list[tuple[list[float], Tensor]]:
    """[(log-likelihoods of the choices, log-probabilities at the tokens of the right one)] with the full cache.

    Kept for the runs of this process that share a prefix: 500 questions over 49,152 tokens are some 330 MB.
    """
    network, _ = _models.load(model, device)
    before, items = questions(model, source, name, count)
    cache = None
    if before.tokens:
        cache = make("full", {}, network)
        fill(network, cache, before.tokens)
    found = []
    for group in groups(items):
        row = Packed([items[i] for i in group])
        logs = predicted(network, cache, row)
        pieces = split(row, logs)
        for i, lls, own in zip(group, likelihoods(row, logs), pieces):
            found.append((lls, own[items[i].answer].clone()))
    return found


def measure(
    log: Log, model: str, source: str, name: str, count: int, method: str, params: Mapping[str, Any], order: str
) -> tuple[dict[str, Any], Any]:
    """(what a record holds, the filled cache or None) of a cache on the questions behind a prefix.

    gold_nll: mean of - log p of the right choice, in nats. divergence: mean over questions of the KL divergence from
    the full cache's distribution over the four choices (log-likelihoods as logits); token_divergence: the same over
    the vocabulary, mean over the right choice's tokens. agreement: share of questions with the full cache's choice.
    """
    network, _ = _models.load(model, log.device)
    before, items = questions(model, source, name, count)
    cache, summary = None, {"questions": len(items), "prefix_tokens": len(before.tokens)}
    if before.tokens:
        cache = make(method, params, network)
        with Clock(log.device) as clock:
            fill(network, cache, before.tokens)
        summary["prefill_seconds"] = clock.seconds
        summary["decode_seconds"] = _decoding(network, cache, method, params, log.device)
    known = None if method == "full" else reference(model, log.device, source, name, count)

    def work(group: list[int]) -> dict[str, Any]:
        own = [items[i] for i in group]
        with Clock(log.device) as spent:
            if order == "packed":
                row = Packed(own)
                logs = predicted(network, cache, row)
            else:
                row = Packed(own)
                logs = torch.cat([stepwise(network, again(cache, network, method, params), item) for item in own])
        lls, pieces = likelihoods(row, logs), split(row, logs)
        found: dict[str, Any] = {"lls": lls, "seconds": spent.seconds, "over_tokens": [0.0] * len(own)}
        found["over_choices"] = [0.0] * len(own)
        if known is not None:
            for k, i in enumerate(group):
                found["over_tokens"][k] = divergence(known[i][1], pieces[k][items[i].answer])
                a, b = (torch.tensor(v, dtype=torch.float64).log_softmax(0) for v in (known[i][0], lls[k]))
                found["over_choices"][k] = divergence(a[None], b[None])
        return found

    parts = each(log, list(groups(items)), work)
    joined = {name: [v for part in parts for v in part[name]] for name in ("lls", "over_tokens", "over_choices")}
    gold = [-lls[item.answer] for lls, item in zip(joined["lls"], items)]
    picks = [chosen(lls) for lls in joined["lls"]]
    theirs = picks if known is None else [chosen(lls) for lls, _ in known]
    covered = [g for g, item in zip(gold, items) if item.covered]
    summary |= {
        **accuracies(items, joined["lls"]),
        "gold_nll": statistics.fmean(gold),
        "gold_nll_each": [round(g, 4) for g in gold],
        "divergence": statistics.fmean(joined["over_choices"]),
        "divergence_each": [round(d, 5) for d in joined["over_choices"]],
        "token_divergence": statistics.fmean(joined["over_tokens"]),
        "token_divergence_each": [round(d, 5) for d in joined["over_tokens"]],
        "agreement": statistics.fmean(a == b for a, b in zip(picks, theirs)),
        "agreed": "".join("1" if a == b else "0" for a, b in zip(picks, theirs)),
        "covered": len(covered),
        "covered_nll": statistics.fmean(covered) if covered else None,
        "question_seconds": sum(part["seconds"] for part in parts) / len(items),
    }
    return summary, cache


def divergence(p: Tensor, q: Tensor) -> float:
    """Mean over rows of KL(p || q) of log-probabilities (n, outcomes); what p gives no chance to counts nothing."""
    each_ = torch.where(p.isfinite(), p.exp() * (p - q), torch.zeros_like(p))
    return float(each_.sum(-1).mean())


def _decoding(network: Any, cache: Any, method: str, params: Mapping[str, Any], device: str) -> float:
    """Median seconds of a decoding step of one row from a copy of the cache, compression included."""
    copy = again(cache, network, method, params)
    times = []
    for token in range(DECODED):
        with Clock(device) as clock:
            fill(network, copy, [token])
        times.append(clock.seconds)
    return statistics.median(times)


def check(source: str, name: str, count: int, order: str) -> None:
    """A ValueError for what cannot be asked, `DataUnavailable` if the questions are not here."""
    from dlopt.tasks.data.files import locate
    from dlopt.tasks.openbookqa import parse

    kind, _ = parse(name)
    if order not in ORDERS:
        raise ValueError(f"order takes {' or '.join(ORDERS)}, not {order!r}")
    if kind == "zero" and order != "packed":
        raise ValueError("without a prefix there is no cache to go through step by step: order must be packed")
    if count < 1:
        raise ValueError(f"questions must be at least 1, got {count}")
    found = data.find(source)
    locate(found.name, found.files, found.help)


def each_of(records: Sequence[Any], figure: str) -> list[float]:
    """The figure of each question, of the first record."""
    return [float(v) for v in records[0].summary[figure]] if records else []
