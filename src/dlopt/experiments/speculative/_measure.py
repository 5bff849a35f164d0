"""Drafted beside plain decoding: every prompt by every arm in turn, CPU time of one thread, output compared."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from dlopt.experiments.speculative import _resume
from dlopt.experiments.speculative._arms import BASELINES, DRAWN, HALF, HF_LENGTH, PLAIN, Arm, Workshop
from dlopt.experiments.speculative._told import Told
from dlopt.lab.log import Log, Paused
from dlopt.speculative import Gate, Stats, generate
from dlopt.speculative.costs import costs_of
from dlopt.tasks.decoding import Prompt, render

# where the two likeliest tokens are nearer than this in their logits, block and single passes may choose differently
TIE = 1e-2


@dataclass
class Settings:
    """tokens: new ones, at most. temperature, seed: of sampling; prompt i uses seed + i."""

    tokens: int
    temperature: float
    seed: int


class Begun:
    """A prompt's token ids, and its keys and values but for the last token: computed once a model, copied for an arm.

    Prefills are not what is compared, and of long prompts they would take longer than all decoding.
    """

    def __init__(self, ids: list[int]) -> None:
        self.ids = ids
        self._kept: dict[int, tuple[Any, float]] = {}

    @torch.no_grad()
    def cache(self, model: Any) -> tuple[Any, float]:
        """(a cache of one's own, the seconds that it took to fill)."""
        from transformers import DynamicCache

        if id(model) not in self._kept:
            filled, began = DynamicCache(config=model.config), time.perf_counter()
            if self.ids[:-1]:
                model(input_ids=torch.tensor([self.ids[:-1]]), past_key_values=filled, use_cache=True, logits_to_keep=1)
            self._kept[id(model)] = filled, time.perf_counter() - began
        filled, seconds = self._kept[id(model)]
        return copy.deepcopy(filled), seconds


Runner = Callable[[Prompt, Begun, int], Told]


def measure(
    shop: Workshop,
    arms: Sequence[Arm],
    prompts: Sequence[Prompt],
    how: Settings,
    log: Log,
) -> dict[str, list[Told]]:
    """{arm: one `Told` a prompt}, the plain one first. The order of arms rotates from prompt to prompt.

    One gate and one cost table serve all prompts of an arm, as they would in a service. After every prompt all of it is
    written into the run's folder, and a run that was stopped goes on with the next one. Raises `Paused` between two
    prompts once the deadline has passed, and RuntimeError if the greedy output of an arm of ours differs from plain
    decoding where no tie explains it.
    """
    gated = [arm for arm in arms if arm.gated and arm.method not in BASELINES]
    kept = _resume.load(log, shop.target, [PLAIN, *(arm.text for arm in arms)])
    gates = {arm.text: Gate(costs_of(shop.target)) for arm in gated}
    runners: dict[str, Runner] = {PLAIN: _ours(shop, None, how, shop.target)}
    runners |= {arm.text: _runner(shop, arm, how, gates.get(arm.text, False)) for arm in arms}
    found: dict[str, list[Told]] = {name: [] for name in runners}
    if kept is not None:
        found = kept.found
        for name, gate in gates.items():
            gate.load_state_dict(kept.gates[name])
        for arm in arms:  # histories come to be with their drafters
            if arm.method not in BASELINES:
                shop.build(arm, prompts[0])
        for row in found[PLAIN]:
            shop.remember(row.tokens)
    warm = render(shop.tokenizer, prompts[0].text)[:32]
    generate(shop.target, [warm], max_new_tokens=2, eos=None)
    for number in range(len(found[PLAIN]), len(prompts)):
        if log.deadline is not None and time.time() >= log.deadline:
            raise Paused(f"after {number} of {len(prompts)} prompts")
        prompt = prompts[number]
        begun = Begun(render(shop.tokenizer, prompt.text))
        order = list(runners)
        order = order[number % len(order) :] + order[: number % len(order)]
        for name in order:
            found[name].append(runners[name](prompt, begun, how.seed + number))
        for arm in arms:
            if arm.method not in BASELINES:
                _same(shop, arm, begun.ids, found[PLAIN][-1].tokens, found[arm.text][-1].tokens, how)
        shop.remember(found[PLAIN][-1].tokens)
        _resume.save(log, shop.target, found, gates)
        log.progress(number + 1, len(prompts))
    return found


def _runner(shop: Workshop, arm: Arm, how: Settings, gate: Gate | bool) -> Runner:
    if arm.method == HALF:
        return _ours(shop, None, how, shop.half())
    return _theirs(shop, arm, how) if arm.method in BASELINES else _ours(shop, arm, how, shop.target, gate)


def _ours(shop: Workshop, arm: Arm | None, how: Settings, model: Any, gate: Gate | bool = False) -> Runner:
    """Our engine, with a drafter or, without an arm, token by token."""

    def run(prompt: Prompt, begun: Begun, seed: int) -> Told:
        drafter = None if arm is None else shop.build(arm, prompt)
        cache, filling = begun.cache(model)
        began, cpu = time.perf_counter(), time.process_time()
        found = generate(
            model,
            [begun.ids],
            drafter,
            cache,
            max_new_tokens=how.tokens,
            temperature=how.temperature,
            seed=seed,
            gate=gate,
        )
        cpu, seconds = time.process_time() - cpu, time.perf_counter() - began
        stats = found.stats
        # one thread works all the while, so the last token's prefill has the same share of the CPU time and the clock's
        decoding = stats.decode_seconds / max(stats.total_seconds, 1e-9)
        return Told(found.tokens[0], cpu * decoding, seconds * decoding, filling + seconds * (1 - decoding), stats)

    return run


def _theirs(shop: Workshop, arm: Arm, how: Settings) -> Runner:
    """Decoding of `transformers` itself. The prefill is timed apart, by a call for one token."""
    extra = {"prompt_lookup_num_tokens": HF_LENGTH} if arm.method == "hf-lookup" else {"assistant_model": shop.small()}
    sampled = (
        {"do_sample": True, "temperature": how.temperature, "top_k": 0, "top_p": 1.0}
        if how.temperature
        else {"do_sample": False}
    )

    def call(ids: list[int], tokens: int, seed: int) -> list[int]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            row = torch.tensor([ids])
            out = shop.target.generate(
                row, attention_mask=torch.ones_like(row), max_new_tokens=tokens, **sampled, **extra
            )
        return out[0, len(ids) :].tolist()

    def timed(ids: list[int], tokens: int, seed: int) -> tuple[list[int], float, float]:
        began, cpu = time.perf_counter(), time.process_time()
        made = call(ids, tokens, seed)
        return made, time.process_time() - cpu, time.perf_counter() - began

    def run(prompt: Prompt, begun: Begun, seed: int) -> Told:
        _, first_cpu, first = timed(begun.ids, 1, seed)
        made, cpu, seconds = timed(begun.ids, how.tokens, seed)
        return Told(made, max(cpu - first_cpu, 1e-9), max(seconds - first, 1e-9), first)

    return run


@torch.no_grad()
def _same(shop: Workshop, arm: Arm, ids: list[int], plain: list[int], ours: list[int], how: Settings) -> None:
    """RuntimeError where text differs that must not: greedy, or drafts that are not drawn, at equal seed."""
    if ours == plain or (how.temperature and arm.method in DRAWN):
        return
    place = next((i for i, (a, b) in enumerate(zip(plain, ours)) if a != b), min(len(plain), len(ours)))
    if not how.temperature and place < min(len(plain), len(ours)):
        logits = shop.target(input_ids=torch.tensor([ids + plain[:place]])).logits[0, -1]
        if abs(float(logits[plain[place]] - logits[ours[place]])) < TIE:
            return
    raise RuntimeError(f"{arm.text} does not give the text of plain decoding: they differ at new token {place}")


def earlier(shop: Workshop, prompts: Sequence[Prompt], tokens: int) -> list[list[int]]:
    """Greedy answers to other prompts, for a datastore of the model's own outputs."""
    rows = [render(shop.tokenizer, prompt.text) for prompt in prompts]
    return [generate(shop.target, [ids], max_new_tokens=tokens).tokens[0] for ids in rows]


def repetition(tokens: Sequence[int], n: int = 4) -> float:
    """Share of a text's n-grams that occurred in it before; 0 for a text shorter than n."""
    grams = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def summed(found: Mapping[str, Sequence[Told]]) -> dict[str, Any]:
    """{"ARM FIGURE": value} of all arms: lists by prompt, and sums of counts."""
    told: dict[str, Any] = {}
    plain = found[PLAIN]
    for name, rows in found.items():
        told[f"{name} cpu"] = [round(row.cpu, 5) for row in rows]
        told[f"{name} seconds"] = [round(row.seconds, 5) for row in rows]
        told[f"{name} prefill"] = [round(row.prefill, 5) for row in rows]
        told[f"{name} tokens"] = [len(row.tokens) for row in rows]
        told[f"{name} same"] = [row.tokens == other.tokens for row, other in zip(rows, plain)]
        parts = [row.stats for row in rows if row.stats is not None]
        if parts and name not in (PLAIN, HALF):
            whole = Stats.sum(parts)
            told[f"{name} rounds"] = [part.rounds for part in parts]
            keep = ("drafted", "accepted", "offered", "taken", "draft_seconds", "target_seconds", "verify_seconds",
                    "total_seconds", "prefill_seconds")  # fmt: skip
            told |= {f"{name} {figure}": getattr(whole, figure) for figure in keep}
            told[f"{name} widths"] = {str(width): count for width, count in sorted(whole.widths.items())}
    told["repetition"] = [round(repetition(row.tokens), 4) for row in plain]
    return told
