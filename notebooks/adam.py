# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # Adam 优化器及其变种
#
# 第一部分用普通的 PyTorch 在手写数字上实际运行五种方法（Adam、AdamW、Adafactor、Sophia-G、Adam-mini），
# 一分钟内结束，不需要实验框架；第二部分读取实验记录，展示报告所用的表和图，记录不全时有多少展示多少。
#
# 运行前安装：`pip install 'dlopt[lab]'`。

# %% [markdown]
# ## 一、现场运行
#
# 数据是 scikit-learn 自带的手写数字：1797 张 $8\times8$ 的灰度图，十个类别。
# 像素缩放到 $[0,1]$，随机取四分之三训练，其余测试。

# %%
import os
import time
from pathlib import Path

import pandas as pd
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

from dlopt.adam import Adafactor, Adam, AdamMini, AdamW, SophiaG

torch.set_num_threads(1)

digits = load_digits()
order = torch.randperm(len(digits.target), generator=torch.Generator().manual_seed(0))
x = torch.tensor(digits.data, dtype=torch.float32)[order] / 16
y = torch.tensor(digits.target)[order]
split = len(y) * 3 // 4
x_train, y_train, x_test, y_test = x[:split], y[:split], x[split:], y[split:]
print(f"训练 {len(y_train)} 张，测试 {len(y_test)} 张")


# %% [markdown]
# 每次运行都从同样的初始权重、同样的批次顺序开始，只有优化器不同。


# %%
def make_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))


def batches(steps, size=64, seed=0):
    """一遍遍打乱训练集，取 steps 个小批量。"""
    generator = torch.Generator().manual_seed(seed)
    left = torch.empty(0, dtype=torch.long)
    for _ in range(steps):
        if len(left) < size:
            left = torch.cat([left, torch.randperm(len(y_train), generator=generator)])
        now, left = left[:size], left[size:]
        yield x_train[now], y_train[now]


@torch.no_grad()
def accuracy(model):
    return (model(x_test).argmax(1) == y_test).float().mean().item()


def state_bytes(optimizer):
    """优化器在两步之间保存的张量，以字节计。"""
    tensors = [v for state in optimizer.state.values() for v in state.values() if torch.is_tensor(v)]
    return sum(t.numel() * t.element_size() for t in tensors)


# %% [markdown]
# ### 训练循环
#
# 除 Sophia-G 外都是通常的三行。Sophia-G 在 `curvature_due` 为真的步上多一次反向：从模型自己的分布抽标签，
# 由 $B\,\hat g\odot\hat g$ 估计 Gauss–Newton 矩阵的对角，$B$ 由它自己数。


# %%
def train(optimizer, model, steps):
    losses = []
    for xb, yb in batches(steps):
        optimizer.zero_grad()
        logits = model(xb)
        loss = F.cross_entropy(logits, yb)
        due = getattr(optimizer, "curvature_due", False)
        loss.backward(retain_graph=due)
        if due:
            optimizer.accumulate_curvature(logits)
            optimizer.update_curvature()
        optimizer.step()
        losses.append(loss.item())
    return losses


makers = {
    "Adam": lambda model: Adam(model.parameters(), lr=3e-3),
    "AdamW": lambda model: AdamW(model.parameters(), lr=3e-3, weight_decay=0.05),
    "Adafactor": lambda model: Adafactor(model.parameters(), lr=3e-2),
    "SophiaG": lambda model: SophiaG(model.parameters(), lr=1e-3),
    "AdamMini": lambda model: AdamMini(model.named_parameters(), lr=3e-3, model=model),
}
curves, rows = {}, []
for name, make_optimizer in makers.items():
    model = make_model()
    optimizer = make_optimizer(model)
    begin = time.perf_counter()
    curves[name] = train(optimizer, model, steps=400)
    seconds = time.perf_counter() - begin
    weights = 4 * sum(p.numel() for p in model.parameters())
    rows.append((name, accuracy(model), state_bytes(optimizer), state_bytes(optimizer) / weights))
    assert seconds < 60, f"{name} 用了 {seconds:.0f} 秒"

table = pd.DataFrame(rows, columns=["方法", "测试准确率", "状态字节", "状态/权重"])
table.assign(
    测试准确率=table["测试准确率"].map("{:.1%}".format), **{"状态/权重": table["状态/权重"].map("{:.3f}".format)}
)

