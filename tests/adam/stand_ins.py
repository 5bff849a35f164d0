"""Attention with the attribute names and weight layouts of known classes, under their qualified names."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import nn

HF = "transformers.models."


def named(qualified: str):
    """A class decorator: the class claims to be `qualified`."""

    def rename(cls):
        cls.__module__, _, cls.__qualname__ = qualified.rpartition(".")
        cls.__name__ = cls.__qualname__
        return cls

    return rename


@named("transformers.pytorch_utils.Conv1D")
class Conv1D(nn.Module):
    """x @ weight + bias: stored in x out."""

    def __init__(self, outputs, inputs):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(inputs, outputs) * 0.1), nn.Parameter(torch.zeros(outputs))


@named(HF + "llama.modeling_llama.LlamaAttention")
class Llama(nn.Module):
    def __init__(self, dim, heads, kv_heads, head_dim):
        super().__init__()
        self.head_dim = head_dim
        self.q_proj = nn.Linear(dim, heads * head_dim, bias=False)
        self.k_proj = nn.Linear(dim, kv_heads * head_dim, bias=False)
        self.v_proj = nn.Linear(dim, kv_heads * head_dim, bias=False)
        self.o_proj = nn.Linear(heads * head_dim, dim, bias=False)


@named(HF + "qwen3.modeling_qwen3.Qwen3Attention")
class Qwen3(Llama):
    """A subclass of its own; here it could do without, since Llama is known."""


@named(HF + "llama.modeling_llama.LlamaRMSNorm")
class Norm(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))


@named(HF + "phi3.modeling_phi3.Phi3Attention")
class Phi3(nn.Module):
    def __init__(self, dim, heads, kv_heads, head_dim):
        super().__init__()
        self.head_dim, self.config = head_dim, SimpleNamespace(num_key_value_heads=kv_heads)
        self.qkv_proj = nn.Linear(dim, (heads + 2 * kv_heads) * head_dim, bias=False)
        self.o_proj = nn.Linear(heads * head_dim, dim, bias=False)


@named(HF + "gpt2.modeling_gpt2.GPT2Attention")
class GPT2(nn.Module):
    def __init__(self, dim, heads, cross=False):
        super().__init__()
        self.num_heads, self.head_dim, self.is_cross_attention = heads, dim // heads, cross
        self.c_attn = Conv1D((2 if cross else 3) * dim, dim)
        if cross:
            self.q_attn = Conv1D(dim, dim)
        self.c_proj = Conv1D(dim, dim)


@named(HF + "gpt_neox.modeling_gpt_neox.GPTNeoXAttention")
class NeoX(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.head_size = dim // heads
        self.query_key_value, self.dense = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)


@named(HF + "bert.modeling_bert.BertSelfAttention")
class BertSelf(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.num_attention_heads, self.attention_head_size = heads, dim // heads
        self.query, self.key, self.value = nn.Linear(dim, dim), nn.Linear(dim, dim), nn.Linear(dim, dim)


@named(HF + "bert.modeling_bert.BertAttention")
class Bert(nn.Module):
    """A container, which holds no projection of its own, is no attention of unknown class."""

    def __init__(self, dim, heads):
        super().__init__()
        self.self, self.output = BertSelf(dim, heads), nn.Sequential(nn.Linear(dim, dim))


class CausalSelfAttention(nn.Module):
    """As in nanoGPT: nobody registered it."""

    def __init__(self, dim, heads):
        super().__init__()
        self.n_head = heads
        self.c_attn, self.c_proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)


class Mixer(nn.Module):
    """Attention that only its head count gives away."""

    def __init__(self, dim, heads):
        super().__init__()
        self.n_heads = heads
        self.wq, self.wk = nn.Linear(dim, dim), nn.Linear(dim, dim)


class Model(nn.Module):
    """Embedding, a norm, any attention, an MLP, a convolution and a head."""

    def __init__(self, attention, dim=6, vocabulary=11, tie=False):
        super().__init__()
        self.embed, self.norm, self.attention = nn.Embedding(vocabulary, dim), Norm(dim), attention
        self.up, self.down = nn.Linear(dim, 2 * dim), nn.Linear(2 * dim, dim)
        self.conv, self.deconv = nn.Conv2d(2, 3, 2), nn.ConvTranspose2d(2, 4, 3)
        self.unembed = nn.Linear(dim, vocabulary, bias=False)
        if tie:
            self.unembed.weight = self.embed.weight
