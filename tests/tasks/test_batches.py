"""Batches: what they hold, that they resume at every offset, and what augmentation does."""

from itertools import islice

import pytest
import torch

from dlopt.tasks.data import Batches, Images, TextBatches, crop_flip, training_transform, windows


def same(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def noisy(batch, generator):
    return (batch[0] + torch.rand(batch[0].shape, generator=generator), *batch[1:])


def example_batches(seed=1, **options):
    x = torch.arange(11.0)
    return Batches((x, 10 * x.long()), 3, seed, **options)


def text_batches(seed=1):
    return TextBatches(torch.arange(61, dtype=torch.uint8), batch_size=3, length=5, seed=seed)


@pytest.mark.parametrize(
    "make",
    [
        example_batches,
        lambda: example_batches(drop_last=False),
        lambda: example_batches(transform=noisy),
        text_batches,
    ],
    ids=["drop_last", "keep_last", "transform", "text"],
)
def test_resuming_at_every_offset_equals_an_uninterrupted_run(make):
    whole = list(islice(make(), 14))
    for consumed in range(14):
        first = make()
        for _ in range(min(consumed + 2, 14)):  # two batches were prefetched and never used
            next(first)
        second = make()
        second.load_state_dict(first.state_dict(consumed))
        rest = list(islice(second, 14 - consumed))
        assert all(same(a, b) for a, b in zip(rest, whole[consumed:], strict=True)), consumed
    counted = make()
    next(counted)
    assert counted.state_dict() == counted.state_dict(1)


@pytest.mark.parametrize(("drop_last", "sizes"), [(True, [3, 3, 3]), (False, [3, 3, 3, 2])])
def test_an_epoch_holds_each_example_at_most_once(drop_last, sizes):
    batches = example_batches(drop_last=drop_last)
    assert batches.per_epoch == len(sizes)
    orders = []
    for _ in range(3):
        epoch = [next(batches) for _ in sizes]
        assert [len(x) for x, _ in epoch] == sizes
        x, y = (torch.cat(part) for part in zip(*epoch, strict=True))
        assert torch.equal(y, 10 * x.long())  # rows stay together
        assert len(x.unique()) == len(x)
        orders.append(x.tolist())
    assert orders[0] != orders[1] != orders[2]


def test_the_seed_decides_the_order_and_the_global_generator_is_left_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = list(islice(example_batches(transform=noisy), 5))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(same(a, b) for a, b in zip(first, islice(example_batches(transform=noisy), 5), strict=True))
    assert not all(same(a, b) for a, b in zip(first, islice(example_batches(2, transform=noisy), 5), strict=True))


def test_each_batch_draws_its_own_augmentation():
    noise = [(x % 1).tolist() for x, _ in islice(example_batches(transform=noisy), 6)]
    assert len({tuple(row) for row in noise}) == 6


def test_each_example_is_equally_likely_at_each_place():
    batches = Batches((torch.arange(4),), 4, seed=0)
    counts = torch.zeros(4, 4)
    for (x,) in islice(batches, 2000):
        counts[torch.arange(4), x] += 1
    chi_square = ((counts - 500) ** 2 / 500).sum().item()
    assert chi_square < 27.9  # 9 degrees of freedom, 0.1 %


def test_states_of_other_batches_are_refused():
    batches = example_batches()
    for change, word in (
        ({"seed": 2}, "seed"),
        ({"batch_size": 4}, "batch_size"),
        ({"n": 9}, "n 9"),
        ({"position": -1}, "position"),
    ):
        with pytest.raises(ValueError, match=word):
            batches.load_state_dict({**batches.state_dict(), **change})
    text = text_batches()
    for change in ({"length": 4}, {"tokens": 60}):
        with pytest.raises(ValueError, match="windows of"):
            text.load_state_dict({**text.state_dict(), **change})


def test_wrong_sizes_are_sentences():
    with pytest.raises(ValueError, match="between 1 and the 3 examples, got 4"):
        Batches((torch.zeros(3),), 4, 0)
    with pytest.raises(ValueError, match=r"equally many rows, got \[3, 2\]"):
        Batches((torch.zeros(3), torch.zeros(2)), 1, 0)
    with pytest.raises(ValueError, match="10 tokens hold 1 windows of length 5"):
        TextBatches(torch.arange(10), 2, 5, 0)
    with pytest.raises(ValueError, match="at least 1"):
        TextBatches(torch.arange(10), 1, 0, 0)
    with pytest.raises(ValueError, match="tokens must be integers"):
        TextBatches(torch.zeros(10), 1, 2, 0)
    with pytest.raises(ValueError, match="between 1 and 9"):
        windows(torch.arange(10), 10)


def test_text_windows_do_not_overlap_and_start_anew_each_epoch():
    batches = text_batches()
    assert batches.per_epoch == 3  # 11 windows, whatever the start
    starts = set()
    for _ in range(60):
        seen = []
        for inputs, targets in islice(batches, 3):
            assert inputs.dtype == targets.dtype == torch.int64
            assert inputs.shape == targets.shape == (3, 5)
            assert torch.equal(targets, inputs + 1)
            seen += inputs.flatten().tolist()
        assert len(set(seen)) == len(seen) == 45
        starts.add(min(seen) % 5)
    assert starts == set(range(5))


def test_text_of_the_shortest_allowed_length_stays_inside():
    batches = TextBatches(torch.arange(10), 1, 5, 0)
    assert all(targets.max() <= 9 for _, targets in islice(batches, 50))


def test_windows_for_evaluation_cover_the_text_in_order():
    inputs, targets = windows(torch.arange(11), 5)
    assert inputs.tolist() == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]
    assert torch.equal(targets, inputs + 1)
    assert windows(torch.arange(10), 5)[0].tolist() == [[0, 1, 2, 3, 4]]  # the last target would be missing


