"""The file of a model: what comes back, what is refused."""

import json
import struct

import pytest
import torch

from dlopt.poetry import checkpoint
from dlopt.poetry.vocabulary import Vocabulary
from dlopt.transformer.config import TransformerConfig
from dlopt.transformer.model import Decoder
from tests.poetry import tiny


@pytest.fixture
def saved(tmp_path):
    made = tiny.checkpoint()
    return checkpoint.save(tmp_path / "m.safetensors", made.model, made.vocabulary, made.card)


def test_what_was_saved_comes_back_rounded_to_fp16(saved):
    made, found = tiny.checkpoint(), checkpoint.load(saved)
    assert found.card == made.card
    assert found.vocabulary.tokens == made.vocabulary.tokens
    assert found.model.config == made.model.config
    assert not found.model.training
    for name, value in found.model.state_dict().items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, made.model.state_dict()[name].half().float(), rtol=0, atol=0)


def test_equal_models_make_equal_files(saved, tmp_path):
    made = tiny.checkpoint()
    again = checkpoint.save(tmp_path / "again.safetensors", made.model, made.vocabulary, made.card)
    assert again.read_bytes() == saved.read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["again.safetensors", "m.safetensors"]


def test_the_first_place_with_a_model_wins(saved, tmp_path, monkeypatch):
    assert checkpoint.find(None, tmp_path / "none", saved).card.key == "0123456789abcdef"
    monkeypatch.setattr(checkpoint, "SHIPPED", tmp_path / "shipped.safetensors")
    with pytest.raises(checkpoint.NoModel, match="dlopt model train poetry"):
        checkpoint.find(None, tmp_path / "none")
    with pytest.raises(checkpoint.NoModel, match="none"):
        checkpoint.load(tmp_path / "none")


def changed(path, **values):
    """The file with other text in its header."""
    content = path.read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + size])
    about = json.loads(header["__metadata__"]["dlopt"]) | values
    header["__metadata__"]["dlopt"] = json.dumps(about)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + size :])


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"format": "other"}, "format"),
        ({"specials": ["<pad>"]}, "special"),
        ({"characters": "山水"}, "characters"),
        ({"config": {"vocabulary": 7, "depth": 3}}, "depth"),
        ({"config": {"vocabulary": 50}}, "has the shape"),
        ({"config": {"vocabulary": 50, "layers": 10**9}}, "1,000,000,000 layers, but only"),
        ({"config": {"vocabulary": 50, "width": 2**20}}, "has the shape"),  # of terabytes
    ],
)
def test_a_foreign_file_is_named_and_refused(saved, values, says):
    changed(saved, **values)
    with pytest.raises(ValueError, match=says) as caught:
        checkpoint.load(saved)
    assert str(saved) in str(caught.value)


@pytest.mark.parametrize("cut", [0, 4, 100, 5000])
def test_a_truncated_file_is_refused(saved, cut):
    saved.write_bytes(saved.read_bytes()[:cut])
    with pytest.raises(ValueError, match="is no model of poems"):
        checkpoint.load(saved)


def test_a_pickle_is_never_opened(tmp_path):
    path = tmp_path / "m.safetensors"
    torch.save({"a": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match="is no model of poems"):
        checkpoint.load(path)


def test_what_cannot_be_saved_is_refused(tmp_path):
    made = tiny.checkpoint()
    with pytest.raises(ValueError, match="vocabulary"):
        checkpoint.save(tmp_path / "m", made.model, Vocabulary("山水"), made.card)
    model = Decoder(TransformerConfig(len(made.vocabulary), width=32, layers=1, heads=2))
    torch.nn.init.constant_(model.embed.tokens.weight, 1e6)
    with pytest.raises(ValueError, match="fp16"):
        checkpoint.save(tmp_path / "m", model, made.vocabulary, made.card)
    assert not list(tmp_path.iterdir())
