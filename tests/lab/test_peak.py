"""Peaks of live tensors and bytes saved for the backward pass, followed by hand."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from dlopt.lab.meter import peak_live, saved_for_backward

KIB = 1024  # 256 float32


def kib(n: int = 1) -> torch.Tensor:
    return torch.ones(256 * n)


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))


MLP_WEIGHTS = 4 * (8 * 16 + 16 + 16 * 4 + 4)


def test_peak_of_a_chain_of_temporaries():
    x = kib()
    # x + a; then a + b while a is the argument; a is freed as soon as b exists
    report = peak_live(lambda: x.exp().exp().exp().exp())
    assert (report.start, report.peak, report.end, report.created) == (KIB, 3 * KIB, 2 * KIB, 4 * KIB)
    assert report.rise == 2 * KIB
    assert report.operator == "aten.exp.default"


def test_peak_of_temporaries_that_are_held():
    x = kib()

    def fn():
        held = [x]
        for _ in range(4):
            held.append(held[-1].exp())

    assert (peak_live(fn).peak, peak_live(fn).end) == (5 * KIB, KIB)


def test_peak_sees_what_is_freed_in_the_middle():
    def fn():
        big = torch.ones(256 * 10)
        del big
        return torch.ones(256 * 3) + 1  # 3 + 3 < 10

    report = peak_live(fn)
    assert (report.start, report.peak, report.end, report.created) == (0, 10 * KIB, 3 * KIB, 16 * KIB)
    assert report.operator == "aten.ones.default"


def test_views_and_inplace_are_free():
    x = kib(4)

    def fn():
        y = x.view(4, 256)[1:3].t().unsqueeze(0).expand(3, -1, -1)
        x.mul_(2).add_(1)
        x[:10].zero_()
        F.relu_(x)
        torch.mul(x, 2, out=x)
        return y, x.detach(), x.split(256)

    report = peak_live(fn)
    assert (report.start, report.peak, report.end, report.created) == (4 * KIB, 4 * KIB, 4 * KIB, 0)


def test_a_view_keeps_its_whole_storage_alive():
    report = peak_live(lambda: torch.ones(256 * 8)[:1])
    assert report.end == 8 * KIB


def test_resize_and_out():
    def fn():
        x = torch.empty(0)
        torch.add(kib(), 1, out=x)
        x.resize_(256 * 3)
        return x

    assert peak_live(fn).end == 3 * KIB


def test_resize_of_arguments_that_are_not_returned():
    def fn():
        pieces = [torch.empty(0), torch.empty(0)]
        torch.split_with_sizes_copy(kib(3), [256, 512], out=pieces)
        return pieces

    assert peak_live(fn).end == 3 * KIB


def test_outside_tensors_resized_or_freed():
    outside = [kib(5)]

    def fn():
        outside[0].add_(1)
        outside.clear()
        return kib(2)

    report = peak_live(fn)
    assert (report.start, report.peak, report.end) == (5 * KIB, 5 * KIB, 2 * KIB)
    small = torch.ones(256)
    report = peak_live(lambda: small.resize_(512))
    assert (report.start, report.peak, report.end) == (KIB, 2 * KIB, 2 * KIB)


def test_held_tensors_count_though_untouched_and_an_iterator_frees_them():
    held = [kib(5)]
    assert peak_live(kib, held).peak == 6 * KIB
    assert peak_live(kib, {"a": [held[0][:3]], "b": nn.Linear(256, 1, bias=False)}).peak == 7 * KIB

    def fn():
        held.clear()
        return kib(3)

    report = peak_live(fn, iter([kib(2)]))
    assert (report.start, report.peak) == (2 * KIB, 3 * KIB)  # nobody else held those 2 KiB
    held.append(kib(5))
    report = peak_live(fn, (t for t in held))
    assert (report.start, report.peak, report.end) == (5 * KIB, 5 * KIB, 3 * KIB)


def test_tensors_made_from_data():
    assert peak_live(lambda: torch.tensor([1.0] * 256)).created == KIB
    assert peak_live(lambda: torch.from_numpy(np.ones(256, np.float32)) * 2).peak == 2 * KIB
    assert peak_live(lambda: kib() * 3.0 + 1).created == 3 * KIB  # Python numbers are no tensors


def test_address_reuse_is_not_mistaken():
    def fn():
        for _ in range(100):
            torch.ones(256)

    report = peak_live(fn)
    assert (report.peak, report.end, report.created) == (KIB, 0, 100 * KIB)


def test_meta_tensors_are_counted_on_their_own_device():
    def fn():
        return torch.empty(2**40, device="meta") + 1, kib()

    assert peak_live(fn, device="meta").peak == 2 * 4 * 2**40
    assert peak_live(fn).peak == KIB


def test_sparse_tensors():
    indices, values = torch.arange(256).unsqueeze(0), torch.ones(256)

    def fn():
        return torch.sparse_coo_tensor(indices, values, (1000,), check_invariants=False)

    assert peak_live(fn).end == KIB + 2 * KIB


def test_backward_of_a_chain():
    x = kib().requires_grad_()

    # e1 and e2 = exp(e1) save themselves; the sum and its gradient are 4 bytes each. With x and e1 there are first
    # e2 and g1 = e2 * 1; then e2 goes, and g0 = g1 * e1 becomes x.grad
    report = peak_live(lambda: x.exp().exp().sum().backward())
    assert report.start == KIB
    assert report.peak == 4 * KIB + 2 * 4
    assert report.end == 2 * KIB
    assert report.operator == "aten.mul.Tensor"
    x.grad = None

    def fn():
        y = x.exp().exp()
        y.backward(torch.ones_like(y))

    # y and the gradient given for it are named, so x, e1, e2, g2, g1, g0 are alive at once
    assert (peak_live(fn).peak, x.grad is None) == (6 * KIB, False)


def test_saved_activations_live_until_backward():
    model, x = mlp(), torch.ones(32, 8)
    hidden, out = 4 * 32 * 16, 4 * 32 * 4
    report = peak_live(lambda: model(x).sum(), held=model)
    assert report.start == MLP_WEIGHTS + 4 * 32 * 8
    # the pre-activation dies when ReLU has run; ReLU's output is saved; the output dies after the sum
    assert report.peak == report.start + 2 * hidden
    assert report.end == report.start + hidden + 4
    with torch.no_grad():
        report = peak_live(lambda: model(x).sum(), held=model)
    assert report.end == report.start + 4
    assert out < hidden


def test_error_inside_leaves_no_trace():
    def fn():
        kib(3)
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        peak_live(fn)
    assert peak_live(lambda: kib()).peak == KIB


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_peak_on_cuda():
    x = torch.ones(256, device="cuda")
    report = peak_live(lambda: x.exp().exp().exp(), device="cuda")
    assert (report.rise, report.end - report.start) == (2 * KIB, KIB)
    assert report.created == 3 * KIB


def test_saved_bytes_of_an_mlp_by_hand():
    model, x = mlp(), torch.ones(32, 8)
    # layer 1 saves its input, ReLU its output, which layer 2 saves too; layer 2 saves its weight, a leaf
    assert saved_for_backward(lambda: model(x)) == 4 * 32 * 8 + 4 * 32 * 16
    assert saved_for_backward(lambda: model(x), weights=[*model.parameters(), x]) == 4 * 32 * 16
    # an input that requires a gradient is a leaf, and layer 1 now saves its weight, also a leaf
    assert saved_for_backward(lambda: model(x.requires_grad_())) == 4 * 32 * 16


def test_saved_bytes_with_loss_and_backward_inside():
    model, x, y = mlp(), torch.ones(32, 8), torch.zeros(32, dtype=torch.int64)

    def fn():
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        return loss

    # log_softmax saves its output; nll_loss its input (the same), the target and a total weight of one float
    expected = 4 * 32 * 8 + 4 * 32 * 16 + 4 * 32 * 4 + 8 * 32 + 4
    assert saved_for_backward(fn) == expected
    # one after the other is no more than one: the peak counts, not the sum
    assert saved_for_backward(lambda: [fn() for _ in range(5)]) == expected
    # but two graphs at once are two: input, target and leaves are shared
    both = saved_for_backward(lambda: [F.cross_entropy(model(x), y) for _ in range(2)])
    assert both == 2 * expected - 4 * 32 * 8 - 8 * 32


def test_frozen_weights_are_told_by_the_model():
    model, x = mlp(), torch.ones(32, 8, requires_grad=True)
    model.requires_grad_(False)
    hidden, matrices = 4 * 32 * 16, 4 * (8 * 16 + 16 * 4)
    # x is a leaf; without weight gradients only ReLU's output is saved besides the weights
    assert saved_for_backward(lambda: model(x)) == hidden + matrices
    assert saved_for_backward(lambda: model(x), weights=model) == hidden


def test_a_tensor_that_two_graphs_save_stays_until_both_are_gone():
    x, z = torch.ones(32, 8), torch.ones(64, 8)
    one, two, three = (nn.Linear(8, 1) for _ in range(3))

    def fn():
        first, second = one(x).sum(), two(x).sum()
        first.backward()
        third = three(z).sum()  # now x, still saved for the second, and z
        second.backward()
        third.backward()
        return first, second, third

    assert saved_for_backward(fn) == 4 * 32 * 8 + 4 * 64 * 8


def test_weights_that_are_replaced_meanwhile_are_weights():
    model, x = mlp(), torch.ones(32, 8)

    def fn():
        out = model(x)
        model[2].weight.data = model[2].weight.data.clone()
        return out

    assert saved_for_backward(fn, weights=model) == 4 * 32 * 8 + 4 * 32 * 16


def test_nothing_is_saved_without_a_graph():
    model = mlp()
    with torch.no_grad():
        assert saved_for_backward(lambda: model(torch.ones(2, 8))) == 0


def test_gradients_are_the_same_while_watched():
    model, x = mlp(), torch.randn(4, 8)
    model(x).pow(2).sum().backward()
    expected = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    saved_for_backward(lambda: model(x).pow(2).sum().backward(), weights=model)
    peak_live(lambda: None)
    assert all(torch.equal(p.grad, e) for p, e in zip(model.parameters(), expected))


def test_checkpointing_saves_less_and_the_peak_sees_it():
    torch.manual_seed(0)
    blocks = nn.ModuleList(nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh()) for _ in range(4))
    x = torch.ones(512, 64, requires_grad=True)

    def run(through):
        h = x
        for block in blocks:
            h = through(block, h)
        h.sum().backward()

    plain = peak_live(lambda: run(lambda block, h: block(h)), held=blocks)
    blocks.zero_grad()
    x.grad = None
    less = peak_live(lambda: run(lambda block, h: checkpoint(block, h, use_reentrant=False)), held=blocks)
    assert less.rise < 0.8 * plain.rise
    assert less.created > plain.created
