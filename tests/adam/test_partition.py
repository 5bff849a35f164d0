"""Adam-mini's partition: the table, the ablations, and what it refuses to guess. The blocks of each layout of attention
are in test_adam_mini.py."""

from types import SimpleNamespace

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


class DeepAttention(nn.Module):
    """Its projections are two levels down, and nothing but its name gives it away."""

    def __init__(self):
        super().__init__()
        self.projections = nn.ModuleDict({name: nn.Linear(8, 8) for name in "qkv"})


class Fused(nn.Module):
    """One matrix, but heads into which it could be cut."""

    def __init__(self, **heads):
        super().__init__()
        self.__dict__.update(heads)
        self.qkv = nn.Linear(8, 24)


class FusedAttention(Fused):
    pass


class MHA(nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.k = nn.Linear(8, 8), nn.Linear(8, 8)


class MultiheadMixer(MHA):
    pass


class Gated(nn.Module):
    """Attention inside of attention: each answers for its own matrices."""

    def __init__(self, inner):
        super().__init__()
        self.num_heads, self.inner = 2, inner
        self.wq, self.wk = nn.Linear(8, 8), nn.Linear(8, 8)


@pytest.mark.parametrize(
    ("make", "word"),
    [(DeepAttention, "DeepAttention"), (lambda: Fused(num_heads=2), "Fused"), (lambda: Fused(heads=2), "Fused"),
     (lambda: FusedAttention(config=SimpleNamespace(num_attention_heads=4)), "FusedAttention"), (MHA, "MHA"),
     (MultiheadMixer, "MultiheadMixer"), (lambda: Gated(nn.MultiheadAttention(8, 2)), "Gated"),
     (lambda: Gated(Fused(heads=2)), r"Gated; 0.inner is a tests\.adam\.test_partition\.Fused")],
)  # fmt: skip
def test_every_shape_of_unknown_attention_is_reported(make, word):
    model = nn.Sequential(make())
    with pytest.raises(ValueError, match=rf"unknown class: 0 is a tests\.adam\.test_partition\.{word}\. Say"):
        partition(model)
    linear = {n: "row" for n, p in model.named_parameters() if p.dim() == 2 and "in_proj" not in n}
    assert partition(model, override=linear)  # which settles it


def test_what_is_no_attention_is_not_reported():
    class Block(nn.Module):
        """A layer around known attention that knows the number of heads."""

        def __init__(self):
            super().__init__()
            self.num_heads, self.attention = 2, nn.MultiheadAttention(8, 2)
            self.mlp = nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 8))

    class Net(nn.Module):
        """`heads` is a list of layers."""

        def __init__(self):
            super().__init__()
            self.body, self.heads = nn.Linear(8, 8), nn.ModuleList([nn.Linear(8, 3), nn.Linear(8, 2)])

    class Bias(nn.Module):
        def __init__(self):
            super().__init__()
            self.num_heads, self.table = 2, nn.Embedding(9, 2)

    class PoolingAttention(nn.Module):
        def __init__(self):
            super().__init__()
            self.score = nn.Linear(8, 1)

    table = partition(nn.ModuleList([Block(), Net(), Bias(), PoolingAttention(), Fused(num_heads=1)]))
    assert table["0.mlp.0.weight"].blocks.total == 16
    assert table["0.attention.in_proj_weight"].blocks == Blocks(0, ((4, 2), (4, 2), (1, 8)))


def test_subclasses_of_known_attention_with_other_projections_are_reported():
    fused = S.Llama(6, heads=4, kv_heads=2, head_dim=5)
    del fused.q_proj, fused.k_proj, fused.v_proj
    fused.qkv_proj = nn.Linear(6, 40, bias=False)
    more = S.Llama(6, heads=4, kv_heads=2, head_dim=5)
    more.gates = nn.ModuleList([nn.Linear(6, 20, bias=False)])
    bare = S.Llama(6, heads=4, kv_heads=2, head_dim=5)
    del bare.q_proj, bare.k_proj, bare.v_proj
    bare.qkv = nn.Parameter(torch.ones(8, 6, 5))
    for attention, path in [(fused, "qkv_proj.weight"), (more, "gates.0.weight"), (bare, "qkv")]:
        model = S.Model(attention)
        with pytest.raises(ValueError, match=f"attention is a .*LlamaAttention, whose roles leave out {path}. Say"):
            partition(model)
        table = partition(model, override={f"attention.{path}": "row"})
        assert table["attention.o_proj.weight"].role == "output"


