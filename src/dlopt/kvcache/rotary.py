"""Turning keys that already carry rotary positions: R(p) k becomes R(p + n) k by one more rotation by n.

The frequencies and the layout (halves or neighbours, how much of a head) are read from the model's own code: its rotary
class is built from its config, its `apply_rotary_pos_emb` is applied to a probe, and a rotation is accepted only if it
moves the probe where the model's own would. So every rope type and partial rotation works or is refused, never guessed.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from dlopt.kvcache.shape import text_config

MOVING = ("dynamic", "longrope")  # frequencies that change with the length of the sequence


@dataclass(frozen=True)
class Rotation:
    """frequencies: (D_r / 2,) float64, radians per position. neighbours: pairs are (2i, 2i + 1), else (i, i + D_r / 2).

    Layers that turn by as much share the last angles.
    """

    frequencies: Tensor
    neighbours: bool
    last: dict[Any, tuple[Tensor, Tensor]] = field(default_factory=dict, repr=False, compare=False)

    def turn(self, keys: Tensor, by: tuple[int, ...]) -> Tensor:
        """(B, H, n, D) keys moved forward by B positions, or all by one. Angles are float64; by 0 is exact.

        Only the first D_r numbers of a head turn. Half precision is turned in float32 and rounded once.
        """
        wide = torch.promote_types(keys.dtype, torch.float32)
        cos, sin = self._angles(by, wide, keys.device)
        dim = cos.shape[-1]
        x = keys[..., :dim].to(wide)
        if self.neighbours:
            partner = torch.stack([-x[..., 1::2], x[..., ::2]], dim=-1).flatten(-2)
        else:
            partner = torch.cat([-x[..., dim // 2 :], x[..., : dim // 2]], dim=-1)
        turned = (x * cos + partner * sin).to(keys.dtype)
        return turned if dim == keys.shape[-1] else torch.cat([turned, keys[..., dim:]], dim=-1)

    def _angles(self, by: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
        key = (by, dtype, device)
        if key not in self.last:
            angle = torch.tensor(by, dtype=torch.float64)[:, None] * self.frequencies
            angle = angle.repeat_interleave(2, -1) if self.neighbours else torch.cat([angle, angle], -1)
            self.last.clear()
            self.last[key] = tuple(f(angle)[:, None, None].to(device, dtype) for f in (torch.cos, torch.sin))
        return self.last[key]


def rotation_of(model: Any) -> Rotation:
    """The `Rotation` of a model (or config).

    Raises:
        ValueError: if it has no rotary positions, if its frequencies move with the length, or if its code has a form
            that the probe does not understand.
    """
    config = text_config(model)
    kind = config.model_type
    parameters = getattr(config, "rope_parameters", None)
    if not parameters:
        raise ValueError(
            f"the configuration of {kind} tells of no rotary positions (rope_parameters), so its keys cannot be moved; "
            'use positions="original"'
        )
    rope_type = parameters.get("rope_type", "default")
    if rope_type in MOVING:
        raise ValueError(
            f"the rotary frequencies of {kind} change with the length (rope type {rope_type}), so keys of different "
            'times cannot be moved alike; use positions="original"'
        )
    name = type(config).__module__.replace("configuration_", "modeling_")
    try:
        module = importlib.import_module(name)
        (rotary,) = [
            value
            for key, value in vars(module).items()
            if key.endswith("RotaryEmbedding") and "Vision" not in key and value.__module__ == name
        ]
        built = rotary(config)
        frequencies = built.inv_freq.double().cpu()
        start, end = (_probe(module.apply_rotary_pos_emb, built, config, place) for place in (2, 9))
    except (ImportError, AttributeError, ValueError, TypeError, RuntimeError, IndexError, KeyError) as error:
        raise ValueError(
            f'the rotary code of {kind} ({name}) has a form that is not known here; use positions="original"'
        ) from error
    for neighbours in (False, True):
        found = Rotation(frequencies, neighbours)
        if torch.allclose(found.turn(start, (7,)), end, atol=1e-4):
            return found
    raise ValueError(f'the keys of {kind} do not turn as rotary keys do; use positions="original"')


def _probe(apply: Any, rotary: Any, config: Any, place: int) -> Tensor:
    dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    key = torch.linspace(-1, 1, dim).reshape(1, 1, 1, dim)
    cos, sin = rotary(key, torch.tensor([[place]]))
    return apply(key, key, cos, sin)[1]
