"""Class blocks and class balance, with one class, empty classes and classes of unlike sizes."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dlopt.sampling import ClassBalanced, ClassBlocks
from tests.sampling.helpers import chi_square

LABELS = st.lists(st.sampled_from([0, 1, 2, 5]), min_size=1, max_size=60)  # 3 and 4 are empty


@settings(max_examples=50, deadline=None, derandomize=True)
@given(labels=LABELS, epoch=st.integers(0, 3), shuffle=st.booleans())
def test_blocks_are_permutations_in_which_each_class_is_one_run(labels, epoch, shuffle):
    sampler = ClassBlocks(range(len(labels)), labels, num_classes=7, shuffle_classes=shuffle)
    sampler.set_epoch(epoch)
    order = list(sampler)
    assert sorted(order) == list(range(len(labels)))
    runs = [labels[i] for k, i in enumerate(order) if not k or labels[i] != labels[order[k - 1]]]
    assert len(runs) == len(set(labels))
    assert shuffle or runs == sorted(runs)


def test_blocks_reshuffle_inside_classes_and_on_request_the_classes():
    labels = np.repeat([0, 1, 2], 20)
    sampler = ClassBlocks(range(60), torch.tensor(labels), shuffle_classes=True)
    first = np.array([next(iter(sampler)) for _ in range(600)])
    assert chi_square(np.bincount(first, minlength=60), [10] * 60) > 1e-3
    fixed = ClassBlocks(range(60), labels)
    assert list(fixed) != list(fixed)
    assert set(labels[list(fixed)[:20]]) == {0}


@settings(max_examples=60, deadline=None, derandomize=True)
@given(labels=LABELS, world_size=st.integers(1, 3), batch=st.integers(4, 9))
def test_every_full_batch_of_every_rank_holds_every_class(labels, world_size, batch):
    present = set(labels)
    together = []
    for rank in range(world_size):
        sampler = ClassBalanced(
            range(len(labels)), labels, num_classes=6, batch_size=batch, rank=rank, world_size=world_size
        )
        order = list(sampler)
        assert len(order) == len(sampler)
        together += order
        for at in range(0, len(order) - batch + 1, batch):
            counts = [sum(labels[i] == c for i in order[at : at + batch]) for c in present]
            assert min(counts) >= batch // len(present)
            assert max(counts) <= -(-batch // len(present))
    assert len(together) == len(labels)
    sizes = {labels.count(c) for c in present}
    if len(sizes) == 1:
        assert sorted(together) == list(range(len(labels)))


def test_an_epoch_takes_no_example_twice_before_its_class_is_exhausted():
    labels = [0] * 10 + [1] * 50
    order = list(ClassBalanced(range(60), labels, seed=1))
    small, large = [i for i in order if i < 10], [i for i in order if i >= 10]
    assert len(set(large)) == len(large) == 30
    assert [sorted(small[k : k + 10]) for k in (0, 10, 20)] == [list(range(10))] * 3


def test_weights_make_the_balanced_order_unbiased_and_without_them_it_is_not():
    labels = np.array([0] * 17 + [2] * 5 + [3])
    sampler = ClassBalanced(range(23), labels, num_classes=5, correct=True, seed=4)
    weighted, counts, epochs = np.zeros(23), np.zeros(5), 900
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        for index, weight in sampler:
            weighted[index] += weight
            counts[labels[index]] += 1
    # an example of the large class comes at most once or twice, with weight 3 * 17/23
    np.testing.assert_allclose(weighted / epochs, 1, atol=4.5 * np.sqrt(3 * 17 / 23 / epochs))
    assert weighted.sum() / epochs == pytest.approx(23, rel=0.02)
    # bare: every class with examples a third of the samples, up to one sample of chance an epoch
    np.testing.assert_allclose(counts / epochs, [23 / 3, 0, 23 / 3, 23 / 3, 0], atol=0.1)


@pytest.mark.parametrize("kind", [ClassBlocks, ClassBalanced])
@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        ([0, 1, 3], {"num_classes": 3}, r"labels must be from 0 to 2, but labels\[2\] is 3"),
        ([0, -1, 1], {}, r"labels\[1\] is -1"),
        ([0.0, 1.0, 0.5], {}, "labels must be integers, not float64"),
        ([0, 1], {}, r"labels must have shape \(3,\), one for each example, not \(2,\)"),
        ([0, 1, 0], {"num_classes": 0}, "num_classes must be at least 1, not 0"),
    ],
)
def test_wrong_labels_are_named(kind, labels, options, message):
    with pytest.raises(ValueError, match=message):
        kind(range(3), labels, **options)


def test_a_batch_too_small_for_all_classes_is_refused():
    with pytest.raises(ValueError, match="a batch of 2 cannot hold each of 3 classes"):
        ClassBalanced(range(6), [0, 1, 2, 0, 1, 2], batch_size=2)
