"""Distilling a drafter: what is trained and what stays, the same bits after an interruption, a model that drafts."""

import copy
import json

import pytest
import torch

from dlopt.speculative import Distillation, ModelDrafter, Recipe, generate
from dlopt.speculative.distill import shortened
from tests.speculative.tiny import PROMPT, model

TOKENS = torch.randint(24, (400,), generator=torch.Generator().manual_seed(0))
RECIPE = Recipe(layers=2, steps=12, batch=2, window=16, lr=3e-3)


def start(family="llama"):
    return Distillation(model(family, layers=4), TOKENS, RECIPE, {"text": "random"})


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_only_the_layers_learn_and_the_target_stays(family):
    training = start(family)
    target, drafter = training.target, training.drafter
    before = copy.deepcopy(target.state_dict())
    ends = [(m.get_input_embeddings().weight, m.get_output_embeddings().weight) for m in (target, drafter)]
    assert [theirs.data_ptr() for theirs in ends[0]] == [mine.data_ptr() for mine in ends[1]]
    assert all(p.requires_grad for p in target.parameters())
    assert {id(p) for p in ends[1]}.isdisjoint(id(p) for p in training.learned.values())

    def divergence():
        with torch.no_grad():
            p, q = (m(TOKENS[None, :64]).logits[0].log_softmax(-1) for m in (target, drafter))
        return float((p.exp() * (p - q)).sum(-1).mean())

    at_first = divergence()
    for _ in range(12):
        training.step()
    assert divergence() < 0.95 * at_first
    assert all(torch.equal(before[name], value) for name, value in target.state_dict().items())
    assert not drafter.training


def test_it_begins_with_the_targets_layers_and_learns_its_law_to_the_formula():
    training = start()
    drafter, target = training.drafter, training.target
    for mine, number in enumerate((0, 3)):
        for name, value in drafter.model.layers[mine].state_dict().items():
            assert torch.equal(value, target.model.layers[number].state_dict()[name])
    with torch.no_grad():
        ids = TOKENS[None, :32]
        p, q = (m(ids).logits[0].softmax(-1) for m in (target, drafter))
        whole = Distillation(target, TOKENS[:32], Recipe(steps=1, batch=1, window=32))
        found = Distillation(target, TOKENS, Recipe(window=32)).acceptance(TOKENS[:32])
    assert whole.step() == pytest.approx(float((p * (p / q).log()).sum(-1).mean()), rel=1e-12)
    assert found["acceptance"] == pytest.approx(float(torch.minimum(p, q).sum(-1).mean()))
    assert found["agreement"] == pytest.approx(float((p.argmax(-1) == q.argmax(-1)).double().mean()))
    learned, n = training.learned, 12
    assert training.acceptance(TOKENS)["acceptance"] < 1
    rates = []
    for _ in range(n):
        training.step()
        rates.append(training.optimizer.param_groups[0]["lr"])
    assert rates[0] == pytest.approx(3e-3)
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] < 0.2 * 3e-3
    assert learned is training.learned


class Killed(Exception):
    pass


def test_a_run_that_was_killed_ends_with_the_same_bits(tmp_path):
    whole = start()
    assert whole.run()
    path = tmp_path / "c"

    def kill(done, steps, loss):
        if done == 7:
            raise Killed

    with pytest.raises(Killed):
        start().run(path, seconds=0, progress=kill)
    assert [file.name for file in tmp_path.iterdir()] == ["c"]
    paused = start()
    assert not paused.run(path, deadline=0.0)
    assert paused.done == 7
    resumed = start()
    told = []
    assert resumed.run(path, progress=lambda *what: told.append(what))
    assert [done for done, _, _ in told] == [8, 9, 10, 11, 12]
    for name, value in whole.drafter.state_dict().items():
        assert torch.equal(value, resumed.drafter.state_dict()[name]), name


def test_checkpoints_of_another_training_and_broken_ones_are_refused(tmp_path):
    path = tmp_path / "c"
    start().run(path, deadline=0.0)
    other = Distillation(model(layers=4), TOKENS, Recipe(layers=2, steps=13, batch=2, window=16, lr=3e-3))
    with pytest.raises(ValueError, match=r"training with steps = 12, this one has 13|with text = 'random'"):
        other.run(path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="cannot be read as a checkpoint"):
        start().run(path)


def test_a_saved_drafter_is_loaded_and_drafts(tmp_path):
    training = start()
    training.run()
    training.drafter.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").is_file()
    assert json.loads((tmp_path / "config.json").read_text())["num_hidden_layers"] == 2
    loaded = type(training.target).from_pretrained(tmp_path, dtype=torch.float64).eval()
    for name, value in training.drafter.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name])
    target = training.target
    options = {"max_new_tokens": 12, "eos": None, "gate": False}
    found = generate(target, [PROMPT], ModelDrafter(loaded, 3), **options)
    assert found.tokens == generate(target, [PROMPT], **options).tokens


def test_wrong_values_are_refused():
    target = model(layers=4)
    for options, message in [({"layers": 0}, "layers must be at least 1, got 0"), ({"window": 1}, "window must be"),
                             ({"lr": 0.0}, "lr must be above 0"), ({"steps": 0}, "steps must be")]:  # fmt: skip
        with pytest.raises(ValueError, match=message):
            Recipe(**options)
    with pytest.raises(ValueError, match="layers must be from 1 to 3, fewer than the target's, got 4"):
        shortened(target, 4)
    with pytest.raises(ValueError, match="at least a window of 16"):
        Distillation(target, TOKENS[:9], RECIPE)
    with pytest.raises(ValueError, match="ids of the target's vocabulary of 24"):
        Distillation(target, TOKENS + 1, RECIPE)
