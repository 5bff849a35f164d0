"""Cleaning, splitting and encoding of poems; the vocabulary."""

import json
import random

import pytest
import torch

from dlopt.poetry import Couplets, Vocabulary, prepare
from dlopt.poetry.corpus import PARTS, encode_poems, part_of
from dlopt.poetry.patterns import FORMS
from dlopt.poetry.vocabulary import SPECIALS
from dlopt.tasks import data
from dlopt.tasks.data import DataUnavailable, File
from dlopt.tasks.data.poetry import load_poems


def record(*paragraphs, **fields):
    return {"title": "題", "author": "人", "paragraphs": list(paragraphs), **fields}


QUATRAIN = record("白日依山盡，黃河入海流。", "欲窮千里目，更上一層樓。", id="a")
OTHERS = [
    record("白日依山盡，黃河入海流。", "欲窮千里目？更上一層樓！", id="same text, other marks"),
    record("白日依山盡，黃河入海流。", "欲窮千里眼，更上一層樓。", id="shares a couplet"),
    record("白日（一作月）依山盡，黃河入海流。", id="note"),
    record("白日依山□，黃河入海流。", id="lost"),
    record("白日依山囗，黃河入海流。", id="lost, as a box"),
    record("《白日》依山盡，黃河入海流。", id="title"),
    record("白日依山1，黃河入海流。", id="digit"),
    record("白日依山盡，黃河入海流入海。", id="unequal"),
    record("白日依山盡，黃河入海流，欲窮千里目。", id="three"),
    record("白日依山，黃河入海。", id="four"),
    record(id="empty"),
    record("「明月松間照」，清泉石上流。", "竹喧歸浣女、蓮動下漁舟。", id="ragged by a mark"),
    record("「明月松間照」，清泉石上流。", "竹喧歸浣女，蓮動下漁舟。", id="b"),
    record("一去二三里，煙村四五家。", "亭臺六七座，八九十枝花。", "一去二三里，煙村四五人。", id="other form"),
]


def made_up(count, seed=0):
    """Poems of four lines of random characters."""
    draw = random.Random(seed)
    chars = [chr(c) for c in range(0x4E00, 0x5A00) if chr(c) != "囗"]
    lines = [["".join(draw.choices(chars, k=5)) for _ in range(4)] for _ in range(count)]
    return [record(f"{a}，{b}。", f"{c}，{d}。", id=str(i)) for i, (a, b, c, d) in enumerate(lines)]


def test_every_rule_leaves_out_what_it_should():
    corpus = prepare([QUATRAIN, *OTHERS])
    assert [poem.id for poem in corpus.poems] == ["a", "b", "other form"]
    counts = corpus.summary
    assert (counts.read, counts.marks, counts.ragged, counts.duplicates, counts.near) == (15, 5, 5, 1, 1)
    assert counts.kept == 3
    assert counts.forms == {"五绝": 2, "其他": 1}
    first = corpus.poems[0]
    assert first.punctuated == "白日依山盡，黃河入海流。欲窮千里目，更上一層樓。"
    assert first.lines == ("白日依山盡", "黃河入海流", "欲窮千里目", "更上一層樓")
    assert "15 poems read" in str(counts)
    assert prepare([QUATRAIN, *OTHERS], ["五绝"]).summary.unwanted > 0
    with pytest.raises(ValueError, match="no form"):
        prepare([QUATRAIN], ["六绝"])


def test_the_split_is_by_poem():
    corpus = prepare(made_up(3000))
    parts = {part: corpus.part(part) for part in PARTS}
    shares = [len(parts[part]) / 3000 for part in PARTS]
    assert shares == pytest.approx([0.9, 0.05, 0.05], abs=0.015)
    whole = {poem.id: part for part in PARTS for poem in parts[part]}
    assert len(whole) == 3000
    owner = {pair: poem.id for poem in corpus.poems for pair in poem.couplets}
    for part in PARTS:
        pairs = corpus.couplets(part)
        assert len(pairs) == 2 * len(parts[part]) == corpus.summary.couplets[part]
        assert {whole[owner[pair]] for pair in pairs} == {part}
    with pytest.raises(ValueError, match="part must be one of"):
        corpus.couplets("dev")


def test_the_split_depends_on_nothing_but_the_text():
    records = made_up(200)
    one, other = prepare(records), prepare(records[::-1][:150])
    where = {poem.text: part_of(poem.text) for poem in one.poems}
    assert all(where[poem.text] == part for part in PARTS for poem in other.part(part))
    assert [part_of(t) for t in ("白日依山盡", "黃河入海流", "欲窮千里目", "更上一層樓")] == ["train"] * 4
    assert prepare(records).poems == one.poems


