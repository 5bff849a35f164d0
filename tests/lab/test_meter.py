"""Bytes by kind, counted by hand: weights, gradients, state, and a whole step."""

import numpy as np
import pytest
import torch
from torch import nn

from dlopt.lab.meter import gradient_bytes, measure_step, state_bytes, weights_bytes
from dlopt.memory import Bytes

KIB = 1024  # 256 float32


def kib(n: int = 1) -> torch.Tensor:
    return torch.ones(256 * n)


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))


MLP_WEIGHTS = 4 * (8 * 16 + 16 + 16 * 4 + 4)


def test_weights_hold_parameters_and_buffers():
    # BatchNorm: weight, bias, running mean, running var (float32) and num_batches_tracked (int64)
    assert weights_bytes(nn.BatchNorm1d(10)) == 4 * 4 * 10 + 8
    assert weights_bytes(mlp()) == MLP_WEIGHTS
    assert weights_bytes(mlp().to(torch.bfloat16)) == MLP_WEIGHTS // 2


def test_tied_weights_count_once():
    embedding, head = nn.Embedding(10, 4), nn.Linear(4, 10, bias=False)
    assert weights_bytes(embedding, head) == 320
    head.weight = embedding.weight
    assert weights_bytes(nn.ModuleList([embedding, head])) == weights_bytes(embedding, head) == 160


def test_gradients():
    model = mlp()
    assert gradient_bytes(model) == 0
    model(torch.ones(2, 8)).sum().backward()
    assert gradient_bytes(model) == gradient_bytes(model.parameters()) == MLP_WEIGHTS
    model[0].weight.grad = None
    assert gradient_bytes(model) == MLP_WEIGHTS - 4 * 8 * 16


def test_sparse_gradient_counts_indices_and_values():
    table = nn.Embedding(1000, 4, sparse=True)
    table(torch.tensor([1, 5, 7])).sum().backward()
    assert gradient_bytes(table) == 3 * 8 + 3 * 4 * 4


def test_adamw_state_is_two_moments_and_a_step_per_tensor():
    model = mlp()
    optimizer = torch.optim.AdamW(model.parameters())
    assert state_bytes(optimizer) == 0
    model(torch.ones(2, 8)).sum().backward()
    optimizer.step()
    assert state_bytes(optimizer) == 2 * MLP_WEIGHTS + 4 * 4  # 4 tensors, each with a float32 step
    assert state_bytes(optimizer, optimizer) == 2 * MLP_WEIGHTS + 4 * 4


def test_state_in_groups_and_declared_attributes():
    weight = nn.Parameter(kib())

    class Anchored(torch.optim.SGD):
        def __init__(self, params):
            super().__init__(params, lr=torch.tensor(0.1))
            self.anchor = [kib(2)]
            self.inner = torch.optim.Adagrad([weight])
            self.forgotten = kib(7)  # not declared: a method that does not save it does not resume either

        def state_dict(self):
            copies = [a.clone() for a in self.anchor]
            return {**super().state_dict(), "anchor": copies, "alias": weight, "inner": self.inner.state_dict()}

    # lr tensor, anchor (a copy counts as what it stands for), Adagrad's sum and step; the alias of the weight is free
    assert state_bytes(Anchored([weight])) == 4 + 2 * KIB + KIB + 4


def test_state_counts_live_tensors_not_the_copies_in_state_dict():
    class Copying(torch.optim.SGD):
        def state_dict(self):
            return torch.utils._pytree.tree_map(
                lambda v: v.clone() if isinstance(v, torch.Tensor) else v, super().state_dict()
            )

    weight = nn.Parameter(kib())
    optimizer = Copying([weight], lr=0.1, momentum=0.9)
    weight.grad = kib()
    optimizer.step()
    assert state_bytes(optimizer) == KIB


def test_state_views_objects_and_cycles():
    class Projector:
        __slots__ = ("basis", "owner")

    shared = kib(4)
    projector = Projector()
    projector.basis, projector.owner = shared[:10], None
    projector.owner = projector
    weight = nn.Parameter(kib())
    optimizer = torch.optim.SGD([weight], lr=0.1)
    optimizer.state[weight] = {"p": projector, "view": shared[10:20], "rng": torch.Generator(), "numpy": np.ones(9)}
    assert state_bytes(optimizer) == 4 * KIB
    optimizer.state[weight]["layer"] = nn.Linear(256, 1, bias=False)
    assert state_bytes(optimizer) == 5 * KIB
    optimizer.state[weight] = {"alias": weight.data[:3]}
    assert state_bytes(optimizer) == 0


