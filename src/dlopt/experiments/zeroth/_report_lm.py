"""What the report shows of `zeroth/lm`, and how questions 8 to 11 are judged: by rules fixed before the runs."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from dlopt.experiments._present import at, blank, interval, median, p_text, partial_note, percent, stages_table
from dlopt.experiments._series import grouped
from dlopt.experiments.zeroth._common import NAMES, SVRG
from dlopt.experiments.zeroth._lm_steps import COSTED, INTERVAL
from dlopt.experiments.zeroth._shown import NOTHING, Answer, answers, judged, lost, number, title
from dlopt.experiments.zeroth.lm import BOXES, EXAMPLES, PRIORS, SEEDS, SST2, TREC, TRIALS, passes, series_of
from dlopt.lab import figures
from dlopt.lab.record import Record
from dlopt.lab.report import Presentation
from dlopt.lab.search import edge_warnings
from dlopt.lab.stats import compare_examples, holm
from dlopt.lab.study import Results

STAGES = {"still": "不训练；开销", "tune": "调参", "report": "SST-2，种子 0", "seeds": "SST-2，种子 1",
          "svrg": "SVRG，种子 1", "trec": "TREC"}  # fmt: skip
ORDER = ("sgd", "adamw", "mezo", "lozo", "lozo-m", SVRG)
ALPHA, HALF = 0.05, 0.5  # question 8: level; share of an advantage
CLOSE = 0.02  # question 9: accuracy
THIRD, SAME, FASTER = 1 / 3, 0.05, 0.9  # question 11: memory over AdamW's; LOZO over MeZO; seconds
Groups = Mapping[str, Sequence[Record]]


def _series(record: Record) -> str:
    return series_of(record.config)


def present(results: Results) -> Presentation:
    """Values, tables and figures; the questions are judged here."""
    trained = [r for s in ("report", "seeds", "svrg") for r in results.stages.get(s, ())]
    other = list(results.stages.get("trec", ()))
    still = [r for r in results.stages["still"] if r.status == "done"]
    cost = next((r.summary for r in still if r.config["part"] == "cost"), {})
    zero = {r.config["task"]: r.summary for r in still if r.config["part"] == "zero-shot"}
    first = next((r.config["task"] for r in trained), SST2.task)
    base, groups = zero.get(first, {}), grouped(trained, _series)
    shown = Presentation(notes=partial_note(results) + lost([*trained, *other], _series) + _edges(trained))
    shown.values |= {
        "rule.alpha": ALPHA, "rule.half": HALF, "rule.close": 100 * CLOSE, "rule.same": SAME, "rule.faster": FASTER,
        "steps": SST2.steps, "steps.first": SST2.first, "batch": SST2.batch, "seeds": len(SEEDS), "trials": TRIALS,
        "tuning": SST2.tuning, "interval": INTERVAL, "train": EXAMPLES["train"], "validation": EXAMPLES["validation"],
        "passes.svrg": passes(SST2, SVRG), "prior": PRIOR_NAMES.get(_prior(base) or ""),
        "parameters": next((r.summary["parameters"] for r in trained if r.status == "done"), None),
        "lead": _lead(groups, base),
    }  # fmt: skip
    for name in ("test_accuracy", "test_auc"):
        shown.values[f"zero.{name}"] = base.get(name)
    shown.values["calibrated.test_accuracy"] = _calibrated(base).get("accuracy")
    shown.values |= {f"mezo.{k}": interval(groups.get("mezo", []), k) for k in ("test_accuracy", "test_auc")}
    shown.values |= _cost_values(cost)
    shown.tables |= {"main": _main(groups, base), "trec": _main(grouped(other, _series), zero.get(TREC.task, {}))}
    shown.tables |= {"tests": _tests(groups, base), "cost": _cost_table(cost)}
    shown.tables["runs"] = stages_table(results, STAGES, _series)
    made: dict[str, Any] = {
        "forwards": _curves(trained, "forwards"),
        "seconds": _curves(trained, "seconds"),
        "memory": _memory(cost),
    }
    shown.figures |= {name: figure if figure is not None else blank() for name, figure in made.items()}
    answers(shown, {8: _q8(groups, base), 9: _q9(groups), 10: _q10(groups), 11: _q11(cost)})
    return shown


def _curves(records: Sequence[Record], x: str) -> Any:
    """Validation loss and accuracy, side by side."""
    kept = [r for r in records if r.curve.get("val_accuracy")]
    if not kept:
        return None
    return figures.curves(kept, x, ["val_loss", "val_accuracy"], by=_series, log_x=True, names=NAMES, height=2.1)


PRIOR_NAMES = {"content-free": "无内容的输入", "training": "训练文本的均值"}


def _prior(base: Mapping[str, Any]) -> str | None:
    """The prior with the better validation accuracy: the stronger of the two baselines."""
    known = [p for p in PRIORS if f"{p}_val_accuracy" in base]
    return max(known, key=lambda p: float(base[f"{p}_val_accuracy"])) if known else None


def _calibrated(base: Mapping[str, Any]) -> dict[str, Any]:
    prior = _prior(base)
    names = ("accuracy", "auc", "correct", "loss")
    return {} if prior is None else {k: base[f"{prior}_test_{k}"] for k in names}


def _mean(groups: Groups, series: str, figure: str = "test_accuracy") -> float | None:
    found = interval(groups.get(series, []), figure)
    return None if found is None else found.mean


def _share(value: float | None, base: float | None, top: float | None) -> float | None:
    """(value - base) / (top - base): which part of AdamW's gain a method has."""
    if value is None or base is None or top is None or abs(top - base) < 1e-9:
        return None
    return (value - base) / (top - base)


