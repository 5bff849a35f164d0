"""The common matrix: what every cache of the catalogue must do, for the families of models it must serve."""

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import DynamicCache

from dlopt.catalog import methods
from dlopt.kvcache import kv_bytes, make_cache, prefill
from tests.kvcache.models import FAMILIES, build, feed, padded, tokens
from tests.kvcache.options import IDENTITY, MORE, OPTIONS, for_family, serving

# llama's norms and rotary angles are float32 even in a float64 model, and float32 rounds another way in another
# batch; a lost, turned or padded key changes logits by 1e-2 and more
CLOSE = {"rtol": 1e-5, "atol": 1e-5}
CACHES = list(methods(kind="cache"))
SPECS = [spec for name in CACHES for spec in (OPTIONS.get(name, name), *MORE.get(name, []))]


def name_of(spec):
    return spec.partition(":")[0]


def fed(spec, family, ids, pieces, attention="sdpa", mask=None):
    """(logits, cache) of one run."""
    # eager masks with the lowest number of the model's precision and takes the softmax in float32, where float64's is
    # -inf: a pad would see nothing and become NaN. So eager runs in float32
    model = build(family, attention, torch.float32 if attention == "eager" else torch.float64)
    cache = make_cache(for_family(spec, family), model, mask)
    with serving(name_of(spec), model):
        whole = torch.nn.functional.pad(mask, (0, ids.shape[1] - mask.shape[1]), value=1) if mask is not None else None
        return feed(model, cache, ids, pieces, whole), cache


def same_state(a, b):
    for left, right in zip(a.state_dict()["layers"], b.state_dict()["layers"], strict=True):
        assert left["seen"] == right["seen"]
        assert left["tensors"].keys() == right["tensors"].keys()
        for key, tensor in left["tensors"].items():
            torch.testing.assert_close(tensor, right["tensors"][key], **CLOSE)


def test_every_cache_has_options_for_this_matrix():
    assert set(CACHES) >= {"full", "window", "sinks", "quant"}
    assert set(CACHES) == set(OPTIONS) == set(IDENTITY)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", CACHES)
def test_what_compresses_nothing_equals_the_full_cache_to_the_bit(name, family):
    ids, pieces = tokens(2, 24), [15, 1, 1, 4, 1, 2]
    found, cache = fed(IDENTITY[name], family, ids, pieces)
    expected = feed(build(family), DynamicCache(config=build(family).config), ids, pieces)
    assert torch.equal(found, expected)
    assert cache.get_seq_length() == 24


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("spec", SPECS)
def test_a_padded_batch_equals_its_rows_alone(spec, attention):
    lengths, more = [3, 12, 8], 9
    ids, mask = padded(lengths)
    new = tokens(3, more, seed=5)
    pieces = [12, 1, 1, 1, 2, 3, 1]
    found, _ = fed(spec, "llama-gqa", torch.cat([ids, new], 1), pieces, attention, mask)
    for row, length in enumerate(lengths):
        alone = torch.cat([ids[row : row + 1, 12 - length :], new[row : row + 1]], 1)
        expected, _ = fed(spec, "llama-gqa", alone, [length, *pieces[1:]], attention)
        close = CLOSE if attention == "sdpa" else {"rtol": 1e-3, "atol": 1e-3}
        torch.testing.assert_close(found[row : row + 1, 12 - length :], expected, **close)


@pytest.mark.parametrize("family", ["llama-gqa", "qwen3", "gpt-neox", "gpt2"])
@pytest.mark.parametrize("name", CACHES)
def test_generate_with_padding_equals_rows_alone(name, family):
    lengths = [4, 11]
    ids, mask = padded(lengths)
    model = build(family)
    spec = for_family(OPTIONS[name], family)
    with serving(name, model):
        cache = make_cache(spec, model, mask)
        found = model.generate(ids, attention_mask=mask, past_key_values=cache, max_new_tokens=8, do_sample=False)
        for row, length in enumerate(lengths):
            alone = model.generate(
                ids[row : row + 1, 11 - length :],
                past_key_values=make_cache(spec, model),
                max_new_tokens=8,
                do_sample=False,
            )
            assert found[row, 11:].tolist() == alone[0, length:].tolist()


