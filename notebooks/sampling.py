# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # 随机梯度法的采样策略
#
# 第一部分在生成的数据与 scikit-learn 自带的数据上实际运行各种采样，一分钟内结束，不需要实验框架；
# 第二部分读取实验记录，展示报告所用的表和图。
#
# 运行前安装：`pip install 'dlopt[lab]'`。

# %% [markdown]
# ## 一、现场运行
#
# ### 采样器就是普通的 `Sampler`
#
# 每个采样器给出一幕的下标；重要性采样给出（下标，权重）。幕号与种子决定一切，断点只需几个整数。

# %%
import os
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from dlopt.sampling import (
    ClassBalanced,
    ClassBlocks,
    FiniteSum,
    FixedOrder,
    GraB,
    Importance,
    RandomReshuffling,
    ShuffleOnce,
    WithReplacement,
    prox_sgd,
    saga,
)

torch.set_num_threads(1)
labels = [0, 0, 0, 1, 1, 1]
examples = {
    "有放回均匀": WithReplacement(range(6)),
    "固定顺序": FixedOrder(range(6)),
    "打乱一次": ShuffleOnce(range(6)),
    "每幕重排": RandomReshuffling(range(6)),
    "逐类": ClassBlocks(range(6), labels),
    "类均衡": ClassBalanced(range(6), labels),
}
orders = {name: [list(s), list(s)] for name, s in examples.items()}
pd.DataFrame.from_dict(orders, orient="index", columns=["第 0 幕", "第 1 幕"])

# %%
sampler = Importance(range(4), weights=[1.0, 1.0, 1.0, 5.0], mix=0.5, seed=0)
print("概率：", sampler.probabilities())
print("前五个（下标，权重）：", [(i, round(w, 3)) for i, w in list(sampler)[:5]])

resumed = RandomReshuffling(range(6))
resumed.load_state_dict(RandomReshuffling(range(6)).state_dict(consumed=4))
print("用过 4 个之后剩下：", list(resumed), "；整幕是", list(RandomReshuffling(range(6))))

# %% [markdown]
# ### 误差平台：步长减半，各种次序的误差降低多少
#
# 一个 $n=50$ 的岭回归，从最优点出发，常数步长。有放回的平台与步长成正比，固定次序与打乱一次与平方成正比，每幕重排更快。

# %%
random = np.random.default_rng(0)
A = random.normal(size=(50, 5))
b = A @ random.normal(size=5) + random.normal(size=50)
problem = FiniteSum(A, b, l2=0.2)
optimum = np.linalg.solve(A.T @ A / 50 + 0.2 * np.eye(5), A.T @ b / 50)


