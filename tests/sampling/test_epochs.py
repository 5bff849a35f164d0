"""Fixed order, shuffled once, reshuffled: the right order, and truly random where it says so."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlopt.sampling import FixedOrder, RandomReshuffling, ShuffleOnce, WithReplacement
from tests.sampling.helpers import chi_square


@settings(max_examples=30, deadline=None, derandomize=True)
@given(n=st.integers(1, 300), seed=st.integers(0, 10), epoch=st.integers(0, 5))
def test_each_index_comes_once(n, seed, epoch):
    for kind in (FixedOrder, ShuffleOnce, RandomReshuffling):
        sampler = kind(range(n), seed=seed)
        sampler.set_epoch(epoch)
        assert sorted(sampler) == list(range(n))


def test_orders_longer_than_a_chunk_are_whole_and_resume():
    n = 150_001
    for kind in (FixedOrder, ShuffleOnce, RandomReshuffling, WithReplacement):
        whole = list(kind(range(n), seed=1, rank=1, world_size=2))
        assert len(whole) == n // 2
        for used in (0, 5, 32_768, 65_536, 70_000, n // 2):
            sampler = kind(range(n), seed=1, rank=1, world_size=2)
            sampler.load_state_dict(sampler.state_dict(consumed=used))
            assert list(sampler) == whole[used:]


def test_ranks_see_the_batches_that_one_rank_sees_in_larger_ones():
    for kind in (ShuffleOnce, RandomReshuffling, WithReplacement):
        alone = list(kind(range(100), seed=8))
        ranks = [list(kind(range(100), seed=8, rank=r, world_size=4)) for r in range(4)]
        assert [i for group in zip(*ranks) for i in group] == alone


def test_fixed_order_takes_a_given_order():
    assert list(FixedOrder(range(4), [2, 0, 3, 1])) == [2, 0, 3, 1]
    assert list(FixedOrder(range(3))) == [0, 1, 2]
    for wrong in ([0, 1, 1], [0, 1], [0, 1, 3], [0.0, 1.0, 2.0], [-1, 0, 1]):
        with pytest.raises(ValueError, match=r"order must hold each of 0, \.\.\., 2 once"):
            FixedOrder(range(3), wrong)


@pytest.mark.parametrize("kind", [RandomReshuffling, ShuffleOnce])
def test_every_order_of_four_is_equally_likely(kind):
    counts = {}
    for number in range(4800):
        sampler = kind(range(4), seed=number if kind is ShuffleOnce else 1)
        sampler.set_epoch(0 if kind is ShuffleOnce else number)
        order = tuple(sampler)
        counts[order] = counts.get(order, 0) + 1
    assert len(counts) == 24
    assert chi_square(list(counts.values()), [200] * 24) > 1e-3


def test_reshuffling_forgets_the_last_epoch():
    sampler = RandomReshuffling(range(10), seed=2)
    pairs = np.zeros((10, 10))
    last = list(sampler)
    for number in range(1, 3000):
        sampler.set_epoch(number)
        order = list(sampler)
        pairs[last[0], order[0]] += 1
        last = order
    assert chi_square(pairs.ravel(), np.full(100, pairs.sum() / 100)) > 1e-3


def test_draws_with_replacement_are_uniform_and_independent():
    sampler = WithReplacement(range(12), num_samples=120_000, seed=3)
    drawn = np.array(list(sampler))
    assert chi_square(np.bincount(drawn), [10_000] * 12) > 1e-3
    pairs = np.bincount(drawn[0::2] * 12 + drawn[1::2], minlength=144)
    assert chi_square(pairs, [60_000 / 144] * 144) > 1e-3
