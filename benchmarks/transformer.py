"""Sparse attention against full attention, and a training step of `Seq2Seq` against `nn.Transformer`.

    OMP_NUM_THREADS=1 python benchmarks/transformer.py [--quick] [--only attention|step|decoding]

Rows take turns, one thread each; a time is the median over the rounds of CPU seconds, after one round that is not
counted. Only ratios within a table are meant to be compared. Goals: blocked strided and fixed attention at 4,096
positions, forward and backward, at least 4 times as fast as full causal attention; a training step at most 1.0 times
that of `nn.Transformer` of equal shape.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from dlopt.transformer.config import TransformerConfig
from dlopt.transformer.decoding import DecoderStep
from dlopt.transformer.model import Decoder, Seq2Seq
from dlopt.transformer.scope import Scope
from dlopt.transformer.sparse import patterns

Work = Callable[[], object]


def turns(rows: dict[str, Work], rounds: int) -> dict[str, list[float]]:
    """CPU seconds of every row in every round, all rows in turn."""
    times: dict[str, list[float]] = {name: [] for name in rows}
    for i in range(rounds + 1):
        for name, work in rows.items():
            start = time.process_time()
            work()
            if i:
                times[name].append(time.process_time() - start)
    return times


def show(title: str, times: dict[str, list[float]], base: str) -> None:
    middle = {name: statistics.median(t) for name, t in times.items()}
    print(f"\n{title}; 1.00 is {base}, {middle[base]:.4f} CPU s")
    print(f"{'':34}{'time ratio':>10}  {'(least-most)':14}{'times as fast':>14}")
    for name, t in times.items():
        low, high = min(t) / middle[base], max(t) / middle[base]
        span = f"({low:.2f}-{high:.2f})"
        print(f"{name:34}{middle[name] / middle[base]:10.2f}  {span:14}{middle[base] / middle[name]:14.2f}")


def attention(length: int, stride: int, summary: int, rounds: int, heads: int = 4, width: int = 64) -> None:
    """One attention, forward and backward, all heads."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, heads, length, width, requires_grad=True) for _ in range(3))
    direction = torch.randn(1, heads, length, width)
    at = torch.arange(length)

    def trained(f: Callable) -> Work:
        def work() -> None:
            for x in (q, k, v):
                x.grad = None
            f(q, k, v).backward(direction)

        return work

    rows = {"full, torch, causal": trained(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True))}
    shapes = {
        "local": {"window": stride + 1},
        "strided": {"stride": stride},
        "fixed": {"stride": stride, "summary": summary},
    }
    for name, shape in shapes.items():
        sizes = {"width": heads * width, "heads": heads, "max_length": length}
        parts = patterns(TransformerConfig(2, attention=name, **sizes, **shape), 0)
        mask = Scope(at, at).mask(parts, heads, torch.float32)
        share = heads // len(parts)

        def blocked(q, k, v, parts=parts, share=share):
            pieces = zip(q.split(share, 1), k.split(share, 1), v.split(share, 1), strict=True)
            return torch.cat([p.blocked(*x) for p, x in zip(parts, pieces, strict=True)], dim=1)

        rows[f"{name}, torch with a mask"] = trained(
            lambda q, k, v, mask=mask: F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        )
        rows[f"{name}, blocked"] = trained(blocked)
        gap = (blocked(q, k, v) - F.scaled_dot_product_attention(q, k, v, attn_mask=mask)).abs().max().item()
        assert gap < 1e-5, f"{name}: blocked and masked attention differ by {gap}"
    title = f"attention, T = {length}, stride {stride}, summary {summary}, {heads} heads of {width}, {rounds} rounds"
    show(title, turns(rows, rounds), "full, torch, causal")


