"""Step time and state of the Adam family, ours and others', side by side in one process.

    python benchmarks/adam.py                      # 10M parameters
    python benchmarks/adam.py --size 135M          # SmolLM2-135M's shapes; about 8 GB
    python benchmarks/adam.py --only sophia muon   # rows whose name holds one of these words, and torch's AdamW

All optimizers take turns on the same weights and gradients; a time is the median over the repeats, after one step that
is not counted, and is printed as a ratio to the fastest of torch's AdamW versions in the same process. Times of two
processes should not be compared. Packages that are not installed are named in their rows: `make bench` installs them.
Sophia's rounds of curvature (a backward pass in every 10 steps) are not in its step.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import io
import statistics
import time
import warnings
from collections.abc import Callable

import torch
from torch import nn

from dlopt.adam import Adafactor, AdamMini, AdamW, Lion, Muon, SophiaG
from dlopt.memory import tensor_bytes
from dlopt.tasks.models.lm import LM, LMConfig

SIZES = {
    "1M": LMConfig(vocabulary=2048, width=128, layers=4, heads=4, kv_heads=2, hidden=352),
    "10M": LMConfig(vocabulary=8192, width=256, layers=10, heads=8, kv_heads=4, hidden=704),
    "135M": LMConfig(vocabulary=49152, width=576, layers=30, heads=9, kv_heads=3, hidden=1536),
}
DECAY = {"weight_decay": 0.01}
LR = 1e-7  # the weights hardly move, since the gradients never change
BASE = "torch AdamW "


def ours(model: nn.Module) -> dict[str, tuple[Callable, Callable | None]]:
    """{row: (makes the optimizer, its formula for the state)}"""
    params = lambda: list(model.parameters())  # noqa: E731
    return {
        "AdamMini": (
            lambda: AdamMini(params(), LR, model=model, **DECAY),
            lambda: AdamMini.memory(params(), model=model),
        ),
        "Adafactor": (lambda: Adafactor(params(), LR, **DECAY), lambda: Adafactor.memory(params())),
        "SophiaG": (lambda: SophiaG(params(), LR, **DECAY), lambda: SophiaG.memory(params())),
        "SophiaG compile": (lambda: SophiaG(params(), LR, compile=True, **DECAY), lambda: SophiaG.memory(params())),
        "SophiaG foreach": (lambda: SophiaG(params(), LR, foreach=True, **DECAY), lambda: SophiaG.memory(params())),
        "Lion": (lambda: Lion(params(), LR, **DECAY), lambda: Lion.memory(params())),
        "Lion foreach": (lambda: Lion(params(), LR, foreach=True, **DECAY), lambda: Lion.memory(params())),
        "Muon": (lambda: Muon(params(), LR, model=model, **DECAY), lambda: Muon.memory(params(), model=model)),
    }


def torchs(model: nn.Module) -> dict[str, tuple[Callable, Callable | None]]:
    params = lambda: list(model.parameters())  # noqa: E731
    formula = lambda: AdamW.memory(params())  # noqa: E731
    rows = {
        BASE + "fused": (lambda: torch.optim.AdamW(params(), LR, fused=True, **DECAY), formula),
        BASE + "foreach": (lambda: torch.optim.AdamW(params(), LR, foreach=True, **DECAY), formula),
        BASE + "loop": (lambda: torch.optim.AdamW(params(), LR, foreach=False, **DECAY), formula),
        "torch Adafactor": (lambda: torch.optim.Adafactor(params(), LR, **DECAY), None),
    }
    return rows


def peers(model: nn.Module, config: LMConfig) -> dict[str, tuple[Callable, Callable | None]]:
    params = lambda: list(model.parameters())  # noqa: E731

    def adam_mini():
        from adam_mini import Adam_mini

        shape = {"dim": config.width, "n_heads": config.heads, "n_kv_heads": config.kv_heads}
        return Adam_mini(model.named_parameters(), lr=LR, verbose=False, **DECAY, **shape)

    def po(name, *args, **options):
        import pytorch_optimizer

        return getattr(pytorch_optimizer, name)(*args, lr=LR, **DECAY, **options)

    def po_mini():
        shape = {"num_embeds": config.width, "num_heads": config.heads, "num_query_groups": config.kv_heads}
        return po("AdamMini", model, **shape)

    def hf():
        from transformers import Adafactor as Theirs

        return Theirs(params(), lr=LR, relative_step=False, **DECAY)

    def sophia():
        from sophia_opt import SophiaG as Theirs

        return Theirs(params(), lr=LR, **DECAY)

    makers = {
        "adam-mini Adam_mini": adam_mini,
        "pytorch_optimizer AdamMini": po_mini,
        "pytorch_optimizer AdaFactor": lambda: po("AdaFactor", params(), betas=(None, 0.999), relative_step=False),
        "transformers Adafactor": hf,
        "sophia-opt SophiaG": sophia,
        "pytorch_optimizer Lion": lambda: po("Lion", params()),
        "pytorch_optimizer Muon": lambda: po("Muon", [
            {"params": [p for p in params() if p.dim() == 2], "use_muon": True},
            {"params": [p for p in params() if p.dim() != 2], "use_muon": False},
        ]),
    }  # fmt: skip
    return {name: (maker, None) for name, maker in makers.items()}


def state_of(optimizer: torch.optim.Optimizer) -> int:
    found, todo = [], list(optimizer.state.values())
    while todo:
        value = todo.pop()
        if isinstance(value, torch.Tensor):
            found.append(value)
        elif isinstance(value, dict | list | tuple):
            todo += value.values() if isinstance(value, dict) else value
    return tensor_bytes(found)


def timed(step: Callable, device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def measure(size: str, repeats: int, device: torch.device, only: list[str]) -> None:
    config = SIZES[size]
    torch.manual_seed(0)
    model = LM(config).to(device)
    for p in model.parameters():
        p.grad = torch.randn_like(p) * 1e-3
    count = sum(p.numel() for p in model.parameters())
    rows = {**torchs(model), **ours(model), **peers(model, config)}
    if only:
        rows = {k: v for k, v in rows.items() if k.startswith(BASE) or any(word.lower() in k.lower() for word in only)}
    running, notes, times = {}, {}, {name: [] for name in rows}
    for name, (make, _) in rows.items():
        try:
            with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                running[name] = make()
                running[name].step()  # makes the state, compiles
        except ImportError as error:
            notes[name] = f"not installed ({error.name})"
        except Exception as error:  # a peer that cannot run here is a row, not the end
            running.pop(name, None)
            notes[name] = f"failed: {type(error).__name__}: {str(error).splitlines()[0][:80]}"
    gc.collect()
    for _ in range(repeats):
        for name, optimizer in running.items():
            times[name].append(timed(optimizer.step, device))
    medians = {name: statistics.median(times[name]) for name in running}
    base = min((name for name in medians if name.startswith(BASE)), key=medians.__getitem__)
    print(f"\n{size}: {count:,} parameters in {len(list(model.parameters()))} tensors, float32, {device}, "
          f"{torch.get_num_threads()} threads, {repeats} repeats; 1.00 is {base}, {medians[base]:.4f} s")  # fmt: skip
    print(f"{'optimizer':30}  time ratio  (least-most)  state / parameters  formula")
    for name in rows:
        if name in notes:
            print(f"{name:30}  {notes[name]}")
            continue
        weights = tensor_bytes(model.parameters())
        share = state_of(running[name]) / weights
        formula = rows[name][1]
        said = f"{formula().state / weights:.4f}" if formula else ""
        low, high = min(times[name]) / medians[base], max(times[name]) / medians[base]
        print(
            f"{name:30}  {medians[name] / medians[base]:10.2f}  ({low:.2f}-{high:.2f})".ljust(60)
            + f"{share:8.4f}  {said:>14}"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", nargs="+", choices=list(SIZES), default=["10M"])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", nargs="+", default=[])
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    for size in options.size:
        measure(size, options.repeats, torch.device(options.device), options.only)
