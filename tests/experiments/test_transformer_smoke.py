"""The experiments of topic `transformer` run end to end at smoke scale, and what they measure is right."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dlopt import experiments
from dlopt.experiments.transformer import _answers, _common, _timings, ablation, gradient, halves, poems, sparse
from dlopt.experiments.transformer._sequences import FIRST, KEYS, Copy, Endless, Recall
from dlopt.experiments.transformer._writing import faults, members, text_of
from dlopt.lab import train
from dlopt.lab.experiment import ConfigError, Earlier, Run
from dlopt.lab.record import Record
from dlopt.lab.run import Settings, execute
from dlopt.lab.study import Study, collect
from dlopt.poetry.checkpoint import Card, save
from dlopt.poetry.constrained import ProsodyConstraint
from dlopt.poetry.request import Request
from dlopt.poetry.sample import sample_poems
from dlopt.poetry.tables import Tables
from dlopt.poetry.vocabulary import Vocabulary
from dlopt.transformer.config import TransformerConfig
from dlopt.transformer.decoding import generate
from dlopt.transformer.lstm import AttentiveLSTM
from dlopt.transformer.model import Decoder, parameter_count
from dlopt.transformer.ngram import NGram


@pytest.mark.parametrize("part", ["halves", "ablation", "gradient", "sparse", "poems"])
def test_the_smoke_stages_run_end_to_end(part: str, tmp_path: Path) -> None:
    study = Study(experiments.load(f"transformer/{part}"), "smoke")
    plans = study.conduct(Settings(tmp_path))
    records = [r for plan in plans for r in plan.records.values()]
    assert all(not plan.left and not plan.pending for plan in plans)
    assert {r.status for r in records} == {"done"}, [r.reason for r in records if r.status != "done"]
    found = collect(study, tmp_path)
    shown = study.experiment.present(found)
    assert not any("不完整" in note for note in shown.notes)
    by = {r.method: r.summary for r in records}
    if part == "halves":
        assert set(by) == set(halves.MODELS)
        for s in by.values():
            assert s["masked.proper"] == s["masked.length"] == s["original.length"] == 1.0
            assert s["cost"] > 0
    if part == "poems":
        rates = [r.summary for r in records if r.config["part"] == "rates"]
        assert all(s["masked.right"] == s["masked.count"] and s["masked.unlike"] == 1.0 for s in rates)
        assert all(s["original.lenient"] == 1.0 for s in rates)  # the poems of the package are regular


class Stopped:
    """The clock of the training loop: the deadline has come after so many steps."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def monotonic(self) -> float:
        return time.monotonic()

    def time(self) -> float:
        self.left -= 1
        return 0.0 if self.left >= 0 else float("inf")