class Theirs(nn.Module):
    """`nn.Transformer` between a shared embedding and a tied output, as in ours; post- or pre-norm."""

    def __init__(self, c: TransformerConfig) -> None:
        super().__init__()
        self.embed = nn.Embedding(c.vocabulary, c.width)
        with warnings.catch_warnings():  # that pre-norm has no nested tensors, which are not asked for
            warnings.simplefilter("ignore", UserWarning)
            self.core = nn.Transformer(
                c.width, c.heads, c.layers, c.layers, c.hidden, 0.0, c.feedforward, batch_first=True, bias=c.bias,
                norm_first=c.norm_position == "pre",
            )  # fmt: skip

    def forward(self, source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(target.shape[1])
        x = self.core(self.embed(source), self.embed(target), tgt_mask=mask, tgt_is_causal=True)
        return x @ self.embed.weight.T


def step(batch: int, length: int, width: int, vocabulary: int, rounds: int) -> None:
    """Forward, backward and AdamW."""
    shape = {"width": width, "layers": 3, "heads": 4, "hidden": 4 * width}
    base = {"feedforward": "relu", "positions": "none", "bias": True, **shape}
    source, target = (torch.randint(1, vocabulary, (batch, length)) for _ in range(2))

    def trained(model: nn.Module) -> Work:
        optimizer = torch.optim.AdamW(model.parameters(), 1e-4, fused=True)

        def work() -> None:
            optimizer.zero_grad()
            logits = model(source, target)
            F.cross_entropy(logits[:, :-1].flatten(0, 1), target[:, 1:].flatten()).backward()
            optimizer.step()

        return work

    pre = TransformerConfig(vocabulary, norm_position="pre", **base)
    post = TransformerConfig(vocabulary, norm_position="post", **base)
    torch.manual_seed(0)
    models = {"nn.Transformer, pre": Theirs(pre), "Seq2Seq, pre": Seq2Seq(pre)}
    models |= {"nn.Transformer, post": Theirs(post), "Seq2Seq, post": Seq2Seq(post)}
    for name, more in {
        "rope, rms, no bias": {"positions": "rope", "norm": "rms", "bias": False},
        "shaw": {"positions": "shaw"},
        "alibi": {"positions": "alibi"},
        "swiglu": {"feedforward": "swiglu"},
    }.items():
        models[f"Seq2Seq, pre, {name}"] = Seq2Seq(TransformerConfig(vocabulary, **{**base, **more}))
    title = (
        f"training step, {batch} x {length} tokens, width {width}, 3 + 3 layers, {vocabulary} tokens, {rounds} rounds"
    )
    show(title, turns({name: trained(m) for name, m in models.items()}, rounds), "nn.Transformer, pre")


def decoding(new: int, rounds: int) -> None:
    """Greedy tokens with and without the cache."""
    torch.manual_seed(0)
    model = Decoder(TransformerConfig(6000, 256, 6, positions="rope", norm="rms")).eval()
    prompt = torch.randint(6000, (1, 8))

    @torch.no_grad()
    def cached() -> None:
        one, tokens = DecoderStep(model), prompt
        for _ in range(new):
            tokens = one(tokens).argmax(-1, keepdim=True)

    @torch.no_grad()
    def whole() -> None:
        tokens = prompt
        for _ in range(new):
            tokens = torch.cat((tokens, model(tokens)[:, -1].argmax(-1, keepdim=True)), dim=1)

    title = f"{new} greedy tokens, width 256, 6 layers, {rounds} rounds"
    show(title, turns({"without cache": whole, "with cache": cached}, rounds), "without cache")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="short sequences, few rounds")
    parser.add_argument("--only", choices=["attention", "step", "decoding"])
    options = parser.parse_args()
    torch.set_num_threads(1)
    quick = options.quick
    if options.only in (None, "attention"):
        for size, blocks in ((512, 32),) if quick else ((1024, 32), (4096, 64)):
            attention(size, blocks, 8, rounds=3 if quick else 7)
    if options.only in (None, "step"):
        for tokens in (64,) if quick else (8, 64):
            step(16 if quick else 1024 // tokens, tokens, 128 if quick else 256, 6000, rounds=3 if quick else 5)
    if options.only in (None, "decoding"):
        decoding(32 if quick else 128, rounds=3)