def _main(groups: Groups, base: Mapping[str, Any]) -> Any:
    import pandas as pd

    plain, fair, top = base.get("test_accuracy"), _calibrated(base).get("accuracy"), _mean(groups, "adamw")
    rows: list[tuple[Any, ...]] = []
    if base:
        rows.append(("零样本", None, None, None, plain, base["test_auc"], None, None, None))
        rows += [(f"校正：{PRIOR_NAMES[p]}", None, None, None, base[f"{p}_test_accuracy"], base[f"{p}_test_auc"], None,
                  None, None) for p in PRIORS]  # fmt: skip
    for s in ORDER:
        mine = groups.get(s, [])
        if mine:
            mean = _mean(groups, s)
            rows.append((title(s), mine[0].config["params"]["lr"], mine[0].config["steps"], median(mine, "forwards"),
                         interval(mine, "test_accuracy"), interval(mine, "test_auc"), _share(mean, plain, top),
                         _share(mean, fair, top), median(mine, "seconds_per_step")))  # fmt: skip
    columns = ["系列", "lr", "steps", "forwards", "test_accuracy", "AUC", "份额", "份额（校正后）", "seconds_per_step"]
    frame = pd.DataFrame(rows, columns=columns).astype(object)
    frame = frame.where(frame.notna(), None)
    frame.attrs["styles"] = {"份额": "percent", "份额（校正后）": "percent", "AUC": "fixed:3", "forwards": "fixed:0"}
    return frame


def _bits(text: str) -> list[bool]:
    return [c == "1" for c in text]


def _by_seed(groups: Groups, series: str) -> dict[int, Record]:
    return {int(r.config["seed"]): r for r in groups.get(series, []) if r.status == "done"}


def _comparisons(groups: Groups, base: Mapping[str, Any]) -> list[tuple[str, str, int, Any]]:
    """(method, against, seed, McNemar's test) of every planned comparison that can be made."""
    found: list[tuple[str, str, int, Any]] = []
    fair = _calibrated(base)
    for s in ORDER:
        for seed, r in _by_seed(groups, s).items():
            mine = _bits(r.summary["test_correct"])
            others = {"零样本": base.get("test_correct"), "校正后的零样本": fair.get("correct")}
            if s in ("lozo", "lozo-m", SVRG) and seed in _by_seed(groups, "mezo"):
                others["MeZO"] = _by_seed(groups, "mezo")[seed].summary["test_correct"]
            found += [(s, name, seed, compare_examples(mine, _bits(text))) for name, text in others.items() if text]
    return found


