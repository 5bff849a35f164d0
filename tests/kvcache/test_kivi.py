"""KIVI: the schedule after every number of tokens, a twin of the codes, pads, drafts, bytes."""

import numpy as np
import pytest
import torch
from transformers import LlamaConfig

from dlopt.kvcache import FullCache, KIVICache, kv_bytes
from dlopt.kvcache.kivi import steps_until_flush
from tests.kvcache.models import GQA, build, feed, padded, tokens

R, G = 8, 4
CONFIG = LlamaConfig(**{**GQA, "num_hidden_layers": 1})
GENERATOR = torch.Generator().manual_seed(2)
KEYS, VALUES = (torch.randn(2, 2, 3 * R + 1, 8, generator=GENERATOR, dtype=torch.float64) for _ in range(2))
AXES = [("channel", "token"), ("token", "channel"), ("channel", "channel"), ("token", "token")]


def put(cache, start, end, rows=slice(None)):
    return cache.update(KEYS[rows, :, start:end], VALUES[rows, :, start:end], 0)


def group_twin(x, bits):
    """The numbers a group comes back as; x is a list. The stored zero and scale are float16, rounded outwards."""
    top, half = 2**bits - 1, np.float16
    low = half(min(x))
    low = float(np.nextafter(low, half(-np.inf)) if float(low) > min(x) else low)
    wanted = (max(x) - low) * (1 - 2**-13) / top
    step = half(wanted)
    step = float(np.nextafter(step, half(np.inf)) if float(step) < wanted else step)
    return [low + step * min(top, round((number - low) / step)) for number in x]


def coded_twin(x, axis, bits):
    """(B, H, n, D) coded tokens by loops: a group is G tokens of one channel, or G channels of one token."""
    found = x.clone()
    for row in found.flatten(0, 1):
        lines = row.T if axis == "channel" else row
        for line in lines:
            for first in range(0, len(line), G):
                line[first : first + G] = torch.tensor(group_twin(line[first : first + G].tolist(), bits)).to(line)
    return found


def whole_blocks(count):
    return count // R * R


def schedule(axis, count):
    return whole_blocks(count) if axis == "channel" else max(0, count - R)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("axes", AXES[:2])
