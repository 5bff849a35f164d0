"""MeZO's options beyond the paper's algorithm 1, and how directions are drawn: in pieces, by any number of threads."""

import copy
import itertools

import pytest
import torch
from torch import nn

from dlopt.lab.peak import peak_live
from dlopt.zeroth import MeZO
from dlopt.zeroth.directions import DIRECTIONS, PIECE, add, draw, mix, noise_dtype, sphere_factor
from dlopt.zeroth.log import replay


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_threads_and_parts_get_the_same_numbers(threads, direction, dtype):
    w = torch.linspace(-1, 1, 5 * PIECE + 77).to(dtype)
    terms = [(mix(1), 0.5), (mix(2), -2.0)]
    results = []
    for n in (1, 2, 3):
        threads(n)
        results.append(w.clone())
        add(direction, results[-1], terms, -0.1, 0.2)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])
    parts, cuts = w.clone(), [0, 100, PIECE - 3, 2 * PIECE, 4 * PIECE + 5, len(w)]
    for low, high in itertools.pairwise(cuts):
        add(direction, parts[low:high], terms, -0.1, 0.2, start=low, size=len(w))
    assert torch.equal(results[0], parts)
    # and these are the numbers of the plain sum
    z = [draw(direction, w, seed) for seed, _ in terms]
    total = (0.5 * -0.1 * z[0] + -2.0 * -0.1 * z[1]) + -0.02 * w.to(noise_dtype(dtype))
    torch.testing.assert_close(results[0], (w + total).to(dtype), rtol=1e-6, atol=1e-6)


def test_pieces_are_independent_and_signs_are_fair():
    n = 4 * PIECE
    for direction in DIRECTIONS:
        z = draw(direction, torch.zeros(n, dtype=torch.float64), 3).view(4, PIECE)
        assert abs(float(z.mean())) < 5 / n**0.5
        assert abs(float(z.square().mean()) - 1) < 5 * (2 / n) ** 0.5
        pairs = z @ z.T / PIECE - torch.eye(4, dtype=torch.float64)
        assert float((pairs - torch.diag(pairs.diag())).abs().max()) < 5 / PIECE**0.5
        # lags at which the bits of one random word end up in a float32 and a float64 piece
        for lag in (1, 32, 64, PIECE // 64, PIECE // 32):
            assert abs(float((z[:, lag:] * z[:, :-lag]).mean())) < 5 / n**0.5
    assert set(draw("rademacher", torch.zeros(7), 3).tolist()) == {-1.0, 1.0}
    assert torch.equal(draw("rademacher", torch.zeros(100), 3), draw("rademacher", torch.zeros(100), 3))


def test_a_rademacher_shift_and_its_opposite_are_opposite():
    up, down = torch.zeros(PIECE + 5), torch.zeros(PIECE + 5)
    add("rademacher", up, [(9, 0.25)])
    add("rademacher", down, [(9, -0.25)])
    assert torch.equal(up, -down)
    assert torch.equal(up, 0.25 * draw("rademacher", up, 9))


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_one_sided_differences_share_one_forward_pass(direction):
    g = torch.linspace(-1, 2, 7, dtype=torch.float64)
    p = nn.Parameter(torch.zeros(7, dtype=torch.float64))
    optimizer = MeZO([p], lr=0.1, eps=0.5, seed=4, direction=direction, n_directions=3, one_sided=True, log=True)
    loss = optimizer.step(lambda: (g * p).sum() + 3)
    assert optimizer.forwards == 4
    assert float(loss) == 3.0  # at W itself
    seeds = [mix(mix(4, 0), k) for k in range(3)]
    factors = [sphere_factor([(0, p)], s) if direction == "sphere" else 1.0 for s in seeds]
    z = [f * draw(direction, p, mix(s, 0)) for f, s in zip(factors, seeds)]
    expected = -0.1 * sum((g @ zk) * zk for zk in z) / 3  # on a linear loss the difference is exactly g.z
    torch.testing.assert_close(p.detach(), expected, rtol=1e-12, atol=1e-12)
    again = nn.Parameter(torch.zeros(7, dtype=torch.float64))
    replay([again], optimizer.log)
    assert torch.equal(again, p)
    other = MeZO([again])
    other.load_state_dict(optimizer.state_dict())
    other.step(lambda: (g * again).sum())
    assert other.forwards == 8


def test_one_sided_skips_a_base_that_is_not_finite():
    p = nn.Parameter(torch.ones(3))
    losses = iter([float("nan"), 1.0])
    optimizer = MeZO([p], lr=1.0, one_sided=True)
    optimizer.step(lambda: next(losses))
    assert optimizer.skipped == 1
    assert torch.equal(p, torch.ones(3))


class Words(nn.Module):
    """A tied embedding and head around one layer."""

    def __init__(self, vocabulary=50, width=6, tied=True, bias=True):
        super().__init__()
        self.embed, self.mix = nn.Embedding(vocabulary, width, padding_idx=0), nn.Linear(width, width)
        self.head = nn.Linear(width, vocabulary, bias=bias)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, ids):
        return self.head(torch.tanh(self.mix(self.embed(ids))))


def words(seed=0, dtype=torch.float64, **options):
    torch.manual_seed(seed)
    return Words(**options).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("direction", ["gaussian", "rademacher"])
