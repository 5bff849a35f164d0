"""Drafting beside plain decoding, in one interleaved run; the engine's own time; and the size of a datastore.

    python benchmarks/speculative.py                        # SmolLM2-135M-Instruct, needs DLOPT_DATA; half an hour
    python benchmarks/speculative.py --prompts 4 --tokens 32 --categories chat
    python benchmarks/speculative.py --categories --store 10000000   # the datastore alone

Speed is CPU time per new token after the prefill, of plain fp32 decoding over that of the arm; every prompt is decoded
by every arm in turn, greedily, and the text of ours must be that of plain decoding. The interval (95%) resamples
prompts. `over`: gated lookup over transformers' own, and over plain decoding in bf16. Overhead is the time of a round
that neither the target nor the drafter used.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from dlopt.experiments.speculative._arms import Workshop, arms
from dlopt.experiments.speculative._measure import Settings, measure, summed
from dlopt.experiments.speculative._ratios import speedup, tokens_per_round
from dlopt.experiments.speculative.bench import SMOLLM2
from dlopt.lab.log import Log
from dlopt.speculative import Datastore, PromptLookup, generate
from dlopt.tasks import decoding
from dlopt.tasks.models import pretrained

ARMS = "prompt-lookup,hf-lookup,plain-bf16"
GOALS = {"rewriting": 1.6, "code": 1.3, "qa": 1.3, "chat": 1.0}
MODES = {
    "greedy": {},
    "temperature 0.8": {"temperature": 0.8},
    "temperature 0.8, top-p 0.9": {"temperature": 0.8, "top_p": 0.9},
}


def compare(shop: Workshop, category: str, count: int, tokens: int) -> None:
    """One category: a line an arm, and the two ratios."""
    prompts = decoding.prompts(category, count)
    found = measure(shop, arms(ARMS), prompts, Settings(tokens, 0.0, 0), Log())
    told: Any = SimpleNamespace(summary=summed(found), config={"arms": ARMS})
    values = {arm: speedup(told, arm) for arm in ARMS.split(",")}
    for arm, value in values.items():
        assert value is not None
        goal = f"   goal {GOALS[category]:.1f}" if arm == "prompt-lookup" and category in GOALS else ""
        rounds = tokens_per_round(told, arm)
        per_round = "" if rounds is None else f"   {rounds:.2f} tokens a round"
        print(f"{category:12}{arm:16}{value.mean:6.2f} ({value.low:.2f}-{value.high:.2f}){per_round}{goal}", flush=True)
    for other in ("hf-lookup", "plain-bf16"):
        value = speedup(told, "prompt-lookup", over=other)
        assert value is not None
        print(f"{category:12}over {other:11}{value.mean:6.2f} ({value.low:.2f}-{value.high:.2f})", flush=True)


def overhead(shop: Workshop, tokens: int) -> None:
    """Seconds of the engine per round, by kind of sampling."""
    prompt = decoding.render(shop.tokenizer, decoding.prompts("rewriting", 1)[0].text)
    for name, options in MODES.items():
        for drafter in (None, PromptLookup(length=4)):
            stats = generate(
                shop.target, [prompt], drafter, max_new_tokens=tokens, gate=False, eos=None, **options
            ).stats
            kind = "plain" if drafter is None else "chain of 4"
            print(
                f"overhead    {name:28}{kind:12}{1000 * stats.overhead_per_round:7.2f} ms a round   goal 3", flush=True
            )


def store(tokens: int) -> None:
    """Build a datastore of random documents of 500 tokens over a vocabulary of 49,152, and look up in it."""
    rng = np.random.default_rng(0)
    # a law like that of text (Zipf's), so that long runs of equal tokens and rare ones both occur
    law = 1 / np.arange(1, 49_153)
    corpus = rng.choice(49_152, tokens, p=law / law.sum()).astype(np.int32)
    documents = (corpus[i : i + 500] for i in range(0, tokens, 500))
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    made = Datastore.build(documents, 49_152)
    spent = time.process_time() - began
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(f"datastore   {made.tokens:,} tokens: {spent:.1f} s of CPU, peak {most / 1024:,.0f} MiB more than before, "
          f"{made.nbytes / 2**20:,.0f} MiB kept   goal: minutes, 1.5 GB")  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--categories", nargs="*", choices=decoding.CATEGORIES, default=list(GOALS))
    parser.add_argument("--prompts", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--store", type=int, default=10_000_000, help="tokens of the datastore; 0 for none")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.categories:
        if pretrained.state(SMOLLM2) != "here":
            sys.exit(f"the model is not here: run `dlopt model get {SMOLLM2}` first")
        workshop = Workshop(*pretrained.load(SMOLLM2))
        for one in options.categories:
            compare(workshop, one, options.prompts, options.tokens)
        overhead(workshop, options.tokens)
    if options.store:
        store(options.store)
