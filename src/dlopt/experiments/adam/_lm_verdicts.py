"""How the five questions about the language model are judged: by rules that were set before the runs."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from dlopt.experiments._present import CONFIRMED, CONTRADICTED, OPEN, at, by_method, first_reaching, percent, tests
from dlopt.experiments.adam import _report as shared
from dlopt.experiments.adam._report import LACKING, Answer, Groups, within
from dlopt.experiments.adam.lm import ABLATIONS, Config
from dlopt.lab.record import Record, same
from dlopt.lab.stats import Comparison
from dlopt.lab.study import Results

MARGIN = 0.05  # nats per byte: what counts as no difference
FAR = 0.1  # nats per byte: what counts as far behind
SMALL = 0.1  # Adafactor's state over AdamW's
HALF = (0.45, 0.55)  # Adam-mini's
CLAIM, LEAST = 2.0, 1.5  # Sophia's saving of steps: what its paper claims, and what is held to be out of reach
SPREADS = 2  # standard deviations over seeds that a single ablation must exceed

Change = tuple[str, Mapping[str, Any], Record | None, Record | None, float | None]


def answers(results: Results) -> dict[str, Answer]:
    """{question: (verdict, sentence)}; undecided while runs that a question needs are missing."""
    final = by_method(results.stages.get("report", ()))
    test = {row.method: row for row in tests(final, "adamw", "test_loss", higher=False)}
    changed = ablations(final, results.stages.get("ablations", ()))
    needed = ("tune", "report")
    return {
        "adafactor": shared.judged(results, needed, _adafactor(test.get("adafactor"), _against(final, "adafactor"))),
        "mini": shared.judged(results, needed, _mini(test.get("adam-mini"), _against(final, "adam-mini"))),
        "sophia": shared.judged(results, needed, _sophia(final)),
        "sgd": shared.judged(results, needed, _sgd(test.get("sgd"))),
        "partition": shared.judged(results, (*needed, "ablations"), _partition(changed)),
    }


def _against(final: Groups, method: str) -> float | None:
    """State of a method over AdamW's, as counted."""
    held = [next((r.bytes.get("state") for r in final.get(m, ()) if r.bytes), None) for m in (method, "adamw")]
    return held[0] / held[1] if held[0] and held[1] else None


def _seed(group: Sequence[Record], seed: int) -> Record | None:
    return next((r for r in shared.done(group) if r.config["seed"] == seed), None)


def faster(final: Groups, method: str, part: float = 1.0) -> list[float | None]:
    """For each seed, how many times fewer steps a method needs for the validation loss that AdamW of the same seed
    has after `part` of its steps; None where it never gets there."""
    found: list[float | None] = []
    for theirs in shared.done(final.get("adamw", ())):
        ours = _seed(final.get(method, ()), theirs.config["seed"])
        steps = part * float(theirs.config["steps"])
        level = at(theirs, "step", steps, "val_loss")
        if ours is None or level is None:
            continue
        reached = first_reaching(ours, "val_loss", level, higher=False)
        found.append(None if reached is None else steps / max(reached, 1.0))
    return found


def ablations(final: Groups, records: Sequence[Record]) -> list[Change]:
    """(method, change, its run, the unchanged run of the same seed, standard deviation of unchanged runs over seeds)"""
    found: list[Change] = []
    for method, changes in ABLATIONS.items():
        plain = [r.summary["test_loss"] for r in shared.done(final.get(method, ()))]
        spread = statistics.stdev(plain) if len(plain) > 1 else None
        for change in changes:
            fits = [r for r in records if r.method == method
                    and all(same(r.config["params"].get(k), v) for k, v in change.items())]  # fmt: skip
            found.append((method, change, fits[0] if fits else None, _seed(final.get(method, ()), Config.seed), spread))
    return found


def _nats(row: Comparison) -> str:
    return shared.told(row, "nat/字节")


def _worse(row: Comparison) -> bool:
    return row.verdict == "worse" and row.difference > MARGIN


