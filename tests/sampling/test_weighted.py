import pytest
import torch
from torch.utils.data import DataLoader, Dataset, TensorDataset

import dlopt.sampling
from dlopt.sampling import Importance, Weighted, weighted_mean


def test_pairs_become_x_y_w():
    data = Weighted(TensorDataset(torch.arange(4.0), torch.arange(4)))
    assert len(data) == 4
    x, y, w = data[2, 0.5]
    assert (x, y, w) == (2.0, 2, 0.5)
    assert data[1][-1] == 1.0  # a plain index counts as weight 1


class Plain(Dataset):
    def __len__(self):
        return 5

    def __getitem__(self, index):
        return {"x": index}


def test_a_sample_that_is_no_tuple_stays_whole():
    loader = DataLoader(Weighted(Plain()), batch_size=5, sampler=Importance(range(5), [1.0, 1, 1, 1, 4], mix=1.0))
    ((sample, w),) = list(loader)
    assert w.dtype == torch.float32
    torch.testing.assert_close(w, torch.where(sample["x"] == 4, 0.4, 1.6))


def test_a_forgotten_weighted_fails_at_once():
    data = TensorDataset(torch.arange(4.0))
    with pytest.raises((TypeError, IndexError)):
        next(iter(DataLoader(data, sampler=Importance(data, [1.0, 2.0, 3.0, 4.0]))))


def test_weighted_mean_divides_by_the_number_not_by_the_weights():
    losses = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    mean = weighted_mean(losses, torch.tensor([2.0, 0.5, 0.5], dtype=torch.float64))
    assert mean.dtype == torch.float32
    assert mean.item() == pytest.approx(4.5 / 3)
    mean.backward()
    torch.testing.assert_close(losses.grad, torch.tensor([2.0, 0.5, 0.5]) / 3)
    for wrong in (torch.ones(()), torch.ones(3, 1), torch.ones(2)):
        with pytest.raises(ValueError, match="must have the same shape"):
            weighted_mean(losses, wrong)


def test_the_package_offers_methods_and_helpers_by_name():
    for name in dir(dlopt.sampling):
        assert getattr(dlopt.sampling, name).__name__ == name
    assert {"Importance", "Weighted", "prox_sgd", "per_example_norms"} <= set(dir(dlopt.sampling))
    with pytest.raises(AttributeError, match=r"dlopt.sampling has no method 'Nope'"):
        dlopt.sampling.Nope  # noqa: B018


@pytest.mark.parametrize("file", ["with_replacement", "epochs", "classwise", "importance"])
def test_examples_in_docstrings_run(file):
    import doctest
    import importlib

    module = importlib.import_module(f"dlopt.sampling.{file}")
    result = doctest.testmod(module, extraglobs={name: getattr(dlopt.sampling, name) for name in dir(dlopt.sampling)})
    assert result.attempted >= 1
    assert result.failed == 0
