"""DeepZero: losses per second by reuse and stacking, as ratios to whole forward passes, in one process.

    python benchmarks/deepzero.py                                             # LeNet, batch 128
    python benchmarks/deepzero.py --model resnet20 --sample 4 --repeats 1     # some minutes
    python benchmarks/deepzero.py --model resnet8 --batch 64 --sparsity 0.95

Every tensor's share of the coordinates of one step (the same share of every matrix and convolution, all of the rest) is
evaluated in all modes in turn. A tensor with many coordinates is measured on `--sample` of them and weighted by their
number; the median over the repeats is taken. The last columns are the share of the graph's calls that were computed,
and the largest difference to the estimates of whole passes. Times of two processes should not be compared.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
import torch.nn.functional as F

from dlopt.tasks import models
from dlopt.zeroth._queries import MODES, Evaluation, opened
from dlopt.zeroth.deepzero import DeepZero

SHAPES = {"lenet": (1, 28, 28), "resnet8": (3, 32, 32), "resnet20": (3, 32, 32)}
MU = 5e-3


def measure(name: str, batch: int, sparsity: float, sample: int, repeats: int, train_mode: bool) -> None:
    model = models.build(name, seed=0)
    x, y = torch.randn(batch, *SHAPES[name], generator=torch.Generator().manual_seed(0)), torch.arange(batch) % 10
    optimizer = DeepZero(model, sparsity=sparsity, rank="uniform", train_mode=train_mode)
    optimizer.prepare(x, y)
    tensors = dict(model.named_parameters())
    chosen = {n: optimizer.coordinates(n, p, 0) for n, p in tensors.items()}
    asked = sum(map(len, chosen.values()))
    few = {n: c[torch.linspace(0, len(c) - 1, min(sample, len(c))).long()] for n, c in chosen.items()}
    seconds: dict[str, list[float]] = {mode: [] for mode in MODES}
    work, found = dict.fromkeys(MODES, 0.0), {}
    uses = {mode: Evaluation(mode, 2**22) for mode in MODES}
    with torch.no_grad(), opened(model, F.cross_entropy, x, y, train_mode) as queries:
        for use in uses.values():
            use.choose(queries, tensors)  # traces the model and compares, which a run does once
        for _ in range(repeats):
            for mode, use in uses.items():
                start, use.work, share = time.perf_counter(), 0.0, 0.0
                traced = use.choose(queries, tensors)
                total = time.perf_counter() - start
                for n, coordinates in few.items():
                    start, before = time.perf_counter(), use.work
                    found[mode, n] = use.estimate(queries, traced, tensors[n], coordinates, MU)
                    total += (time.perf_counter() - start) * len(chosen[n]) / len(coordinates)
                    share += (use.work - before) * len(chosen[n]) / len(coordinates)
                seconds[mode].append(total)
                work[mode] = share / asked
    medians = {mode: statistics.median(times) for mode, times in seconds.items()}
    parameters, mode = sum(p.numel() for p in tensors.values()), "training" if train_mode else "evaluation"
    print(f"\n{name}: {parameters:,} parameters, {asked:,} coordinates a step, batch {batch}, {mode} mode, float32, "
          f"{torch.get_num_threads()} threads, {repeats} repeats; 1.0 is plain, {1e3 * medians['plain'] / asked:.2f} "
          "ms a loss")  # fmt: skip
    print(f"{'mode':10}  {'losses/s, ratio':>16}  (least-most)    work  difference")
    for mode, times in seconds.items():
        ratios = [p / t for p, t in zip(seconds["plain"], times, strict=True)]
        far = max(float((found[mode, n] - found["plain", n]).abs().max()) for n in tensors)
        row = f"{mode:10}  {medians['plain'] / medians[mode]:16.1f}  ({min(ratios):.1f}-{max(ratios):.1f})"
        note = "" if uses[mode].mode == mode else f"  fell back to {uses[mode].mode}: {uses[mode].reason}"
        print(row.ljust(44) + f"{work[mode]:8.3f}  {far:.1e}{note}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", choices=list(SHAPES), default=["lenet"])
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--sparsity", type=float, default=0.9)
    parser.add_argument("--sample", type=int, default=64, help="coordinates timed per tensor")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--eval", action="store_true", help="evaluation mode; default: the model's training mode")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for model_name in options.model:
        measure(model_name, options.batch, options.sparsity, options.sample, options.repeats, not options.eval)
