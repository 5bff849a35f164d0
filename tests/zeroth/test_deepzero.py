"""DeepZero: the step against a plain twin, reuse and stacking against plain passes, masks, resume, buffers, faults."""

import copy
import io
import math
import subprocess
import sys
import textwrap
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dlopt.memory import tensor_bytes
from dlopt.tasks import models
from dlopt.tasks.models.resnet import ResNet
from dlopt.zeroth import DeepZero
from dlopt.zeroth._grasp import counts_by_score, kept, mask, scores, uniform_counts
from dlopt.zeroth.estimators import coordinate_gradient
from tests.zeroth.test_estimators import bits, quadratic, same

DTYPES = [torch.float32, torch.bfloat16]
STEPS = 7


def mlp(dtype=torch.float32, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.Tanh(), nn.Linear(12, 8), nn.LayerNorm(8), nn.ReLU(),
                         nn.Linear(8, 3)).to(dtype)  # fmt: skip


def batch(n=8, dtype=torch.float32, shape=(1, 4, 4), classes=3, seed=5):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, *shape, generator=generator).to(dtype), torch.arange(n) % classes


def wide_loss(outputs, targets):
    return F.cross_entropy(outputs.float() if outputs.dtype.itemsize < 4 else outputs, targets)


def through_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def estimates(model, data, reuse, train_mode=True, **options):
    """(all coordinates' estimates by name, the optimizer); weights must not move."""
    options = {"mu": 1e-2, "sparsity": 0.0, "rank": "uniform", "batch_bytes": 2**14, **options}
    optimizer = DeepZero(model, lr=0.0, momentum=0.9, weight_decay=0.0, reuse=reuse, train_mode=train_mode, **options)
    before = bits(model.parameters())
    optimizer.step(*data)
    assert same(before, bits(model.parameters()))
    return {n: optimizer.state[p]["momentum"] for n, p in model.named_parameters()}, optimizer


# ---- the step --------------------------------------------------------------------------------------------------


def test_a_run_equals_a_plain_twin_with_torch_sgd():
    model, twin = mlp(torch.float64), mlp(torch.float64)
    optimizer = DeepZero(
        model, lr=0.3, mu=1e-2, momentum=0.8, weight_decay=0.02, sparsity=0.7, refresh=3, rank="uniform"
    )
    sgd = torch.optim.SGD(twin.parameters(), lr=0.3, momentum=0.8, weight_decay=0.02)
    for t in range(5):
        x, y = batch(dtype=torch.float64, seed=t)
        loss = optimizer.step(x, y)
        chosen = [optimizer.coordinates(name, p, t) for name, p in twin.named_parameters()]
        found = coordinate_gradient(lambda x=x, y=y: F.cross_entropy(twin(x), y), twin.parameters(), chosen, mu=1e-2)
        for p, g in zip(twin.parameters(), found.gradients, strict=True):
            p.grad = g
        sgd.step()
        assert abs(float(loss) - found.loss) < 1e-10
        for a, b in zip(model.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-10)
    assert all(p.grad is None for p in model.parameters())
    assert optimizer.describe()["mode"] == "batched"


def test_forwards_count_the_losses_asked_for():
    for reuse in ("batched", "restart", "plain"):
        model = mlp()
        calls = []
        hook = model.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        optimizer = DeepZero(model, sparsity=0.5, q_pruning=4, reuse=reuse)
        optimizer.step(*batch())
        sparse = sum(p.numel() for p in model.parameters() if p.dim() > 1)
        dense = sum(p.numel() for p in model.parameters()) - sparse
        per_step = 1 + sparse // 2 + dense
        assert optimizer.forwards == per_step + 2 * 5
        optimizer.step(*batch())
        assert optimizer.forwards == 2 * per_step + 2 * 5
        if reuse == "plain":
            assert len(calls) == optimizer.forwards
            assert optimizer.describe()["work"] == 2 * (per_step - 1)
        else:
            assert len(calls) < 150  # ZO-GraSP, the baselines and the comparison of a new graph
            assert 0 < optimizer.describe()["work"] < 0.9 * 2 * per_step
        hook.remove()


# ---- reuse and stacking ------------------------------------------------------------------------------------------


