# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # 一阶与零阶优化：AdamW、Adafactor 与 MeZO
#
# 第一部分用普通的 PyTorch 在手写数字上实际运行三种方法，一分钟内结束，不需要实验框架；
# 第二部分读取实验记录，展示报告所用的表和图。
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

from dlopt.adam import Adafactor, AdamW
from dlopt.zeroth import MeZO

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
    return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


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
# ### 一阶方法：每步一次前向、一次反向
#
# Adafactor 的学习率是相对的：实际步长还要乘以权重的均方根。


# %%
def train_first_order(make_optimizer, steps):
    model = make_model()
    optimizer = make_optimizer(model)
    begin = time.perf_counter()
    for xb, yb in batches(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(xb), yb).backward()
        optimizer.step()
    return model, optimizer, time.perf_counter() - begin


results = []
for name, make_optimizer in {
    "AdamW": lambda model: AdamW(model.parameters(), lr=3e-3),
    "Adafactor": lambda model: Adafactor(model.parameters(), lr=3e-2),
}.items():
    model, optimizer, seconds = train_first_order(make_optimizer, steps=600)
    results.append((name, 600, 600, accuracy(model), state_bytes(optimizer)))
    print(f"{name}：测试准确率 {accuracy(model):.3f}，优化器状态 {state_bytes(optimizer)} 字节")

# %% [markdown]
# ### 零阶方法：每步两次前向，没有反向
#
# MeZO 沿随机方向 $z$ 做中心差分
# $c=\frac{L(w+\epsilon z)-L(w-\epsilon z)}{2\epsilon}$，再令 $w \leftarrow w-\eta\,c\,z$。
# 闭包只做前向计算；$z$ 由种子重新生成，不占内存。方差随参数个数增长，所以学习率小、步数多。

# %%
steps = 5000
model = make_model()
optimizer = MeZO(model, lr=3e-3, eps=1e-3, seed=0)
curve = []
for step, (xb, yb) in enumerate(batches(steps), start=1):
    optimizer.step(lambda xb=xb, yb=yb: F.cross_entropy(model(xb), yb))
    if step % 1000 == 0:
        curve.append((step, accuracy(model)))
results.append(("MeZO", steps, optimizer.forwards, accuracy(model), state_bytes(optimizer)))
print("步数与测试准确率：" + "，".join(f"{step} 步 {value:.3f}" for step, value in curve))
print("权重是否有梯度：", any(p.grad is not None for p in model.parameters()))

# %%
columns = ["方法", "步数", "前向次数", "测试准确率", "状态字节"]
table = pd.DataFrame(results, columns=columns)
table.assign(测试准确率=table["测试准确率"].map("{:.1%}".format))

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

folder = Path(os.environ.get("DLOPT_RESULTS", "results")) / "demo"
records, broken = load_all(folder) if folder.is_dir() else ([], [])
for problem in broken:
    print("略去：", problem)
if not records:
    display(Markdown("还没有记录：先运行 `dlopt run demo --scale smoke`，再执行本节。"))

# %% [markdown]
# ### 运行一览
#
# 调参与报告的运行都在内，发散与失败也是一行。


# %%
def percent(share):
    return "—" if share is None else f"{share:.1%}"


if records:
    rows = [
        {
            "方法": r.config["method"],
            "超参数": ", ".join(f"{k}={v:.3g}" for k, v in r.overrides.get("params", {}).items()),
            "种子": r.config["seed"],
            "状态": r.status,
            "验证准确率": percent(r.summary.get("val_accuracy")),
            "测试准确率": percent(r.summary.get("test_accuracy")),
        }
        for r in records
    ]
    display(pd.DataFrame(rows).sort_values(["方法", "种子", "超参数"], ignore_index=True))

# %% [markdown]
# ### 曲线
#
# 只画报告用的种子（出现在多于一次试验中的种子是调参种子）。先对样本数，再对前向次数作图：MeZO 每步两次前向。

# %%
if records:
    trials = {}
    for r in records:
        trials.setdefault((r.config["method"], r.config["seed"]), []).append(r)
    reported = [group[0] for group in trials.values() if len(group) == 1]
    for axis in ("examples", "forwards"):
        figure = figures.curves(reported, axis, ["val_loss", "val_accuracy"], log_x=axis == "forwards", log_y=True)
        display(SVG(figures.svg(figure)))

# %% [markdown]
# ### 内存
#
# 一步训练中按种类计数的字节。

# %%
if records:
    display(SVG(figures.svg(figures.stacked({r.config["method"]: r.bytes for r in reported}))))
