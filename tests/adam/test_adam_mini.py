"""Adam-mini: its blocks for every layout of attention, and its steps against the twin."""

import copy
import io

import numpy as np
import pytest
import torch
from torch import nn

from dlopt.adam import AdamMini, AdamW, _shared
from dlopt.adam.partition import SCHEMES, partition
from dlopt.memory import tensor_bytes
from tests.adam import stand_ins as S
from tests.adam.digits import accuracy_on_digits, mlp
from tests.adam.layouts import AROUND, CASES, block_of
from tests.adam.reference_adam_mini import adam_mini


def model_of(attention, **options):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return S.Model(attention(), **options).double()


def gradients(model, steps, seed=1):
    generator = torch.Generator().manual_seed(seed)
    params = list(model.parameters())
    # of very different sizes within a tensor, so that it matters who shares a second moment with whom
    scale = [torch.exp(2 * torch.randn(p.shape, generator=generator, dtype=torch.float64)) for p in params]
    return [
        [
            (s * torch.randn(s.shape, generator=generator, dtype=torch.float64)).to(p.dtype)
            for s, p in zip(scale, params)
        ]
        for _ in range(steps)
    ]


def run(optimizer, model, rounds):
    for grads in rounds:
        for p, g in zip(model.parameters(), grads):
            p.grad = g.clone()
        optimizer.step()
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def weights_equal(a, b, tolerance=1e-12):
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}")


# ---- steps ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_equals_the_twin_with_blocks_written_out(case):
    attention, expected = CASES[case]
    model = model_of(attention)
    before = {n: p.detach().numpy().copy() for n, p in model.named_parameters()}
    rounds = gradients(model, 30)
    # an lr so large that a decay before the step differs from one after it
    options = {"lr": 0.05, "betas": (0.8, 0.97), "eps": 1e-6}
    after = run(AdamMini(model.parameters(), model=model, weight_decay=0.3, **options), model, rounds)
    names = list(before)
    for name, (outputs, axis) in {**{f"attention.{n}": v for n, v in expected.items()}, **AROUND}.items():
        ids = block_of(outputs, before[name].shape, axis)
        decay = 0.0 if "bias" in name or "norm" in name else 0.3
        mine = [grads[names.index(name)].numpy() for grads in rounds]
        want = adam_mini(before[name], ids, mine, weight_decay=decay, **options)
        np.testing.assert_allclose(after[name].numpy(), want, rtol=1e-12, atol=1e-12, err_msg=name)