# %% [markdown]
# 状态与权重之比与公式一致：Adam、AdamW、Sophia-G 为 2（Adam 与 AdamW 另有每个张量一个步数），
# Adam-mini 略大于 1，Adafactor 远小于 1。状态之外，各方法的权重、梯度与激活都一样。
#
# Adam-mini 的分块可以打印出来看：

# %%
print(optimizer.partition())

# %% [markdown]
# ### 训练损失
#
# 每 40 步的平均训练损失。

# %%
window = 40
means = {name: [sum(c[i : i + window]) / window for i in range(0, len(c), window)] for name, c in curves.items()}
pd.DataFrame(means, index=pd.Index(range(window, 401, window), name="步数")).round(3)

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

folder = Path(os.environ.get("DLOPT_RESULTS", "results")) / "adam"
records, broken = load_all(folder) if folder.is_dir() else ([], [])
for problem in broken:
    print("略去：", problem)
if not records:
    display(Markdown("还没有记录：先运行 `dlopt run adam/resnet --scale cpu` 与 `dlopt run adam/lm --scale cpu`。"))

# %% [markdown]
# ### 运行一览
#
# 按部分、任务、方法与种子计数；发散与失败的运行也在内。`seed=1000` 是调参的种子。


# %%
def part(name):
    return [r for r in records if r.experiment == f"adam/{name}"]


if records:
    listed = pd.DataFrame(
        {
            "部分": [r.experiment.partition("/")[2] for r in records],
            "任务": [r.config["task"] for r in records],
            "方法": [r.method for r in records],
            "种子": [r.config["seed"] for r in records],
            "状态": [r.status for r in records],
        }
    )
    display(listed.value_counts(sort=False).rename("次数").reset_index())

# %% [markdown]
# ### 调参
#
# 每点是一次试验，圆圈是各方法最好的一次。

# %%
for name in ("resnet", "lm"):
    trials = [r for r in part(name) if r.config["seed"] == 1000]
    if trials:
        figure = figures.scatter(trials, "lr", "val_loss", log_x=True, best="min")
        display(Markdown(f"**{name}**"), SVG(figures.svg(figure)))

# %% [markdown]
# ### 收敛
#
# 只画主实验：ResNet-8 与语言模型，报告用的种子，每种方法用选中的学习率（消融改动过设置，不在此列）。

# %%
main = {"resnet": "cifar10-resnet8", "lm": "books-5m"}
reported = {}
for name, task in main.items():
    by_run = {}
    for r in part(name):
        if r.config["task"] == task and r.config["seed"] != 1000:
            by_run.setdefault((r.method, r.config["seed"]), []).append(r)
    # 消融沿用首个种子：与同法其余种子的设置相同的那一次才是主实验
    others = {m: group[0].config["params"] for (m, seed), group in by_run.items() if seed != 0}
    reported[name] = [
        r for (m, _), group in by_run.items() for r in group if r.config["params"] == others.get(m, r.config["params"])
    ]

axes = {"resnet": ("examples", ["val_loss", "val_accuracy"]), "lm": ("tokens", ["loss", "val_loss"])}
for name, kept in reported.items():
    horizontal, columns = axes[name]
    drawn = [r for r in kept if r.curve.get(horizontal)]
    if drawn:
        display(Markdown(f"**{name}**"), SVG(figures.svg(figures.curves(drawn, horizontal, columns))))

# %% [markdown]
# ### 最终质量
#
# 各种子的均值与标准差；检验与置信区间见报告。

# %%
for name, figure in (("resnet", "test_accuracy"), ("lm", "test_loss")):
    good = [(r.method, r.summary[figure]) for r in reported[name] if r.status == "done"]
    if good:
        frame = pd.DataFrame(good, columns=["方法", figure])
        display(frame.groupby("方法", sort=False)[figure].agg(["count", "mean", "std"]).round(4))

# %% [markdown]
# ### 内存
#
# 一步训练中按种类计数的字节。

# %%
for name in main:
    held = {r.method: r.bytes for r in (reported[name] or part(name)) if r.bytes}
    if held:
        display(Markdown(f"**{name}**"), SVG(figures.svg(figures.stacked(held))))
