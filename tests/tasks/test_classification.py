import pytest
import torch

from dlopt.tasks import data
from dlopt.tasks.classification import TASKS


@pytest.fixture(scope="module")
def digits():
    return TASKS["digits"].build(seed=0, batch_size=64)


def test_the_parts_are_disjoint_and_do_not_depend_on_the_seed(digits):
    other = TASKS["digits"].build(seed=5, batch_size=64)
    assert digits.sizes == other.sizes == (1298, 144, 355)
    for a, b in zip(digits._validation, other._validation):
        assert torch.equal(a, b)
    images = data.get("digits")
    whole = {x.numpy().tobytes() for x in images.x_train}
    held = {x.numpy().tobytes() for x in digits._validation[0]}
    trained = {x.numpy().tobytes() for x in digits.batches.tensors[0]}
    assert held | trained == whole
    assert len(trained) + len(held) >= len(whole)


def test_the_seed_draws_weights_and_order(digits):
    same, other = (TASKS["digits"].build(seed=s, batch_size=64) for s in (0, 1))
    pairs = list(zip(digits.model.parameters(), same.model.parameters(), other.model.parameters()))
    assert all(torch.equal(a, b) for a, b, _ in pairs)
    assert not all(torch.equal(a, c) for a, _, c in pairs)
    assert torch.equal(digits.batches.batch(0)[1], same.batches.batch(0)[1])
    assert not torch.equal(digits.batches.batch(0)[1], other.batches.batch(0)[1])


def test_figures_equal_a_plain_computation(digits):
    images = data.get("digits")
    with torch.no_grad():
        logits = digits.model(images.normalise(images.x_test))
    right = logits.argmax(1) == images.y_test
    found = digits.test()
    assert found["test_accuracy"] == pytest.approx(right.double().mean().item(), abs=1e-12)
    loss = torch.nn.functional.cross_entropy(logits, images.y_test).item()
    assert found["test_loss"] == pytest.approx(loss, rel=1e-5)
    assert found["test_correct"] == "".join("01"[int(r)] for r in right)
    batch = next(iter(digits.batches))
    loss = digits.criterion(digits.forward(digits.model, batch), batch)
    assert loss.item() == pytest.approx(2.3, abs=0.5)
    assert digits.consumed(batch) == {"examples": 64}


def test_identity_is_known_without_reading(monkeypatch):
    monkeypatch.setattr(data.registry, "get", None)
    assert set(TASKS["digits"].identity()) == {"digits"}
    TASKS["digits"].ready()


def test_measuring_leaves_each_part_in_its_mode_also_after_an_error(monkeypatch):
    built = TASKS["digits-vgg8"].build(0, 32)
    built.model.train()
    frozen = next(module for module in built.model.modules() if isinstance(module, torch.nn.BatchNorm2d))
    frozen.eval()
    built.evaluate()
    assert [m for m in built.model.modules() if not m.training] == [frozen]

    def fails(*args):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(built.model, "forward", fails)
    with pytest.raises(RuntimeError, match="out of memory"):
        built.test()
    assert [m for m in built.model.modules() if not m.training] == [frozen]
