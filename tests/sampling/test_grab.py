"""GraB against a plain twin, its herding bound, its memory, and what it does at the edges."""

import numpy as np
import pytest
import torch

from dlopt.memory import tensor_bytes
from dlopt.sampling import GraB


def twin(order, gradients, balance, stale):
    """The next order, written from the papers' algorithms, one vector at a time."""
    front, back, r = [], [], np.zeros(gradients.shape[1])

    def sign(z):
        nonlocal r
        e = 1 if np.linalg.norm(r + z) < np.linalg.norm(r - z) else -1
        r = r + e * z
        return e

    def put(example, e):
        (front if e > 0 else back).append(example)

    if balance == "mean":
        for example in order:
            put(example, sign(gradients[example] - stale))
    else:
        for a, b in zip(order[0::2], order[1::2]):
            e = sign(gradients[a] - gradients[b])
            put(a, e)
            put(b, -e)
        if len(order) % 2:
            put(order[-1], 1)
    return front + back[::-1]


def run_epoch(sampler, gradients, batch):
    order = list(sampler)
    for at in range(0, len(order), batch):
        sampler.step(torch.from_numpy(gradients[order[at : at + batch]]))
    return order


@pytest.mark.parametrize("balance", ["pair", "mean"])
@pytest.mark.parametrize("n", [1, 2, 9, 40])
@pytest.mark.parametrize("batch", [1, 3, 4, 64])
def test_orders_equal_those_of_the_plain_algorithm(balance, n, batch):
    gradients = np.random.default_rng(n).normal(size=(n, 5))
    sampler = GraB(range(n), balance=balance, seed=3)
    order, stale = run_epoch(sampler, gradients, batch), np.zeros(5)
    for epoch in range(1, 5):
        expected = twin(order, gradients, balance, stale)
        sampler.set_epoch(epoch)
        order, stale = run_epoch(sampler, gradients, batch), gradients.mean(0)
        assert order == expected


@pytest.mark.parametrize("balance", ["pair", "mean"])
def test_the_herding_bound_falls_far_below_that_of_random_orders(balance):
    random = np.random.default_rng(0)
    gradients = random.uniform(size=(1000, 16))
    centred = gradients - gradients.mean(0)

    def bound(order):
        return np.abs(np.cumsum(centred[order], 0)).max()

    sampler = GraB(range(1000), balance=balance)
    first = bound(run_epoch(sampler, gradients, 50))
    for epoch in range(1, 12):
        sampler.set_epoch(epoch)
        last = bound(run_epoch(sampler, gradients, 50))
    others = [bound(random.permutation(1000)) for _ in range(20)]
    assert min(others) * 0.5 < first < max(others) * 2
    assert last < 0.25 * np.mean(others)


@pytest.mark.parametrize("balance", ["pair", "mean"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_memory_is_what_its_state_holds(balance, dtype):
    sampler = GraB(range(11), balance=balance)
    stream = iter(sampler)
    used = [next(stream) for _ in range(5)]
    sampler.step({"w": torch.randn(5, 3, 2, dtype=dtype), "b": torch.randn(5, 2, dtype=dtype)}, indices=used)
    state = sampler.state_dict(consumed=5)
    counted = tensor_bytes([state["order"], state["next"], *state["vectors"].values()])
    assert sampler.memory(8, itemsize=dtype.itemsize).total == counted


def test_examples_without_gradients_stay_between_front_and_back():
    gradients = np.random.default_rng(5).normal(size=(10, 3))
    for balance in ("pair", "mean"):
        sampler = GraB(range(10), balance=balance)
        order = list(sampler)
        for at in (0, 3, 6):  # a loader with drop_last=True
            sampler.step(torch.from_numpy(gradients[order[at : at + 3]]))
        following = list(sampler)
        assert sorted(following) == list(range(10))
        assert following != order


def test_a_zero_gradient_and_large_ones_are_fine_but_nan_is_named():
    sampler = GraB(range(4))
    order = list(sampler)
    sampler.step(torch.tensor([[0.0, 0.0], [1e15, -1e15]]))
    with pytest.raises(ValueError, match=rf"examples \[{order[2]}\] is not finite"):
        sampler.step(torch.tensor([[float("nan"), 0.0]]))
    sampler.step(torch.zeros(2, 2))
    assert sorted(sampler) == [0, 1, 2, 3]


def test_wrong_use_is_named():
    with pytest.raises(ValueError, match="balance must be 'pair' or 'mean', not 'median'"):
        GraB(range(4), balance="median")
    sampler = GraB(range(4))
    order = list(sampler)
    with pytest.raises(RuntimeError, match=r"no gradient in the last epoch: call step\(gradients\)"):
        iter(sampler)
    with pytest.raises(RuntimeError, match="no gradient"):
        sampler.set_epoch(1)
    with pytest.raises(ValueError, match="came next"):
        sampler.step(torch.zeros(2, 3), indices=order[::-1][:2])
    sampler.step(torch.zeros(2, 3), indices=torch.tensor(order[:2]))
    with pytest.raises(ValueError, match="gradients have 5 numbers; before, they had 3"):
        sampler.step(torch.zeros(1, 5))
    with pytest.raises(ValueError, match="has 4 examples; 5 gradients"):
        sampler.step(torch.zeros(3, 3))
    with pytest.raises(ValueError, match="consumed is 3, but 2 gradients were given"):
        sampler.state_dict(consumed=3)
    with pytest.raises(ValueError, match="cannot be loaded into balance='mean'"):
        GraB(range(4), balance="mean").load_state_dict(sampler.state_dict(consumed=2))


def test_ranks_keep_their_shards():
    shards = []
    for rank in range(3):
        sampler = GraB(range(11), rank=rank, world_size=3, seed=1)
        first = list(sampler)
        sampler.step(torch.randn(len(first), 4, generator=torch.Generator().manual_seed(rank)))
        sampler.set_epoch(1)
        assert set(sampler) == set(first)
        shards += first
    assert sorted(shards) == list(range(11))