def _tests(groups: Groups, base: Mapping[str, Any]) -> Any:
    import pandas as pd

    found = _comparisons(groups, base)
    corrected = holm([c.p for *_, c in found])
    cells: dict[tuple[str, int], dict[str, str]] = {}
    for (s, name, seed, c), p in zip(found, corrected):
        told = f"{100 * c.difference:+.1f}（{c.only_a} 对 {c.only_b}，{p_text(p)}）"
        cells.setdefault((s, seed), {})[name] = told
    against = ["零样本", "校正后的零样本", "MeZO"]
    rows = [(title(s), seed, *(row.get(name, "—") for name in against)) for (s, seed), row in cells.items()]
    return pd.DataFrame(rows, columns=["系列", "seed", *against])


def _cost_names() -> dict[str, str]:
    return {s: title(s) for s in COSTED} | {"mezo": "MeZO（符号方向）", "mezo:gaussian": "MeZO（高斯方向）"}


def _cost_table(cost: Mapping[str, Any]) -> Any:
    import pandas as pd

    rows = []
    for s, name in _cost_names().items():
        if f"{s}.counted" in cost:
            counted, formula = cost[f"{s}.counted"], cost[f"{s}.formula"]
            rows.append((name, counted, formula, counted / formula - 1, counted / cost["adamw.counted"],
                         cost[f"{s}.seconds"], cost[f"{s}.seconds"] / cost["forward.seconds"]))  # fmt: skip
    columns = ["系列", "计数", "公式", "相差", "与 AdamW 之比", "seconds_per_step", "合多少次前向"]
    frame = pd.DataFrame(rows, columns=columns)
    frame.attrs["styles"] = {"计数": "bytes", "公式": "bytes", "相差": "percent:2", "与 AdamW 之比": "fixed:3",
                             "合多少次前向": "fixed:2"}  # fmt: skip
    return frame


def _cost_values(cost: Mapping[str, Any]) -> dict[str, Any]:
    """The bound of the design: a plain forward pass and the largest parameter; how much MeZO stays below it."""
    bound = cost["forward_peak"] + cost["largest_parameter"] if cost else None
    return {
        "forward_peak": cost.get("forward_peak"), "bound": bound,
        "largest": cost.get("largest_parameter"), "mezo.peak": cost.get("mezo.counted"),
        "mezo.over": cost["mezo.counted"] / bound if bound else None,
        "mezo.ratio": cost["mezo.seconds"] / (2 * cost["forward.seconds"]) if cost else None,
        "gaussian.ratio": cost["mezo:gaussian.seconds"] / (2 * cost["forward.seconds"]) if cost else None,
        "lozo.ratio": cost["lozo.seconds"] / (2 * cost["forward.seconds"]) if cost else None,
    }  # fmt: skip


def _memory(cost: Mapping[str, Any]) -> Any:
    kinds = {s: cost[f"{s}.bytes"] for s in COSTED if f"{s}.bytes" in cost}
    return figures.stacked(kinds, names=_cost_names()) if kinds else None


def _edges(records: Sequence[Record]) -> list[str]:
    found = []
    for r in records:
        box = {k: b for k, b in BOXES[_series(r)].items() if k in r.config["params"]}
        params = {k: r.config["params"][k] for k in box}
        inside = all(b[0] <= params[k] <= b[1] for k, b in box.items())
        if inside and edge_warnings(params, box):
            found.append(title(_series(r)))
    return [f"选中的学习率位于搜索范围边缘：{'，'.join(dict.fromkeys(found))}。"] if found else []


def _complete(groups: Groups, *series: str) -> bool:
    return all(set(_by_seed(groups, s)) >= set(SEEDS) for s in series)


def _lead(groups: Groups, base: Mapping[str, Any]) -> str:
    """What the abstract says of MeZO."""
    mean, plain, fair = _mean(groups, "mezo"), base.get("test_accuracy"), _calibrated(base).get("accuracy")
    if mean is None or plain is None or fair is None:
        return "语言模型的记录尚不完整。"
    return (
        f"SST-2 上零样本的测试准确率为 {percent(plain)}，校正先验后 {percent(fair)}，MeZO 微调后平均 {percent(mean)}。"
    )


