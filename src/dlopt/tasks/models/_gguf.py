"""A Llama model from a GGUF file as plain files that `transformers` loads: safetensors, configuration, tokenizer.

It is written here, and not left to `transformers`, for two reasons. That loader (5.23) builds the tokenizer without
the rule that splits numbers into digits, which this file's `tokenizer.ggml.pre` asks for: text such as "\n\n1." then
becomes other tokens than those the model was trained on. And bytes that are the same on every machine can be pinned.

Quantized weights become float32 by the format's own formulas, in blocks of 32 along a row (Q8_0: d q, Q4_1: d q + m;
d, m in float16), so nothing is lost after the quantization. Rows of query and key projections lie in pairs
(2 i, 2 i + 1) in GGUF and in halves (i, i + size / 2) in `transformers`; they are put back.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from dlopt.tasks.data.files import DataUnavailable, require

LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
WHOLE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
# what comes before the byte-level split, by the name in `tokenizer.ggml.pre`; others are refused, not guessed
PRE_TOKENIZERS: dict[str, list[dict[str, Any]]] = {
    "gpt-2": [],
    "smollm": [{"type": "Digits", "individual_digits": True}],
}
CONTROL = 3  # the token type of <|im_start|> and the like

Progress = Callable[[str, int, int | None], None]


def convert(source: Path, folder: Path, progress: Progress | None = None) -> None:
    """Write what `transformers` needs into `folder`. `DataUnavailable` for another architecture or tokenizer."""
    reader = require("gguf", "reading a GGUF file", "llm").GGUFReader(source)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    if fields.get("general.architecture") != "llama" or fields.get("tokenizer.ggml.model") != "gpt2":
        raise DataUnavailable(
            f"{source.name} is a model of the kind {fields.get('general.architecture')!r} with a tokenizer of the kind "
            f"{fields.get('tokenizer.ggml.model')!r}; only 'llama' with 'gpt2' is converted here"
        )
    tensors = {_name(tensor.name): tensor for tensor in reader.tensors}
    _weights(tensors, fields, folder / "model.safetensors", progress)
    special = {role: fields[f"tokenizer.ggml.{key}_token_id"] for role, key in SPECIAL.items()}
    _write(folder / "config.json", _config(fields, special, tied="lm_head.weight" not in tensors))
    _write(folder / "generation_config.json", {f"{role}_token_id": special[role] for role in ("bos", "eos", "pad")})
    tokens = fields["tokenizer.ggml.tokens"]
    _write(folder / "tokenizer.json", _tokenizer(fields))
    settings = {f"{role}_token": tokens[number] for role, number in special.items()}
    settings |= {"model_max_length": fields["llama.context_length"], "tokenizer_class": "PreTrainedTokenizerFast"}
    _write(folder / "tokenizer_config.json", settings)
    if template := fields.get("tokenizer.chat_template"):
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")


SPECIAL = {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown"}


def _config(fields: dict[str, Any], special: dict[str, int], tied: bool) -> dict[str, Any]:
    """A `LlamaConfig`."""
    width, heads = fields["llama.embedding_length"], fields["llama.attention.head_count"]
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "float32",
        "vocab_size": len(fields["tokenizer.ggml.tokens"]),
        "hidden_size": width,
        "intermediate_size": fields["llama.feed_forward_length"],
        "num_hidden_layers": fields["llama.block_count"],
        "num_attention_heads": heads,
        "num_key_value_heads": fields["llama.attention.head_count_kv"],
        "head_dim": width // heads,
        "max_position_embeddings": fields["llama.context_length"],
        # stored in float32: the shortest decimal that means the same
        "rms_norm_eps": float(str(np.float32(fields["llama.attention.layer_norm_rms_epsilon"]))),
        "rope_parameters": {"rope_type": "default", "rope_theta": fields["llama.rope.freq_base"]},
        "tie_word_embeddings": tied,
        **{f"{role}_token_id": special[role] for role in ("bos", "eos", "pad")},
    }


def _tokenizer(fields: dict[str, Any]) -> dict[str, Any]:
    """The file of the `tokenizers` library: byte-level BPE."""
    named = fields.get("tokenizer.ggml.pre")
    if named not in PRE_TOKENIZERS:
        raise DataUnavailable(f"how the tokenizer {named!r} splits text is not known here")
    if fields.get("tokenizer.ggml.add_bos_token"):
        raise DataUnavailable("a tokenizer that puts a token before each text is not converted here")
    tokens, kinds = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    bytes_ = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    added = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": i, "content": token, **added} for i, token in enumerate(tokens) if kinds[i] == CONTROL],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*PRE_TOKENIZERS[named], bytes_]},
        "post_processor": None,
        "decoder": {**bytes_, "add_prefix_space": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": [merge.split(" ") for merge in fields["tokenizer.ggml.merges"]],
        },
    }


def _weights(tensors: dict[str, Any], fields: dict[str, Any], target: Path, progress: Progress | None) -> None:
    """Write all tensors as float32, one at a time: length of the header, the header as JSON, the bytes."""
    header, at = {"__metadata__": {"format": "pt"}}, 0
    shapes = {name: [int(size) for size in reversed(tensors[name].shape)] for name in sorted(tensors)}
    for name, shape in shapes.items():
        end = at + 4 * int(np.prod(shape))
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [at, end]}  # type: ignore[dict-item]
        at = end
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    dequantize = require("gguf", "reading a GGUF file", "llm").quants.dequantize
    heads = {"q_proj": fields["llama.attention.head_count"], "k_proj": fields["llama.attention.head_count_kv"]}
    with target.open("wb") as out:
        out.write(struct.pack("<Q", len(raw)) + raw)
        done = 0
        for name, shape in shapes.items():
            weight = np.asarray(dequantize(tensors[name].data, tensors[name].tensor_type), dtype="<f4").reshape(shape)
            if (projection := name.split(".")[-2]) in heads:
                weight = _halves(weight, heads[projection])
            done += out.write(np.ascontiguousarray(weight).tobytes())
            if progress:
                progress("converting to float32", done, at)


def _halves(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows (head, pair, 2) reordered to (head, 2, pair)."""
    rows, columns = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def _name(name: str) -> str:
    """The name in `transformers` of a tensor of the GGUF file."""
    parts = name.split(".")
    if parts[0] == "blk" and len(parts) == 4 and parts[2] in LAYER:
        return f"model.layers.{parts[1]}.{LAYER[parts[2]]}.{parts[3]}"
    if len(parts) == 2 and parts[0] in WHOLE:
        return f"{WHOLE[parts[0]]}.{parts[1]}"
    raise DataUnavailable(f"the tensor {name!r} has no place in a Llama model")


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8")