def test_an_embedding_by_rows_gives_the_same_bits(direction, dtype):
    ids, results = torch.tensor([[3, 0, 49], [3, 7, 20]]), []
    for rows in (0, 3, 16, 49):  # the layer behind has 3 rows, and stays whole
        torch.manual_seed(0)
        model = nn.Sequential(nn.Embedding(50, 6, padding_idx=0), nn.Linear(6, 3)).to(dtype)
        optimizer = MeZO(model, lr=1e-2, eps=1e-2, direction=direction, row_chunk=rows)
        losses = [float(optimizer.step(lambda model=model: model(ids).float().square().sum())) for _ in range(5)]
        results.append((losses, [p.detach().clone() for p in model.parameters()], optimizer.held))
        assert "forward" not in vars(model[0])
    for losses, weights, held in results[1:]:
        assert losses == results[0][0]
        assert all(map(torch.equal, weights, results[0][1]))
        assert held < results[0][2]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("tied", [True, False])
def test_a_head_by_rows_computes_the_same_function(tied, bias):
    ids, results = torch.tensor([[3, 0, 49], [3, 7, 20]]), []
    for rows in (0, 7):
        model = words(tied=tied, bias=bias)
        optimizer = MeZO(model, lr=1e-3, eps=1e-1, row_chunk=rows)
        before = copy.deepcopy(model.state_dict())
        losses = [float(optimizer.step(lambda model=model: model(ids).square().mean())) for _ in range(10)]
        assert not torch.equal(before["embed.weight"], model.embed.weight)
        results.append((losses, [p.detach().clone() for p in model.parameters()]))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-12, atol=1e-12)
    for a, b in zip(results[0][1], results[1][1]):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


def test_rows_leave_other_uses_alone():
    ids = torch.tensor([1, 2])
    model = words()

    class Wrapped(nn.Module):  # its own forward shifts the tied weight around both uses
        def __init__(self):
            super().__init__()
            self.inside, self.weight = model, model.embed.weight

        def forward(self, ids):
            return self.inside(ids) @ self.weight

    results = []
    for rows in (0, 7):
        again = copy.deepcopy(Wrapped())
        optimizer = MeZO(again, lr=1e-3, row_chunk=rows)
        losses = [float(optimizer.step(lambda again=again: again(ids).square().sum())) for _ in range(3)]
        results.append((losses, [p.detach().clone() for p in again.parameters()]))
    assert results[0][0] == results[1][0]
    assert all(map(torch.equal, results[0][1], results[1][1]))
    patched = words()
    patched.head.forward = lambda x: nn.functional.linear(x, patched.head.weight)
    MeZO(patched, row_chunk=7).step(lambda: patched(ids).sum())
    assert "forward" in vars(patched.head)
    with pytest.raises(KeyError):
        MeZO(model, row_chunk=7).step(lambda: {}[model(ids)])
    assert not any("forward" in vars(m) for m in model.modules())


def test_the_peak_is_a_plain_forward_and_the_largest_parameter():
    ids = torch.randint(1500, (4, 16), generator=torch.Generator().manual_seed(0))
    model = words(vocabulary=1500, width=96, dtype=torch.float32, bias=False)
    largest = max(p.numel() * p.element_size() for p in model.parameters())

    def closure():
        return nn.functional.cross_entropy(model(ids).flatten(0, 1), ids.flatten())

    with torch.no_grad():
        plain = peak_live(closure, [model]).rise
    small = 2 * torch.get_rng_state().numel()  # states of generators, and numbers
    for options in ({}, {"direction": "rademacher"}, {"n_directions": 2, "weight_decay": 0.1}):
        optimizer = MeZO(model, lr=1e-4, **options)
        optimizer.step(closure)  # the first one watches
        assert peak_live(lambda o=optimizer: o.step(closure), [model]).rise <= plain + largest + small
    optimizer = MeZO(model, lr=1e-4, row_chunk=100)
    optimizer.step(closure)
    assert peak_live(lambda: optimizer.step(closure), [model]).rise <= plain + largest / 3
    assert (
        optimizer.held == 100 * 96 * 4
    )  # a piece of the head; more than the 63 rows looked up, and than the layer between
    assert MeZO.memory(model, row_chunk=100, tokens=64).scratch < MeZO.memory(model).scratch - largest / 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"row_chunk": -1}, "row_chunk=-1 .* at least 0"),
        ({"row_chunk": 2.0}, "row_chunk=2.0"),
    ],
)
def test_wrong_values_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        MeZO(words(), **options)
    with pytest.raises(ValueError, match="row_chunk needs a model"):
        MeZO(words().parameters(), row_chunk=3)


def test_a_channels_last_weight_gets_the_same_direction():
    torch.manual_seed(0)
    x, results = torch.randn(2, 3, 5, 5), []
    for form in (torch.contiguous_format, torch.channels_last):
        torch.manual_seed(1)
        model = nn.Conv2d(3, 4, 3).double().to(memory_format=form)
        optimizer = MeZO(model, lr=1e-3, seed=2)
        optimizer.step(lambda model=model: model(x.double()).square().mean())
        assert model.weight.is_contiguous(memory_format=form)
        results.append(model.weight.detach().clone())
    torch.testing.assert_close(results[0], results[1], rtol=1e-9, atol=1e-12)
