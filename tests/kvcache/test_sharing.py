"""Latent and shared caches: decoding equals the full pass, and what is stored equals the formula."""

import pytest
import torch

from dlopt.kvcache import LatentAttention, Shape, SharedLayers, latent_bytes, shared_bytes
from dlopt.memory import tensor_bytes


@pytest.fixture(autouse=True)
def _double():
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def stepped(module, x, pieces):
    cache, out = None, []
    for part in x.split(pieces, dim=1):
        y, cache = module(part, cache)
        out.append(y)
    return torch.cat(out, 1), cache


@torch.no_grad()
def test_latent_attention():
    module = LatentAttention(size=16, heads=4, dim=6, latent=5, rotary=4)
    x = torch.randn(2, 9, 16)
    whole, _ = module(x)
    found, cache = stepped(module, x, [4, 1, 1, 3])
    torch.testing.assert_close(found, whole, rtol=1e-12, atol=1e-12)
    assert tensor_bytes(cache) == latent_bytes(1, 5, 4, 9, torch.float64, batch=2).total == 2 * 9 * 9 * 8
    module.absorbed = False
    torch.testing.assert_close(module(x)[0], whole, rtol=1e-12, atol=1e-12)
    # only distances count: the same tokens behind others, masked away, would be moved all alike
    shifted = torch.cat([torch.randn(2, 3, 16), x], 1)
    assert not torch.allclose(module(shifted)[0][:, 3:], whole)


@torch.no_grad()
@pytest.mark.parametrize(("share", "storing"), [(1, 5), (2, 3), (5, 1)])
def test_shared_layers(share, storing):
    module = SharedLayers(layers=5, share=share, size=12, heads=2, dim=6)
    x = torch.randn(2, 8, 12)
    whole, _ = module(x)
    found, cache = stepped(module, x, [3, 1, 4])
    torch.testing.assert_close(found, whole, rtol=1e-12, atol=1e-12)
    assert len(cache) == storing
    held = tensor_bytes(t.contiguous() for pair in cache for t in pair)
    assert held == shared_bytes(Shape(5, 2, 6, 2), share, 8, torch.float64, batch=2).total


def test_bad_numbers():
    with pytest.raises(ValueError, match="rotary must be even, not 3"):
        LatentAttention(8, 2, 4, 4, 3)
    with pytest.raises(ValueError, match="share must be at least 1, not 0"):
        shared_bytes(Shape(5, 2, 6, 2), 0, 8, torch.float32)
    with pytest.raises(ValueError, match="latent must be at least 0, not -1"):
        latent_bytes(1, -1, 4, 9, torch.float64)