@pytest.mark.parametrize("name", CACHES)
def test_beams_and_returned_sequences(name):
    model, (ids, mask) = build("llama-gqa"), padded([4, 9])
    ask = {"attention_mask": mask, "max_new_tokens": 6}
    with serving(name, model):
        beams = [
            model.generate(ids, past_key_values=cache, num_beams=3, do_sample=False, **ask)
            for cache in (make_cache(IDENTITY[name], model, mask), DynamicCache(config=model.config))
        ]
        assert torch.equal(*beams)
        # the likeliest token alone: all sequences of a prompt are its greedy one, whatever the cache loses
        several = model.generate(
            ids,
            past_key_values=make_cache(OPTIONS[name], model, mask),
            num_return_sequences=2,
            do_sample=True,
            top_k=1,
            **ask,
        )
        greedy = model.generate(ids, past_key_values=make_cache(OPTIONS[name], model, mask), do_sample=False, **ask)
        assert torch.equal(several, greedy.repeat_interleave(2, 0))


@pytest.mark.parametrize("name", CACHES)
def test_assisted_decoding_and_several_turns(name):
    model = build("llama-gqa")
    ids = tokens(1, 5).repeat(1, 3)  # copies, so that the lookup of prompt tokens proposes something
    plain = model.generate(ids, max_new_tokens=12, do_sample=False)
    with serving(name, model):
        cache = make_cache(IDENTITY[name], model)
        ask = {"prompt_lookup_num_tokens": 3, "do_sample": False}
        assert torch.equal(model.generate(ids, past_key_values=cache, max_new_tokens=12, **ask), plain)
        assert cache.layers[0].record_past
        lossy = make_cache(OPTIONS[name], model)
        assert model.generate(ids, past_key_values=lossy, max_new_tokens=12, **ask).shape == plain.shape
        # a second turn on the same cache reads only what is new
        whole, parts = make_cache(OPTIONS[name], model), make_cache(OPTIONS[name], model)
        once = model.generate(ids, past_key_values=whole, max_new_tokens=12, do_sample=False)
        first = model.generate(ids, past_key_values=parts, max_new_tokens=7, do_sample=False)
        assert torch.equal(model.generate(first, past_key_values=parts, max_new_tokens=5, do_sample=False), once)
        same_state(whole, parts)


@pytest.mark.parametrize("spec", SPECS)
def test_rows_can_be_reordered_repeated_and_selected(spec):
    ids, mask = padded([5, 12, 9])
    model = build("llama-gqa")
    for change, rows in [
        (lambda c: c.reorder_cache(torch.tensor([2, 0, 0])), [2, 0, 0]),
        (lambda c: c.batch_repeat_interleave(2), [0, 0, 1, 1, 2, 2]),
        (lambda c: c.batch_select_indices(torch.tensor([1])), [1]),
    ]:
        _, cache = fed(spec, "llama-gqa", ids, [12], mask=mask)
        change(cache)
        new = tokens(3, 3)[rows]
        whole = torch.nn.functional.pad(mask[rows], (0, 3), value=1)
        with serving(name_of(spec), model):
            found = feed(model, cache, new, [1, 1, 1], whole)
        expected, _ = fed(spec, "llama-gqa", torch.cat([ids, tokens(3, 3)], 1), [12, 1, 1, 1], mask=mask)
        torch.testing.assert_close(found, expected[rows, 12:], **CLOSE)
        assert cache.layers[0].batch == len(rows)


CONTINUE = """
import sys, torch
from tests.kvcache.models import build, feed, tokens
from tests.kvcache.options import serving
from dlopt.kvcache import make_cache
torch.set_num_threads(1)
for spec, (state, expected) in torch.load(sys.argv[1], weights_only=True).items():
    model = build("llama-gqa")
    cache = make_cache(spec, model)
    cache.load_state_dict(state)
    assert cache.state_dict()["layers"][0]["seen"] == 14
    with serving(spec.partition(":")[0], model):
        if not torch.equal(feed(model, cache, tokens(2, 7, seed=9), [1, 1, 3, 1, 1]), expected):
            print("differs:", spec)
print("done")
"""