def test_crop_and_flip_statistics():
    n, pad = 8000, 2
    image = torch.arange(1, 3 * 5 * 6 + 1, dtype=torch.uint8).view(1, 3, 5, 6)
    out = crop_flip(image.expand(n, -1, -1, -1), torch.Generator().manual_seed(0), pad=pad)
    assert out.shape == (n, 3, 5, 6)
    assert out.dtype == torch.uint8
    padded = torch.nn.functional.pad(image[0], (pad,) * 4)
    counts = torch.zeros(2, 5, 5)
    for row in range(5):
        for column in range(5):
            window = padded[:, row : row + 5, column : column + 6]
            counts[0, row, column] = (out == window).flatten(1).all(1).sum()
            counts[1, row, column] = (out == window.flip(-1)).flatten(1).all(1).sum()
    assert counts.sum() == n  # each output is one of the 50 windows
    expected = n / 50
    assert ((counts - expected) ** 2 / expected).sum().item() < 85.4  # chi-square, 49 degrees of freedom, 0.1 %


def test_crop_and_flip_switches():
    x = torch.rand(64, 1, 4, 4)
    generator = torch.Generator().manual_seed(0)
    assert torch.equal(crop_flip(x, generator, pad=0, flip=False), x)
    flipped = crop_flip(x, generator, pad=0)
    same_as = (flipped == x).flatten(1).all(1)
    assert 0 < same_as.sum() < 64
    assert torch.equal(flipped[~same_as], x[~same_as].flip(-1))
    with pytest.raises(ValueError, match="pad must be at least 0"):
        crop_flip(x, generator, pad=-1)


def test_training_transform_normalises_after_augmentation():
    x = torch.randint(256, (20, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    y = torch.arange(20)
    images = Images(x, y, x, y, (0.5, 0.4, 0.3), (0.25, 0.2, 0.1), tuple("abc"))
    expected = (x.double() / 255 - torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1)) / torch.tensor([0.25, 0.2, 0.1]).view(
        3, 1, 1
    )
    torch.testing.assert_close(images.normalise(x).double(), expected, rtol=1e-5, atol=1e-5)
    plain = Batches((x, y), 4, 0, transform=training_transform(images, pad=0, flip=False))
    out, labels = next(plain)
    assert out.dtype == torch.float32
    assert torch.equal(out, images.normalise(x[labels]))
    augmented, labels_again = next(Batches((x, y), 4, 0, transform=training_transform(images)))
    assert torch.equal(labels, labels_again)
    assert not torch.equal(out, augmented)
    # the border is black: the value of pixel 0
    assert (augmented[:, 0] + 2.0).abs().min() < 1e-5
