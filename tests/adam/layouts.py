"""Every layout of attention, with the block of each output written out by hand."""

import numpy as np
from torch import nn

from tests.adam import stand_ins as S


def heads(count, width):
    return [h for h in range(count) for _ in range(width)]


def rows(count):
    return list(range(count))


def chain(*parts):
    """Parts one after the other, with blocks of their own."""
    ids = []
    for part in parts:
        ids += [(max(ids) + 1 if ids else 0) + i for i in part]
    return ids


def block_of(outputs, shape, axis=0):
    """The block of each element of a tensor, from those of its outputs."""
    return np.broadcast_to(np.array(outputs).reshape([-1 if d == axis else 1 for d in range(len(shape))]), shape)


# dim is 6; with heads of width 5 neither dim / heads nor dim^2 / heads is the size of a head
CASES = {
    "grouped queries, wide heads": (
        lambda: S.Llama(6, heads=4, kv_heads=2, head_dim=5),
        {
            "q_proj.weight": (heads(4, 5), 0),
            "k_proj.weight": (heads(2, 5), 0),
            "v_proj.weight": (rows(10), 0),
            "o_proj.weight": (rows(6), 0),
        },
    ),
    "a registered subclass": (
        lambda: S.Qwen3(6, heads=2, kv_heads=1, head_dim=4),
        {"q_proj.weight": (heads(2, 4), 0), "k_proj.weight": (heads(1, 4), 0), "v_proj.weight": (rows(4), 0)},
    ),
    "fused, grouped": (
        lambda: S.Phi3(6, heads=4, kv_heads=1, head_dim=5),
        {"qkv_proj.weight": (chain(heads(4, 5), heads(1, 5), rows(5)), 0), "o_proj.weight": (rows(6), 0)},
    ),
    "fused, in x out": (
        lambda: S.GPT2(6, heads=2),
        {"c_attn.weight": (chain(heads(2, 3), heads(2, 3), rows(6)), 1), "c_proj.weight": (rows(6), 1)},
    ),
    "fused keys and values, in x out": (
        lambda: S.GPT2(6, heads=2, cross=True),
        {"c_attn.weight": (chain(heads(2, 3), rows(6)), 1), "q_attn.weight": (heads(2, 3), 1)},
    ),
    "torch": (
        lambda: nn.MultiheadAttention(6, 2),
        {"in_proj_weight": (chain(heads(2, 3), heads(2, 3), rows(6)), 0), "out_proj.weight": (rows(6), 0)},
    ),
    "torch, other widths of keys": (
        lambda: nn.MultiheadAttention(6, 2, kdim=4, vdim=5),
        {"q_proj_weight": (heads(2, 3), 0), "k_proj_weight": (heads(2, 3), 0), "v_proj_weight": (rows(6), 0)},
    ),
    "in a container": (
        lambda: S.Bert(6, 3),
        {"self.query.weight": (heads(3, 2), 0), "self.value.weight": (rows(6), 0), "output.0.weight": (rows(6), 0)},
    ),
}
AROUND = {
    "embed.weight": (rows(11), 0),
    "norm.weight": (heads(1, 6), 0),
    "up.weight": (rows(12), 0),
    "up.bias": (heads(1, 12), 0),
    "conv.weight": (rows(3), 0),
    "deconv.weight": (rows(4), 1),
    "unembed.weight": (rows(11), 0),
}