def test_a_saved_cache_continues_to_the_bit_in_a_new_process(tmp_path):
    saved = {}
    model = build("llama-gqa")
    for spec in SPECS:
        _, cache = fed(spec, "llama-gqa", tokens(2, 14), [12, 1, 1])
        state = cache.state_dict()
        with serving(name_of(spec), model):
            saved[spec] = (state, feed(model, cache, tokens(2, 7, seed=9), [1, 1, 3, 1, 1]))
        assert state["layers"][0]["seen"] == 14  # what was saved does not change with the cache
    torch.save(saved, tmp_path / "caches.pt")
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", CONTINUE, tmp_path / "caches.pt"],
        cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (ran.returncode, ran.stdout) == (0, "done\n"), ran.stderr + ran.stdout


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("spec", SPECS)
def test_bytes_equal_the_formula(spec, dtype):
    model = build("llama-gqa", dtype=dtype)
    ids = tokens(3, 21)
    for prompt, steps in [(3, 0), (13, 0), (13, 8)]:
        cache = make_cache(spec, model)
        with serving(name_of(spec), model):
            feed(model, cache, ids[:, : prompt + steps], [prompt, *[1] * steps])
        count = cache.nbytes()
        formula = kv_bytes(model.config, spec, prompt + steps, batch=3, dtype=dtype, generated=steps)
        kinds = {kind: number for kind, number in count.as_dict().items() if kind != "transient"}
        assert kinds == formula.as_dict()
        assert count.total == formula.total > 0


@pytest.mark.parametrize("spec", SPECS)
def test_rejected_tokens_leave_no_trace(spec):
    model, ids = build("llama-gqa"), tokens(2, 17)
    caches = []
    for drafted in (4, 2):
        _, cache = fed(spec, "llama-gqa", ids[:, :10], [9, 1])
        cache.activate_past_recording()
        assert cache.is_croppable
        with serving(name_of(spec), model):
            feed(model, cache, ids[:, 10 : 10 + drafted], [drafted])
            cache.crop(-(drafted - 2))
            feed(model, cache, ids[:, 14:15], [1])
            cache.crop(0)
        caches.append(cache)
    same_state(*caches)


@pytest.mark.parametrize("spec", SPECS)
def test_a_cache_that_says_it_is_croppable_is(spec):
    model, ids = build("llama-gqa"), tokens(2, 12)
    for length in (3, 11):
        caches = [fed(spec, "llama-gqa", ids[:, :length], [length])[1] for _ in range(2)]
        with serving(name_of(spec), model):
            feed(model, caches[0], ids[:, length : length + 1], [1])
        if caches[0].is_croppable:
            caches[0].crop(-1)
            same_state(*caches)
        else:
            with pytest.raises(ValueError, match=r"cannot take back 1 tokens.*activate_past_recording"):
                caches[0].crop(-1)


@pytest.mark.parametrize("spec", SPECS)
def test_reset_forgets_everything(spec):
    ids, mask = padded([5, 12])
    model = build("llama-gqa")
    first, cache = fed(spec, "llama-gqa", ids, [12], mask=mask)
    cache.reset()
    assert (cache.nbytes().total, cache.nbytes().transient, cache.get_seq_length()) == (0, 0, 0)
    with serving(name_of(spec), model):
        assert torch.equal(feed(model, cache, ids, [12], mask), first)
        cache.reset(torch.ones(2, 4))
        assert cache.layers[1].pads is None
    cache.activate_past_recording()
    cache.reset()  # after assisted decoding it evicts again
    assert not any(layer.record_past for layer in cache.layers)


@pytest.mark.parametrize("name", CACHES)
def test_reading_in_pieces(name):
    model, (ids, mask) = build("llama-gqa"), padded([5, 30])
    with serving(name, model):
        whole, chunked = make_cache(IDENTITY[name], model, mask), make_cache(IDENTITY[name], model, mask)
        expected = prefill(model, ids, whole, attention_mask=mask).logits
        found = prefill(model, ids, chunked, chunk=7, attention_mask=mask).logits
        assert found.shape == (2, 1, 23)
        torch.testing.assert_close(found, expected, **CLOSE)
        # generate's own pieces, on a cache that loses something: the same as this helper's
        pieces = OPTIONS[name] + (",evict=blocks" if name in ("snapkv", "pyramid") else "")
        lossy = [make_cache(pieces, model) for _ in range(2)]
        prefill(model, ids[1:, :-1], lossy[0], chunk=8)
        model.generate(ids[1:], past_key_values=lossy[1], max_new_tokens=1, prefill_chunk_size=8)
        assert lossy[0].get_seq_length() == 29
        assert lossy[1].get_seq_length() == 30
    if pieces != OPTIONS[name]:
        with pytest.raises(ValueError, match=r"cuts what comes first and keeps the rest whole.*evict=\"blocks\""):
            prefill(model, ids[1:], make_cache(OPTIONS[name], model), chunk=8)


