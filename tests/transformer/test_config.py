"""What a Transformer can be, and what is refused with which sentence."""

import dataclasses
import json

import pytest

from dlopt import catalog
from dlopt.transformer.config import TransformerConfig
from dlopt.transformer.model import Decoder, Seq2Seq
from tests.transformer.settings import PAIRS, config


def test_it_survives_json_and_is_frozen():
    c = config("rope", "strided", rope_base=5000.0, bias=True)
    assert TransformerConfig.from_dict(json.loads(json.dumps(c.to_dict()))) == c
    assert TransformerConfig.from_dict({"vocabulary": 7}) == TransformerConfig(7)
    assert hash(c) == hash(dataclasses.replace(c))
    with pytest.raises(dataclasses.FrozenInstanceError):
        c.width = 3
    with pytest.raises(ValueError, match="no field 'heds'; did you mean 'heads'"):
        TransformerConfig.from_dict({"vocabulary": 7, "heds": 2})
    with pytest.raises(ValueError, match="needs a vocabulary"):
        TransformerConfig.from_dict({"width": 8})


def test_defaults_that_follow_other_fields():
    c = TransformerConfig(7, width=48, heads=6, kv_heads=2)
    assert (c.groups, c.head_width, TransformerConfig(7).groups) == (2, 8, 4)


REFUSED = [
    ({"vocabulary": 0}, "vocabulary must be an integer of at least 1"),
    ({"layers": 0}, "layers must be an integer of at least 1"),
    ({"layers": True}, "layers must be an integer"),
    ({"width": None}, "width must be an integer"),
    ({"width": 64.0}, "width must be an integer"),
    ({"kv_heads": 0}, "kv_heads must be an integer of at least 1"),
    ({"hidden": -1}, "hidden must be an integer of at least 1"),
    ({"max_length": 0}, "max_length must be an integer"),
    ({"shaw_clip": 0}, "shaw_clip must be an integer"),
    ({"dropout": "0.1"}, "dropout must be a number, got '0.1'"),
    ({"norm_eps": "x"}, "norm_eps must be a number"),
    ({"tied": "no"}, "tied must be True or False, got 'no'"),
    ({"pad": 0.0}, "pad must be a token from 0 to 10"),
    ({"norm": "batch"}, "norm must be one of layer, rms"),
    ({"norm_position": "middle"}, "norm_position must be one of pre, post, sandwich"),
    ({"feedforward": "tanh"}, "feedforward must be one of relu, gelu"),
    ({"positions": "t5"}, "positions must be one of sinusoid"),
    ({"attention": "sparse"}, "attention must be one of full, local, strided, fixed"),
    ({"init": "zeros"}, "init must be one of xavier"),
    ({"dropout": 1.0}, "dropout must be at least 0 and below 1"),
    ({"attention_dropout": -0.1}, "attention_dropout must be at least 0"),
    ({"rope_base": 0.0}, "rope_base must be above 0"),
    ({"norm_eps": float("nan")}, "norm_eps must be above 0"),
    ({"pad": 11}, "pad must be a token from 0 to 10"),
    ({"heads": 3}, "multiple of the 3 heads"),
    ({"kv_heads": 3}, "must divide the 4 heads"),
    ({"width": 12, "positions": "rope"}, "a head has 3 of them, an odd number"),
    ({"width": 15, "heads": 3}, "the width is 15, an odd number"),
    ({"attention": "local"}, "local attention needs a window"),
    ({"attention": "strided"}, "strided attention needs a stride"),
    ({"attention": "fixed", "stride": 4}, "fixed attention needs a summary"),
    ({"window": 4}, "full attention has no window, so window=4 would have no effect"),
    ({"attention": "local", "window": 4, "stride": 2}, "local attention has no stride"),
    ({"attention": "fixed", "stride": 4, "summary": 1, "window": 2}, "fixed attention has no window"),
    ({"attention": "local", "window": 514}, "window 514 is longer than max_length 512"),
    ({"attention": "strided", "stride": 513}, "stride 513 is longer than max_length 512"),
    ({"attention": "fixed", "stride": 4, "summary": 5}, "summary 5 must be at most the stride 4"),
    ({"attention": "strided", "stride": 4, "heads": 1}, "halves the heads, but there are 1"),
    ({"attention": "strided", "stride": 4, "mixing": "layers", "layers": 1}, "at least 2 layers"),
    ({"mixing": "layers"}, "mixing='layers' is for strided and fixed attention"),
    ({"attention": "local", "window": 4, "positions": "shaw"}, "need full attention, not local"),
]


@pytest.mark.parametrize(("options", "sentence"), REFUSED)
def test_the_impossible_is_refused(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        TransformerConfig(**{"vocabulary": 11, "width": 16, **options})


@pytest.mark.parametrize(("positions", "pattern"), PAIRS)
def test_the_possible_is_built(positions, pattern):
    Decoder(config(positions, pattern))
    Seq2Seq(config(positions, pattern))


def test_cross_attention_has_no_positions():
    for positions in ("shaw", "rope", "alibi"):
        model = Seq2Seq(config(positions))
        assert all(layer.cross_attn.shaw is None for layer in model.decoder.layers)


def test_both_models_are_in_the_catalogue_with_their_options():
    found = catalog.methods("transformer")
    assert {"decoder", "seq2seq"} <= set(found)
    for name, kind in (("decoder", Decoder), ("seq2seq", Seq2Seq)):
        options = found[name].parameters()
        assert options["norm_position"] == "pre"
        assert "vocabulary" not in options
        found[name].check({"positions": "rope", "window": 3})
        model = found[name].load()(11, width=8, heads=2, feedforward="glu")
        assert type(model) is kind
        assert model.config.feedforward == "glu"
