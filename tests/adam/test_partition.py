"""Adam-mini's partition: the table, the ablations, and what it refuses to guess. The blocks of each layout of attention
are in test_adam_mini.py."""

import pytest
import torch
from torch import nn

from dlopt.adam import AdamMini
from dlopt.adam.partition import Blocks, partition, register_attention
from tests.adam import stand_ins as S


def test_the_table_can_be_read():
    model = S.Model(S.Phi3(6, heads=4, kv_heads=2, head_dim=5))
    table = AdamMini(model.parameters(), model=model).partition()
    text = str(table).splitlines()
    assert text[0].split() == ["name", "role", "shape", "blocks"]
    assert "attention.qkv_proj.weight  qkv          40 x 6         4 of 5 + 2 of 5 + 10 of 1 along axis 0" in text
    elements = sum(p.numel() for p in model.parameters())
    assert text[-1] == f"{len(table)} tensors, {elements} elements, {sum(r.blocks.total for r in table)} blocks"
    roles = {row.name: row.role for row in table}
    named = [roles[f"{n}.weight"] for n in ("embed", "unembed", "norm", "up", "conv")]
    assert named == ["embedding", "head", "norm", "matrix", "convolution"]
    assert roles["up.bias"] == "bias"


@pytest.mark.parametrize(
    ("scheme", "blocks"),
    [("paper", (4, 2, 10, 6)), ("tensor", (1, 1, 1, 1)), ("row", (20, 10, 10, 6)), ("head", (4, 2, 2, 6)),
     ("element", (120, 60, 60, 120))],
)  # fmt: skip
def test_schemes_for_ablations(scheme, blocks):
    table = partition(S.Llama(6, heads=4, kv_heads=2, head_dim=5), scheme)
    assert tuple(table[f"{x}_proj.weight"].blocks.total for x in "qkvo") == blocks


def test_our_own_attention_is_known():
    from dlopt.transformer.attention import Attention

    table = partition(Attention(width=12, heads=6, kv_heads=2))
    assert [table[f"{x}_proj.weight"].blocks.total for x in "qkvo"] == [6, 2, 4, 12]
    assert [row.role for row in table] == ["query", "key", "value", "output"]


@pytest.mark.parametrize("attention", [S.CausalSelfAttention, S.Mixer])
def test_unknown_attention_is_reported_not_guessed(attention):
    model = S.Model(attention(6, 2))
    with pytest.raises(ValueError, match=r"unknown class: attention is a tests\.adam\.stand_ins\.(Causal|Mixer)"):
        AdamMini(model.parameters(), model=model)
    with pytest.raises(ValueError, match="register_attention"):
        partition(model, "head")
    assert len(partition(model, "row")) == len(partition(model, "tensor"))  # which need no heads


def test_unknown_attention_can_be_overridden_or_registered(monkeypatch):
    from dlopt.adam import attention_roles

    monkeypatch.setattr(attention_roles, "_known", dict(attention_roles._known))
    model = S.Model(S.CausalSelfAttention(6, 2))
    fused = Blocks(0, ((3, 2), (3, 2), (1, 6)))
    table = partition(model, override={"*.c_attn.weight": fused, "*.c_proj.weight": "row"})
    assert table["attention.c_attn.weight"].blocks == fused
    register_attention(
        "tests.adam.stand_ins.CausalSelfAttention", {"c_attn": "qkv", "c_proj": "output"}, head_dim="width"
    )
    with pytest.raises(ValueError, match="width should be the width of a head, but is None"):
        partition(model)
    model.attention.width = 4
    with pytest.raises(ValueError, match="18 outputs, which cannot be cut into heads of width 4 as qkv"):
        partition(model)
    model.attention.width = 3
    assert partition(model)["attention.c_attn.weight"].blocks == fused

    class Derived(S.CausalSelfAttention):
        pass

    derived = Derived(6, 2)
    derived.width = 3
    assert partition(derived)["c_attn.weight"].blocks == fused
    with pytest.raises(ValueError, match="'queries'; it must be one of query, key"):
        register_attention("a.B", {"q": "queries"})


def test_matrices_of_unknown_modules_are_named_in_a_warning():
    class Experts(nn.Module):
        def __init__(self):
            super().__init__()
            self.weights = nn.Parameter(torch.randn(3, 4, 5))

    with pytest.warns(UserWarning, match="weights of .*Experts"):
        table = partition(Experts())
    assert table["weights"].blocks.total == 1
    for how, total in [("tensor", 1), ("row", 3), ("element", 60), (Blocks(1, ((2, 2),)), 2), (("head", 3), 1)]:
        assert partition(Experts(), override={"w*": how})["weights"].blocks.total == total
    for how in ("heads", ("head", 0), 3):
        with pytest.raises(ValueError, match="weights cannot be cut by"):
            partition(Experts(), override={"weights": how})
    with pytest.raises(ValueError, match=r"\(3, 4, 5\) cannot be cut into 2 of 2 along axis 0"):
        partition(Experts(), override={"weights": Blocks(0, ((2, 2),))})
    with pytest.raises(ValueError, match="no parameter 'weight'"):
        partition(Experts(), override={"weight": "row"})


def test_tied_weights_are_one_tensor_and_must_agree():
    model = S.Model(nn.MultiheadAttention(6, 2), tie=True)
    table = partition(model)
    assert table["embed.weight"].role == "embedding"
    assert "unembed.weight" not in {row.name for row in table}
    odd = nn.Module()
    odd.a, odd.b = nn.Linear(4, 4, bias=False), nn.ConvTranspose1d(4, 4, 1, bias=False)
    odd.b.weight.data = odd.b.weight.data.squeeze(-1)
    odd.b.weight = odd.a.weight
    with pytest.raises(ValueError, match=r"a\.weight and b\.weight are one tensor"):
        partition(odd)
    assert partition(odd, override={"a.weight": "row"})["a.weight"].blocks.total == 4


def test_wrong_arguments_are_refused_with_value_and_range():
    model = nn.Linear(3, 2)
    for name, value, words in [
        ("lr", -0.1, "at least 0"),
        ("betas", (0.9, 1.0), r"two numbers in \[0, 1\)"),
        ("eps", -1e-9, "at least 0"),
        ("weight_decay", float("nan"), "at least 0"),
        ("partition", "rows", "paper, tensor, row, head, element"),
    ]:
        with pytest.raises(ValueError, match=f"{name}=.*must be.*{words}"):
            AdamMini(model.parameters(), model=model, **{name: value})
    with pytest.raises(ValueError, match="decay=some is out of range"):
        AdamMini([{"params": model.parameters(), "decay": "some"}], model=model)
    with pytest.raises(ValueError, match="pass model="):
        AdamMini(model.parameters())
    with pytest.raises(ValueError, match=r"tensor 0 of group 0, of shape \(2, 3\), is not a parameter of the model"):
        AdamMini(nn.Linear(3, 2).parameters(), model=model)
    with pytest.raises(ValueError, match="needs a scheme"):
        AdamMini(model.parameters(), partition=partition(model), override={"weight": "row"})
    assert len(AdamMini(model.parameters(), partition=partition(model)).partition()) == 2
