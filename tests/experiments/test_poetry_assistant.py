"""The run that trains the assistant's model: it learns, goes on where it stopped, and leaves a file that is used."""

import hashlib
import math
import time

import pytest
import torch

from dlopt.experiments.transformer import _verses as verses
from dlopt.experiments.transformer import assistant as experiment
from dlopt.lab import train
from dlopt.lab.experiment import ConfigError, Run
from dlopt.lab.run import Settings, execute
from dlopt.lab.study import Study, collect
from dlopt.poetry import checkpoint
from dlopt.poetry.assistant import Assistant
from dlopt.poetry.corpus import part_of, prepare
from dlopt.poetry.layout import LONGEST, clean_title, encode
from dlopt.poetry.sample import sample_poems
from dlopt.poetry.wish import Wish
from tests.experiments.test_adam_smoke import Stopped

TINY = {"source": "sample", "min_count": 1, "width": 16, "layers": 1, "heads": 2, "steps": 6, "tokens": 256,
        "evaluated": 10}  # fmt: skip


@pytest.fixture(autouse=True)
def private(tmp_path, monkeypatch):
    monkeypatch.setenv("DLOPT_ARTIFACTS", str(tmp_path / "artifacts"))


def test_the_smoke_stage_makes_a_model_that_writes(tmp_path):
    study = Study(experiment.experiment, "smoke")
    (plan,) = study.conduct(Settings(tmp_path))
    (record,) = plan.records.values()
    assert (record.status, record.reason) == ("done", "")
    summary = record.summary
    assert summary["val_loss"] < record.curve["val_loss"][0], "it did not learn"
    assert summary["val_perplexity"] == pytest.approx(math.exp(summary["val_loss"]), rel=0.01), "fp16 costs little"
    path = experiment.artifact(record.key)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == summary["artifact_sha256"]
    assert path.stat().st_size == summary["artifact_bytes"]
    found = checkpoint.load(path)
    assert (found.card.key, found.card.data) == (record.key, "sample")
    assert found.card.figures["val_perplexity"] == summary["val_perplexity"]
    (poem,) = Assistant(found).write(Wish("绝句", "春眠不觉晓"), seed=1)
    assert poem.faults == ()
    assert list(record.identity) == ["poetry/sample.json"]
    shown = study.experiment.present(collect(study, tmp_path)).values
    assert shown["val_perplexity"] == summary["val_perplexity"]
    assert (shown["key"], shown["steps"], shown["tokens"]) == (record.key, 60, record.curve["tokens"][-1])
    nothing = study.experiment.present(collect(study, tmp_path / "empty"))
    assert (set(nothing.values), set(nothing.values.values())) == (set(shown), {None})


def test_what_is_shipped_is_small_enough():
    config = experiment.Config()
    model = experiment.Decoder(experiment.shape(config, 7000))  # a few more tokens than the corpus gives
    size = 2 * sum(p.numel() for p in model.parameters()) + 50_000  # the header with vocabulary
    assert size < experiment.LARGEST


def test_a_run_in_pieces_ends_as_if_it_were_one(tmp_path, monkeypatch):
    run = Run.of(experiment.experiment, experiment.Config(**TINY, method="adamw"), "train", "cpu")

    def finish(folder):
        monkeypatch.setenv("DLOPT_ARTIFACTS", str(folder / "artifacts"))
        outcome = execute(run, Settings(folder, deadline=time.time() + 3600))
        assert outcome.record is not None, outcome.note
        return outcome.record, experiment.artifact(run.key).read_bytes()

    whole, file = finish(tmp_path / "whole")
    with monkeypatch.context() as patched:
        patched.setattr(train, "time", Stopped(3))
        outcome = execute(run, Settings(tmp_path / "pieces", deadline=time.time() + 3600))
    assert (outcome.state, outcome.note) == ("paused", "paused at step 3 of 6")
    pieces, other = finish(tmp_path / "pieces")
    assert pieces.timeless() == whole.timeless()
    assert other == file, "the model is the same to the bit"


@pytest.mark.parametrize(
    ("settings", "says"),
    [({"source": "yuan"}, "source"), ({"steps": 0}, "steps"), ({"warmup": 1.0}, "warmup"), ({"clip": 0.0}, "clip"),
     ({"heads": 3}, "heads"), ({"method": "adamw", "params": {"lr": -1.0}}, "lr|learning rate")],
)  # fmt: skip
def test_what_cannot_run_is_refused_before_anything_is_written(settings, says):
    with pytest.raises(ConfigError, match=says):
        Run.of(experiment.experiment, experiment.Config(**{**TINY, **settings}), "train", "cpu").check()


def test_batches_are_poems_of_one_form_and_every_poem_comes_once_an_epoch():
    found = verses.read("sample", 1)
    batches = verses.VerseBatches(found, 600, seed=3)
    words = found.vocabulary
    seen = {form: [] for form in verses.WHOLE}
    couplets = titled = 0
    for number in range(batches.per_epoch):
        rows = batches.batch(number)
        (form,) = {words.tokens[int(row[1])][1:-1] for row in rows}
        for row in rows.tolist():
            body = words.decode(row[row.index(words.sep) :]).replace("，", "").replace("。", "")
            titled += row.index(words.sep) > 2
            if form in seen:
                seen[form].append(body)
            else:
                couplets += 1
    for form, every in seen.items():
        assert sorted(every) == sorted("".join(lines) for _, lines in found.poems["train"][form])
    assert couplets == sum(len(found.poems["train"][f]) // verses.COUPLETS for f in ("五律", "七律"))
    assert titled > 50
    assert torch.equal(batches.batch(5), verses.VerseBatches(found, 600, seed=3).batch(5))
    assert not torch.equal(batches.batch(5), batches.batch(5 + batches.per_epoch)), "another order each epoch"


def test_no_poem_of_other_parts_is_learned():
    found = verses.read("sample", 1)
    for part, forms in found.poems.items():
        for poems in forms.values():
            assert all(part_of("".join(lines)) == part for _, lines in poems)
    assert sum(map(len, found.poems["train"].values())) == found.summary.poems["train"]


def test_titles_and_prefix_are_not_learned():
    found = verses.read("sample", 1)
    words = found.vocabulary
    row = encode(words, "五绝", ("白日依山盡", "黃河入海流", "欲窮千里目", "更上一層樓"), "登樓")
    rows = torch.tensor([[*row, words.pad, words.pad]])
    goal = verses.targets(rows, words)[0].tolist()
    begin = row.index(words.sep)
    assert goal[:begin] == [words.pad] * begin
    assert goal[begin : len(row) - 1] == row[begin + 1 :], "the first character follows <sep>, the last is eos"
    assert goal[len(row) - 1 :] == [words.pad] * 2
    told = verses.characters(torch.tensor(goal), words)
    assert int(told.sum()) == 20


def test_titles_are_cleaned():
    assert clean_title("登鸛雀樓") == "登鸛雀樓"
    assert clean_title("帝京篇十首 一") == "帝京篇"
    assert clean_title("山中梅花  其二") == "山中梅花"
    assert clean_title("五言詩一百二十三首其三") == "五言詩"
    assert clean_title("洛中士君子多以平泉見呼愧獲方外之名") == "", "too long to be learned whole"
    longest = max(len(encode(verses.read("sample", 1).vocabulary, p.form, p.lines, "春" * 8)) for p in
                  prepare(sample_poems()).poems)  # fmt: skip
    assert longest == LONGEST
