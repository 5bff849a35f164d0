"""Instruction tuning: which tokens count, against plain computations."""

import math
import os
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from dlopt.tasks import data
from dlopt.tasks.causal import TASKS, InstructionTuning
from dlopt.tasks.data.instructions import Instruction
from tests.tasks import tiny

pytestmark = pytest.mark.skipif(not os.environ.get("DLOPT_DATA"), reason="DLOPT_DATA is not set")
CHAT = "<s>{% for m in messages %}[{{ m['content'] }}]{% endfor %}{% if add_generation_prompt %}Answer: {% endif %}"


def model():
    tokenizer = tiny.byte_tokenizer()
    tokenizer.chat_template = CHAT
    return tiny.llama(258), tokenizer


@pytest.fixture(scope="module")
def built():
    task = replace(TASKS["alpaca-en"], max_tokens=200)
    tuning = task.build(seed=0, batch_size=4, model=model())
    tuning._validation, tuning._test = tuning._validation[:6], tuning._test[:5]
    return tuning


def test_a_text_is_the_chat_template_then_the_answer_then_the_end(built):
    tokens, answer = built._encode(Instruction("Add", "1 2", "3!"))
    assert built.tokenizer.decode(tokens) == "<s>[Add\n\n1 2]Answer: 3!</s>"
    assert built.tokenizer.decode(tokens[-answer:]) == "3!</s>"
    tokens, answer = built._encode(Instruction("Add", "", "3"))
    assert built.tokenizer.decode(tokens[:-answer]) == "<s>[Add]Answer: "


def test_a_text_by_the_plain_template(built, monkeypatch):
    monkeypatch.setattr(built, "task", replace(built.task, template="plain"))
    tokens, answer = built._encode(Instruction("Add", "1", "3"))
    assert built.tokenizer.decode(tokens) == "Instruction: Add\n\n1\n\nAnswer: 3</s>"
    assert built.tokenizer.decode(tokens[-answer:]) == " 3</s>"


def by_hand(model, examples):
    """(sum of losses, tokens) one text at a time, with the prompt masked."""
    total, count = 0.0, 0
    for tokens, answer in examples:
        with torch.no_grad():
            logits = model(tokens[None]).logits[0]
        target = tokens.clone()
        target[: len(tokens) - answer] = -100
        total += F.cross_entropy(logits[:-1], target[1:], ignore_index=-100, reduction="sum").item()
        count += answer
    return total, count


def test_the_loss_of_a_batch_is_on_the_answers_alone(built):
    tokens, lengths, answers = batch = built.batches.batch(2)
    with torch.no_grad():
        logits = built.forward(built.model, batch)
        loss = built.criterion(logits, batch).item()
    total, count = by_hand(built.model, list(zip(tokens.split(lengths.tolist()), answers.tolist())))
    assert len(logits) == count == int(answers.sum())
    assert loss == pytest.approx(total / count, rel=1e-4)
    assert built.consumed(batch) == {"examples": 4, "tokens": len(tokens)}


def test_figures_are_means_over_tokens(built):
    total, count = by_hand(built.model, built._validation)
    assert built.evaluate()["val_loss"] == pytest.approx(total / count, rel=1e-4)
    total, count = by_hand(built.model, built._test)
    built.model.train()
    found = built.test()
    assert built.model.training
    built.model.eval()
    assert found["test_loss"] == pytest.approx(total / count, rel=1e-4)
    assert found["test_perplexity"] == pytest.approx(math.exp(found["test_loss"]))
    assert found["test_tokens"] == count


def test_parts_and_what_does_not_fit():
    rows = data.get("alpaca-en")
    task = replace(TASKS["alpaca-en"], max_tokens=120)
    first, other = (task.build(seed, 4, model=model()) for seed in (0, 1))
    assert first.sizes == other.sizes
    assert sum(first.sizes) + first.left_out == len(rows) == 999
    assert first.left_out > 0
    parts = [{tuple(t.tolist()) for t, _ in part} for part in (first._validation, first._test)]
    trained = {tuple(t.tolist()) for t in first.batches.texts}
    assert not parts[0] & parts[1]
    assert len(trained & (parts[0] | parts[1])) < 5  # a few instructions stand twice in the set
    texts = [*first.batches.texts, *(t for part in (first._validation, first._test) for t, _ in part)]
    ended = sum(int(t[-1]) == 257 for t in texts)
    assert first.truncated == len(texts) - ended > 0
    assert max(map(len, texts)) == 120
    assert not torch.equal(first.batches.batch(0)[0], other.batches.batch(0)[0])
    seventh = first.batches.batch(7)
    first.batches.load_state_dict(first.batches.state_dict(7))
    assert all(torch.equal(a, b) for a, b in zip(next(first.batches), seventh))


def test_a_model_learns(built, monkeypatch):
    monkeypatch.setattr(built, "model", tiny.llama(258, seed=1))
    optimizer = torch.optim.Adam(built.model.parameters(), lr=1e-3)
    before = built.evaluate()["val_loss"]
    for batch in islice(built.batches, 15):
        loss = built.criterion(built.forward(built.model, batch), batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert built.evaluate()["val_loss"] < before - 0.3


def test_bad_input_is_a_sentence():
    network, tokenizer = model()
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match="asks for the model's chat template, and it has none; use template='plain'"):
        TASKS["alpaca-en"].build(0, 4, model=(network, tokenizer))
    with pytest.raises(ValueError, match="template takes chat or plain, not 'alpaca'"):
        InstructionTuning("x", "alpaca-en", 1.0, template="alpaca")
    with pytest.raises(ValueError, match="max_tokens must be at least 2, got 1"):
        replace(TASKS["alpaca-en"], max_tokens=1)
    network, tokenizer = model()
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="no token that ends an answer"):
        TASKS["alpaca-en"].build(0, 4, model=(network, tokenizer))


def test_the_sets_and_their_identity(monkeypatch, tmp_path):
    assert [len(data.get(name)) for name in ("alpaca-en", "alpaca-zh", "code-alpaca")] == [999, 1000, 2017]
    assert data.get("alpaca-en")[1] == Instruction(
        "Transform the following sentence using a synonym: The car sped quickly.", "", "The car accelerated rapidly."
    )
    assert "instructions/alpaca_zh_1k.jsonl.gz" in TASKS["alpaca-zh"].identity()
    monkeypatch.setenv("DLOPT_CACHE", str(tmp_path))
    with pytest.raises(data.DataUnavailable, match="dlopt model get smollm2"):
        TASKS["alpaca-zh"].ready()


def test_the_small_story_model_by_folder():
    task = replace(TASKS["alpaca-en"], template="plain", max_tokens=128,
                   model=str(Path(os.environ["DLOPT_DATA"]) / "stories260k" / "hf"))  # fmt: skip
    task.ready()
    tuning = task.build(0, 2)
    batch = next(tuning.batches)
    assert tuning.criterion(tuning.forward(tuning.model, batch), batch).item() < 2 * math.log(512)
    assert batch[0][0] == tuning.tokenizer.bos_token_id


@pytest.mark.llm
def test_the_real_model_knows_the_answers_better_than_chance(smollm2):
    tuning = TASKS["code-alpaca"].build(0, 2, model=smollm2)
    tokens, lengths, answers = tuning.batches.batch(0)
    text = smollm2[1].decode(tokens[: lengths[0]])
    assert text.startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face")
    assert text.endswith("<|im_end|>")
    tuning._validation = tuning._validation[:6]
    assert 0.3 < tuning.evaluate()["val_loss"] < 2.0