def test_tables_of_positions_and_adapters_in_known_attention_are_not_reported():
    from dlopt.transformer.attention import Attention

    with pytest.warns(UserWarning, match="shaw.keys of Shaw, shaw.values of Shaw"):
        table = partition(Attention(width=12, heads=6, shaw_clip=3))
    assert table["shaw.keys"].blocks.total == 1
    attention = S.Llama(6, heads=4, kv_heads=2, head_dim=5)
    attention.q_proj.adapter, attention.distances = nn.Linear(6, 2), nn.Embedding(9, 5)
    table = partition(attention)
    assert table["q_proj.adapter.weight"].role == "matrix"
    assert table["q_proj.weight"].blocks.total == 4
    assert table["distances.weight"].role == "embedding"


# sizes that fit all architectures: 32 wide, heads of width 8
SIZES = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "vocab_size": 64, "pad_token_id": 0}
SIZES |= {"intermediate_size": 48, "bos_token_id": 1, "eos_token_id": 2}
GROUPED = {**SIZES, "num_key_value_heads": 2}
FUSED = ((8, 4), (8, 2), (1, 16))
ARCHITECTURES = [
    ("Llama", GROUPED, {"self_attn.q_proj": ((8, 4),), "self_attn.k_proj": ((8, 2),), "self_attn.v_proj": ((1, 16),)}),
    ("Qwen2", GROUPED, {"self_attn.q_proj": ((8, 4),), "self_attn.k_proj": ((8, 2),), "self_attn.o_proj": ((1, 32),)}),
    ("Phi3", GROUPED, {"self_attn.qkv_proj": FUSED, "self_attn.o_proj": ((1, 32),)}),
    ("GPTNeoX", SIZES, {"attention.query_key_value": ((8, 1), (8, 1), (1, 8)), "attention.dense": ((1, 32),)}),
    ("GPT2", SIZES, {"attn.c_attn": ((8, 4), (8, 4), (1, 32)), "attn.c_proj": ((1, 32),), "mlp.c_fc": ((1, 128),)}),
    ("Bert", SIZES, {"attention.self.query": ((8, 4),), "attention.self.value": ((1, 32),),
                     "attention.output.dense": ((1, 32),)}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "sizes", "expected"), ARCHITECTURES, ids=[case[0] for case in ARCHITECTURES])
def test_models_of_transformers(name, sizes, expected):
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, f"{name}Config")(**sizes)
    with torch.device("meta"):
        model = getattr(transformers, f"{name}Model")(config)
    table = {row.name: row.blocks.runs for row in partition(model)}
    for path, runs in expected.items():
        assert [r for n, r in table.items() if n.endswith(f".0.{path}.weight")] == [runs]


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


def test_bias_is_a_role_of_vectors_and_of_known_layers_only():
    class Table(nn.Module):
        def __init__(self):
            super().__init__()
            self.relative_position_bias_table = nn.Parameter(torch.ones(4, 3))
            self.my_bias = nn.Parameter(torch.ones(3))

    model = nn.ModuleList([Table(), nn.LayerNorm((2, 3)), nn.MultiheadAttention(6, 2, add_bias_kv=True), nn.LSTM(2, 3)])
    with pytest.warns(UserWarning, match="modules are unknown: 0.relative_position_bias_table of .*Table. Settle"):
        table = partition(model)
    names = ["0.relative_position_bias_table", "0.my_bias", "1.bias", "2.bias_k", "2.in_proj_bias", "3.bias_hh_l0"]
    assert [table[name].role for name in names] == ["other", *5 * ["bias"]]
    settled = partition(model, override={"0.relative*": "row"})
    assert settled["0.relative_position_bias_table"].blocks.total == 4


def test_tied_weights_are_one_tensor_and_must_agree():
    model = S.Model(nn.MultiheadAttention(6, 2), tie=True)
    table = partition(model)
    assert table["embed.weight"].role == "embedding"
    assert "unembed.weight" not in {row.name for row in table}
    for name in ("embed.weight", "unembed.weight"):  # by any of its names
        assert partition(model, override={name: "tensor"})["embed.weight"].blocks.total == 1
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
