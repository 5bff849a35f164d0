"""Time of a zeroth-order step over the forward passes that it cannot do without, ours and others', in one process.

    python benchmarks/zeroth.py                          # 10M parameters, 16 x 64 tokens
    python benchmarks/zeroth.py --size 135M --repeats 3  # SmolLM2-135M's shapes; about 3 GB, some minutes on two cores

The model predicts random tokens; a plain forward pass (no gradients, loss included) and all optimizers take turns on
it. A time is the median over the repeats, after one turn that is not counted, and is printed over that of as many plain
forward passes as the step makes: 1.00 would be a step whose directions, copies and update cost nothing. Times of two
processes should not be compared. `held` is the most that is copied at once, over the bytes of all weights. Packages
that are not installed are named in their rows: `make bench` installs them.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from dlopt.memory import tensor_bytes
from dlopt.tasks.models.lm import LM, LMConfig
from dlopt.zeroth import LOZO, MeZO, MeZOSVRG

SIZES = {
    "1M": LMConfig(vocabulary=2048, width=128, layers=4, heads=4, kv_heads=2, hidden=352),
    "10M": LMConfig(vocabulary=8192, width=256, layers=10, heads=8, kv_heads=4, hidden=704),
    "135M": LMConfig(vocabulary=49152, width=576, layers=30, heads=9, kv_heads=3, hidden=1536),
}
LR = 1e-9  # the weights hardly move
PLAIN = "plain forward"


def ours(model: nn.Module) -> dict[str, Callable[[], Any]]:
    """{row: makes the optimizer}"""
    return {
        "MeZO rademacher": lambda: MeZO(model, LR, direction="rademacher"),
        "MeZO gaussian": lambda: MeZO(model, LR),
        "MeZO gaussian, 4096 rows": lambda: MeZO(model, LR, row_chunk=4096),
        "MeZO gaussian, parameters": lambda: MeZO(model.parameters(), LR),
        "MeZO gaussian, one-sided": lambda: MeZO(model, LR, one_sided=True),
        "LOZO rank 2": lambda: LOZO(model, LR),
        "LOZO-M rank 2": lambda: LOZO(model, LR, momentum=0.7),
        "MeZO-SVRG, between anchors": lambda: MeZOSVRG(model, LR, interval=10**9),
    }


class Peer:
    """The third-party package `mezo`: weights shifted in place by + eps z, - 2 eps z, + eps z."""

    def __init__(self, model: nn.Module) -> None:
        from mezo import update

        self.update, self.model, self.forwards = update, model, 0

    def step(self, closure: Callable[[], Tensor]) -> None:
        self.forwards += 2
        with torch.no_grad():
            self.update(self.model, None, lambda model, inputs: closure(), 1e-3, LR, self.forwards)


def timed(step: Callable[[], Any], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def measure(size: str, batch: tuple[int, int], repeats: int, device: torch.device, only: list[str]) -> None:
    config = SIZES[size]
    torch.manual_seed(0)
    model = LM(config).to(device).eval()
    tokens = torch.randint(config.vocabulary, (batch[0], batch[1] + 1), device=device)
    inputs, targets = tokens[:, :-1], tokens[:, 1:].flatten()

    @torch.no_grad()
    def closure() -> Tensor:
        return nn.functional.cross_entropy(model(inputs).flatten(0, 1), targets)

    rows: dict[str, Callable[[], Any]] = {**ours(model), "mezo MeZO": lambda: Peer(model)}
    if only:
        rows = {name: make for name, make in rows.items() if any(word.lower() in name.lower() for word in only)}
    running, notes = {}, {}
    times: dict[str, list[float]] = {name: [] for name in [PLAIN, *rows]}
    for name, make in rows.items():
        try:
            running[name] = make()
            running[name].step(closure)
        except ImportError as error:
            notes[name] = f"not installed ({error.name})"
        except Exception as error:  # a peer that cannot run here is a row, not the end
            running.pop(name, None)
            notes[name] = f"failed: {type(error).__name__}: {str(error).splitlines()[0][:80]}"
    gc.collect()
    closure()
    passes = {name: -optimizer.forwards for name, optimizer in running.items()}
    for _ in range(repeats):
        times[PLAIN].append(timed(closure, device))
        for name, optimizer in running.items():
            times[name].append(timed(lambda optimizer=optimizer: optimizer.step(closure), device))
            times[PLAIN].append(timed(closure, device))
    plain, weights = statistics.median(times[PLAIN]), tensor_bytes(model.parameters())
    count = sum(p.numel() for p in model.parameters())
    print(f"\n{size}: {count:,} parameters, {batch[0]} x {batch[1]} tokens, float32, {device}, "
          f"{torch.get_num_threads()} threads, {repeats} repeats; {PLAIN} {plain:.3f} s "
          f"({min(times[PLAIN]) / plain:.2f}-{max(times[PLAIN]) / plain:.2f})")  # fmt: skip
    print(f"{'optimizer':28}  passes  step / passes  (least-most)   held / weights")
    for name in rows:
        if name in notes:
            print(f"{name:28}  {notes[name]}")
            continue
        n = (passes[name] + running[name].forwards) / repeats
        ratios = [t / (n * plain) for t in times[name]]
        held = f"{running[name].held / weights:14.3f}" if hasattr(running[name], "held") else ""
        print(f"{name:28}  {n:6.0f}  {statistics.median(ratios):13.2f}  "
              f"({min(ratios):.2f}-{max(ratios):.2f})".ljust(68) + held)  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", nargs="+", choices=list(SIZES), default=["10M"])
    parser.add_argument("--batch", nargs=2, type=int, default=[16, 64], metavar=("SEQUENCES", "TOKENS"))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", nargs="+", default=[])
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    for size in options.size:
        measure(size, tuple(options.batch), options.repeats, torch.device(options.device), options.only)