class Odd(nn.Module):
    """Grouped, strided and dilated convolutions, in-place activations, a tied weight, parameters read directly, a
    module called twice, a dense connection."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(2, 4, (3, 2), stride=(2, 1), padding=(1, 2), dilation=(1, 2), groups=2)
        self.norm, self.act = nn.GroupNorm(2, 4), nn.ReLU(inplace=True)
        self.second = nn.Conv2d(4, 4, 3, padding="same", padding_mode="circular")
        self.gain = nn.Parameter(torch.tensor(1.3))
        self.twice = nn.Linear(4, 4)
        self.tied = nn.Linear(4, 4)
        self.tied.weight = self.twice.weight
        self.table = nn.Parameter(torch.randn(4, 3))

    def forward(self, x):
        h = self.act(self.norm(self.first(x)))
        h = torch.cat([h, self.second(h) * self.gain], 1)[:, 2:6].mean((2, 3))
        h = self.tied(torch.tanh(self.twice(torch.sigmoid(self.twice(h)))))
        h = F.silu(h, inplace=True)
        return h @ self.table


def built(name, dtype=torch.float64):
    """(model, batch)"""
    if name == "mlp":
        return mlp(dtype), batch(6, dtype)
    if name == "odd":
        torch.manual_seed(0)
        return Odd().to(dtype), batch(6, dtype, (2, 5, 6))
    if name == "lenet":
        return models.build("lenet", seed=0, size=12, width=0.5).to(dtype), batch(6, dtype, (1, 12, 12), 10)
    torch.manual_seed(0)
    model = models.build("resnet8", seed=0, width=0.125) if name == "resnet8" else ResNet((1, 1), (3, 5), True)
    return model.to(dtype), batch(6, dtype, (3, 8, 8), 10)


@pytest.mark.parametrize("reuse", ["batched", "restart"])
@pytest.mark.parametrize("train_mode", [True, False])
@pytest.mark.parametrize("name", ["mlp", "lenet", "resnet8", "projection", "odd"])
def test_reuse_and_stacking_equal_plain_passes(name, train_mode, reuse):
    model, data = built(name)
    sparsity = 0.9 if name in ("lenet", "resnet8") else 0.0
    plain, one = estimates(model, data, "plain", train_mode, sparsity=sparsity)
    fast, other = estimates(model, data, reuse, train_mode, sparsity=sparsity)
    assert other.describe()["mode"] == reuse, other.describe()
    for key, g in plain.items():
        torch.testing.assert_close(fast[key], g, rtol=0, atol=1e-10, msg=lambda m, key=key: f"{key}: {m}")
        assert bool(g.any()), f"nothing to compare in {key}"
    assert other.describe()["work"] < 0.9 * one.describe()["work"]
    assert one.forwards == other.forwards


@pytest.mark.parametrize("name", ["lenet", "resnet8"])
def test_float32_agrees_within_the_stated_tolerance(name):
    model, data = built(name, torch.float32)
    plain, _ = estimates(model, data, "plain", sparsity=0.9)
    fast, used = estimates(model, data, "batched", sparsity=0.9)
    assert used.describe()["mode"] == "batched"
    with torch.no_grad():
        loss = float(F.cross_entropy(model(data[0]), data[1]))
    for key, g in plain.items():
        torch.testing.assert_close(fast[key], g, rtol=0, atol=1e-6 * max(1, loss) / 1e-2)


def test_the_size_of_stacks_and_the_layout_change_nothing_but_rounding():
    model, (x, y) = built("lenet")
    small, _ = estimates(model, (x, y), "batched", batch_bytes=1, sparsity=0.9)
    large, _ = estimates(model, (x, y), "batched", batch_bytes=2**24, sparsity=0.9)
    model.to(memory_format=torch.channels_last)
    images = x.contiguous(memory_format=torch.channels_last)
    last, used = estimates(model, (images, y), "batched", sparsity=0.9)
    assert used.describe()["mode"] == "batched"
    for key, g in small.items():
        torch.testing.assert_close(large[key], g, rtol=0, atol=1e-10)
        torch.testing.assert_close(last[key], g, rtol=0, atol=1e-10)


class Branch(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(16, 3)

    def forward(self, x):
        h = self.fc(x.flatten(1))
        return h if h.sum() > 0 else 2 * h


class Counter(Branch):
    """Python state that a traced graph cannot see."""

    calls = 0

    def forward(self, x):
        self.calls += 1
        return self.fc(x.flatten(1)) * (1 + self.calls)


def test_a_model_that_cannot_be_traced_is_evaluated_plainly_and_says_so():
    for model, words in ((Branch(), "cannot be traced"), (Counter(), "does not give the model's loss")):
        model.double()
        data = batch(dtype=torch.float64)
        with pytest.warns(UserWarning, match=words):
            _, optimizer = estimates(model, data, "batched", sparsity=0.9)
        assert optimizer.describe()["mode"] == "plain"
        assert words in optimizer.describe()["reason"]
    model = Branch().double()
    plain, _ = estimates(model, data, "plain")
    with pytest.warns(UserWarning, match="cannot be traced"):
        fast, _ = estimates(model, data, "batched")
    assert all(torch.equal(a, b) for a, b in zip(plain.values(), fast.values(), strict=True))


def test_what_cannot_be_stacked_is_restarted_one_by_one():
    model, data = mlp(torch.float64), batch(dtype=torch.float64)
    float_loss = lambda outputs, targets: F.cross_entropy(outputs, targets).item()  # noqa: E731
    plain, _ = estimates(model, data, "plain", loss_fn=float_loss, sparsity=0.5)
    with pytest.warns(UserWarning, match="'restart'"):
        fast, optimizer = estimates(model, data, "batched", loss_fn=float_loss, sparsity=0.5)
    assert optimizer.describe()["mode"] == "restart"
    assert all(torch.equal(a, b) for a, b in zip(plain.values(), fast.values(), strict=True))


def test_dropout_has_the_same_masks_in_all_passes_and_the_generator_moves_by_one_pass():
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.Dropout(0.5), nn.Linear(8, 3)).double()
    x, y = batch(dtype=torch.float64)
    torch.manual_seed(3)
    with pytest.warns(UserWarning, match="dropout"):
        found, _ = estimates(model, (x, y), "batched", mu=1e-6)
    after = torch.get_rng_state()
    torch.manual_seed(3)
    gradients = torch.autograd.grad(F.cross_entropy(model(x), y), list(model.parameters()))
    assert torch.equal(after, torch.get_rng_state())
    for g, exact in zip(found.values(), gradients, strict=True):
        torch.testing.assert_close(g, exact, rtol=0, atol=1e-5)
    quiet, optimizer = estimates(model, (x, y), "batched", train_mode=False)
    assert optimizer.describe()["mode"] == "batched"
    assert model.training


# ---- buffers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reuse", ["batched", "plain"])
def test_running_statistics_move_by_one_pass_in_training_mode_and_not_in_evaluation_mode(reuse):
    model, (x, y) = built("resnet8")
    before = [b.clone() for b in model.buffers()]
    estimates(model, (x, y), reuse, train_mode=False, sparsity=0.99)
    assert same(before, list(model.buffers()))
    other = copy.deepcopy(model)
    other(x)
    estimates(model, (x, y), reuse, train_mode=True, sparsity=0.99)
    assert same(list(other.buffers()), list(model.buffers()))
    assert not same(before, list(model.buffers()))
    optimizer = DeepZero(model, sparsity=0.99, q_pruning=2)
    before = [b.clone() for b in model.buffers()]
    optimizer.prepare(x, y)
    optimizer.step(torch.full_like(x, math.nan), y)
    assert optimizer.skipped == 1
    assert same(before, list(model.buffers()))


# ---- masks and ZO-GraSP ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", ["paper", "official", "uniform"])
@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.9, 0.99])
def test_sparsity_is_exact_and_no_layer_is_empty(rank, sparsity):
    model = mlp()
    optimizer = DeepZero(model, sparsity=sparsity, q_pruning=3, rank=rank)
    counts = optimizer.prepare(*batch())
    sparse = {n: p.numel() for n, p in model.named_parameters() if p.dim() > 1}
    assert list(counts) == list(sparse)
    elements = sum(sparse.values())
    assert sum(counts.values()) == max(len(sparse), elements - round(sparsity * elements))
    assert all(1 <= counts[n] <= sparse[n] for n in counts)
    for name, p in model.named_parameters():
        chosen = optimizer.coordinates(name, p, 0)
        assert len(chosen) == len(set(chosen.tolist())) == counts.get(name, p.numel())
        assert bool((chosen[1:] > chosen[:-1]).all())
    assert optimizer.forwards == 1 + (0 if rank == "uniform" else 2 * 4)


def test_only_the_mask_and_the_tensors_without_one_move_and_masks_change_every_refresh_steps():
    model = mlp()
    optimizer = DeepZero(model, momentum=0.0, weight_decay=0.0, sparsity=0.8, refresh=3, rank="uniform")
    seen = []
    for t in range(9):
        before = {n: p.detach().clone() for n, p in model.named_parameters()}
        optimizer.step(*batch(seed=t))
        moved = {n: (p != before[n]).flatten().nonzero()[:, 0].tolist() for n, p in model.named_parameters()}
        for name, p in model.named_parameters():
            assert set(moved[name]) <= set(optimizer.coordinates(name, p, t).tolist())
        assert moved["1.weight"]
        seen.append(tuple(optimizer.coordinates("1.weight", model[1].weight, t).tolist()))
        # what moved is spread over the mask that is said to be in use
        assert len(moved["1.weight"]) > 0.5 * len(seen[-1])
    assert len(set(seen)) == 3
    assert [seen[0]] * 3 + [seen[3]] * 3 + [seen[6]] * 3 == seen


def test_masks_reach_every_element_equally_often():
    hits = torch.zeros(20)
    for seed in range(2000):
        hits[mask(5, 20, seed)] += 1
    chi_square = float(((hits - 500) ** 2 / (500 * 0.75)).sum()) * 19 / 20
    assert 7.6 < chi_square < 43.8  # 0.1% at the upper end, 1% at the lower one, of 19 degrees of freedom


def test_scores_are_minus_w_times_hessian_times_gradient():
    loss, params, gradient, hessian = quadratic()
    found, forwards = scores(loss, params, 1500, 1e-2, 0)
    assert forwards == 2 * 1501
    w = torch.cat([p.reshape(-1) for p in params])
    exact = -w * (hessian @ gradient)
    scored = torch.cat([s.reshape(-1) for s in found])
    assert float(torch.corrcoef(torch.stack([exact, scored]))[0, 1]) > 0.95
    assert float((exact - scored).norm() / exact.norm()) < 0.4


def test_the_paper_drops_the_largest_signed_scores_and_the_official_code_the_smallest_absolute_ones():
    found = [torch.tensor([-3.0, -2.0, -1.0, 0.1]), torch.tensor([[5.0, 0.2], [4.0, -0.3]]), torch.tensor([9.0, 8.0])]
    assert counts_by_score(found, 0.5, "paper") == [3, 1, 1]  # -3, -2, -1, -0.3, 0.1; the last layer takes one
    assert counts_by_score(found, 0.5, "official") == [1, 2, 2]  # 9, 8, 5, 4, -3
    assert uniform_counts([4, 4, 2], 0.5) == [2, 2, 1]
    assert kept(10, 3, 0.9) == 3


def test_pruning_keeps_the_layer_whose_weights_carry_the_gradient_flow():
    """Two layers with the same weights: without the first the gradient flow is larger, without the second smaller."""

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.bad, self.good = nn.Linear(8, 1, bias=False), nn.Linear(8, 1, bias=False)
            for p in self.parameters():
                nn.init.ones_(p)

        def forward(self, x):
            return torch.stack([self.bad.weight, self.good.weight])

    # g = 2 (w - c), H = 2: -w H g = 4 w (c - w), so +4 for c = 2 and -4 for c = 0
    target = torch.tensor([2.0, 0.0]).view(2, 1, 1)
    loss_fn = lambda outputs, targets: (outputs - targets).square().sum()  # noqa: E731
    counts = DeepZero(Two(), loss_fn, sparsity=0.5, q_pruning=400).prepare(torch.zeros(1), target)
    assert counts == {"bad.weight": 1, "good.weight": 7}


# ---- as an optimizer ---------------------------------------------------------------------------------------------


def make(model, **options):
    options = {"lr": 0.05, "sparsity": 0.8, "refresh": 3, "q_pruning": 4, "loss_fn": wide_loss, "mu": 0.02, **options}
    return DeepZero(model, **options)


def advance(optimizer, rounds, dtype=torch.float32):
    return [float(optimizer.step(*batch(dtype=dtype, seed=100 + t))) for t in rounds]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_resume_is_exact_at_every_step(dtype):
    model = mlp(dtype)
    optimizer = make(model)
    kept_states = []
    for t in range(STEPS):
        kept_states.append((copy.deepcopy(model.state_dict()), through_file(optimizer.state_dict())))
        advance(optimizer, [t], dtype)
    assert all(p.isfinite().all() and p.dtype == dtype for p in model.parameters())
    for offset, (weights, state) in enumerate(kept_states):
        other = mlp(dtype, seed=9)
        other.load_state_dict(weights)
        again = DeepZero(other, wide_loss, lr=0.7, seed=5, sparsity=0.1, refresh=99, q_pruning=1)
        again.load_state_dict(state)
        advance(again, range(offset, STEPS), dtype)
        assert same(bits(model.parameters()), bits(other.parameters())), f"resumed before step {offset}"
        states = [o.state_dict() for o in (optimizer, again)]
        assert states[0]["deepzero"] == states[1]["deepzero"]
        momenta = [[s["momentum"] for s in state["state"].values()] for state in states]
        assert same(*momenta)
        assert all(m.dtype == torch.float32 for m in momenta[0])


def test_resume_is_exact_in_a_new_process(tmp_path):
    for dtype in DTYPES:
        model = mlp(dtype)
        optimizer = make(model)
        advance(optimizer, range(2), dtype)
        file = tmp_path / str(dtype)[6:]
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, f"{file}.before.pt")
        advance(optimizer, range(2, STEPS), dtype)
        torch.save([p.detach() for p in model.parameters()], f"{file}.after.pt")
    script = textwrap.dedent(
        f"""
        import sys, torch
        from tests.zeroth.test_deepzero import DTYPES, STEPS, advance, make, mlp

        torch.set_num_threads({torch.get_num_threads()})
        for dtype in DTYPES:
            file = f"{{sys.argv[1]}}/{{str(dtype)[6:]}}"
            saved = torch.load(file + ".before.pt", weights_only=True)
            model = mlp(dtype, seed=9)
            model.load_state_dict(saved["model"])
            optimizer = make(model, seed=4)
            optimizer.load_state_dict(saved["optimizer"])
            advance(optimizer, range(2, STEPS), dtype)
            after = torch.load(file + ".after.pt", weights_only=True)
            assert all(torch.equal(a, b) for a, b in zip(model.parameters(), after, strict=True)), dtype
        """
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", script, tmp_path], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float16, torch.float64], ids=str)
def test_zero_lr_leaves_every_bit(dtype):
    model = mlp(dtype)
    with torch.no_grad():
        model[1].bias[0] = -0.0
    before = bits(model.parameters())
    for reuse in ("batched", "plain"):
        advance(make(model, lr=0.0, reuse=reuse), range(3), dtype)
    assert same(before, bits(model.parameters()))


@pytest.mark.parametrize("reuse", ["restart", "plain"])
def test_an_error_in_the_loss_leaves_weights_and_buffers(reuse):
    model, data = built("resnet8")
    calls = []

    def loss_fn(outputs, targets):
        calls.append(1)
        if len(calls) == fail:
            raise RuntimeError("broken")
        return F.cross_entropy(outputs, targets)

    optimizer = DeepZero(model, loss_fn, rank="uniform", sparsity=0.99, reuse=reuse)
    fail = 0
    optimizer.step(*data)
    before = bits(model.state_dict().values())
    fail = len(calls) + 20
    with pytest.raises(RuntimeError, match="broken"):
        optimizer.step(*data)
    assert same(before, bits(model.state_dict().values()))


@pytest.mark.parametrize("momentum", [0.9, 0.0])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_state_bytes_equal_the_formula(dtype, momentum):
    model = mlp(dtype)
    optimizer = make(model, momentum=momentum)
    advance(optimizer, range(2), dtype)
    memory = DeepZero.memory(model, momentum=momentum)
    state = optimizer.state_dict()["state"].values()
    assert memory.state == tensor_bytes(t for s in state for t in s.values())
    assert memory.weights == tensor_bytes(model.parameters())
    assert memory.gradients == 0
    assert DeepZero.memory(model.to("meta").parameters(), momentum=momentum) == memory


def test_a_deep_copy_goes_on_alone_and_schedulers_and_groups_work():
    model = mlp()
    optimizer = make(model)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: 1.0 if t < 4 else 0.0)
    for t in range(2):
        advance(optimizer, [t])
        scheduler.step()
    other, again = copy.deepcopy((model, optimizer))
    before = bits(model.parameters())
    advance(again, range(2, 4))
    assert same(before, bits(model.parameters()))
    assert not same(before, bits(other.parameters()))
    for t in range(2, 4):
        advance(optimizer, [t])
        scheduler.step()
    assert same(bits(other.parameters()), bits(model.parameters()))
    advance(optimizer, range(4, 6))  # lr is 0 by now
    assert same(bits(other.parameters()), bits(model.parameters()))


def test_frozen_tensors_stay_and_later_ones_need_new_counts():
    model = mlp()
    model[3].requires_grad_(False)
    before = bits(model[3].parameters())
    optimizer = make(model)
    optimizer.add_param_group({"params": [(f"3.{n}", p) for n, p in model[3].named_parameters()]})
    advance(optimizer, range(2))
    assert same(before, bits(model[3].parameters()))
    model[3].requires_grad_(True)
    with pytest.raises(RuntimeError, match=r"3\.weight .* prepare"):
        advance(optimizer, [2])
    optimizer.prepare(*batch())
    advance(optimizer, [2])
    assert not same(before, bits(model[3].parameters()))


@pytest.mark.parametrize("reuse", ["batched", "plain"])
def test_losses_that_are_not_finite_are_skipped_counted_and_refused_in_the_end(reuse):
    model = mlp()
    optimizer = make(model, patience=3, reuse=reuse)
    x, y = batch()
    with pytest.raises(FloatingPointError, match="ZO-GraSP"):
        optimizer.prepare(x * math.nan, y)
    assert math.isnan(optimizer.step(x * math.nan, y))  # the first step: no counts yet
    optimizer.step(x, y)
    before = bits(model.parameters())
    optimizer.step(x * math.nan, y)
    optimizer.step(x * math.inf, y)
    assert (optimizer.skipped, optimizer.misses, optimizer.steps) == (3, 2, 4)
    optimizer.step(x, y)
    assert optimizer.misses == 0
    assert not same(before, bits(model.parameters()))
    before = bits(model.parameters())
    optimizer.step(x * math.nan, y)
    optimizer.step(x * math.nan, y)
    with pytest.raises(FloatingPointError, match="3 steps in a row"):
        optimizer.step(x * math.nan, y)
    assert same(before, bits(model.parameters()))


def test_an_estimate_that_is_not_finite_skips_the_step():
    """The loss is finite at the weights and infinite beside them."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    loss_fn = lambda outputs, targets: torch.where(outputs.abs().sum() > 0, math.inf, 1.0)  # noqa: E731
    optimizer = DeepZero(model, loss_fn, rank="uniform", sparsity=0.0)
    optimizer.step(torch.ones(1, 1), torch.ones(1))
    assert (optimizer.skipped, model.weight.tolist()) == (1, [[0.0]])


