"""Prompted classification: prompts, answers, losses and figures, against plain computations."""

import os
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from dlopt.tasks import data
from dlopt.tasks.models import pretrained
from dlopt.tasks.prompted import TASKS, PromptedClassification, area
from tests.tasks import tiny

pytestmark = pytest.mark.skipif(not os.environ.get("DLOPT_DATA"), reason="DLOPT_DATA is not set")
SMALL = {"train": 24, "validation": 12, "test": 16}


@pytest.fixture(scope="module")
def gpt2():
    tokenizer = tiny.gpt2_tokenizer(Path(os.environ["DLOPT_DATA"]))
    return tiny.llama(len(tokenizer)), tokenizer


@pytest.fixture(scope="module")
def sst2(gpt2):
    return replace(TASKS["sst2"], **SMALL).build(seed=0, batch_size=8, model=gpt2)


def test_prompts_and_answers_are_those_of_the_papers(gpt2):
    row = {"sentence": " a fine film ", "premise": "It rains.", "hypothesis": "it is wet", "text": "Who is it ?"}
    prompts = {}
    for name, task in TASKS.items():
        small = replace(task, **SMALL)
        built = small.build(0, 4, model=gpt2)
        prompts[name] = built.prompt(row)
        named = [gpt2[1].decode(token) for token in built.answers]
        whole = all(len(gpt2[1](answer)["input_ids"]) == 1 for answer in task.answers)
        assert whole
        assert named == list(task.answers)
    assert prompts == {
        "sst2": "a fine film It was",
        "rte": 'It rains.\nDoes this mean that "it is wet" is true? Yes or No?\n',
        "cb": 'Suppose It rains. Can we infer that "it is wet"? Yes, No, or Maybe?\n',
        "trec": "Who is it ?\nType:",
    }
    classes = {name: dict(zip(data.get(name).classes, task.answers)) for name, task in TASKS.items()}
    assert classes["sst2"] == {"negative": " terrible", "positive": " great"}
    assert classes["rte"] == {"entailment": "Yes", "not_entailment": "No"}
    assert classes["cb"] == {"entailment": "Yes", "contradiction": "No", "neutral": "Maybe"}
    assert classes["trec"] == {"ABBR": " Expression", "ENTY": " Entity", "DESC": " Description", "HUM": " Human",
                               "LOC": " Location", "NUM": " Number"}  # fmt: skip


def test_labels_of_the_files(gpt2):
    """One row of each set, read by eye."""
    rte, cb, trec = (data.get(name).parts["train"] for name in ("rte", "cb", "trec"))
    assert (rte[0]["hypothesis"], rte[0]["label"]) == ("Weapons of Mass Destruction Found in Iraq.", 1)
    assert (cb[0]["hypothesis"], cb[0]["label"]) == ("the language was peeled down", 0)
    assert (trec[0]["text"], trec[0]["label"]) == ("How did serfdom develop in and then leave Russia ?", 2)
    sizes = {name: {part: len(rows) for part, rows in data.get(name).parts.items()} for name in TASKS}
    assert sizes == {
        "sst2": {"train": 67349, "validation": 872, "test": 1821},
        "rte": {"train": 2490, "validation": 277},
        "cb": {"train": 250, "validation": 56},
        "trec": {"train": 5452, "test": 500},
    }


def test_parts_are_the_papers_sizes_disjoint_and_the_same_for_every_seed(gpt2):
    sizes, first = {}, None
    for name, task in TASKS.items():
        built = task.build(0, 16, model=gpt2)
        sizes[name], first = built.sizes, built if name == "cb" else first
        assert all(len(built._labels[part].unique()) == len(task.answers) for part in built._labels)
    assert sizes == {
        "sst2": (1000, 500, 872), "rte": (1000, 500, 277), "cb": (150, 100, 56), "trec": (1000, 500, 500)
    }  # fmt: skip
    other = TASKS["cb"].build(5, 16, model=gpt2)
    for part, prompts in first._prompts.items():
        assert all(torch.equal(a, b) for a, b in zip(prompts, other._prompts[part], strict=True))
    texts = {part: {tuple(p.tolist()) for p in prompts} for part, prompts in first._prompts.items()}
    assert len(texts["train"]) == 150
    assert len(texts["validation"]) == 100
    assert not texts["train"] & texts["validation"]
    assert not torch.equal(first.batches.batch(0)[0], other.batches.batch(0)[0])


