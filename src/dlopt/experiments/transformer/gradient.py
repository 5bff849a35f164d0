"""Gradients at initialisation against depth, by the place of the norm: the theorem of Xiong et al. (2020).

A `Decoder` of L layers on random tokens; the norm of the gradient of the last feed-forward layer's second matrix, that
of every layer's, and the size of the residual stream, from which the theorem's constant follows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dlopt import catalog
from dlopt.experiments._steps import at_least
from dlopt.experiments.transformer._common import joined
from dlopt.lab.experiment import Experiment, Stage
from dlopt.lab.log import Log
from dlopt.lab.report import Presentation
from dlopt.lab.study import Results
from dlopt.transformer.model import Decoder

PLACES = ("post", "pre", "sandwich")
DEPTHS = (2, 4, 8, 16)
SEEDS = tuple(range(5))
# the setting of the theorem: ReLU, Xavier, LayerNorm, and an output layer that is drawn by itself
SETTING = {"width": 128, "heads": 4, "feedforward": "relu", "init": "xavier", "norm": "layer", "tied": False}


@dataclass(frozen=True)
class Config:
    """method, params: of a decoder. vocabulary: tokens, drawn uniformly. batch, length: of the one batch. seed: of
    weights and tokens."""

    method: str = "decoder"
    params: dict[str, Any] = field(default_factory=dict)
    vocabulary: int = 1000
    batch: int = 8
    length: int = 32
    seed: int = 0


def check(cfg: Config) -> None:
    """Refuse what cannot run, before anything is written."""
    if cfg.method != "decoder":
        raise ValueError(f"method must be decoder, got {cfg.method!r}")
    for name in ("batch", "length"):
        at_least(name, getattr(cfg, name), 1)
    with torch.device("meta"):
        catalog.find(cfg.method).load()(cfg.vocabulary, **cfg.params)


def run(cfg: Config, log: Log) -> Mapping[str, Any]:
    """One backward pass."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(cfg.seed)
        model: Decoder = catalog.find(cfg.method).load()(cfg.vocabulary, **cfg.params)
        tokens = torch.randint(cfg.vocabulary, (cfg.batch, cfg.length + 1))
    sizes: list[Tensor] = []
    layers = list(model.decoder.layers)
    # what each layer is given, and what the last one gives: its size over sqrt(width) is 1 for a normalised vector
    hooks = [layer.register_forward_pre_hook(lambda _, args: sizes.append(args[0].detach())) for layer in layers]
    hooks.append(layers[-1].register_forward_hook(lambda _, args, out: sizes.append(out.detach())))
    logits = model(tokens[:, :-1])
    for hook in hooks:
        hook.remove()
    F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).backward()
    norms = [float(layer.mlp.down_proj.weight.grad.norm()) for layer in layers]  # type: ignore[union-attr, operator]
    stream = [float(x.square().mean()) for x in sizes]
    return {
        "last_gradient": norms[-1],
        "first_gradient": norms[0],
        "gradients": joined(norms, 5),
        "stream": joined(stream, 4),
        "stream_first": stream[0],
        "stream_last": stream[-1],
        "parameters": sum(p.numel() for p in model.parameters()),
        "depth": len(layers),
    }


def grid(depths: Sequence[int], seeds: Sequence[int], **changes: Any) -> Any:
    """Places x depths x seeds."""
    return lambda earlier: [
        Config(params={**SETTING, **changes, "norm_position": place, "layers": depth}, seed=seed)
        for seed in seeds
        for place in PLACES
        for depth in depths
    ]


def minutes(cfg: Config) -> float:
    """On one core of a 2026 server."""
    return 0.002 * int(cfg.params.get("layers", 4)) + 0.01


def present(results: Results) -> Presentation:
    """Values, tables and figures of the report."""
    from dlopt.experiments.transformer._report_gradient import present as made

    return made(results)


experiment = Experiment(
    name="transformer/gradient",
    config=Config,
    run=run,
    version=1,
    stages={
        "smoke": (Stage("depth", grid((2, 4), (0,), width=32), minutes, "2 depths, 1 seed"),),
        "cpu": (
            Stage("depth", grid(DEPTHS, SEEDS), minutes, f"4 depths, {len(SEEDS)} seeds"),
            # one table for input and output breaks an assumption: the logit of the token itself begins large
            Stage("tied", grid(DEPTHS[::3], SEEDS, tied=True), minutes, f"tied embeddings, {len(SEEDS)} seeds"),
        ),
    },
    identity=lambda cfg: {"generated": "uniform tokens"},
    check=check,
    present=present,
    primary="last_gradient",
)