def test_the_global_generator_is_left_alone():
    optimizer = make(mlp())
    state = torch.get_rng_state()
    advance(optimizer, range(4))
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(
    ("name", "value"),
    [("lr", -1.0), ("lr", math.inf), ("mu", 0.0), ("mu", math.nan), ("momentum", 1.0), ("momentum", -0.1),
     ("weight_decay", -1.0), ("sparsity", 1.0), ("sparsity", -0.1), ("refresh", 0), ("refresh", 1.5), ("q_pruning", 0),
     ("seed", 0.5), ("rank", "both"), ("reuse", "all"), ("batch_bytes", 0), ("patience", 0)],
)  # fmt: skip
def test_bad_hyper_parameters_are_refused_with_their_value(name, value):
    with pytest.raises(ValueError, match=f"{name}=.*{value}"):
        DeepZero(mlp(), **{name: value})


def test_other_bad_input_is_refused():
    with pytest.raises(TypeError, match="loss_fn"):
        DeepZero(mlp(), loss_fn=3)
    with pytest.raises(ValueError, match="complex64"):
        DeepZero(nn.Linear(2, 2, dtype=torch.complex64))
    model = mlp()
    optimizer = DeepZero(model)
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="nothing to train"):
        optimizer.step(*batch())
    optimizer = make(mlp())
    with pytest.raises(ValueError, match=r"\(8,\)"):
        make(mlp(), loss_fn=lambda out, y: F.cross_entropy(out, y, reduction="none")).step(*batch())
    with pytest.raises(ValueError, match="deepzero"):
        optimizer.load_state_dict(torch.optim.SGD(mlp().parameters()).state_dict())
    optimizer.step(*batch())
    small = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.LayerNorm(2), nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"coordinates of 1\.weight"):
        make(small).load_state_dict(optimizer.state_dict())