def _q8(groups: Groups, base: Mapping[str, Any]) -> Answer:
    fair = _calibrated(base)
    if not fair or not _complete(groups, "mezo", "adamw"):
        return NOTHING
    mezo, adamw = _mean(groups, "mezo") or 0.0, _mean(groups, "adamw", "test_auc") or 0.0
    over, over_fair = mezo - base["test_accuracy"], mezo - fair["accuracy"]
    auc, gain = (_mean(groups, "mezo", "test_auc") or 0.0) - base["test_auc"], adamw - base["test_auc"]
    tests = [compare_examples(_bits(r.summary["test_correct"]), _bits(base["test_correct"]))
             for r in _by_seed(groups, "mezo").values()]  # fmt: skip
    better = all(t.p < ALPHA and t.difference > 0 for t in tests)
    holds = better and over_fair < HALF * over and auc < HALF * gain
    verdict = judged(holds, over > 0 and over_fair >= HALF * over)
    worst = max(t.p for t in tests)
    return verdict, (
        f"MeZO 的测试准确率平均 {percent(mezo)}，比零样本高 {100 * over:.1f} 个百分点"
        f"（各种子中最大的 {p_text(worst)}），比校正后的零样本高 {100 * over_fair:.1f} 个；"
        f"AUC 提高 {auc:.3f}，AdamW 提高 {gain:.3f}。"
    )


def _q9(groups: Groups) -> Answer:
    if not _complete(groups, "mezo", "lozo", "lozo-m"):
        return NOTHING
    mezo, told, pairs = _mean(groups, "mezo") or 0.0, [], []
    for s in ("lozo", "lozo-m"):
        told.append(f"{title(s)} {100 * ((_mean(groups, s) or 0.0) - mezo):+.1f} 个百分点")
        for seed in SEEDS:
            a, b = _by_seed(groups, s)[seed], _by_seed(groups, "mezo")[seed]
            pairs.append((s, compare_examples(_bits(a.summary["test_correct"]), _bits(b.summary["test_correct"]))))
    corrected = holm([t.p for _, t in pairs])
    near = all(abs((_mean(groups, s) or 0.0) - mezo) < CLOSE for s in ("lozo", "lozo-m"))
    wins = {s: all(p < ALPHA and t.difference > 0 for (name, t), p in zip(pairs, corrected) if name == s)
            for s in ("lozo", "lozo-m")}  # fmt: skip
    verdict = judged(near and min(corrected) >= ALPHA, any(wins.values()))
    return verdict, f"与 MeZO 的平均测试准确率之差：{'，'.join(told)}；校正后最小的 {p_text(min(corrected))}。"


def _q10(groups: Groups) -> Answer:
    if not _complete(groups, "mezo", SVRG):
        return NOTHING
    found = []
    for seed in SEEDS:
        mezo, svrg = _by_seed(groups, "mezo")[seed], _by_seed(groups, SVRG)[seed]
        place = max(v for v in mezo.curve["forwards"] if v is not None)
        found.append((mezo.summary["val_loss"], at(svrg, "forwards", place, "val_loss"), svrg.summary["val_loss"]))
    if any(b is None for _, b, _ in found):
        return NOTHING
    verdict = judged(all(b > a for a, b, _ in found), all(b < a for a, b, _ in found))
    told = "，".join(f"{a:.3f} 对 {number(b)}（走完全部步数后 {c:.3f}）" for a, b, c in found)
    return verdict, f"在 MeZO 走完时的前向次数处，各种子上 MeZO 对 MeZO-SVRG 的验证损失：{told}。"


def _q11(cost: Mapping[str, Any]) -> Answer:
    if not cost:
        return NOTHING
    mezo, lozo, svrg = (cost[f"{s}.counted"] / cost["adamw.counted"] for s in ("mezo", "lozo", SVRG))
    copy = (cost[f"{SVRG}.counted"] - cost["mezo.counted"]) / cost["weights"]
    pace = cost["lozo.seconds"] / cost["mezo.seconds"]
    holds = max(mezo, lozo) < THIRD and abs(lozo / mezo - 1) < SAME and abs(copy - 1) < SAME and pace < FASTER
    shares = statistics.fmean((mezo, lozo))
    return judged(holds, mezo > HALF or pace >= 1), (
        f"峰值为 AdamW 的 {percent(mezo)}（MeZO）与 {percent(lozo)}（LOZO；平均 {percent(shares)}），SVRG 为 "
        f"{percent(svrg)}，比 MeZO 多 {copy:.2f} 份权重；LOZO 一步的时间是 MeZO（符号方向）的 {pace:.2f} 倍。"
    )
