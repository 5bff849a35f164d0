"""What a sampler costs: its epoch over that of torch's samplers, its table, its share of a training step.

    OMP_NUM_THREADS=1 python benchmarks/sampling.py [--quick]

Times are medians over rounds in which all samplers take turns, each on one thread; only ratios are meant to be
compared. Goals: at most 1.2 times `RandomSampler` (orders) and 0.4 times `WeightedRandomSampler` (importance),
and under 1% of a ResNet-8 step with batches of 128.
"""

import argparse
import statistics
import time
from collections import deque

import numpy as np
import torch
from torch.utils.data import RandomSampler, WeightedRandomSampler

from dlopt.sampling import (
    ClassBalanced,
    ClassBlocks,
    FixedOrder,
    Importance,
    RandomReshuffling,
    ShuffleOnce,
    WithReplacement,
)


def seconds(work):
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def one_epoch(sampler):
    return lambda: deque(iter(sampler), maxlen=0)


def updated_epoch(sampler, batch=128):
    """An epoch of an online sampler, with an update after each batch."""
    norms = np.random.default_rng(0).lognormal(size=batch)

    def work():
        stream = iter(sampler)
        while indices := [i for _, (i, _) in zip(range(batch), stream)]:
            sampler.update(np.array(indices), norms[: len(indices)])

    return work


def medians(works, rounds):
    times = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            times[name].append(seconds(work))
    return {name: statistics.median(values) for name, values in times.items()}


def compare(n, rounds):
    data, random = range(n), np.random.default_rng(0)
    weights, labels = random.lognormal(size=n), random.integers(0, 10, n)
    built = seconds(lambda: Importance(data, weights))
    tree = seconds(lambda: Importance(data, weights, online=True))
    samplers = {
        "RandomSampler": RandomSampler(data),
        "WeightedRandomSampler": WeightedRandomSampler(torch.from_numpy(weights), n),
        "fixed-order": FixedOrder(data),
        "shuffle-once": ShuffleOnce(data),
        "random-reshuffling": RandomReshuffling(data),
        "with-replacement": WithReplacement(data),
        "class-blocks": ClassBlocks(data, labels),
        "class-balanced": ClassBalanced(data, labels),
        "importance": Importance(data, weights),
    }
    works = {name: one_epoch(sampler) for name, sampler in samplers.items()}
    if n <= 10**6:
        works["importance, online"] = updated_epoch(Importance(data, weights, online=True))
    found = medians(works, rounds)
    print(f"\nn = {n:,}: medians of {rounds} rounds; table built in {built:.3f} s, sum tree in {tree:.3f} s")
    print(f"{'':24}{'seconds':>10}{'/ Random':>12}{'/ Weighted':>12}")
    for name, value in found.items():
        ratios = [value / found[peer] for peer in ("RandomSampler", "WeightedRandomSampler")]
        print(f"{name:24}{value:10.4f}{ratios[0]:12.2f}{ratios[1]:12.2f}")
    return found


def resnet_step(batch=128, steps=5):
    """Median seconds of forward, backward and SGD step of ResNet-8 on CIFAR-sized images."""
    try:
        from dlopt.tasks.models.resnet import MODELS
    except ImportError:
        return None
    model = MODELS["resnet8"]()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x, y = torch.randn(batch, 3, 32, 32), torch.randint(10, (batch,))

    def step():
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()

    step()
    return statistics.median(seconds(step) for _ in range(steps))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="leave out n = 10,000,000")
    torch.set_num_threads(1)
    quick = parser.parse_args().quick
    small = compare(50_000, rounds=21)
    step = resnet_step()
    if step is None:
        print("\nno ResNet-8 here: its share is left out")
    else:
        print(f"\nshare of a ResNet-8 step (batch 128, {step:.3f} s, one thread), n = 50,000:")
        for name, value in small.items():
            print(f"{name:24}{100 * value / (50_000 / 128) / step:10.3f} %")
    if not quick:
        compare(10_000_000, rounds=3)
