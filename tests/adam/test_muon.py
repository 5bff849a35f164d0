"""Muon with AdamW inside, against its twin and torch's. What all optimizers share is in tests/test_optimizers.py."""

import copy
import io

import numpy as np
import pytest
import torch
from torch import nn

from dlopt.adam import Muon
from dlopt.adam.muon import orthogonalize
from dlopt.memory import tensor_bytes
from tests.adam import reference_muon as reference
from tests.adam import stand_ins as S
from tests.adam.digits import accuracy_on_digits, mlp


def model_of(dtype=torch.float64):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return S.Model(nn.MultiheadAttention(6, 2)).to(dtype)


def run(optimizer, model, steps=20):
    generator = torch.Generator().manual_seed(1)
    rounds = []
    for _ in range(steps):
        rounds.append([])
        for p in model.parameters():
            p.grad = torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.dtype)
            rounds[-1].append(p.grad.clone())
        optimizer.step()
    return rounds


HIDDEN = {
    "attention.in_proj_weight",
    "attention.out_proj.weight",
    "up.weight",
    "down.weight",
    "conv.weight",
    "deconv.weight",
}


@pytest.mark.parametrize("adjust", ["match_rms_adamw", "original"])
@pytest.mark.parametrize("nesterov", [True, False])
def test_equals_the_twins(adjust, nesterov):
    model = model_of()
    before = {n: p.detach().numpy().copy() for n, p in model.named_parameters()}
    options = {"lr": 0.05, "weight_decay": 0.3}
    optimizer = Muon(model.parameters(), model=model, momentum=0.8, adjust=adjust, nesterov=nesterov, **options)
    rounds = run(optimizer, model)
    for i, (name, p) in enumerate(model.named_parameters()):
        gradients = [r[i].numpy() for r in rounds]
        if name in HIDDEN:
            want = reference.muon(
                before[name], gradients, momentum=0.8, nesterov=nesterov, original=adjust == "original", **options
            )
        else:
            want = reference.adamw(before[name], gradients, betas=(0.9, 0.999), eps=1e-8, **options)
        np.testing.assert_allclose(p.detach().numpy(), want, rtol=1e-12, atol=1e-12, err_msg=name)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch.optim.Muon came with torch 2.9")
@pytest.mark.parametrize("adjust", ["match_rms_adamw", "original"])
def test_equals_torch_on_matrices(adjust):
    a, b = (nn.ParameterList([nn.Parameter(torch.ones(6, 4)), nn.Parameter(torch.ones(3, 9))]) for _ in range(2))
    run(Muon(a.parameters(), lr=0.02, weight_decay=0.1, adjust=adjust, ns_dtype=torch.bfloat16), a)
    run(torch.optim.Muon(b.parameters(), lr=0.02, weight_decay=0.1, adjust_lr_fn=adjust), b)
    for p, q in zip(a, b):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-6)


def test_orthogonalize_makes_singular_values_about_one():
    for shape in [(5, 9), (9, 5), (6, 6)]:
        u = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        o = orthogonalize(u, 5)
        values = torch.linalg.svdvals(o)
        assert values.min() > 0.6
        assert values.max() < 1.25
        left, _, right = torch.linalg.svd(u, full_matrices=False)
        assert torch.linalg.norm(left.T @ o @ right.T - torch.diag(torch.diag(left.T @ o @ right.T))) < 1e-10
    assert torch.equal(orthogonalize(torch.zeros(2, 3), 5), torch.zeros(2, 3))


def test_groups_can_say_which_tensors_are_hidden():
    model = model_of()
    groups = [
        {"params": [model.up.weight], "muon": False},
        {"params": [model.embed.weight], "muon": True, "lr": 0.1},
        {"params": [model.down.weight, model.down.bias]},
    ]
    optimizer = Muon(groups, model=model)
    run(optimizer, model, 1)
    assert [len(optimizer.state[p]) for g in groups for p in g["params"]] == [3, 1, 1, 3]
    with pytest.raises(ValueError, match=r"muon=True is for matrices, but the group has a tensor of shape \(6,\)"):
        Muon([{"params": [model.down.bias], "muon": True}])
    with pytest.raises(ValueError, match="muon=True is for matrices"):
        optimizer.add_param_group({"params": [model.conv.weight, model.down.bias.clone().detach()], "muon": True})
    assert len(optimizer.param_groups) == 3  # what was refused is not there
    run(optimizer, model, 1)


@pytest.mark.filterwarnings("ignore:Initializing zero-element")
def test_empty_tensors_stay():
    model = nn.Sequential(nn.Linear(3, 0), nn.Linear(0, 2))
    optimizer = Muon(model.parameters(), model=model)
    run(optimizer, model, 2)
    assert Muon.memory(model.parameters(), model=model).state == 4 * 2 * 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_resume_is_exact_at_every_step_and_state_bytes_equal_the_formula(dtype):
    model = model_of(dtype)
    optimizer, kept = Muon(model.named_parameters(), model=model, lr=0.05), []
    for _ in range(4):
        file = io.BytesIO()
        torch.save([copy.deepcopy(model.state_dict()), optimizer.state_dict()], file)
        kept.append(file)
        run(optimizer, model, 1)
    counted = tensor_bytes(t for s in optimizer.state.values() for t in s.values() if isinstance(t, torch.Tensor))
    assert counted == Muon.memory(model.parameters(), model=model).state
    hidden = sum(p.numel() for n, p in model.named_parameters() if n in HIDDEN)
    assert counted == 4 * (2 * sum(p.numel() for p in model.parameters()) - hidden)
    for offset, file in enumerate(kept):
        file.seek(0)
        weights, state = torch.load(file, weights_only=True)
        other = model_of(dtype)
        other.load_state_dict(weights)
        again = Muon(other.named_parameters(), model=other)
        again.load_state_dict(state)
        for _ in range(offset, 4):
            run(again, other, 1)
        assert all(torch.equal(p, q) for p, q in zip(model.parameters(), other.parameters()))


def test_wrong_arguments_are_refused_with_value_and_range():
    wrong = {"lr": -1, "momentum": 1, "weight_decay": -1, "ns_steps": 0, "adjust": "rms", "ns_dtype": torch.int8}
    for name, value in {**wrong, "betas": (1, 0), "eps": -1}.items():
        with pytest.raises(ValueError, match=f"{name}=.* is out of range: it must be"):
            Muon([nn.Parameter(torch.ones(2, 2))], **{name: value})


def test_learns_digits():
    model = mlp()
    assert accuracy_on_digits(model, Muon(model.parameters(), model=model, lr=1e-2)) > 0.93


@pytest.mark.parametrize("tied", [True, False])
def test_inner_matrices_of_the_embeddings_shape_are_hidden(tied):
    """Where vocabulary and width are equal, queries and outputs are shaped like the head; they are no heads."""
    from dlopt.tasks import models

    model = models.build("lm", vocabulary=32, width=32, layers=2, heads=4, tied=tied)
    hidden = {
        n for n, p in model.named_parameters() if p.dim() == 2 and n not in ("embed_tokens.weight", "lm_head.weight")
    }
    assert any("q_proj" in name for name in hidden)
    optimizer = Muon(model.named_parameters(), model=model)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    named = dict(model.named_parameters())
    assert {name for name, p in named.items() if "variance" not in optimizer.state[p]} == hidden
