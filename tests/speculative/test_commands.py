"""`dlopt speculative build-store` and `distill` from the command line, with a small model of words."""

import gzip
import json
import re
import sys

import pytest
import torch

from dlopt import cli
from dlopt.apps import speculative as commands
from dlopt.speculative import Datastore, DatastoreDrafter, ModelDrafter, generate
from dlopt.tasks.models import pretrained

WORDS = "the cat dog saw ran and a big small house red blue on under . ,".split()


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    """A folder with a model of four layers and its tokenizer."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("target")
    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(["<unk>", *WORDS])}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>").save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=20, max_position_embeddings=64, bos_token_id=None, eos_token_id=None, **sizes)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture
def dlopt(monkeypatch, capfd, tmp_path):
    """A command in this process: (exit code, output, errors)."""
    monkeypatch.chdir(tmp_path)

    def do(*arguments):
        monkeypatch.setattr(sys, "argv", ["dlopt", "speculative", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return (int(ended.value.code or 0), *capfd.readouterr())

    return do


def lines(count, seed=0):
    numbers = torch.randint(len(WORDS), (count,), generator=torch.Generator().manual_seed(seed)).tolist()
    return " ".join(WORDS[n] for n in numbers)


def test_a_store_is_built_and_drafts(target, dlopt, tmp_path):
    folder = tmp_path / "corpus"
    folder.mkdir()
    (folder / "a.txt").write_text(lines(30))
    with gzip.open(folder / "b.jsonl.gz", "wt") as file:
        file.writelines(json.dumps({"text": lines(10, seed), "id": seed}) + "\n" for seed in (1, 2))
    code, out, said = dlopt("build-store", "corpus", "--tokenizer", target, "--out", "store")
    assert (code, out) == (0, "store\n")
    assert "3 documents, 50 tokens" in said
    assert "reading and tokenizing" in said
    assert sorted(p.name for p in tmp_path.iterdir()) == ["corpus", "store"]
    network, tokenizer = pretrained.load(target)
    store = Datastore.load("store")
    assert store.stream[:5].tolist() == [i + 1 for i in tokenizer(lines(30))["input_ids"][:5]]
    prompt = tokenizer(lines(8))["input_ids"]
    options = {"max_new_tokens": 6, "tokenizer": tokenizer, "gate": False, "eos": None}
    found = generate(network, [prompt], DatastoreDrafter(store), **options)
    assert found.stats.drafted > 0
    assert found.tokens == generate(network, [prompt], **options).tokens


def test_a_store_that_cannot_be_built_ends_with_a_sentence_and_leaves_nothing(target, dlopt, tmp_path, monkeypatch):
    def fails(message, *arguments):
        before = sorted(tmp_path.rglob("*"))
        code, out, said = dlopt("build-store", *arguments)
        assert (code, out) == (2, "")
        assert re.search(f"^dlopt: .*{message}", said.splitlines()[-1]), said
        assert sorted(tmp_path.rglob("*")) == before

    good, taken = ("--tokenizer", target, "--out", "store"), tmp_path / "taken"
    taken.write_text(lines(9))
    fails("there is no corpus none", "none", *good)
    fails("taken is there already", "taken", "--tokenizer", target, "--out", "taken")
    fails("there is no folder .*nowhere", "taken", "--tokenizer", target, "--out", "nowhere/store")
    fails("there is no folder .*no/model", "taken", "--tokenizer", "no/such/no/model", "--out", "store")
    (tmp_path / "bad.txt").write_bytes(b"\xff\xfe\x00")
    fails("bad.txt cannot be read as text", "bad.txt", *good)
    (tmp_path / "bad.jsonl").write_text('{"text": "the cat"}\n{"word": "dog"}\n')
    fails('bad.jsonl: line 2 is no JSON object with a "text"', "bad.jsonl", *good)
    (tmp_path / "empty.txt").write_text("")
    fails("empty.txt: document 0 has no tokens", "empty.txt", *good)


FEW = ("--steps", 6, "--batch", 2, "--window", 8, "--lr", 0.003, "--data", "text:words.txt")


def test_a_drafter_is_distilled_in_pieces_and_drafts(target, dlopt, tmp_path, monkeypatch):
    (tmp_path / "words.txt").write_text(lines(900))
    code, out, said = dlopt("distill", target, "--out", "drafter", *FEW, "--minutes", 0)
    assert (code, out) == (0, "")
    assert "0 of 6 steps are done; the same command goes on" in said
    assert sorted(p.name for p in tmp_path.iterdir()) == ["drafter.checkpoint", "words.txt"]
    code, _, said = dlopt("distill", target, "--out", "drafter", *FEW, "--seed", 1)
    assert (code, "seed = 0, this one has 1" in said) == (2, True)
    code, out, said = dlopt("distill", target, "--out", "drafter", *FEW)
    assert (code, out) == (0, "drafter\n")
    assert re.search(r"distilling: 6 of 6 loss \d", said)
    assert re.search(r"agrees with the target on \d+\.\d%", said)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["drafter", "words.txt"]
    card = json.loads((tmp_path / "drafter" / "distilled.json").read_text())
    assert (card["layers"], card["steps"]) == (2, 6)
    assert 0 < card["acceptance"] < 1
    network, tokenizer = pretrained.load(target)
    drafter, own = pretrained.load(tmp_path / "drafter")
    assert drafter.config.num_hidden_layers == 2
    options = {"max_new_tokens": 6, "tokenizer": tokenizer, "gate": False, "eos": None}
    found = generate(network, [[1, 2, 3]], ModelDrafter(drafter, 2, tokenizer=own), **options)
    assert found.tokens == generate(network, [[1, 2, 3]], **options).tokens
    code, _, said = dlopt("distill", target, "--out", "drafter", *FEW)
    assert (code, "drafter is there already" in said) == (2, True)
    monkeypatch.setattr(commands, "EVERY", 0.0)  # a checkpoint after every step, then an interruption

    def interrupted(what, done, all_, note):
        if done == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(commands.bars, "work_bar", lambda: _with(interrupted))
        assert dlopt("distill", target, "--out", "again", *FEW)[0] == 130
    assert (tmp_path / "again.checkpoint").is_file()
    assert dlopt("distill", target, "--out", "again", *FEW)[0] == 0
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("drafter", "again")]
    assert files[0] == files[1]


def _with(tell):
    from contextlib import nullcontext

    return nullcontext(tell)


def test_what_cannot_be_distilled_ends_with_a_sentence_and_leaves_nothing(target, dlopt, tmp_path):
    (tmp_path / "words.txt").write_text(lines(900))
    for message, *arguments in [
        ("layers must be at least 1, got 0", target, "--layers", 0),
        ("layers must be from 1 to 3", target, "--layers", 4),
        ("there is no file", target, "--data", "text:none.txt"),
        ("iris is no data set of text|no data set is called", target, "--data", "iris"),
        ("no pretrained model is called", "nothing"),
        ("at least a window of 9000", target, "--window", 9000),
    ]:
        code, out, said = dlopt("distill", "--out", "drafter", *FEW, *arguments)
        assert (code, out) == (2, ""), said
        assert re.search(f"^dlopt: .*({message})", said.splitlines()[-1]), said
        assert [p.name for p in tmp_path.iterdir()] == ["words.txt"]
