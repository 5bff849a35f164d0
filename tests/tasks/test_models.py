"""Models by name: shapes, parameter counts, seeded weights, and a published checkpoint in our language model."""

import json
import os
from pathlib import Path

import pytest
import torch

from dlopt.tasks import models

INPUTS = {
    "lenet": [(1, 28)],
    "mlp": [(1, 28)],
    "resnet8": [(3, 32), (1, 28)],
    "resnet20": [(3, 32)],
    "resnet18": [(3, 32)],
    "vgg8": [(1, 28), (3, 32), (1, 8)],
    "vgg11": [(1, 28), (3, 32)],
    "vgg13": [(3, 32)],
    "vgg16": [(3, 32)],
}


def count(model):
    return sum(p.numel() for p in model.parameters())


def test_every_model_is_tried_here():
    assert set(models.names()) == {*INPUTS, "lm"}


@pytest.mark.parametrize(("name", "channels", "size"), [(n, *s) for n, sizes in INPUTS.items() for s in sizes])
def test_forward_and_backward(name, channels, size):
    known = models.options(name)
    wanted = {"channels": channels, "width": 0.25, "size": size, "classes": 7}
    model = models.build(name, **{option: value for option, value in wanted.items() if option in known})
    out = model(torch.randn(3, channels, size, size, generator=torch.Generator().manual_seed(0)))
    assert out.shape == (3, 7)
    out.logsumexp(1).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(
    ("name", "options", "parameters"),
    [
        ("resnet18", {}, 11_173_962),
        ("resnet18", {"norm": "group"}, 11_173_962),
        ("resnet20", {}, 269_722),
        ("resnet8", {}, 75_290),
        ("lenet", {}, 61_706),
        ("mlp", {"hidden": ()}, 7_850),
        # without norm: 9,220,480 in the convolutions of VGG-11, as published, and 512 x 512 + 512 twice, 512 x 10 + 10
        ("vgg11", {"norm": "none"}, 9_220_480 + 2 * 262_656 + 5_130),
        # with BatchNorm: no biases, two numbers a channel instead of one
        ("vgg11", {}, 9_220_480 + 2_752 + 2 * 262_656 + 5_130),
        ("vgg16", {"norm": "none"}, 14_714_688 + 2 * 262_656 + 5_130),
    ],
)
def test_parameter_counts(name, options, parameters):
    assert count(models.build(name, device="meta", **options)) == parameters


@pytest.mark.parametrize("name", ["vgg8", "vgg11", "vgg13", "vgg16", "resnet8", "resnet20", "resnet18"])
def test_the_number_in_the_name_counts_layers_with_weights(name):
    layers = [
        m for m in models.build(name, device="meta").modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)
    ]
    shortcuts = 3 if name == "resnet18" else 0  # projections are not counted
    assert len(layers) - shortcuts == int(name.removeprefix("vgg").removeprefix("resnet"))


@pytest.mark.parametrize("name", ["resnet20", "vgg11", "lenet"])
def test_width_factor(name):
    full, half = (count(models.build(name, device="meta", width=width)) for width in (1.0, 0.5))
    assert 0.2 < half / full < 0.35


def test_width_factor_scales_channels():
    model = models.build("resnet20", width=2.0, device="meta")
    assert [block.conv2.out_channels for block in model.blocks] == [32] * 3 + [64] * 3 + [128] * 3


@pytest.mark.parametrize("name", ["resnet8", "vgg8"])
def test_norm_option(name):
    kinds = {
        norm: {type(m).__name__ for m in models.build(name, norm=norm, width=0.25).modules()}
        for norm in ("batch", "group", "none")
    }
    assert "BatchNorm2d" in kinds["batch"]
    assert "BatchNorm2d" not in kinds["group"]
    assert "GroupNorm" in kinds["group"]
    assert not kinds["none"] & {"BatchNorm2d", "GroupNorm"}


def test_resnet_shortcut_pads_with_zeros():
    model = models.build("resnet8", norm="none")  # blocks start as the identity, so only shortcuts act
    x = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    stem, out = model.stem(x), model.blocks(model.stem(x))
    assert torch.equal(out[:, :16], stem[:, :, ::4, ::4])
    assert not out[:, 16:].any()


