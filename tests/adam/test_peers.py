"""The same steps as the published packages, where these are installed (`make bench` has them) and right."""

import copy

import pytest
import torch
import torch.nn.functional as F

from dlopt.adam import AdamMini, Lion, SophiaG, sophia_g
from dlopt.tasks.models.lm import LM, LMConfig


def pair():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        # heads of width / heads, which is all that adam-mini can cut
        model = LM(LMConfig(vocabulary=64, width=32, layers=2, heads=4, kv_heads=2, hidden=48, tied=False)).double()
    return model, copy.deepcopy(model)


def farthest(a, step_a, b, step_b, steps=20):
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        for p, q in zip(a.parameters(), b.parameters()):
            p.grad = torch.randn(p.shape, generator=generator, dtype=p.dtype)
            q.grad = p.grad.clone()
        step_a()
        step_b()
    return max(float((p - q).detach().abs().max()) for p, q in zip(a.parameters(), b.parameters()))


def test_adam_mini():
    theirs = pytest.importorskip("adam_mini")
    a, b = pair()
    shape = {"dim": 32, "n_heads": 4, "n_kv_heads": 2, "verbose": False}
    mine = AdamMini(a.parameters(), model=a, lr=1e-2, weight_decay=0.1)
    other = theirs.Adam_mini(b.named_parameters(), lr=1e-2, weight_decay=0.1, **shape)
    assert farthest(a, mine.step, b, other.step) < 1e-13


def test_the_official_rule_of_sophia(monkeypatch):
    theirs = pytest.importorskip("sophia_opt")
    a, b = pair()
    generator = torch.Generator().manual_seed(2)
    x, labels = (torch.randint(0, 64, s, generator=generator) for s in ((2, 8), (16,)))
    monkeypatch.setattr(sophia_g, "_sample", lambda logits, seed, skip: labels[skip : skip + len(logits)])
    mine = SophiaG(a.parameters(), lr=1e-2, rho=20.0, rule="official", batch=100)
    other = theirs.SophiaG(b.parameters(), lr=1e-2, rho=20.0)
    for _ in range(5):
        other.zero_grad()
        F.cross_entropy(b(x).flatten(0, 1), labels).backward()
        other.update_hessian()
        mine.accumulate_curvature(a(x))
        mine.update_curvature()
        assert farthest(a, mine.step, b, lambda: other.step(bs=100), steps=3) < 1e-11
    assert mine.share_unclipped > 0.02


def test_lion():
    theirs = pytest.importorskip("pytorch_optimizer")
    a, b = pair()
    options = {"lr": 1e-2, "weight_decay": 0.1}
    assert farthest(a, Lion(a.parameters(), **options).step, b, theirs.Lion(b.parameters(), **options).step) < 1e-13
