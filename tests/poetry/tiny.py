"""A model of poems with random weights: the rules make its poems right anyway, and it is made in a moment."""

from functools import cache

import torch

from dlopt.poetry.checkpoint import Card, Checkpoint
from dlopt.poetry.corpus import prepare
from dlopt.poetry.layout import clean_title
from dlopt.poetry.sample import sample_poems
from dlopt.poetry.vocabulary import Vocabulary
from dlopt.transformer.config import TransformerConfig
from dlopt.transformer.model import Decoder
from tests.poetry.second_checker import table

MORE = "夏雪琴棋書畫梅蘭竹菊福祿壽喜晴雨詩酒茶劍龍鳳鶴"  # what users hide in acrostics


@cache
def vocabulary():
    """The characters of the embedded poems that the second checker knows by themselves, without OpenCC."""
    poems = prepare(sample_poems()).poems
    texts = [MORE, *(p.text for p in poems), *(clean_title(p.title) for p in poems)]
    return Vocabulary.build("".join(c for c in text if c in table()) for text in texts)


@cache
def checkpoint(seed=0):
    torch.manual_seed(seed)
    words = vocabulary()
    config = TransformerConfig(
        len(words), width=32, layers=2, heads=2, norm="rms", feedforward="swiglu", positions="rope", init="scaled"
    )
    card = Card("0123456789abcdef", data="sample", figures={"val_perplexity": 1234.5})
    return Checkpoint(Decoder(config).eval(), words, card)
