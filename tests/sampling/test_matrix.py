"""What every registered sampler must do, found through the catalogue."""

import copy
import io
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, TensorDataset

from dlopt.sampling import Weighted
from tests.sampling.helpers import ALL, NAMES, build, chi_square, epoch, learn

SIZES = st.sampled_from([1, 2, 3, 7, 10, 16, 33])


def through_bytes(state):
    """A state as another process gets it."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


@pytest.mark.parametrize("name", ALL)
def test_samples_are_plain_indices_or_pairs_of_index_and_weight(name):
    sampler = build(name, 10)
    samples = epoch(sampler)
    assert len(samples) == len(sampler) == 10
    for sample in samples:
        index = sample[0] if sampler.weighted else sample
        assert type(index) is int
        assert 0 <= index < 10
        if sampler.weighted:
            assert type(sample) is tuple
            assert type(sample[1]) is float
            assert sample[1] > 0


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("n", [1, 2, 7, 30])
def test_each_epoch_is_a_permutation_or_the_weighted_frequencies_are_uniform(name, n):
    sampler = build(name, n, seed=5)
    total, squares, epochs = np.zeros(n), np.zeros(n), 400
    for number in range(epochs):
        sampler.set_epoch(number)
        seen = np.zeros(n)
        for sample in epoch(sampler, batch=n):
            index, weight = sample if sampler.weighted else (sample, 1.0)
            seen[index] += weight
        total += seen
        squares += seen**2
        if number == 2 and (squares == total).all() and (total == 3).all():
            return  # each example exactly once in three epochs: a permutation
    deviation = np.sqrt(np.maximum(squares / epochs - (total / epochs) ** 2, 1e-12) / epochs)
    assert np.abs(total / epochs - 1).max() < (4.5 * deviation).max()
    assert np.abs((total / epochs - 1) / deviation).max() < 4.5


@pytest.mark.parametrize("name", ALL)
@settings(max_examples=10, deadline=None, derandomize=True)
@given(n=SIZES, seed=st.integers(0, 2**70), number=st.integers(0, 10**6), world_size=st.integers(1, 4))
def test_ranks_share_an_epoch_and_resume_anywhere_in_it(name, n, seed, number, world_size):
    alone = build(name, n, seed=seed)
    alone.set_epoch(number)
    together = []
    for rank in range(world_size):
        sampler = build(name, n, seed=seed, rank=rank, world_size=world_size)
        sampler.set_epoch(number)
        whole = epoch(sampler, batch=2)
        together += whole
        sampler.set_epoch(number + 1)
        following = epoch(sampler, batch=2)
        assert len(whole) == len(sampler)
        for used in {0, 2, len(whole) // 4 * 2, len(whole)} & set(range(len(whole) + 1)):
            first = build(name, n, seed=seed, rank=rank, world_size=world_size)
            first.set_epoch(number)
            stream = iter(first)
            for at in range(0, used, 2):
                learn(first, [next(stream) for _ in range(min(2, used - at))])
            second = build(name, n, seed=3, rank=rank, world_size=world_size)
            second.load_state_dict(through_bytes(first.state_dict(consumed=used)))
            assert second.epoch == number
            if used % 4:
                second.set_epoch(number)  # as a loop does: it must not lose the place
            assert epoch(second, batch=2) == whole[used:]
            second.set_epoch(number + 1)
            assert epoch(second, batch=2) == following
    if name != "importance-online":
        assert sorted(together) == sorted(epoch(alone, batch=2))
    assert len(together) == n


@pytest.mark.parametrize("name", ALL)
def test_the_same_seed_and_epoch_give_the_same_order_and_others_another(name):
    def order(seed, number):
        sampler = build(name, 40, seed=seed)
        for past in range(number if "grab" in name else 0):
            sampler.set_epoch(past)
            epoch(sampler)
        sampler.set_epoch(number)
        return epoch(sampler)

    assert order(1, 2) == order(1, 2)
    if name != "fixed-order":
        assert order(1, 2) != order(2, 2)
    if name not in ("fixed-order", "shuffle-once"):
        assert order(1, 2) != order(1, 3)
    else:
        assert order(1, 2) == order(1, 3)


@pytest.mark.parametrize("name", ALL)
def test_alone_a_forgotten_set_epoch_moves_on_to_the_next_epoch(name):
    told, forgot = build(name, 20), build(name, 20)
    for number in range(3):
        told.set_epoch(number)
        assert epoch(told) == epoch(forgot)
        assert forgot.epoch == number


@pytest.mark.parametrize("name", ALL)
def test_among_ranks_a_forgotten_set_epoch_warns_what_happens(name):
    sampler = build(name, 20, rank=1, world_size=2)
    first = epoch(sampler)
    if not sampler.renewed:  # no epoch changes its order: nothing to warn of
        epoch(sampler)
        return
    with pytest.warns(UserWarning, match=r"second time in epoch 0: without set_epoch\(epoch\).* repeats the"):
        again = epoch(sampler)
    assert sampler.epoch == 0
    if not getattr(sampler, "online", False):
        assert again == first
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sampler.set_epoch(1)
        epoch(sampler)
        sampler.set_epoch(1)  # an epoch repeated on purpose
        epoch(sampler)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("tail", ["drop", "repeat"])
def test_tails_give_ranks_equally_many_samples(name, tail):
    lengths = set()
    for rank in range(4):
        sampler = build(name, 23, rank=rank, world_size=4, tail=tail)
        samples = epoch(sampler)
        assert len(samples) == len(sampler)
        lengths.add(len(samples))
    (length,) = lengths
    assert (length * 4 <= 23) if tail == "drop" else (length * 4 >= 23)


@pytest.mark.parametrize("name", [name for name in ALL if name not in ("importance-online", "grab", "grab-mean")])
def test_another_number_of_ranks_takes_over_in_the_middle(name):
    n, block = 48, 3 if name == "class-balanced" else 1
    alone = build(name, n, seed=9)
    alone.set_epoch(4)
    whole = epoch(alone)
    rest = []
    for rank in range(4):
        sampler = build(name, n, rank=rank, world_size=4)
        two = build(name, n, seed=9, rank=0, world_size=2)
        two.set_epoch(4)
        sampler.load_state_dict(two.state_dict(consumed=6 * block // (3 if block > 1 else 1)))
        assert sampler.consumed == 3
        rest += epoch(sampler)
    assert sorted(rest) == sorted(whole[12:])
    sampler = build(name, n, rank=0, world_size=4)
    with pytest.raises(ValueError, match="after 5 samples on each of 2 ranks"):
        sampler.load_state_dict(two.state_dict(consumed=5))


@pytest.mark.parametrize("name", ["importance-online", "grab"])
def test_what_a_rank_learned_is_not_taken_over_by_another(name):
    sampler = build(name, 12, rank=1, world_size=2)
    with pytest.raises(ValueError, match="rank 1 of 2"):
        build(name, 12).load_state_dict(sampler.state_dict(consumed=0))


@pytest.mark.parametrize("name", ALL)
def test_a_state_is_refused_where_it_does_not_belong(name):
    state = build(name, 12).state_dict(consumed=0)
    with pytest.raises(ValueError, match="over 12 examples"):
        build(name, 13).load_state_dict(state)
    for other in NAMES:
        if type(build(other, 12)) is not type(build(name, 12)):
            with pytest.raises(ValueError, match="state of"):
                build(other, 12).load_state_dict(state)


@pytest.mark.parametrize("name", ALL)
def test_an_old_state_is_not_changed_by_going_on(name):
    sampler = build(name, 12)
    stream = iter(sampler)
    learn(sampler, [next(stream) for _ in range(4)])
    state = sampler.state_dict(consumed=4)
    kept = copy.deepcopy(state)
    learn(sampler, list(stream))
    for key, value in kept.items():
        same = torch.equal(value, state[key]) if isinstance(value, torch.Tensor) else str(value) == str(state[key])
        assert same, key


@pytest.mark.parametrize("name", ALL)
def test_any_data_loader_takes_it(name):
    data = TensorDataset(torch.arange(10), torch.arange(10) * 2.0)
    sampler = build(name, 10)
    loader = DataLoader(Weighted(data), batch_size=4, sampler=sampler)
    assert len(loader) == 3
    batches = list(loader)
    assert [len(x) for x, _, _ in batches] == [4, 4, 2]
    for x, y, w in batches:
        assert torch.equal(y, 2.0 * x)
        assert w.dtype == torch.float32
        assert sampler.weighted or torch.equal(w, torch.ones(len(x)))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": 1.5}, "seed must be an integer, not 1.5"),
        ({"seed": "7"}, "seed must be an integer, not '7'"),
        ({"seed": None}, "seed must be an integer, not None"),
        ({"seed": True}, "seed must be an integer, not True"),
        ({"seed": -1}, "seed must be at least 0, not -1"),
        ({"rank": 2, "world_size": 2}, "rank must be from 0 to 1, not 2"),
        ({"rank": -1}, "rank must be from 0 to 0, not -1"),
        ({"world_size": 0}, "world_size must be at least 1, not 0"),
        ({"tail": "pad"}, "tail must be one of keep, drop, repeat, not 'pad'"),
    ],
)
def test_wrong_arguments_are_named_with_their_value(name, options, message):
    with pytest.raises(ValueError, match=message):
        build(name, 10, **options)


@pytest.mark.parametrize("name", NAMES)
def test_wrong_calls_are_named_with_their_value(name):
    with pytest.raises(ValueError, match=r"empty \(n = 0\)"):
        build(name, 0)
    sampler = build(name, 10)
    with pytest.raises(ValueError, match="epoch must be at least 0, not -2"):
        sampler.set_epoch(-2)
    with pytest.raises(ValueError, match=r"epoch must be an integer, not 0\.5"):
        sampler.set_epoch(0.5)
    with pytest.raises(ValueError, match="consumed must be from 0 to 10, not 11"):
        sampler.state_dict(consumed=11)
    with pytest.raises(TypeError, match="consumed"):
        sampler.state_dict()


@pytest.mark.parametrize("name", NAMES)
def test_a_numpy_seed_is_an_integer(name):
    assert epoch(build(name, 10, seed=np.int64(4))) == epoch(build(name, 10, seed=4))


def test_chi_square_knows_a_loaded_die():
    assert chi_square([100, 100, 100], [100, 100, 100]) == 1
    assert chi_square([150, 80, 70], [100, 100, 100]) < 1e-6