def floor(kind, step, chains=30):
    """从最优点出发，后三分之二各幕的平均误差；各链并排运行。"""
    run = prox_sgd(
        problem,
        [kind(range(50), seed=s) for s in range(chains)],
        epochs=int(1 / step),
        step=step,
        x0=optimum,
        average_from=None,
        watch=lambda x: {"distance": ((x - optimum) ** 2).sum(-1)},
    )
    return np.mean([row["distance"] for row in run.history[len(run.history) // 3 :]])


begin = time.perf_counter()
kinds = {
    "有放回均匀": WithReplacement,
    "固定顺序": FixedOrder,
    "打乱一次": ShuffleOnce,
    "每幕重排": RandomReshuffling,
}
floors = pd.DataFrame({name: [floor(kind, s) for s in (0.04, 0.02)] for name, kind in kinds.items()}).T
floors.columns = ["步长 0.04", "步长 0.02"]
floors["之比"] = floors["步长 0.02"] / floors["步长 0.04"]
print(f"用时 {time.perf_counter() - begin:.1f} 秒")
floors.round(4)

# %% [markdown]
# ### 重要性采样降低多少方差
#
# 行范数越悬殊，起点处的收益越大；所有行的范数相等时没有收益。

# %%
rows = []
for spread in (0.0, 0.5, 1.0):
    A = random.normal(size=(1000, 10)) * np.exp(spread * random.normal(size=(1000, 1)))
    p = FiniteSum(A, A @ random.normal(size=10) + random.normal(size=1000))
    norms = np.abs(p.slopes(np.zeros(1000), p.b)) * p.row_norms()
    smoothness = p.smoothness()
    row = {"标准差": spread, "max L / mean L": smoothness.max() / smoothness.mean()}
    for name, weights in {"p ∝ L": smoothness, "p ∝ √L": np.sqrt(smoothness), "p ∝ 梯度模": norms}.items():
        chance = Importance(range(1000), weights, mix=1.0).probabilities()
        row[name] = (norms**2 / (1000**2 * chance)).sum() / (norms**2).mean()
    rows.append(row)
pd.DataFrame(rows).round(3)

# %% [markdown]
# ### LASSO：糖尿病数据
#
# 442 行、10 列，标准化。每步一个样本，20 遍，同一个步长（没有调参，只看样子）；对照是 SAGA。

# %%
from sklearn.datasets import load_diabetes  # noqa: E402
from sklearn.linear_model import Lasso  # noqa: E402

x, y = load_diabetes(return_X_y=True, scaled=False)
x, y = (x - x.mean(0)) / x.std(0), (y - y.mean()) / y.std()
lasso = FiniteSum(x, y)
lasso = FiniteSum(x, y, lam=0.1 * lasso.lam_max())
best = Lasso(alpha=lasso.lam, fit_intercept=False, tol=1e-14, max_iter=100_000).fit(x, y).coef_
print(f"最优解的对偶间隙 {lasso.gap(best):.1e}，支撑 {np.count_nonzero(best)}")

fifths = np.argsort(np.argsort(y)) * 5 // len(y)
n = len(y)
step = 0.3 / lasso.smoothness().max()
samplers = {
    "有放回均匀": WithReplacement(range(n)),
    "重要性 ∝ L": Importance(range(n), lasso.smoothness()),
    "打乱一次": ShuffleOnce(range(n)),
    "每幕重排": RandomReshuffling(range(n)),
    "逐类（目标五等分）": ClassBlocks(range(n), fifths),
    "类均衡": ClassBalanced(range(n), fifths),
    "GraB": GraB(range(n)),
}
results = []
for name, s in samplers.items():
    run = prox_sgd(lasso, s, epochs=20, step=step, average_from=None)
    results.append((name, run.history[-1]["value"] - lasso.value(best), run.history[-1]["support"]))
run = saga(lasso, epochs=20)
results.append(("SAGA", run.history[-1]["value"] - lasso.value(best), run.history[-1]["support"]))
pd.DataFrame(results, columns=["采样", "F − F*", "非零个数"])

# %% [markdown]
# 这只是一个种子、没有调参的演示。公平的比较（相同次数的调参、全新的种子、检验）在记录里。

# %% [markdown]
# ## 二、实验记录
#
# 每次运行是一个 JSON 文件。文件夹由环境变量 `DLOPT_RESULTS` 指定，默认是 `results`。

# %%
from IPython.display import SVG, Markdown, display  # noqa: E402

from dlopt.lab import figures  # noqa: E402
from dlopt.lab.record import load_all  # noqa: E402

folder = Path(os.environ.get("DLOPT_RESULTS", "results")) / "sampling"
records, broken = load_all(folder) if folder.is_dir() else ([], [])
for problem_ in broken:
    print("略去：", problem_)
if not records:
    display(Markdown("还没有记录：先运行 `dlopt run sampling/lasso --scale cpu` 等，再执行本节。"))


def series(record):
    """采样器的名字；重要性采样还要说按什么。"""
    by = record.config.get("by")
    return record.config["method"] + (f"（{by}）" if by else "")


# %% [markdown]
# ### 运行一览

# %%
if records:
    table = pd.DataFrame([{"实验": r.experiment, "状态": r.status} for r in records])
    display(table.value_counts(sort=False).rename("运行数").reset_index())

# %% [markdown]
# ### LASSO：最终次优性（常用对数）
#
# 只看报告用的种子。

# %%
mine = [r for r in records if r.experiment == "sampling/lasso" and r.status == "done" and r.config["seed"] < 1000]
if mine:
    rows = [
        {
            "采样": series(r) if r.config["solver"] == "stochastic" else "坐标下降",
            "数据": r.config["data"],
            "lg 次优性": r.summary["log_suboptimality"],
        }
        for r in mine
    ]
    display(pd.DataFrame(rows).pivot_table(index="采样", columns="数据", values="lg 次优性").round(2))

# %% [markdown]
# ### 逻辑回归

# %%
mine = [r for r in records if r.experiment == "sampling/logistic" and r.status == "done"]
for data in dict.fromkeys(r.config["data"] for r in mine):
    group = [r for r in mine if r.config["data"] == data]
    display(Markdown(f"**{data}**：横轴为数据遍数"))
    display(SVG(figures.svg(figures.curves(group, "epoch", ["suboptimality", "distance"], log_y=True))))

# %% [markdown]
# ### 图像

# %%
mine = [r for r in records if r.experiment == "sampling/vision" and r.status == "done" and r.config["seed"] < 1000]
if mine:
    rows = [
        {
            "任务": r.config["task"],
            "采样": series(r),
            "测试准确率": r.summary["test_accuracy"],
            "最差类": r.summary["worst_class_accuracy"],
            "重估统计量后": r.summary.get("recalibrated_test_accuracy"),
        }
        for r in mine
    ]
    display(pd.DataFrame(rows).groupby(["任务", "采样"]).mean().map("{:.1%}".format))
for task in dict.fromkeys(r.config["task"] for r in mine):
    group = [r for r in mine if r.config["task"] == task]
    display(Markdown(f"**{task}**"))
    display(SVG(figures.svg(figures.curves(group, "examples", ["val_loss", "val_accuracy"], by=series, log_y=True))))