@pytest.mark.parametrize(
    ("experiment", "config"),
    [
        (ablation.experiment, ablation.smoke(Earlier({}, {}))[1]),
        (sparse.experiment, sparse.synthetic("copy", 9, length=32, batch=4)(None)[2]),
    ],
)
def test_a_run_that_was_paused_ends_as_if_it_had_not_been(
    experiment: Any, config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run.of(experiment, config, "report", "cpu")

    def finished(folder: Path) -> Record:
        record = execute(run, Settings(folder)).record
        assert record is not None
        assert record.status == "done", record.reason
        return record

    whole = finished(tmp_path / "whole")
    settings = Settings(tmp_path / "pieces", deadline=time.time() + 1e6)
    with monkeypatch.context() as patched:
        patched.setattr(train, "time", Stopped(5))
        assert execute(run, settings).state == "paused"
    assert finished(tmp_path / "pieces").timeless() == whole.timeless()


def planned(part: Any, scale: str = "cpu") -> dict[str, list[Any]]:
    return {s.name: list(s.configs(Earlier({}, {}))) for s in part.experiment.stages[scale]}


def test_the_cpu_grid_is_that_of_the_issue_and_fits_its_time() -> None:
    found = planned(ablation)
    assert len(found["feedforward"]) == 8 * 3
    assert len(found["norm"]) == (3 * 2 + 1) * 3
    assert (len(found["positions"]), len(found["attention"]), len(found["shape"])) == (6, 4, 4)
    tuned = planned(halves)["tune"]
    assert {m: sum(c.method == m for c in tuned) for m in halves.TRAINED} == dict.fromkeys(
        halves.TRAINED, halves.TRIALS
    )
    assert {c.length for c in planned(sparse)["time"]} == {512, 1024, 2048, 4096, 8192}
    assert {c.form for c in planned(poems)["rates"]} == set(poems.WHOLE)
    hours = sum(
        stage.minutes(c) / 60
        for part in (halves, ablation, gradient, sparse, poems)
        for stage in part.experiment.stages["cpu"]
        for c in stage.configs(Earlier({}, {}))
    )
    assert hours < 8


def test_models_that_are_compared_are_equally_large() -> None:
    size = _common.CHARACTERS + 13
    shapes = [
        parameter_count(TransformerConfig(size, **{**ablation.BASE, "layers": n, "width": w}), "seq2seq")
        for n, w in ablation.SHAPES
    ]
    assert max(shapes) < 1.03 * min(shapes)
    kinds = [
        parameter_count(TransformerConfig(size, **ablation.BASE, feedforward=k), "seq2seq")
        for k in (*ablation.PLAIN, *ablation.GATED)
    ]
    assert max(kinds) < 1.005 * min(kinds)
    models = []
    for name in halves.TRAINED:
        model = _common.build(name, halves.MODELS[name], size, 0)
        models.append(sum(p.numel() for p in model.parameters()))
    assert max(models) < 1.01 * min(models)


@pytest.mark.parametrize(
    ("part", "settings", "told"),
    [
        ("halves", {"method": "rnn"}, "no method"),
        ("halves", {"method": "decoder", "params.window": 3}, "no window"),
        ("halves", {"corpus": "ming"}, "sample, tang, song"),
        ("halves", {"corpus": "sample", "lr": 0.0}, "lr must be above 0"),
        ("ablation", {"method": "lstm"}, "seq2seq or decoder"),
        ("gradient", {"length": 0}, "length must be at least 1"),
        ("sparse", {"part": "tim"}, "time, recall"),
        ("sparse", {"part": "recall", "length": 64, "lr": 0.1}, "needs steps of at least 1"),
        ("sparse", {"part": "time", "rounds": 1, "text": "stdlib-text"}, "reads no text"),
        ("poems", {"corpus": "sample", "form": "词"}, "五绝"),
        ("poems", {"corpus": "sample", "form": "五绝", "params.width": 8}, "its own shape"),
    ],
)
def test_what_cannot_run_is_refused_before_it_begins(part: str, settings: dict[str, Any], told: str) -> None:
    experiment = experiments.load(f"transformer/{part}")
    with pytest.raises((ConfigError, ValueError), match=told):
        Run.of(experiment, experiment.configure(settings), "report", "cpu").check()


# ------------------------------------------------------------------------------------------------ baselines


def test_ngram_probabilities_sum_to_one_and_follow_the_formula() -> None:
    random = np.random.default_rng(0)
    rows = torch.from_numpy(random.integers(1, 7, size=(40, 6)))
    model = NGram(7, order=3).fit(rows)
    history = rows[:, :4]
    assert torch.allclose(model.next(history).double().exp().sum(1), torch.ones(40, dtype=torch.float64), atol=1e-5)
    told = model.log_probs(rows)
    assert torch.allclose(told[:, 4], model.next(history).double().gather(1, rows[:, 4:5])[:, 0], atol=1e-6)

    def slow(word: int, before: tuple[int, ...]) -> float:
        lower = 1 / 7 if not before and not started[0] else None
        if lower is None:
            lower = slow(word, before[1:]) if before else 1 / 7
        grams = [tuple(r[i : i + len(before) + 1]) for r in rows.tolist() for i in range(6 - len(before))]
        after = [g[-1] for g in grams if g[:-1] == before]
        if not after:
            return lower
        return (after.count(word) + len(set(after)) * lower) / (len(after) + len(set(after)))

    started = [True]
    for r in rows.tolist()[:5]:
        assert told[rows.tolist().index(r), 5].exp() == pytest.approx(slow(r[5], tuple(r[3:5])), rel=1e-9)


def test_the_lstm_sees_the_source_but_no_later_target() -> None:
    torch.manual_seed(0)
    model = AttentiveLSTM(20, width=8, hidden=8, layers=2).double()
    source, target = torch.tensor([[4, 5, 6, 0, 0], [7, 8, 9, 10, 11]]), torch.randint(1, 20, (2, 6))
    before = model(source, target)
    later = target.clone()
    later[:, 4] = 1
    assert torch.equal(model(source, later)[:, :4], before[:, :4])
    assert not torch.equal(model(source, later)[:, 4:], before[:, 4:])
    longer = torch.nn.functional.pad(source, (0, 3))  # padding changes nothing
    torch.testing.assert_close(model(longer, target), before, rtol=0, atol=1e-12)
    other = source.clone()
    other[0, 2] = 9
    assert not torch.equal(model(other, target)[0], before[0])
    with pytest.raises(ValueError, match="nothing but padding"):
        model(torch.zeros(1, 3, dtype=torch.long), target[:1])
    with pytest.raises(ValueError, match="hidden even"):
        AttentiveLSTM(20, hidden=7)


@pytest.mark.parametrize("method", ["seq2seq", "decoder", "lstm", "ngram"])
def test_decoding_step_by_step_equals_the_whole(method: str) -> None:
    found = _common.halves("sample", 3000)
    source, target = (x[:9] for x in found.train)
    model: Any
    if method == "ngram":
        model = NGram(len(found.vocabulary)).fit(torch.cat(found.train, dim=1))
        whole = torch.stack([model.next(torch.cat((source, target[:, :i]), 1)) for i in range(1, 6)], dim=1)
    else:
        model = _common.build(method, halves.SMALL[method], len(found.vocabulary), 0).eval()
        whole = model(source, target[:, :5])
    step = _common.step_of(model, source)
    with torch.no_grad():
        parts = [step(target[:, :2]), *(step(target[:, i : i + 1]) for i in range(2, 5))]
    torch.testing.assert_close(torch.stack(parts, dim=1), whole[:, 1:].detach(), rtol=1e-4, atol=1e-4)
    rows = torch.tensor([3, 3, 0])
    step.reorder(rows)
    token = torch.full((3, 1), 12)
    with torch.no_grad():
        fresh = _common.step_of(model, source[rows])
        torch.testing.assert_close(step(token), fresh(torch.cat((target[rows, :5], token), 1)), rtol=1e-4, atol=1e-4)


# ------------------------------------------------------------------------------------------------ measurements


def test_copies_are_found_as_a_search_through_the_text_finds_them() -> None:
    found = _common.halves("sample", 3000)
    seen = _answers.copies("sample", 3000)
    lines = [line for poem in _common.prepared("sample").part("train") for line in poem.lines]
    random = np.random.default_rng(0)
    rows, lengths = [], []
    for i in range(60):
        length = (5, 7)[i % 2]
        text = list(lines[random.integers(len(lines))][:length].ljust(length, "一"))
        for place in random.integers(0, length, size=i % 4):
            text[place] = lines[random.integers(len(lines))][0]
        rows.append([*found.vocabulary.encode("".join(text)), found.vocabulary.eos, 0, 0][:8])
        lengths.append(length)
    tokens, length_ = torch.tensor(rows), torch.tensor(lengths)
    longest, whole = seen.longest(tokens, length_), seen.whole(tokens, length_)
    for row, size, run, hit in zip(rows, lengths, longest.tolist(), whole.tolist()):
        text_ = found.vocabulary.decode(row[:size])
        runs = [
            n for n in range(2, 8) for at in range(size - n + 1) if any(text_[at : at + n] in line for line in lines)
        ]
        assert run == max([1, *runs])
        assert hit == (text_ in lines)


def test_the_poets_are_measured_as_the_checker_judges_them() -> None:
    found, asked = _common.halves("sample", 3000), _answers.questions("sample", 30, characters=3000)
    told = _answers.measure(_answers.originals(found, asked), found, asked, "sample", "x")
    assert told["x.length"] == 1.0
    assert 0.7 < told["x.opposite"] <= 1.0
    assert told["x.regular"] > 0.8  # couplets of regular poems; one taken alone may be lacking what saved it
    counts = _common.split(str(told["x.poem_opposite"]))
    assert sum(counts) / sum(_common.split(str(told["poem_couplets"]))) == pytest.approx(told["x.opposite"])
    broken = _answers.Answered(_answers.originals(found, asked).tokens.roll(1, dims=1))
    assert _answers.measure(broken, found, asked, "sample", "x")["x.length"] == 0.0


def test_the_mean_of_the_products_of_z_is_the_probability_of_the_rules() -> None:
    """The identity of question 12, on a model that keeps to the rules about a third of the time."""
    vocabulary = Vocabulary.build(text for poem in sample_poems() for text in poem["paragraphs"])
    tables, request = Tables(vocabulary), Request("五言联", first_rhymes=False)
    torch.manual_seed(0)
    likely = "仄仄平平仄，平平仄仄平。"
    flat = torch.randn(len(vocabulary))
    rows = []
    for mark in likely:
        if mark in "平仄":
            wrong = ~tables.tone[0 if mark == "平" else 1]
            rows.append(flat - 3.5 * wrong - 30 * ~tables.legal)
        else:
            row = torch.full((len(vocabulary),), -30.0)
            row[vocabulary.id(mark)] = 0.0
            rows.append(row)
    end = torch.full((len(vocabulary),), -30.0)
    end[vocabulary.eos] = 0.0
    rows.append(end)

    class Step:
        def __init__(self) -> None:
            self.at = -1

        def __call__(self, tokens: torch.Tensor) -> torch.Tensor:
            self.at += 1
            return rows[self.at].expand(len(tokens), -1)

    def rules() -> ProsodyConstraint:
        return ProsodyConstraint(vocabulary, request, tables=tables)

    prompt = torch.full((600, 1), vocabulary.bos)
    draws = torch.Generator().manual_seed(1)
    common: dict[str, Any] = {"eos": vocabulary.eos, "pad": vocabulary.pad, "generator": draws}
    free = generate(Step(), prompt, rules().length, **common)
    share = members(rules(), torch.cat((prompt, free.tokens), 1)).double().mean()
    masked = generate(Step(), prompt, rules().length, processors=[rules()], **common)
    assert members(rules(), torch.cat((prompt, masked.tokens), 1)).all()
    assert not faults(text_of(vocabulary, masked.tokens[0].tolist()), "五言联")
    z = (masked.log_probs - masked.drawn).double().sum(1).exp()
    error = math.sqrt(float(share * (1 - share)) / 600 + float(z.var()) / 600)
    assert 0.1 < float(share) < 0.9
    assert abs(float(z.mean() - share)) < 4 * error


def test_a_wrong_tone_is_no_member() -> None:
    vocabulary = Vocabulary.build(text for poem in sample_poems() for text in poem["paragraphs"])
    rules = ProsodyConstraint(vocabulary, Request("五绝"), tables=Tables(vocabulary))
    poem = next(p for p in sample_poems() if sum(map(len, p["paragraphs"])) == 24)
    good = [vocabulary.bos, *vocabulary.encode("".join(poem["paragraphs"])), vocabulary.eos]
    bad = list(good)
    bad[2], bad[8] = bad[8], bad[2]
    worse = [*good[:-1], good[-2]]
    assert members(rules, torch.tensor([good, bad, worse])).tolist() == [True, False, False]


def test_a_question_is_answered_at_its_distance() -> None:
    task = Recall(128, sparse.DISTANCES)
    tokens, targets, distance = task.rows(16, torch.Generator().manual_seed(0))
    asked = (distance > 0).nonzero()[:, 0].tolist()
    assert sorted(distance[asked].tolist()) == list(sparse.DISTANCES)
    for at in asked:
        far = int(distance[at])
        assert torch.equal(tokens[:, at - far], targets[:, at])  # the value
        assert torch.equal(tokens[:, at - far - 1], tokens[:, at])  # after its key
        assert all((row[: at - far - 1] != key).all() for row, key in zip(tokens, tokens[:, at]))  # which stands once
    assert ((targets != -100).sum(1) == len(asked)).all()
    assert set(tokens[:, asked].unique().tolist()) <= set(range(FIRST, FIRST + KEYS))
    again = Endless(task, 4, seed=3)
    first = next(again)[0]
    other = Endless(task, 4, seed=3)
    other.load_state_dict({"position": 0, "seed": 3})
    assert torch.equal(next(other)[0], first)
    assert not torch.equal(next(other)[0], first)
    with pytest.raises(ValueError, match="collide"):
        Recall(128, (8, 9))


def test_a_copy_is_due_half_a_row_later() -> None:
    tokens, targets, distance = Copy(16).rows(3, torch.Generator().manual_seed(0))
    at = (distance > 0).nonzero()[:, 0]
    assert torch.equal(targets[:, at], tokens[:, at + 1])
    assert torch.equal(tokens[:, at + 1], tokens[:, at - distance[at]])


def test_blocked_and_masked_attention_that_are_timed_agree() -> None:
    class Quiet:
        def progress(self, done: int, total: int) -> None: ...

    told = _timings.timed(256, 1, 0, Quiet())  # type: ignore[arg-type]
    assert told["gap"] < 1e-5
    assert told["saved.full"] < min(told["saved.plain"], told["saved.masked"])


def test_the_stream_predicts_the_gradient_of_pre_norm() -> None:
    def last(place: str, depth: int) -> dict[str, Any]:
        config = gradient.Config(params={**gradient.SETTING, "width": 64, "norm_position": place, "layers": depth})
        return dict(gradient.run(config, None))  # type: ignore[arg-type]

    few, many = last("pre", 2), last("pre", 16)
    predicted = math.sqrt(few["stream_last"] / many["stream_last"])
    assert many["last_gradient"] / few["last_gradient"] == pytest.approx(predicted, rel=0.35)
    assert last("post", 16)["stream_last"] == pytest.approx(1.0, abs=0.01)


# ------------------------------------------------------------------------------------------------ the assistant's model


def test_without_a_model_the_run_is_skipped_and_with_one_it_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DLOPT_ARTIFACTS", str(tmp_path / "artifacts"))
    monkeypatch.setattr(poems.checkpoint, "SHIPPED", tmp_path / "model.safetensors")
    config = poems.Config("rates", form="五绝", corpus="sample", free=4, masked=2)
    run = Run.of(poems.experiment, config, "rates", "cpu")
    assert run.identity["weights"] == "absent"
    record = execute(run, Settings(tmp_path / "results")).record
    assert record is not None
    assert (record.status, record.reason[:28]) == ("skipped", "the assistant's model is not")
    vocabulary = Vocabulary.build(text for poem in sample_poems() for text in poem["paragraphs"])
    shape = TransformerConfig(len(vocabulary), width=16, layers=1, heads=2, max_length=80)
    save(tmp_path / "model.safetensors", Decoder(shape), vocabulary, Card())
    again = Run.of(poems.experiment, config, "rates", "cpu")
    assert again.key != run.key
    record = execute(again, Settings(tmp_path / "results")).record
    assert record is not None
    assert record.status == "done", record.reason
    assert record.summary["masked.right"] == 2