@pytest.mark.parametrize("name", ["lenet", "resnet8", "lm", "mlp"])
def test_seed_decides_the_weights_and_nothing_else_does(name):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = models.build(name, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    again, other = models.build(name, seed=3), models.build(name, seed=4)
    pairs = list(zip(first.parameters(), again.parameters(), other.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b, _ in pairs)
    assert any(not torch.equal(a, c) for a, _, c in pairs)


def test_wrong_names_and_options_are_sentences():
    with pytest.raises(ValueError, match=r"no model is called 'resnet19' \(did you mean resnet"):
        models.build("resnet19")
    with pytest.raises(ValueError, match=r"no option 'widht' \(did you mean width\?\); it has classes, channels"):
        models.build("vgg8", widht=0.5)
    for options in ({"norm": "layer"}, {"width": 0}):
        with pytest.raises(ValueError, match=next(iter(options))):
            models.build("resnet8", **options)
    with pytest.raises(ValueError, match="at least 12 pixels"):
        models.build("lenet", size=8)
    with pytest.raises(ValueError, match="activation"):
        models.build("mlp", activation="swish")
    with pytest.raises(ValueError, match="layers must be at least 1"):
        models.build("lm", layers=0)


def test_lm_shapes_counts_and_tying():
    options = {"vocabulary": 50, "width": 32, "layers": 2, "heads": 4, "kv_heads": 2, "hidden": 40}
    model = models.build("lm", **options)
    assert model(torch.zeros(2, 9, dtype=torch.long)).shape == (2, 9, 50)
    layer = 2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 40 + 2 * 32
    assert count(model) == 50 * 32 + 2 * layer + 32
    assert count(models.build("lm", tied=False, **options)) == count(model) + 50 * 32
    assert models.options("lm")["width"] == 128


@pytest.mark.parametrize("plain", [True, False])
def test_lm_is_causal(plain):
    model = models.build("lm", width=32, layers=2, kv_heads=2, plain=plain).double()
    tokens = torch.randint(256, (1, 10), generator=torch.Generator().manual_seed(0))
    changed = tokens.clone()
    changed[0, 6:] = (changed[0, 6:] + 1) % 256
    before, after = model(tokens), model(changed)
    torch.testing.assert_close(before[:, :6], after[:, :6], rtol=0, atol=1e-10)
    assert not torch.allclose(before[:, 6:], after[:, 6:])


def test_lm_starts_at_the_loss_of_a_uniform_guess_and_learns():
    model = models.build("lm", vocabulary=16, width=32, layers=2)
    tokens = torch.arange(65).remainder(16).expand(4, 65)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(40):
        loss = torch.nn.functional.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(2.77, abs=0.1)  # log 16
    assert losses[-1] < 0.1


def test_lm_runs_a_published_llama_checkpoint():
    """stories260K (MIT, llama2.c), greedy from the start token: a wrong layout of RoPE or heads gives no sentence."""
    folder = Path(os.environ.get("DLOPT_DATA", "")) / "stories260k" / "hf"
    if not (folder / "model.safetensors").is_file():
        pytest.skip("DLOPT_DATA has no stories260k/hf/model.safetensors")
    raw = (folder / "model.safetensors").read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")  # safetensors: size of the header, header in JSON, tensors
    weights = {}
    for name, entry in json.loads(raw[8:start]).items():
        if name != "__metadata__":
            first, last = entry["data_offsets"]
            flat = torch.frombuffer(bytearray(raw[start + first : start + last]), dtype=torch.float32)
            weights[name.removeprefix("model.")] = flat.view(entry["shape"])
    model = models.build("lm", vocabulary=512, width=64, layers=5, heads=8, kv_heads=4, hidden=172)
    weights.setdefault("lm_head.weight", weights["embed_tokens.weight"])
    model.load_state_dict(weights)
    pieces = {i: piece for piece, i in json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"].items()}
    tokens = torch.ones(1, 1, dtype=torch.long)
    with torch.no_grad():
        for _ in range(60):
            tokens = torch.cat((tokens, model(tokens)[:, -1:].argmax(-1)), dim=1)
    text = "".join(pieces[i] for i in tokens[0, 1:].tolist()).replace("▁", " ").strip()
    assert text.startswith(
        "Once upon a time, there was a little girl named Lily. She loved to play outside in the park."
    )
