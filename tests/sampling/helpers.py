"""Builds any sampler of the catalogue, feeds those that learn, and tests frequencies."""

import numpy as np
import torch
from scipy import stats

from dlopt import catalog

NAMES = sorted(catalog.methods(kind="sampler"))
VARIANTS = {  # what a name alone does not reach
    "importance-online": ("importance", {"online": True, "weights": None, "refresh": 5}),
    "grab-mean": ("grab", {"balance": "mean"}),
    "class-blocks-shuffled": ("class-blocks", {"shuffle_classes": True}),
}
ALL = NAMES + sorted(VARIANTS)


def build(name, n, **options):
    """Sampler `name` over range(n), with labels or weights if its signature asks for them."""
    name, more = VARIANTS.get(name, (name, {}))
    method = catalog.find(name)
    known = method.parameters()
    defaults = {
        "labels": np.arange(n) % min(3, max(n, 1)),
        "weights": np.exp(np.random.default_rng(n).normal(size=n)),
        "correct": True,
    }
    chosen = {key: value for key, value in defaults.items() if key in known}
    return method.load()(range(n), **(chosen | more | options))


def learn(sampler, samples):
    """What a training loop does after a step: made-up gradients or norms that depend on the example alone."""
    indices = [s[0] if sampler.weighted else s for s in samples]
    if hasattr(sampler, "step") and indices:
        rows = np.random.default_rng(7).normal(size=(sampler.n, 4))
        sampler.step(torch.from_numpy(rows[indices]))
    if getattr(sampler, "online", False):
        sampler.update(indices, [(i % 5) + 0.1 for i in indices])


def epoch(sampler, batch=3):
    """All samples of one iteration, learning after each batch."""
    samples, stream = [], iter(sampler)
    while True:
        part = [s for _, s in zip(range(batch), stream)]
        if not part:
            return samples
        learn(sampler, part)
        samples += part


def chi_square(counts, expected):
    """p-value that counts come from the expected numbers; cells below 5 are put together."""
    counts, expected = np.asarray(counts, float), np.asarray(expected, float)
    order = np.argsort(-expected)
    counts, expected = counts[order], expected[order]
    large = int((expected >= 5).sum())
    counts = np.append(counts[:large], counts[large:].sum())
    expected = np.append(expected[:large], expected[large:].sum())
    if expected[-1] < 5:
        assert counts[-1] <= 25, "what should hardly ever come came often"
        counts, expected = counts[:-1], expected[:-1]
    if len(counts) < 2:
        return 1.0
    return float(stats.chi2.sf(((counts - expected) ** 2 / expected).sum(), len(counts) - 1))