@pytest.mark.parametrize("name", CACHES)
def test_nothing_is_left_on_the_model(name):
    model = build("llama-gqa")

    def look():
        hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]
        own = [sorted(vars(m)) for m in model.modules()]
        return hooks, own, model.config._attn_implementation, sorted(vars(model.config))

    before = look()
    fed(OPTIONS[name], "llama-gqa", tokens(1, 12), [8, 1, 3])
    assert look() == before


@pytest.mark.parametrize("name", CACHES)
def test_caches_of_other_models_are_refused(name):
    cache = make_cache(OPTIONS[name], build("llama-gqa"))
    sentence = r"is for a model with 2 layers of 2 key-value heads of size 8.*brought 4 heads"
    with serving(name, build("llama")), pytest.raises(ValueError, match=sentence):
        feed(build("llama"), cache, tokens(1, 3), [3])
    other = make_cache(OPTIONS[name], build("llama"))
    with pytest.raises(ValueError, match=r"saved cache has shape '2 layers of 4 .* this one has '2 layers of 2 "):
        cache.load_state_dict(other.state_dict())
    with pytest.raises(ValueError, match="saved cache has method"):
        cache.load_state_dict({**cache.state_dict(), "method": "another"})
    with pytest.raises(ValueError, match=r"saved cache has rope 'rope_theta=.*, this one has 'factor=4\.0"):
        make_cache(OPTIONS[name], build("llama-yarn")).load_state_dict(cache.state_dict())


@pytest.mark.parametrize("name", CACHES)
def test_a_state_that_is_not_whole_is_refused(name):
    model = build("llama-gqa")
    _, cache = fed(OPTIONS[name], "llama-gqa", tokens(1, 12), [12])
    fresh, state = make_cache(OPTIONS[name], model), cache.state_dict()
    with pytest.raises(ValueError, match="must have a list of 2 layers"):
        fresh.load_state_dict({k: v for k, v in state.items() if k != "layers"})
    with pytest.raises(ValueError, match="must have a list of 2 layers"):
        fresh.load_state_dict({**state, "layers": state["layers"][:1]})
    broken = copy.deepcopy(state)
    kept = broken["layers"][1]["tensors"]
    some = next(iter(kept))
    kept[some] = kept[some][:, :1]
    with pytest.raises(ValueError, match=rf"{some} of layer 1 of the saved cache has shape .* not 1 rows of"):
        fresh.load_state_dict(broken)
    assert fresh.get_seq_length() == 0


@pytest.mark.parametrize("name", CACHES)
def test_a_model_of_fewer_layers_is_noticed(name):
    deep = build("llama-gqa")
    config = copy.deepcopy(deep.config)
    config.num_hidden_layers, config.layer_types = 3, ["full_attention"] * 3
    cache = make_cache(OPTIONS[name], config)
    with serving(name, deep):
        feed(deep, cache, tokens(1, 4), [4])
        with pytest.raises(ValueError, match="the last pass reached 2 of its layers: the model is another one"):
            feed(deep, cache, tokens(1, 1), [1])


@pytest.mark.parametrize("spec", SPECS)
def test_what_a_cache_tells(spec):
    _, cache = fed(spec, "llama-gqa", tokens(1, 12), [12])
    assert cache.describe().startswith(f"{name_of(spec)}(")
    assert "2 layers of 2 key-value heads of size 8: 12 tokens seen" in cache.describe()
    assert repr(cache) == cache.describe()
    if name_of(spec) != "full":
        assert cache.nbytes().transient > 0