def test_state_of_what_has_none():
    assert state_bytes(torch.optim.lr_scheduler.ConstantLR(torch.optim.SGD([kib()], lr=0.1))) == 0
    with pytest.raises(TypeError, match=r"neither .state nor state_dict"):
        state_bytes(object())


def closure_of(model, optimizer, x):
    def closure():
        optimizer.zero_grad()
        loss = model(x).pow(2).mean()
        loss.backward()
        return loss

    return closure


def test_measure_step_first_order():
    model, x = mlp(), torch.ones(32, 8)
    optimizer = torch.optim.AdamW(model.parameters(), foreach=False)
    cost = measure_step(model, optimizer, closure_of(model, optimizer, x))
    assert cost.weights == MLP_WEIGHTS
    assert cost.gradients == MLP_WEIGHTS
    assert cost.state == 2 * MLP_WEIGHTS + 16
    assert cost.saved == 4 * 32 * 8 + 4 * 32 * 16 + 4 * 32 * 4  # x, ReLU's output, the square's input
    assert cost.scratch >= 0
    assert (cost.cache, cost.wire) == (0, 0)


def test_measure_step_total_is_the_peak_where_scratch_is_positive():
    model, x = mlp(), torch.ones(2, 8)

    class Hungry(torch.optim.SGD):
        def step(self, closure):
            loss = super().step(closure)
            kib(100).add(1)
            return loss

    optimizer = Hungry(model.parameters(), lr=0.1)
    cost = measure_step(model, optimizer, closure_of(model, optimizer, x))
    peak = MLP_WEIGHTS + MLP_WEIGHTS + 4 * 2 * 8 + 200 * KIB + 4  # weights, gradients, batch, the hunger, the loss
    assert cost.total == peak
    assert cost.state == 0


def test_measure_step_zeroth_order_has_no_gradients():
    model, x = mlp(), torch.ones(32, 8)

    class Nudge:
        state: dict = {}  # noqa: RUF012

        def step(self, closure):
            with torch.no_grad():
                return closure()

    cost = measure_step(model, Nudge(), lambda: model(x).pow(2).mean())
    assert cost == Bytes(weights=MLP_WEIGHTS, scratch=4 * 32 * 8 + 2 * 4 * 32 * 16)


def test_measure_step_sees_gradients_that_the_optimizer_frees():
    model, x = mlp(), torch.ones(32, 8)

    class Freeing(torch.optim.SGD):
        def step(self, closure):
            loss = super().step(closure)
            self.zero_grad()
            return loss

    optimizer = Freeing(model.parameters(), lr=0.1)
    cost = measure_step(model, optimizer, closure_of(model, optimizer, x))
    assert cost.gradients == MLP_WEIGHTS


def test_measure_step_counts_kept_gradients_once():
    model, x = mlp(), torch.ones(2, 8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def closure(set_to_none):
        optimizer.zero_grad(set_to_none)
        model(x).sum().backward()

    freed = measure_step(model, optimizer, lambda: closure(True))
    kept = measure_step(model, optimizer, lambda: closure(False))
    assert kept.gradients == freed.gradients == MLP_WEIGHTS
    # kept gradients are there when the new ones arrive: the largest new one is on top
    assert kept.total > freed.total


def test_measure_step_counts_old_gradients_until_they_are_cleared():
    model, x, calls = mlp(), torch.ones(2, 8), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def closure():
        kib(100)  # the peak, with the last step's gradients still there
        calls.append(gradient_bytes(model))
        optimizer.zero_grad()
        model(x).sum().backward()

    cost = measure_step(model, optimizer, closure, warmup=2)
    assert calls == [0, MLP_WEIGHTS, MLP_WEIGHTS]
    assert cost.total == 2 * MLP_WEIGHTS + 4 * 2 * 8 + 100 * KIB


def test_measure_step_refuses_negative_warmup():
    with pytest.raises(ValueError, match="warmup=-1"):
        measure_step(mlp(), None, lambda: None, warmup=-1)