def test_batches_hold_prompts_with_their_labels_and_resume(sst2, gpt2):
    labelled = {tuple(p.tolist()): int(y) for p, y in zip(sst2._prompts["train"], sst2._labels["train"])}
    seen = set()
    for tokens, lengths, labels in islice(sst2.batches, 3):
        for prompt, label in zip(tokens.split(lengths.tolist()), labels):
            assert labelled[tuple(prompt.tolist())] == int(label)
            assert gpt2[1].decode(prompt).endswith(" It was")
            seen.add(tuple(prompt.tolist()))
    assert len(seen) == 24
    again = replace(TASKS["sst2"], **SMALL).build(seed=0, batch_size=8, model=gpt2)
    again.batches.load_state_dict(sst2.batches.state_dict(3))
    assert all(torch.equal(a, b) for a, b in zip(next(again.batches), sst2.batches.batch(3)))


def alone(built, part):
    """Logits (n, vocabulary) of the token after each prompt, one text at a time."""
    with torch.no_grad():
        return torch.stack([built.model(prompt[None]).logits[0, -1] for prompt in built._prompts[part]])


def test_loss_of_a_batch(sst2):
    batch = sst2.batches.batch(1)
    with torch.no_grad():
        logits = sst2.forward(sst2.model, batch)
        own = torch.stack([sst2.model(p[None]).logits[0, -1] for p in batch[0].split(batch[1].tolist())])
    torch.testing.assert_close(logits, own, rtol=1e-4, atol=1e-4)
    wanted = torch.tensor([int(sst2.answers[y]) for y in batch[2]])
    loss = sst2.criterion(logits, batch)
    assert loss.item() == pytest.approx(-own.log_softmax(1)[torch.arange(8), wanted].mean().item(), rel=1e-4)
    sst2.task = replace(sst2.task, objective="answers")
    try:
        among = own[:, sst2.answers].log_softmax(1)[torch.arange(8), batch[2]].mean()
        assert sst2.criterion(logits, batch).item() == pytest.approx(-among.item(), rel=1e-4)
    finally:
        sst2.task = replace(sst2.task, objective="vocabulary")
    assert sst2.consumed(batch) == {"examples": 8, "tokens": int(batch[1].sum())}


@pytest.mark.parametrize("name", ["sst2", "cb"])
def test_figures_equal_a_plain_computation(gpt2, name):
    built = replace(TASKS[name], **SMALL).build(seed=0, batch_size=8, model=gpt2)
    logits, labels = alone(built, "test"), built._labels["test"]
    scores = logits.log_softmax(1)[:, built.answers].double()
    right = scores.argmax(1) == labels
    built.model.train()
    found = built.test()
    assert built.model.training
    built.model.eval()
    assert found["test_correct"] == "".join("01"[int(r)] for r in right)
    assert found["test_accuracy"] == right.double().mean().item()
    assert found["test_loss"] == pytest.approx(F.nll_loss(scores, labels).item(), rel=1e-4)
    assert found["test_auc"] == pytest.approx(area(scores, labels), abs=1e-9, nan_ok=True)
    assert str(built.test()) == str(built.test())  # as text, where NaN is NaN
    part = built.evaluate()
    assert set(part) == {"val_loss", "val_accuracy", "val_auc"}
    assert part["val_accuracy"] == built.zero_shot("validation")["accuracy"]
    assert len(built.zero_shot("train", limit=7)["correct"]) == 7
    with pytest.raises(ValueError, match="part takes train, validation, test, not 'dev'"):
        built.zero_shot("dev")


