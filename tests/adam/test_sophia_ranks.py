"""Sophia on two processes: one curvature for all replicas, that of the whole batch; weights do not drift apart."""

import os

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from dlopt.adam import SophiaG, SophiaH, sophia_g
from tests.adam.softmax_regression import BOTH, curvature, regression, round_of

RANKS = 2
pytestmark = pytest.mark.skipif(not dist.is_gloo_available(), reason="torch was built without gloo")


@pytest.fixture(scope="module")
def on_ranks(tmp_path_factory):
    """{(work, class): [what `work(rank, class)` returns on each rank]}, from processes that share nothing but a file.

    All of it in one pair of processes: their start takes nearly all of the time.
    """
    folder = tmp_path_factory.mktemp("ranks")
    try:
        mp.spawn(_rank, args=(str(folder),), nprocs=RANKS)
    except mp.ProcessExitedException:
        # gloo has been seen to abort while it is taken down, after all was done and written
        if not all((folder / f"{rank}.pt").exists() for rank in range(RANKS)):
            raise
    found = [torch.load(folder / f"{rank}.pt") for rank in range(RANKS)]
    return {key: [of_rank[key] for of_rank in found] for key in found[0]}


def _rank(rank, folder):
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # no name of a host has to be looked up
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=RANKS)
    found = {(work.__name__, cls.__name__): work(rank, cls) for work in (_rounds, _poisoned, _trained) for cls in BOTH}
    torch.save(found, os.path.join(folder, f"{rank}.part"))
    os.replace(os.path.join(folder, f"{rank}.part"), os.path.join(folder, f"{rank}.pt"))
    dist.barrier()
    dist.destroy_process_group()


def _rounds(rank, cls):
    """Curvature after three rounds on this rank's rows, 7 and 5 of 12; in the second round rank 1 has none."""
    weight, x, _ = regression()
    unused = nn.Parameter(torch.ones(2))
    optimizer = cls([unused, weight])
    for number in range(3):
        rows = x if number == 1 else x[:7] if rank == 0 else x[7:]
        if number == 1 and rank == 1:
            optimizer.update_curvature()
        else:
            round_of(optimizer, weight, rows, parts=2)
    kept = [weight in optimizer.state, unused in optimizer.state]
    return curvature(optimizer, weight), kept, optimizer.param_groups[0]["targets"]


@pytest.mark.parametrize("cls", BOTH)
def test_ranks_have_the_curvature_of_all_rows(cls, on_ranks):
    found = on_ranks["_rounds", cls.__name__]
    assert torch.equal(found[0][0], found[1][0])
    assert [kept for _, kept, _ in found] == [[True, False]] * 2
    assert [n for *_, n in found] == [0, 0]
    weight, x, _ = regression()
    optimizer = cls([nn.Parameter(torch.ones(2)), weight])  # probes are drawn in the order of the tensors
    if cls is SophiaH:  # the same probes: as in one process
        for _ in range(3):
            round_of(optimizer, weight, x)
        expected = curvature(optimizer, weight)
    else:  # labels by rank: summed, then squared over all 12 targets
        expected = torch.zeros_like(weight)
        for number in range(3):
            parts = [(0, x)] if number == 1 else [(0, x[:7]), (1, x[7:])]
            total = sum(_gradient(weight, rows, number, rank) for rank, rows in parts)
            expected = 0.99 * expected + 0.01 * total**2 / 12
    torch.testing.assert_close(found[0][0], expected.detach(), rtol=1e-12, atol=1e-15)


def _gradient(weight, rows, number, rank):
    logits = rows @ weight.T
    seed = sophia_g.common.DRAWS * number + sophia_g.RANKS * rank
    labels = sophia_g._sample(logits.detach(), seed, skip=0)
    return torch.autograd.grad(nn.functional.cross_entropy(logits, labels, reduction="sum"), weight)[0]


def _poisoned(rank, cls):
    """Curvature after two rounds, then after a third where rank 1 alone has an infinite row, and the counts."""
    weight, x, _ = regression()
    optimizer, found = cls([weight]), []
    for number in range(3):
        rows = x[rank::RANKS].clone()
        if number == 2 and rank == 1:
            rows[0] = float("inf")
        round_of(optimizer, weight, rows)
        found.append(curvature(optimizer, weight).clone())
    return found, (optimizer.rounds, optimizer.rounds_skipped, optimizer.param_groups[0]["targets"])


@pytest.mark.parametrize("cls", BOTH)
def test_all_ranks_drop_a_round_that_is_not_finite_on_one(cls, on_ranks):
    for (_, before, after), counts in on_ranks["_poisoned", cls.__name__]:
        assert before.any()
        assert torch.equal(before, after)
        assert counts == (3, 1, 0)


def _trained(rank, cls):
    """The weights after six steps of DDP on this rank's half of the rows."""
    weight, x, y = regression(dtype=torch.float32)
    model = nn.Linear(3, 4)
    with torch.no_grad():
        model.weight.copy_(weight)
        model.bias.zero_()
    replica = DistributedDataParallel(model)
    optimizer = cls(model.parameters(), lr=0.05, rho=1.0, betas=(0.9, 0.5), interval=2)
    x, y = x[rank::RANKS], y[rank::RANKS]
    for _ in range(6):
        optimizer.zero_grad()
        due = optimizer.curvature_due
        logits = replica(x)
        loss = nn.functional.cross_entropy(logits, y)
        loss.backward(retain_graph=due)
        if due and cls is SophiaG:
            optimizer.accumulate_curvature(logits)
            optimizer.update_curvature()
        elif due:
            optimizer.update_curvature(nn.functional.cross_entropy(model(x), y))
        optimizer.step()
    return torch.cat([model.weight.detach().flatten(), model.bias.detach()]), optimizer.share_unclipped


@pytest.mark.parametrize("cls", BOTH)
def test_replicas_stay_equal(cls, on_ranks):
    (first, share), (second, _) = on_ranks["_trained", cls.__name__]
    assert torch.equal(first, second)
    assert 0 < share < 1  # the curvature had a say, or the test would prove nothing
