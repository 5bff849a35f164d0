"""CPU time of a decoding step over `DynamicCache`: our caches and those of transformers, interleaved; and bytes.

    python benchmarks/kvcache.py                            # a layer stack of SmolLM2's shapes, random weights
    python benchmarks/kvcache.py --contexts 1024 --layers 4 # a minute

A model of SmolLM2-135M's shapes with random weights (few layers by default: the ratio hardly depends on their number)
gets caches that hold `context` random tokens, and all caches take turns: a time is the median over the repeats of one
step's CPU time after two steps that are not counted, and is printed over that of `DynamicCache` in the same rounds.
`attention only` has a hidden size so small that the weights cost nothing: the ratio there is that of the caches alone.
bytes: counted, over the formula. error: relative root mean square difference of the step's keys and values from the
full ones, at the same bits, for caches that quantize. `QuantizedCache` of transformers needs optimum-quanto or hqq;
where neither is installed, its row says so and nothing is measured for it.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from dlopt.kvcache import kv_bytes, make_cache, packed
from dlopt.memory import human

OURS = {
    "sinks 4+252": "sinks:sinks=4,window=252",
    "KIVI-2": "kivi:bits=2,residual=128",
    "KIVI-2 packed": "kivi:bits=2,residual=128",
    "KIVI-4": "kivi:bits=4,residual=128",
    "KIVI-4 packed": "kivi:bits=4,residual=128",
    "int8": "quant:code=int8",
    "H2O 256": "h2o:budget=256,recent=128",
    "TOVA 256": "tova:budget=256",
}
BACKENDS = ("quanto", "hqq")
PLAIN = "DynamicCache"


def model_of(layers: int, attention_only: bool) -> LlamaForCausalLM:
    """SmolLM2-135M's heads; without its width if only attention is to count."""
    width, hidden = (72, 64) if attention_only else (576, 1536)
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=width,
        intermediate_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=9,
        num_key_value_heads=3,
        head_dim=64,
        max_position_embeddings=16384,
        attn_implementation="sdpa",
    )
    torch.manual_seed(0)
    return LlamaForCausalLM(config).eval()


def theirs(model: Any, bits: int) -> Any:
    """transformers' QuantizedCache with a residual of 128 and groups of 32. ImportError where no backend is there."""
    from transformers import QuantizedCache

    reasons = []
    for backend in BACKENDS:
        try:
            return QuantizedCache(backend, model.config, nbits=bits, q_group_size=32, residual_length=128)
        except ImportError as error:
            reasons.append(str(error).splitlines()[0][:60])
    raise ImportError("; ".join(reasons))


@torch.no_grad()
def filled(model: Any, cache: Any, tokens: torch.Tensor) -> Any:
    """The cache with a prompt in it, read in pieces: what evicts must see queries."""
    for piece in tokens.split(512, dim=1):
        model(input_ids=piece, past_key_values=cache, logits_to_keep=1)
    return cache


@torch.no_grad()
def step(model: Any, cache: Any, token: int, context: Any) -> float:
    ids = torch.tensor([[token]])
    with context:
        start = time.process_time()
        model(input_ids=ids, past_key_values=cache, logits_to_keep=1)
        return time.process_time() - start


@torch.no_grad()
def error(model: Any, cache: Any, states: list[tuple[torch.Tensor, torch.Tensor]]) -> float:
    """Relative error of what the cache hands to attention once it was given these keys and values, and one more."""
    wrong = total = 0.0
    for number, (keys, values) in enumerate(states):
        cache.update(keys[:, :, :-1], values[:, :, :-1], number)
        found = cache.update(keys[:, :, -1:], values[:, :, -1:], number)
        for ours, exact in zip(found, (keys, values)):
            wrong += float((ours - exact).double().square().sum())
            total += float(exact.double().square().sum())
    return (wrong / total) ** 0.5


def measure(layers: int, context: int, repeats: int, attention_only: bool, only: list[str]) -> None:
    model = model_of(layers, attention_only)
    tokens = torch.randint(256, (1, context), generator=torch.Generator().manual_seed(0))
    makers: dict[str, Callable[[], Any]] = {PLAIN: lambda: DynamicCache(config=model.config)}
    makers |= {name: lambda spec=spec: make_cache(spec, model) for name, spec in OURS.items()}
    makers |= {f"QuantizedCache {bits} bits": lambda bits=bits: theirs(model, bits) for bits in (2, 4)}
    if only:
        makers = {n: m for n, m in makers.items() if n == PLAIN or any(word.lower() in n.lower() for word in only)}
    caches, notes = {}, {}
    for name, make in makers.items():
        try:
            caches[name] = filled(model, make(), tokens)
        except ImportError as missing:
            notes[name] = f"not measured: {missing}"
    times: dict[str, list[float]] = {name: [] for name in caches}
    for turn in range(repeats + 2):
        for name, cache in caches.items():
            spent = step(model, cache, turn % 256, packed(model) if "packed" in name else contextlib.nullcontext())
            if turn >= 2:
                times[name].append(spent)
    plain = statistics.median(times[PLAIN])
    states = [(layer.keys, layer.values) for layer in caches[PLAIN].layers]
    seen = caches[PLAIN].get_seq_length()
    kind = "attention only" if attention_only else "whole model"
    print(f"\n{kind}, {layers} layers, {context} tokens, {torch.get_num_threads()} threads, {repeats} repeats; {PLAIN} "
          f"{1000 * plain:.2f} ms of CPU a step")  # fmt: skip
    print(f"{'cache':24}  over {PLAIN} (least-most)      bytes  / formula  / full   error")
    for name in makers:
        if name in notes:
            print(f"{name:24}  {notes[name]}")
            continue
        ratios = [t / plain for t in times[name]]
        line = f"{name:24}  {statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})".ljust(50)
        full = kv_bytes(model, "full", seen, dtype=torch.float32).total
        if name in OURS:
            counted = caches[name].nbytes().total
            formula = kv_bytes(model, OURS[name], seen, dtype=torch.float32).total
            line += f"{human(counted):>12}  {counted / formula:9.4f}  {counted / full:6.3f}"
        if name.startswith(("KIVI", "int8", "Quantized")) and "packed" not in name:
            line += f"  {error(model, makers[name](), states):6.4f}"
        print(line)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--contexts", nargs="+", type=int, default=[1024, 4096, 8192])
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", nargs="+", default=[])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for length in options.contexts:
        for alone in (False, True):
            measure(options.layers, length, options.repeats, alone, options.only)
