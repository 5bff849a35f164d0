"""Tiny causal language models and tokenizers, made on the spot."""

import json
import zipfile

import numpy as np
import torch

LAYERS, WIDTH, HEADS, KV_HEADS, HIDDEN = 2, 64, 4, 2, 96


def llama(vocabulary, seed=0, attention="sdpa"):
    """A random Llama of `transformers` with grouped queries."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=WIDTH, intermediate_size=HIDDEN, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS, num_key_value_heads=KV_HEADS, max_position_embeddings=512,
        attn_implementation=attention, initializer_range=0.2,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config).eval()


def letters():
    """The 256 characters that stand for bytes in byte-level BPE."""
    from tokenizers.pre_tokenizers import ByteLevel

    return sorted(ByteLevel.alphabet())


def byte_tokenizer():
    """A byte-level tokenizer without merges: a token is a byte; <s> and </s> are 256 and 257."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate([*letters(), "<s>", "</s>"])}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>")


def gpt2_tokenizer(folder):
    from transformers import GPT2Tokenizer

    place = folder / "tokenizers" / "gpt2"
    return GPT2Tokenizer(vocab=str(place / "vocab.json"), merges=str(place / "merges.txt"))


def gguf(path, tied=True, pre="smollm", architecture="llama", seed=0):
    """Write a small quantized Llama; {name in `transformers`: weight as it must come out}."""
    import gguf as library

    random, kinds = np.random.default_rng(seed), library.GGMLQuantizationType
    writer = library.GGUFWriter(path, architecture)
    writer.add_block_count(LAYERS)
    writer.add_context_length(128)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(HIDDEN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_freq_base(5000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    characters = letters()
    tokens = ["<|end|>", "<|start|>", *characters, "ĊĊ", "ĠĠ"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3] + [1] * (len(tokens) - 2))
    writer.add_token_merges(["Ċ Ċ", "Ġ Ġ"])
    for role, number in (("bos", 1), ("eos", 0), ("pad", 0), ("unk", 0)):
        getattr(writer, f"add_{role}_token_id")(number)
    writer.add_chat_template("{% for m in messages %}{{ '<|start|>' + m['content'] }}{% endfor %}")
    expected = {}

    def put(name, shape, kind, theirs, rows=None):
        weight = random.normal(size=shape).astype(np.float32)
        raw = library.quants.quantize(weight, kind)
        writer.add_tensor(name, raw, raw_dtype=kind)
        found = library.quants.dequantize(raw, kind)
        expected[theirs] = found if rows is None else found[rows]

    def halves(heads):
        """Row numbers of the file in the order of `transformers`: the even ones of a head, then its odd ones."""
        size = WIDTH // HEADS
        return [h * size + i for h in range(heads) for i in (*range(0, size, 2), *range(1, size, 2))]

    kv, small = KV_HEADS * WIDTH // HEADS, kinds.Q4_1
    put("token_embd.weight", (len(tokens), WIDTH), kinds.Q8_0, "model.embed_tokens.weight")
    put("output_norm.weight", (WIDTH,), kinds.F32, "model.norm.weight")
    if not tied:
        put("output.weight", (len(tokens), WIDTH), kinds.Q8_0, "lm_head.weight")
    for i in range(LAYERS):
        a, b = f"blk.{i}.", f"model.layers.{i}."
        put(a + "attn_norm.weight", (WIDTH,), kinds.F32, b + "input_layernorm.weight")
        put(a + "ffn_norm.weight", (WIDTH,), kinds.F32, b + "post_attention_layernorm.weight")
        put(a + "attn_q.weight", (WIDTH, WIDTH), small, b + "self_attn.q_proj.weight", halves(HEADS))
        put(a + "attn_k.weight", (kv, WIDTH), small, b + "self_attn.k_proj.weight", halves(KV_HEADS))
        put(a + "attn_v.weight", (kv, WIDTH), small, b + "self_attn.v_proj.weight")
        put(a + "attn_output.weight", (WIDTH, WIDTH), small, b + "self_attn.o_proj.weight")
        put(a + "ffn_gate.weight", (HIDDEN, WIDTH), small, b + "mlp.gate_proj.weight")
        put(a + "ffn_up.weight", (HIDDEN, WIDTH), small, b + "mlp.up_proj.weight")
        put(a + "ffn_down.weight", (WIDTH, HIDDEN), small, b + "mlp.down_proj.weight")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return expected


def wheel(path, member, content):
    """A wheel that pip accepts, with one file in it."""
    name, version = path.name.split("-")[:2]
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(member, content)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")


def header(path):
    """What a safetensors file says of itself."""
    raw = path.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    return json.loads(raw[8 : 8 + size]), len(raw) - 8 - size