def test_heads_side_by_side_in_a_fused_projection():
    model = S.NeoX(6, heads=2).double()
    blocks = partition(model)["query_key_value.weight"].blocks
    ids = np.zeros(18, dtype=int)
    for number, piece in zip(
        blocks.numbers(torch.arange(blocks.total), (18, 6)), blocks.pieces(torch.arange(18 * 6).view(18, 6))
    ):
        for block, members in zip(number.flatten().tolist(), piece.flatten(0, 1)):
            ids[[int(i) // 6 for i in members[:, 0]]] = block
    # query, key and three values of head 0, then those of head 1
    same = [[0, 1, 2], [3, 4, 5], [6], [7], [8], [9, 10, 11], [12, 13, 14], [15], [16], [17]]
    assert sorted(np.flatnonzero(ids == b).tolist() for b in range(blocks.total)) == same
    before, rounds = model.query_key_value.weight.detach().numpy().copy(), gradients(model, 10)
    after = run(AdamMini(model.parameters(), model=model, lr=0.05), model, rounds)["query_key_value.weight"]
    grads = [r[0].numpy() for r in rounds]
    want = adam_mini(before, block_of(ids, (18, 6)), grads, lr=0.05, betas=(0.9, 0.999), eps=1e-8, weight_decay=0)
    np.testing.assert_allclose(after.numpy(), want, rtol=1e-12, atol=1e-12)


def test_one_element_in_each_block_is_adam():
    for weight_decay in (0.0, 0.1):
        model = model_of(CASES["fused, in x out"][0])
        other = copy.deepcopy(model)
        rounds = gradients(model, 20)
        groups = [{"params": model.parameters(), "weight_decay": weight_decay}]  # told: norms and biases too
        a = run(AdamMini(groups, model=model, lr=0.03, partition="element"), model, rounds)
        b = run(AdamW(other.parameters(), lr=0.03, weight_decay=weight_decay), other, rounds)
        weights_equal(a, b)


def test_one_block_is_adam_with_a_scalar_variance():
    model = model_of(CASES["torch"][0])
    before, rounds = {n: p.detach().numpy().copy() for n, p in model.named_parameters()}, gradients(model, 20)
    after = run(AdamMini(model.parameters(), lr=0.03, partition="tensor"), model, rounds)
    for i, name in enumerate(before):
        ids = np.zeros(before[name].shape, dtype=int)
        grads = [r[i].numpy() for r in rounds]
        want = adam_mini(before[name], ids, grads, lr=0.03, betas=(0.9, 0.999), eps=1e-8, weight_decay=0)
        np.testing.assert_allclose(after[name].numpy(), want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("case", ["grouped queries, wide heads", "fused, grouped"])
def test_permuted_heads_get_permuted_updates(case):
    attention = CASES[case][0]
    name = "attention.qkv_proj.weight" if "fused" in case else "attention.q_proj.weight"
    order = [2, 0, 3, 1]
    results = []
    for permute in (False, True):
        model = model_of(attention)
        weight = dict(model.named_parameters())[name]
        index = [n for n, _ in model.named_parameters()].index(name)
        turn = torch.arange(len(weight))
        turn[:20] = torch.cat([turn[5 * h : 5 * h + 5] for h in order])
        rounds = gradients(model, 10)
        if permute:
            weight.data = weight.data[turn].clone()
            for grads in rounds:
                grads[index] = grads[index][turn]
        results.append(run(AdamMini(model.parameters(), model=model, lr=0.1), model, rounds)[name])
    assert torch.equal(results[0][turn], results[1])


def test_pieces_in_cache_change_nothing(monkeypatch):
    results = []
    for chunk in (1 << 18, 40, 1):
        monkeypatch.setattr(_shared, "CHUNK", chunk)
        model = model_of(CASES["fused, grouped"][0])
        results.append(run(AdamMini(model.parameters(), model=model), model, gradients(model, 5)))
    weights_equal(results[0], results[1], 1e-15)
    weights_equal(results[0], results[2], 1e-15)


def test_memory_layout_changes_nothing():
    results = []
    for transposed in (False, True):
        model = model_of(CASES["grouped queries, wide heads"][0])
        rounds = gradients(model, 5)
        if transposed:
            for p in model.parameters():
                if p.dim() == 2:
                    p.data = p.data.t().contiguous().t()
                elif p.dim() == 4:
                    p.data = p.data.to(memory_format=torch.channels_last)
            rounds = [[g.t().contiguous().t() if g.dim() == 2 else g for g in grads] for grads in rounds]
        results.append(run(AdamMini(model.parameters(), model=model), model, rounds))
    weights_equal(*results, 1e-15)


@pytest.mark.parametrize("maximize", [False, True])
def test_low_precision_weights_are_float32_weights_rounded_once(maximize):
    low = model_of(CASES["torch"][0]).bfloat16()
    full = copy.deepcopy(low).float()
    rounds = gradients(low, 1)
    a = AdamMini(low.parameters(), model=low, lr=0.01, weight_decay=0.1, maximize=maximize)
    b = AdamMini(full.parameters(), model=full, lr=0.01, weight_decay=0.1, maximize=maximize)
    after, exact = run(a, low, rounds), run(b, full, [[g.float() for g in r] for r in rounds])
    for name in after:
        assert torch.equal(after[name], exact[name].bfloat16())
    assert all(s["momentum"].dtype == s["variance"].dtype == torch.float32 for s in a.state.values())


def test_decay_leaves_norms_and_biases_alone_unless_told():
    def unmoved(make):
        model = model_of(CASES["torch"][0])
        before = {n: p.detach().clone() for n, p in model.named_parameters()}
        after = run(make(model), model, [[torch.zeros_like(p) for p in model.parameters()]])
        return {n for n in before if torch.equal(before[n], after[n]) and before[n].any()}

    plain = unmoved(lambda m: AdamMini(m.parameters(), model=m, lr=0.1, weight_decay=0.1))
    assert plain == {"norm.weight", "up.bias", "down.bias", "conv.bias", "deconv.bias"}  # attention's begin at 0
    group = {"weight_decay": 0.1}
    assert unmoved(lambda m: AdamMini([{"params": m.parameters(), **group}], model=m, lr=0.1)) == set()
    group["decay"] = "matrices"
    assert unmoved(lambda m: AdamMini([{"params": m.parameters(), **group}], model=m, lr=0.1)) == plain


# ---- state ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_resume_is_exact_at_every_step_with_heads(dtype):
    model = model_of(CASES["grouped queries, wide heads"][0]).to(dtype)
    rounds, kept = gradients(model, 5), []
    optimizer = AdamMini(model.named_parameters(), model=model, lr=0.1, betas=(0.8, 0.9))
    for grads in rounds:
        file = io.BytesIO()
        torch.save([model.state_dict(), optimizer.state_dict()], file)
        kept.append(file)
        after = run(optimizer, model, [grads])
    for offset, file in enumerate(kept):
        file.seek(0)
        weights, state = torch.load(file, weights_only=True)
        other = model_of(CASES["grouped queries, wide heads"][0]).to(dtype)
        other.load_state_dict(weights)
        again = AdamMini(other.named_parameters(), model=other)
        again.load_state_dict(state)
        resumed = run(again, other, rounds[offset:])
        assert all(torch.equal(after[n], resumed[n]) for n in after)


def test_state_of_other_blocks_is_refused():
    model = model_of(CASES["torch"][0])
    optimizer = AdamMini(model.parameters(), model=model)
    run(optimizer, model, gradients(model, 1))
    other = AdamMini(model.parameters(), model=model, partition="tensor")
    with pytest.raises(ValueError, match=r"saved variance .* has shape .* saved with other settings"):
        other.load_state_dict(optimizer.state_dict())
    assert not other.state


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("case", CASES)
def test_state_bytes_equal_the_formula(case, scheme):
    for dtype in (torch.float32, torch.bfloat16):
        model = model_of(CASES[case][0]).to(dtype)
        optimizer = AdamMini(model.parameters(), model=model, partition=scheme)
        run(optimizer, model, gradients(model, 2))
        counted = tensor_bytes(t for s in optimizer.state.values() for t in s.values() if isinstance(t, torch.Tensor))
        memory = AdamMini.memory(model.parameters(), model=model, partition=scheme)
        assert memory.state == counted
        blocks = sum(row.blocks.total for row in optimizer.partition())
        assert counted == 4 * (sum(p.numel() for p in model.parameters()) + blocks)


@pytest.mark.filterwarnings("ignore:Initializing zero-element")
@pytest.mark.parametrize("scheme", SCHEMES)
def test_empty_tensors_stay(scheme):
    for dtype in (torch.float32, torch.bfloat16):
        model = nn.Sequential(nn.Linear(3, 0), nn.Linear(0, 2)).to(dtype)
        optimizer = AdamMini(model.parameters(), model=model, partition=scheme)
        assert optimizer.partition()["0.bias"].blocks.total == 0
        run(optimizer, model, gradients(model, 2))
        counted = tensor_bytes(t for s in optimizer.state.values() for t in s.values() if isinstance(t, torch.Tensor))
        assert AdamMini.memory(model.parameters(), model=model, partition=scheme).state == counted
    AdamMini([nn.Parameter(torch.ones(0, 3))], partition="tensor")


def test_a_group_that_is_refused_is_not_there():
    model = nn.Linear(3, 2)
    optimizer = AdamMini([model.weight], model=model)
    strange = nn.Parameter(torch.ones(2))
    with pytest.raises(ValueError, match=r"tensor 1 of group 1, of shape \(2,\), is not a parameter of the model"):
        optimizer.add_param_group({"params": [model.bias, strange]})
    assert len(optimizer.param_groups) == len(optimizer.partition()) == 1
    optimizer.add_param_group({"params": [model.bias]})
    run(optimizer, model, gradients(model, 1))
    assert len(optimizer.partition()) == 2


def test_half_of_adams_state_on_a_real_model():
    with torch.device("meta"):  # two layers with the shapes of SmolLM2-135M
        layers = [
            nn.ModuleList([S.Llama(576, 9, 3, 64), S.Norm(576), nn.Linear(576, 1536), nn.Linear(1536, 576)])
            for _ in range(2)
        ]
        model = nn.ModuleList([nn.Embedding(49152, 576), *layers])
    ours = AdamMini.memory(model.parameters(), model=model).state
    theirs = AdamW.memory(model.parameters()).state
    assert 0.5 < ours / theirs < 0.502


def test_learns_digits():
    model = mlp()
    assert accuracy_on_digits(model, AdamMini(model.parameters(), model=model, lr=1e-2)) > 0.93