def _adafactor(row: Comparison | None, state: float | None) -> Answer:
    """A small state, and the interval within the margin: confirmed; a large state, or worse by the test and by more
    than the margin: contradicted."""
    if row is None or not row.n or state is None:
        return OPEN, LACKING
    verdict = CONTRADICTED if state >= SMALL or _worse(row) else CONFIRMED if within(row, MARGIN) else OPEN
    return verdict, f"Adafactor 的状态是 AdamW 的 {percent(state)}；测试损失之差（它减 AdamW）为 {_nats(row)}。"


def _mini(row: Comparison | None, state: float | None) -> Answer:
    """About half the state, and the interval within the margin; contradicted as for Adafactor."""
    if row is None or not row.n or state is None:
        return OPEN, LACKING
    half = HALF[0] <= state <= HALF[1]
    verdict = CONTRADICTED if not half or _worse(row) else CONFIRMED if within(row, MARGIN) else OPEN
    return verdict, f"Adam-mini 的状态是 AdamW 的 {percent(state)}；测试损失之差（它减 AdamW）为 {_nats(row)}。"


def _sophia(final: Groups) -> Answer:
    """Less than LEAST times fewer steps on every seed: confirmed; at least CLAIM times on every seed: contradicted."""
    found = faster(final, "sophia-g")
    if not found:
        return OPEN, LACKING
    known = [f or 0.0 for f in found]
    verdict = CONFIRMED if max(known) < LEAST else CONTRADICTED if min(known) >= CLAIM else OPEN
    each = "、".join("未达到" if f is None else f"{f:.2f} 倍" for f in found)
    half = "、".join("未达到" if f is None else f"{f:.2f} 倍" for f in faster(final, "sophia-g", 0.5))
    return verdict, (
        f"要达到同种子的 AdamW 的最终验证损失，Sophia-G 节省的步数逐种子为 {each}；"
        f"对 AdamW 半程处的损失为 {half}。大于 1 倍表示 Sophia-G 更快。"
    )


def _sgd(row: Comparison | None) -> Answer:
    """Worse by the test and by more than FAR: confirmed; the interval ends below FAR: contradicted."""
    if row is None:
        return OPEN, LACKING
    if not row.n:
        return (CONFIRMED, "SGD 的各次运行均未正常结束。") if row.diverged else (OPEN, LACKING)
    far = row.verdict == "worse" and row.difference > FAR
    below = row.n > 1 and row.interval.high < FAR and not row.diverged
    verdict = CONFIRMED if far else CONTRADICTED if below else OPEN
    return verdict, f"SGD 减 AdamW 的测试损失之差为 {_nats(row)}。"


def _partition(changed: Sequence[Change]) -> Answer:
    """One block a tensor worse than all finer partitions by SPREADS deviations over seeds: confirmed; no worse than the
    best of them: contradicted. A run that diverged counts as infinitely bad."""
    mine = [c for c in changed if c[0] == "adam-mini"]
    losses = {c[1]["partition"]: _loss(c[2]) for c in mine}
    plain, spread = mine[0][3], mine[0][4]
    losses["paper"] = _loss(plain)
    if spread is None or any(v is None for v in losses.values()):
        return OPEN, LACKING
    known = {k: v for k, v in losses.items() if v is not None}
    coarse = known.pop("tensor")
    gap = coarse - max(known.values())
    verdict = CONFIRMED if gap > SPREADS * spread else CONTRADICTED if coarse <= min(known.values()) else OPEN
    names = {"tensor": "每张量一块", "row": "每行一块", "head": "值矩阵也按头", "paper": "论文的分块"}
    each = "，".join(
        f"{names[k]} {'发散' if math.isinf(v) else f'{v:.4f}'}" for k, v in {"tensor": coarse, **known}.items()
    )
    return verdict, f"首个种子的测试损失：{each}；论文分块在种子间的标准差为 {spread:.4f}。"


def _loss(run: Record | None) -> float | None:
    if run is None:
        return None
    return float(run.summary["test_loss"]) if run.status == "done" else math.inf