def test_the_real_corpus(clean):
    counts = clean.summary
    assert counts.read == 19_201
    assert counts.marks > 1_500
    assert counts.kept == sum(counts.forms.values()) == len(clean.poems) > 15_000
    assert all(set(poem.text).isdisjoint("（）《》□囗，。") for poem in clean.poems)
    seen = {part: set(clean.couplets(part)) for part in PARTS}
    assert not seen["train"] & seen["test"]
    assert not seen["train"] & seen["validation"]
    vocabulary = Vocabulary.build((poem.text for poem in clean.part("train")), min_count=2)
    assert 0.99 < vocabulary.coverage(poem.text for poem in clean.part("test")) < 1


def test_couplets_as_tensors():
    pairs = [("白日依山盡", "黃河入海流"), ("朝辭白帝彩雲間", "千里江陵一日還")]
    vocabulary = Vocabulary.build(a + b for a, b in pairs[:1])
    couplets = Couplets(pairs, vocabulary)
    assert couplets.source.shape == (2, 7)
    assert couplets.target.shape == (2, 9)
    source, target = couplets[0]
    assert vocabulary.decode(source.tolist()) == "白日依山盡"
    assert target.tolist() == [vocabulary.bos, *vocabulary.encode("黃河入海流"), vocabulary.eos, 0, 0]
    assert source.dtype == target.dtype == torch.int64
    assert vocabulary.decode(couplets[1][0].tolist()) == "□□白□□□□"
    assert couplets.unknown == pytest.approx(12 / 24)
    assert len(couplets) == 2
    with pytest.raises(ValueError, match="no couplets"):
        Couplets([], vocabulary)


def test_poems_as_tensors():
    corpus = prepare([QUATRAIN, *OTHERS])
    vocabulary = Vocabulary.build(poem.text for poem in corpus.poems)
    tokens = encode_poems(corpus.poems, vocabulary, 30)
    assert tokens.shape == (2, 30)  # the poem of six lines does not fit
    row = tokens[0].tolist()
    assert row[:2] == [vocabulary.bos, vocabulary.id("<五绝>")]
    assert row[26] == vocabulary.eos
    assert vocabulary.decode(row) == corpus.poems[0].punctuated
    with pytest.raises(ValueError, match="no poem fits"):
        encode_poems(corpus.poems, vocabulary, 10)


def test_vocabulary_counts_orders_and_keeps(tmp_path):
    vocabulary = Vocabulary.build(["春風春", "春雨，風 月"], min_count=2)
    assert vocabulary.chars == ("，", "。", "春", "風")
    assert len(vocabulary) == len(SPECIALS) + 4
    assert (vocabulary.pad, vocabulary.bos, vocabulary.eos, vocabulary.unk, vocabulary.sep) == (0, 1, 2, 3, 4)
    assert [vocabulary.tokens[i] for i in range(5)] == ["<pad>", "<bos>", "<eos>", "<unk>", "<sep>"]
    assert all(f"<{form}>" in vocabulary for form in FORMS)
    assert vocabulary.decode(vocabulary.encode("春風月")) == "春風□"
    assert vocabulary.coverage(["春風月"]) == pytest.approx(2 / 3)
    assert Vocabulary.build(["ba", "ab"]).chars == ("，", "。", "a", "b")
    path = tmp_path / "vocabulary.json"
    vocabulary.save(path)
    again = Vocabulary.load(path)
    assert again.tokens == vocabulary.tokens
    assert [p.name for p in tmp_path.iterdir()] == ["vocabulary.json"]


TWICE = json.dumps({"format": "dlopt-vocabulary-1", "specials": list(SPECIALS), "chars": "春春"})


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"format": "other", "specials": [], "chars": ""}', TWICE])
def test_a_file_that_is_no_vocabulary_is_refused(tmp_path, text):
    path = tmp_path / "v.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"vocabulary"):
        Vocabulary.load(path)


def test_wrong_arguments_of_a_vocabulary_are_refused():
    vocabulary = Vocabulary("，。春")
    for call, says in [
        (lambda: Vocabulary(["春", "春"]), "each once"),
        (lambda: Vocabulary(["春風"]), "single characters"),
        (lambda: Vocabulary.build(["春"], min_count=0), "at least 1"),
        (lambda: vocabulary.id("月"), "not in the vocabulary"),
        (lambda: vocabulary.decode([len(vocabulary)]), "between 0 and"),
        (lambda: vocabulary.decode([-1]), "between 0 and"),
        (lambda: vocabulary.coverage([]), "no character"),
    ]:
        with pytest.raises(ValueError, match=says):
            call()


def test_the_data_sets_are_registered():
    assert {"tang-poems", "song-poems", "pingshui"} <= set(data.names())
    for name in ("tang-poems", "song-poems", "pingshui"):
        assert data.find(name).licence.startswith("MIT")
        assert data.find(name).help


def test_a_broken_file_of_poems_is_named(tmp_path):
    path = tmp_path / "tang.jsonl.xz"
    path.write_bytes(b"no archive")
    with pytest.raises(DataUnavailable, match=r"tang\.jsonl\.xz"):
        load_poems({File("x", "0").path: path})


def test_poems_are_loaded_as_they_are(tang):
    assert len(tang) == 57_603
    assert tang[0].keys() == {"id", "title", "author", "paragraphs", "form"}