@pytest.mark.parametrize("prior", ["content-free", "training"])
@pytest.mark.parametrize("name", ["sst2", "cb"])
def test_calibration_divides_by_the_prior(gpt2, name, prior):
    built = replace(TASKS[name], **SMALL).build(seed=0, batch_size=8, model=gpt2)
    if prior == "training":
        held = alone(built, "train")[:, built.answers].softmax(1)
    else:
        empty = [built.prompt(dict.fromkeys(built._fields, text)) for text in ("N/A", "[MASK]", "")]
        with torch.no_grad():
            ids = [torch.tensor([gpt2[1](text)["input_ids"]]) for text in empty]
            held = torch.stack([built.model(i).logits[0, -1, built.answers] for i in ids]).softmax(1)
    labels = built._labels["test"]
    divided = alone(built, "test")[:, built.answers].softmax(1) / held.mean(0)
    divided = divided / divided.sum(1, keepdim=True)
    found, plain = built.zero_shot("test", prior=prior), built.zero_shot("test")
    assert found["accuracy"] == (divided.argmax(1) == labels).double().mean().item()
    assert found["loss"] == pytest.approx(F.nll_loss(divided.log(), labels).item(), rel=1e-3)
    if name == "sst2":  # of two classes a prior only moves the threshold
        assert found["auc"] == plain["auc"]
    assert found["correct"] == "".join("01"[int(r)] for r in divided.argmax(1) == labels)
    with pytest.raises(ValueError, match="prior takes content-free or training, not 'uniform'"):
        built.zero_shot("test", prior="uniform")


def test_area_under_the_curve_counts_pairs_in_order():
    scores = torch.tensor([[0.0, 1.0], [0.0, 2.0], [0.0, 2.0], [0.0, 4.0], [0.0, -1.0]], dtype=torch.float64)
    labels = torch.tensor([0, 1, 0, 1, 1])
    # of six pairs (positive, negative): 2>1, 4>1, 4>2 are right, 2=2 is half, -1<1 and -1<2 are wrong
    assert area(scores, labels) == pytest.approx(3.5 / 6)
    assert area(scores - 7, labels) == pytest.approx(3.5 / 6)
    assert area(scores, torch.ones(5, dtype=torch.long)) != area(scores, torch.ones(5, dtype=torch.long))  # NaN


def test_long_prompts_lose_their_beginning_and_are_counted(gpt2):
    task = replace(TASKS["rte"], **SMALL, max_tokens=40)
    whole, cut = replace(task, max_tokens=2000).build(0, 4, model=gpt2), task.build(0, 4, model=gpt2)
    assert whole.truncated == {"train": 0, "validation": 0, "test": 0}
    for part in ("train", "test"):
        longer = [p for p in whole._prompts[part] if len(p) > 40]
        assert cut.truncated[part] == len(longer) > 0
        for long, short in zip(whole._prompts[part], cut._prompts[part], strict=True):
            assert torch.equal(short, long[-40:])


def test_a_token_that_begins_every_text_stays():
    tokenizer = tiny.byte_tokenizer()
    tokenizer.backend_tokenizer.post_processor = first_token()
    built = replace(TASKS["rte"], **SMALL, max_tokens=30).build(0, 4, model=(tiny.llama(258), tokenizer))
    for prompt in built._prompts["train"]:
        assert len(prompt) == 30
        assert prompt[0] == 256
        assert tokenizer.decode(prompt[1:]).endswith("Yes or No?\n")


def first_token():
    from tokenizers.processors import TemplateProcessing

    return TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 256)])


