"""Codes of 2, 4 and 8 bits: the bound with the stored float16 numbers, a twin written out, edges."""

import pytest
import torch

from dlopt.kvcache.packing import dequantize, pack, planes, quantize, unpack

GENERATOR = torch.Generator().manual_seed(0)
NUMBERS = {
    "normal": torch.randn(3, 5, 16, generator=GENERATOR),
    "far from 0": torch.randn(3, 5, 16, generator=GENERATOR) * 0.1 + 100,
    "far below 0": torch.randn(3, 5, 16, generator=GENERATOR) * 0.1 - 100,
    "many sizes": torch.randn(3, 5, 16, generator=GENERATOR) * torch.logspace(-9, 4, 16),
    "constant": torch.full((2, 1, 16), 3.14159),
    "constant below 0": torch.full((2, 1, 16), -3.14159),
    "zero": torch.zeros(2, 1, 16),
    "two numbers": torch.tensor([[1e-7, 2e-7] * 8]),
    "the ends of float16": torch.tensor([[-65504.0, 65504.0, 1.0, 0.0]]),
    "bfloat16": torch.randn(2, 9, 16, generator=GENERATOR).bfloat16(),
    "float64": torch.randn(2, 9, 16, generator=GENERATOR).double(),
}


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("name", NUMBERS)
def test_the_error_is_at_most_half_a_scale_as_stored(name, bits):
    x = NUMBERS[name]
    codes, scale, zero = quantize(x, bits, dim=-1)
    assert (codes.dtype, scale.dtype, zero.dtype) == (torch.uint8, torch.float16, torch.float16)
    assert int(codes.max()) < 2**bits
    back = dequantize(codes, scale, zero, torch.float64)
    assert ((back - x.double()).abs() <= scale.double() / 2 * (1 + 1e-4)).all()
    # and not a wasteful scale: what the rounding of two float16 numbers may add, and no more
    spread = x.double().amax(-1, keepdim=True) - x.double().amin(-1, keepdim=True)
    step = (zero.double().abs() * 2**-10).clamp_min(2**-24)
    assert (scale.double() <= (spread + step) / (2**bits - 1) * (1 + 2**-10) + 2**-24).all()


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_twin_written_out(bits):
    x = NUMBERS["normal"][0].T.contiguous()  # groups of 16 along the first dimension
    codes, scale, zero = quantize(x, bits, dim=0)
    for column in range(x.shape[1]):
        low, step = float(zero[0, column]), float(scale[0, column])
        numbers = x[:, column].tolist()
        assert low <= min(numbers) < low + 2**-9
        assert low + step * (2**bits - 1) >= max(numbers) - step / 2
        assert codes[:, column].tolist() == [round((number - low) / step) for number in numbers]


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("name", ["normal", "constant", "constant below 0", "zero", "far from 0"])
def test_quantizing_again_changes_nothing(name, bits):
    first = quantize(NUMBERS[name], bits, dim=-1)
    again = quantize(dequantize(*first, torch.float32), bits, dim=-1)
    if name in ("far from 0", "constant", "constant below 0"):
        # one step of float16 near 100 is 1/16, as wide as the group: the bytes may change, the numbers hardly
        error = dequantize(*again, torch.float64) - dequantize(*first, torch.float64)
        assert (error.abs() <= again[1].double() / 2 * (1 + 1e-4)).all()
    else:
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_packing_is_reversible(bits):
    codes = torch.randint(0, 2**bits, (2, 3, 16), dtype=torch.uint8, generator=GENERATOR)
    packed = pack(codes, bits)
    assert packed.shape == (2, 3, 2 * bits)
    assert torch.equal(unpack(packed, bits), codes)
    fields = [(packed & mask) / 2**shift for mask, shift in planes(bits)]
    assert torch.equal(torch.cat(fields, -1), codes.float())


def test_two_bits_by_hand():
    codes = torch.tensor([1, 0, 2, 3, 0, 1, 3, 2], dtype=torch.uint8)
    # byte 0 holds codes 0, 2, 4, 6 = 1, 2, 0, 3 from its low bits up, byte 1 codes 1, 3, 5, 7 = 0, 3, 1, 2
    assert pack(codes, 2).tolist() == [1 + 4 * 2 + 16 * 0 + 64 * 3, 0 + 4 * 3 + 16 * 1 + 64 * 2]


@pytest.mark.parametrize("x", [[-7e4, 0.0], [0.0, 3e5], [float("nan"), 1.0], [0.0, float("inf")]])
def test_what_float16_cannot_hold_is_refused(x):
    with pytest.raises(ValueError, match="float16, which ends at 65504"):
        quantize(torch.tensor([x]), 2, dim=-1)


def test_three_bits_are_refused():
    with pytest.raises(ValueError, match="bits must be one of 2, 4, 8, not 3"):
        quantize(torch.zeros(2, 2), 3, dim=-1)