def test_layout_and_numbers_after_every_count_of_tokens(axes, bits):
    made = {"bits": bits, "group": G, "residual": R, "key_axis": axes[0], "value_axis": axes[1]}
    stepped = KIVICache(CONFIG, **made)
    for count in range(1, 3 * R + 1):
        at_once = KIVICache(CONFIG, **made)
        put(at_once, 0, count)
        put(stepped, count - 1, count)
        for cache in (at_once, stepped):
            store = cache.layers[0].store
            assert store.length == count
            for side, axis in zip((store.keys, store.values), axes, strict=True):
                coded = schedule(axis, count)
                assert (0 if side.codes is None else side.codes.shape[2]) == coded
                assert (0 if side.rest is None else side.rest.shape[2]) == count - coded
                if coded:
                    assert side.codes.shape == (2, 2, coded, bits)  # 8 numbers of `bits` bits
                    shape = (2, 2, coded // G, 8) if axis == "channel" else (2, 2, coded, 8 // G)
                    assert side.scales.shape == side.zeros.shape == shape
        both = (cache.layers[0].state_dict()["tensors"] for cache in (at_once, stepped))
        for one, other in zip(*(state.items() for state in both), strict=True):
            assert one[0] == other[0]
            assert torch.equal(one[1], other[1])
        if count in (R - 1, 2 * R, 2 * R + 3):
            found = put(at_once, count, count + 1)
            for x, whole, axis in zip(found, (KEYS, VALUES), axes, strict=True):
                coded = schedule(axis, count)
                twin = coded_twin(whole[:, :, :coded], axis, bits)
                torch.testing.assert_close(x[:, :, :coded], twin, rtol=1e-9, atol=1e-9)
                assert torch.equal(x[:, :, coded:], whole[:, :, coded : count + 1])


def test_values_flushed_by_block():
    cache = KIVICache(CONFIG, group=G, residual=R, flush="block")
    for count in range(1, 3 * R + 1):
        put(cache, count - 1, count)
        coded = cache.layers[0].store.values.codes
        assert (0 if coded is None else coded.shape[2]) == max(0, whole_blocks(count) - R)
        assert steps_until_flush(cache) == R - count % R


def test_an_outlier_channel_of_keys_hurts_only_itself():
    keys = torch.randn(1, 2, R, 8, generator=GENERATOR)
    keys[..., 3] *= 100
    errors = []
    for axis in ("channel", "token"):
        cache = KIVICache(CONFIG, group=G, residual=R, key_axis=axis)
        cache.update(keys.repeat(1, 1, 3, 1), keys.repeat(1, 1, 3, 1), 0)
        back = cache.update(keys[:, :, :1], keys[:, :, :1], 0)[0][:, :, :R]
        errors.append((back - keys)[..., [0, 1, 2]].square().mean().item())
    assert errors[0] < errors[1] / 20  # channels 0 to 2 share a group with the outlier only per token


def test_a_prompt_attends_in_full_and_later_passes_to_the_codes():
    model, ids = build("llama-gqa"), tokens(2, 30)
    cache, full = KIVICache(model, group=G, residual=R), FullCache(model)
    found, expected = feed(model, cache, ids, [20, 10]), feed(model, full, ids, [20, 10])
    assert torch.equal(found[:, :20], expected[:, :20])
    assert (found[:, 20:] - expected[:, 20:]).abs().max() > 1e-3


def test_a_row_among_pads_has_the_codes_it_has_alone():
    model, lengths = build("llama-gqa"), [11, 26, 17]
    ids, mask = padded(lengths)
    cache = KIVICache(model, group=G, residual=R, attention_mask=mask)
    feed(model, cache, ids, [26], mask)
    for row, length in enumerate(lengths):
        alone = KIVICache(model, group=G, residual=R)
        feed(model, alone, ids[row : row + 1, 26 - length :], [length])
        for layer, single in zip(cache.layers, alone.layers, strict=True):
            for name, tensor in single.tensors().items():
                here = layer.tensors()[name][row : row + 1]
                kept = here[:, :, -tensor.shape[2] :] if "rest" in name else here[:, :, : tensor.shape[2]]
                if tensor.dtype == torch.uint8:
                    assert torch.equal(kept, tensor)
                else:
                    torch.testing.assert_close(kept, tensor, rtol=1e-3, atol=1e-5)


def test_drafts_stay_whole_until_they_are_accepted():
    cache = KIVICache(CONFIG, group=G, residual=R)
    put(cache, 0, 6)
    cache.activate_past_recording()
    put(cache, 6, 12)
    store = cache.layers[0].store
    assert store.keys.codes is None
    assert store.keys.rest.shape[2] == 12
    cache.crop(-5)  # 7 are left: still less than a block
    assert store.keys.codes is None
    put(cache, 7, 12)
    cache.crop(0)
    other = KIVICache(CONFIG, group=G, residual=R)
    put(other, 0, 12)
    for name, tensor in other.layers[0].tensors().items():
        assert torch.equal(tensor, cache.layers[0].tensors()[name])


def test_a_block_up_to_the_next_flush_equals_single_steps():
    model, ids = build("llama-gqa"), tokens(1, 40)

    def both(flush, size, start=19):
        caches = [KIVICache(model, group=G, residual=R, flush=flush) for _ in range(2)]
        for cache in caches:
            feed(model, cache, ids[:, :start], [start])
        if flush == "block":
            assert steps_until_flush(caches[0]) == R - start % R
        part = ids[:, start : start + size]
        block, steps = feed(model, caches[0], part, [size]), feed(model, caches[1], part, [1] * size)
        return (block - steps).abs().max()

    assert both("block", R - 19 % R) < 1e-5
    assert both("block", R - 19 % R + 1) > 1e-4  # one token beyond the flush
    assert both("token", 5) > 1e-4  # what the option is for
    with pytest.raises(ValueError, match="16 bits codes nothing"):
        steps_until_flush(KIVICache(model, bits=16))


def test_bytes_of_a_real_shape():
    smollm2 = LlamaConfig(hidden_size=576, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3)
    for count, least in [(1024, 4.0), (4096, 4.9)]:
        full, kivi = (kv_bytes(smollm2, spec, count, dtype=torch.bfloat16).total for spec in ("full", "kivi"))
        assert full == 23_040 * count
        assert full / kivi > least


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"bits": 3}, "bits must be one of 2, 4, 8, 16, not 3"),
        ({"group": 12, "residual": 32}, "group = 12 must divide the residual 32, since key_axis is 'channel'"),
        ({"group": 16, "residual": 32}, "group = 16 must divide the head size 8, since value_axis is 'token'"),
        ({"group": 0}, "group must be at least 1"),
        ({"residual": 0}, "residual must be at least 1"),
        ({"key_axis": "head"}, "key_axis must be one of channel, token, not 'head'"),
        ({"group": 4, "flush": "never"}, "flush must be one of token, block, not 'never'"),
    ],
)
def test_bad_input_gets_a_sentence(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        KIVICache(CONFIG, **options)
    if "bits" not in options:
        return
    with pytest.raises(ValueError, match="fill bytes only if 4 divides the head size 10"):
        KIVICache(LlamaConfig(**{**GQA, "hidden_size": 40}), group=2, residual=4)
