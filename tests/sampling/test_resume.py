"""A loop that was stopped inside an epoch goes on in a new process exactly, with and without workers."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from dlopt.sampling import Weighted
from tests.sampling.helpers import ALL, build, learn

N, BATCH, STOP = 60, 4, 5
ROOT = Path(__file__).parent.parent.parent
RANKS = [(0, 1), (1, 2)]


class Numbers(Dataset):
    def __len__(self):
        return N

    def __getitem__(self, index):
        return torch.tensor(index)


def cases(workers):
    return [(name, rank, world_size) for name in ALL for rank, world_size in RANKS[1 if workers else 0 :]]


def loop(sampler, workers, epochs, stop=None):
    """Train: (batches, consumed in the last epoch). Stops after `stop` batches in all."""
    loader = DataLoader(Weighted(Numbers()), batch_size=BATCH, sampler=sampler, num_workers=workers)
    batches, consumed = [], 0
    for number in epochs:
        sampler.set_epoch(number)
        consumed = sampler.consumed
        for x, w in loader:
            learn(sampler, list(zip(x.tolist(), w.tolist())) if sampler.weighted else x.tolist())
            batches.append([x.tolist(), w.tolist()])
            consumed += len(x)
            if stop is not None and len(batches) == stop:
                return batches, consumed
    return batches, consumed


def resume(folder, workers):
    """What the new process does: every case from its state to the end of epoch 2."""
    found = {}
    for name, rank, world_size in cases(workers):
        sampler = build(name, N, seed=99, rank=rank, world_size=world_size)
        sampler.load_state_dict(torch.load(Path(folder) / f"{name}{rank}.pt", weights_only=True))
        batches, _ = loop(sampler, workers, range(sampler.epoch, 3))
        found[f"{name}{rank}"] = batches
    print(json.dumps(found))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_new_process_yields_the_rest_exactly(tmp_path, workers):
    expected = {}
    for name, rank, world_size in cases(workers):
        options = {"seed": 12, "rank": rank, "world_size": world_size}
        whole, _ = loop(build(name, N, **options), workers, range(1, 3))
        sampler = build(name, N, **options)
        before, consumed = loop(sampler, workers, range(1, 3), STOP)
        assert before == whole[:STOP], name
        assert consumed == STOP * BATCH
        torch.save(sampler.state_dict(consumed=consumed), tmp_path / f"{name}{rank}.pt")
        expected[f"{name}{rank}"] = whole[STOP:]
    code = f"from tests.sampling.test_resume import resume; resume({str(tmp_path)!r}, {workers})"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=ROOT, capture_output=True, text=True, env=os.environ
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    for name, rest in expected.items():
        assert found[name] == rest, name


def test_an_online_state_holds_what_was_drawn_ahead():
    sampler = build("importance-online", N)
    loader = DataLoader(Weighted(Numbers()), batch_size=BATCH, sampler=sampler, num_workers=2)
    for x, w in loader:
        learn(sampler, list(zip(x.tolist(), w.tolist())))
        break
    state = sampler.state_dict(consumed=BATCH)
    # 2 workers x 2 batches ahead of the one used, and one more asked for when it was handed out
    assert len(state["indices"]) >= 4 * BATCH
    with pytest.raises(ValueError, match=r"consumed must be from 0 .* to .* not 60"):
        sampler.state_dict(consumed=60)