def digits():
    datasets = pytest.importorskip("sklearn.datasets")
    images, labels = datasets.load_digits(return_X_y=True)
    return torch.from_numpy(images).float().view(-1, 1, 8, 8) / 8 - 1, torch.from_numpy(labels)


@pytest.mark.slow
def test_learns_digits():
    x, y = digits()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
    optimizer = DeepZero(model, sparsity=0.8, refresh=5, q_pruning=32)
    generator = torch.Generator().manual_seed(0)
    for _ in range(100):
        rows = torch.randint(1200, (32,), generator=generator)
        optimizer.step(x[rows], y[rows])
    assert optimizer.describe()["mode"] == "batched"
    assert float((model(x[1200:]).argmax(1) == y[1200:]).float().mean()) > 0.8  # 0.87 when written


@pytest.mark.slow
def test_a_network_with_batch_normalization_follows_sgd_with_exact_gradients_on_the_same_masks():
    x, y = digits()
    model = models.build("resnet8", seed=0, channels=1, width=0.125)
    twin = copy.deepcopy(model)
    optimizer = DeepZero(model, mu=1e-3, sparsity=0.9, refresh=4, q_pruning=8)
    sgd = torch.optim.SGD(twin.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    losses = []
    generator = torch.Generator().manual_seed(0)
    for t in range(12):
        rows = torch.randint(1200, (64,), generator=generator)
        loss = F.cross_entropy(twin(x[rows]), y[rows])
        sgd.zero_grad()
        loss.backward()
        losses.append((float(optimizer.step(x[rows], y[rows])), loss.item()))
        for name, p in twin.named_parameters():
            chosen = optimizer.coordinates(name, p, t)
            kept_gradient = p.grad.flatten()[chosen]
            p.grad.zero_().view(-1)[chosen] = kept_gradient
        sgd.step()
    assert all(abs(ours - exact) < 0.02 for ours, exact in losses), losses
    assert losses[-1][0] < losses[0][0] - 0.05
    for a, b in zip(model.buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(a, b, rtol=0.05, atol=0.02)  # running statistics, of both in training mode


def test_a_refused_group_is_not_kept():
    model = mlp()
    optimizer = DeepZero(model, rank="uniform")
    whole = nn.Parameter(torch.ones(2, dtype=torch.int64), requires_grad=False)
    with pytest.raises(ValueError, match=r"floating-point tensors, not torch\.int64"):
        optimizer.add_param_group({"params": [("whole", whole)]})
    assert len(optimizer.param_groups) == 1


def test_a_state_of_other_names_or_shapes_is_refused_before_anything_changes():
    def pair(first, second, sizes=(3, 3)):
        return nn.Sequential(OrderedDict({first: nn.Linear(3, sizes[0]), second: nn.Linear(sizes[0], sizes[1])}))

    model, x = pair("a", "b"), torch.ones(2, 3)
    optimizer = DeepZero(model, F.mse_loss, rank="uniform", sparsity=0.0)
    optimizer.step(x, torch.zeros(2, 3))
    state = optimizer.state_dict()
    state["deepzero"]["counts"] = None
    cases = ((pair("b", "a"), r"of 'a\.weight' where"), (pair("a", "b", (3, 4)), r"\(3, 3\), but here it is \(4, 3\)"))
    for wrong, message in cases:
        other = DeepZero(wrong, F.mse_loss, lr=0.5)
        with pytest.raises(ValueError, match=message):
            other.load_state_dict(state)
        assert (other.steps, other.param_groups[0]["lr"], len(other.state)) == (0, 0.5, 0)
