"""`SampledBatches`: the batches of a sampler, in the training loop's protocol, resumed exactly at every offset."""

from __future__ import annotations

from itertools import islice
from typing import Any

import pytest
import torch

from dlopt.experiments.sampling._common import VARIANTS, make
from dlopt.experiments.sampling._stream import SampledBatches

N, B = 23, 5  # an epoch of five batches, the last of three
LABELS = torch.arange(N) % 3
SERIES = [s for s in VARIANTS if s != "grab"]


def stream(series: str, seed: int = 0, batch: int = B) -> SampledBatches:
    method, by, params = VARIANTS[series]
    more = {"refresh": 4} if params.get("online") else {}
    sampler = make(method, by, {**params, **more}, N, seed, labels=LABELS, smoothness=torch.arange(1.0, N + 1).numpy())
    x = torch.arange(N, dtype=torch.float32)

    def jitter(parts: Any, generator: torch.Generator) -> Any:
        return (parts[0] + torch.rand(len(parts[0]), generator=generator), *parts[1:])

    return SampledBatches((x, LABELS), sampler, batch, seed, jitter)


def follow(batches: SampledBatches, count: int) -> list[Any]:
    """`count` batches, with what a training loop tells an online sampler after each."""
    found = []
    for batch in islice(iter(batches), count):
        found.append([part.tolist() for part in batch])
        if getattr(batches.sampler, "online", False):
            batches.sampler.update(batch[3], batch[3] % 4 + 0.5)
    return found


@pytest.mark.parametrize("series", SERIES)
@pytest.mark.parametrize("consumed", range(12))
def test_resume_is_exact_at_every_offset(series: str, consumed: int) -> None:
    whole = follow(stream(series), 14)
    first = stream(series)
    assert follow(first, consumed) == whole[:consumed]
    second = stream(series)
    second.load_state_dict(first.state_dict(consumed))
    assert follow(second, 14 - consumed) == whole[consumed:]


@pytest.mark.parametrize("series", SERIES)
def test_a_batch_holds_the_rows_labels_and_weights_of_its_indices(series: str) -> None:
    batches = follow(stream(series), 5)
    assert [len(b[0]) for b in batches] == [5, 5, 5, 5, 3]
    for x, y, w, i in batches:
        assert [int(v) for v in x] == i
        assert y == LABELS[i].tolist()
        assert len(w) == len(i)
    seen = sorted(index for b in batches for index in b[3])
    if series in ("fixed-order", "shuffle-once", "random-reshuffling", "class-blocks"):
        assert seen == list(range(N))
        assert all(b[2] == [1.0] * len(b[2]) for b in batches)


def test_a_state_before_what_was_fetched_ahead_is_exact_too() -> None:
    whole = follow(stream("random-reshuffling"), 9)
    ahead = stream("random-reshuffling")
    follow(ahead, 7)  # in the second epoch
    again = stream("random-reshuffling")
    again.load_state_dict(ahead.state_dict(3))
    assert follow(again, 6) == whole[3:]


def test_a_sampler_that_learns_cannot_go_back_to_an_earlier_epoch() -> None:
    ahead = stream("importance:online")
    follow(ahead, 7)
    with pytest.raises(ValueError, match="which learns, is in epoch 1"):
        ahead.state_dict(3)


def test_what_does_not_fit_is_refused() -> None:
    state = stream("shuffle-once").state_dict(0)
    with pytest.raises(ValueError, match="batch_size 5 \\(here 6\\)"):
        stream("shuffle-once", batch=6).load_state_dict(state)
    with pytest.raises(ValueError, match="seed 0 \\(here 1\\)"):
        stream("shuffle-once", seed=1).load_state_dict(state)
    with pytest.raises(ValueError, match="between 1 and the 23"):
        stream("shuffle-once", batch=24)
    with pytest.raises(ValueError, match="do not go with a sampler over 23"):
        SampledBatches((torch.zeros(22),), stream("shuffle-once").sampler, 4, 0)