def test_a_model_learns(gpt2):
    built = replace(TASKS["sst2"], **SMALL).build(0, 24, model=(tiny.llama(len(gpt2[1]), seed=3), gpt2[1]))
    optimizer = torch.optim.SGD(built.model.parameters(), lr=0.1)
    losses = []
    for batch in islice(built.batches, 20):
        loss = built.criterion(built.forward(built.model, batch), batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_bad_input_is_a_sentence(gpt2):
    byte = (tiny.llama(258), tiny.byte_tokenizer())
    with pytest.raises(ValueError, match=r"must begin with different tokens, got ' terrible': (\d+), ' great': \1"):
        replace(TASKS["sst2"], **SMALL).build(0, 4, model=byte)
    with pytest.raises(ValueError, match="250 training examples, fewer than train 200 \\+ validation 100"):
        replace(TASKS["cb"], train=200).build(0, 4, model=gpt2)
    with pytest.raises(ValueError, match="the 3 classes entailment, contradiction, neutral, and cb has 2 answers"):
        replace(TASKS["cb"], answers=("Yes", "No")).build(0, 4, model=gpt2)
    with pytest.raises(ValueError, match="'a' of cb changes the tokens"):
        replace(TASKS["cb"], template="{premise} {hypothesis} c", answers=("a", "b", "c")).build(0, 4, model=gpt2)
    with pytest.raises(ValueError, match="objective takes vocabulary or answers, not 'mse'"):
        PromptedClassification("x", "sst2", "{sentence}", ("a", "b"), 0.5, objective="mse")
    with pytest.raises(ValueError, match="source must not be train"):
        replace(TASKS["sst2"], source="train")
    with pytest.raises(ValueError, match="train must be at least 1, got 0"):
        replace(TASKS["cb"], train=0)


def test_ready_and_identity(monkeypatch, tmp_path):
    task = replace(TASKS["cb"], model=str(Path(os.environ["DLOPT_DATA"]) / "stories260k" / "hf"))
    task.ready(150)
    with pytest.raises(ValueError, match="batch must be at most 150, the training examples of cb, got 151"):
        task.ready(151)
    assert {"text_classification/cb/train.jsonl.gz", "model.safetensors", "tokenizer.json"} <= set(task.identity())
    monkeypatch.setenv("DLOPT_CACHE", str(tmp_path))
    assert "smollm2-135m-instruct-q4_1/model.safetensors" in TASKS["cb"].identity()
    with pytest.raises(data.DataUnavailable, match="dlopt model get smollm2"):
        TASKS["cb"].ready()
    monkeypatch.setenv("DLOPT_DATA", str(tmp_path))
    with pytest.raises(data.DataUnavailable, match="data set 'cb' is not here"):
        TASKS["cb"].ready()


def test_the_small_story_model_by_folder():
    task = replace(TASKS["rte"], **SMALL, model=str(Path(os.environ["DLOPT_DATA"]) / "stories260k" / "hf"))
    built = task.build(0, 4)
    assert 0 <= built.evaluate()["val_accuracy"] <= 1
    batch = next(built.batches)
    assert built.criterion(built.forward(built.model, batch), batch).isfinite()


@pytest.mark.llm
def test_the_real_model_is_better_than_chance_and_the_same_each_time(smollm2):
    built = replace(TASKS["sst2"], validation=100).build(0, 16, model=smollm2)
    assert built.answers.tolist() == smollm2[1].convert_tokens_to_ids(["Ġterrible", "Ġgreat"])
    plain, calibrated = (built.zero_shot(prior=prior) for prior in (None, "content-free"))
    assert plain["auc"] == calibrated["auc"] > 0.6
    assert plain["accuracy"] > 0.5
    assert calibrated["accuracy"] > 0.6  # 0.5 + 2 deviations of a guess
    again = built.zero_shot(limit=20)
    assert again["correct"] == plain["correct"][:20]
    assert again == built.zero_shot(limit=20)
    assert pretrained.identity(built.task.model) != {}
