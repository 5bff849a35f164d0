# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # 零阶优化训练与微调
#
# 第一部分在 scikit-learn 自带的手写数字上实际运行零阶方法，一分钟内结束，不需要实验框架；
# 第二部分读取实验记录，展示报告所用的表和图。
#
# 运行前安装：`pip install 'dlopt[lab]'`。

# %% [markdown]
# ## 一、现场运行
#
# ### 一个零阶优化器：只给它求损失的函数
#
# `loss = optimizer.step(closure)` 沿随机方向求两次损失，走一步。没有反向传播，没有 `.grad`；
# 权重在两次求值之间逐位复原。

# %%
import math
import os
import time
from pathlib import Path

import pandas as pd
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

from dlopt.zeroth import LOZO, DeepZero, MeZO, MeZOSVRG
from dlopt.zeroth.estimators import coordinate_gradient, random_gradient
from dlopt.zeroth.log import replay

torch.set_num_threads(1)
images, labels = load_digits(return_X_y=True)
x = torch.tensor(images, dtype=torch.float32) / 16 - 0.3
y = torch.tensor(labels)
order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
train, test = order[:1437], order[1437:]


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


def batches(count, size=64):
    """各方法看到同样的批次。"""
    generator = torch.Generator().manual_seed(1)
    for _ in range(count):
        rows = train[torch.randint(len(train), (size,), generator=generator)]
        yield x[rows], y[rows]


def accuracy(model):
    with torch.no_grad():
        return float((model(x[test]).argmax(1) == y[test]).float().mean())


print("参数：", sum(p.numel() for p in network().parameters()), "，训练前的准确率：", f"{accuracy(network()):.1%}")

# %% [markdown]
# ### 几种方法，同样的网络
#
# 学习率没有逐个细调，只看样子；公平的比较在第二部分。前向次数由优化器自己数。

# %%
rows = []


def compare(name, make, steps):
    model = network()
    optimizer = make(model)
    begin = time.perf_counter()
    for xb, yb in batches(steps):
        if isinstance(optimizer, DeepZero):
            optimizer.step(xb, yb)
        else:
            optimizer.step(lambda xb=xb, yb=yb: F.cross_entropy(model(xb), yb))
    rows.append((name, steps, optimizer.forwards, round(time.perf_counter() - begin, 1), accuracy(model)))


compare("MeZO", lambda m: MeZO(m, lr=3e-3), 2000)
compare("MeZO，8 个方向", lambda m: MeZO(m, lr=2e-2, n_directions=8), 250)
compare("LOZO", lambda m: LOZO(m, lr=3e-3, rank=2, interval=50), 2000)
compare("LOZO-M", lambda m: LOZO(m, lr=3e-3, rank=2, interval=50, momentum=0.7), 2000)
compare("DeepZero", lambda m: DeepZero(m, F.cross_entropy, lr=0.1, sparsity=0.9, q_pruning=16), 150)

# MeZO-SVRG 另要全批的损失
model = network()
svrg = MeZOSVRG(model, lr=3e-3, interval=20)
begin = time.perf_counter()
for xb, yb in batches(600):
    svrg.step(
        lambda xb=xb, yb=yb: F.cross_entropy(model(xb), yb),
        full=lambda: F.cross_entropy(model(x[train]), y[train]),
    )
rows.append(("MeZO-SVRG", 600, svrg.forwards, round(time.perf_counter() - begin, 1), accuracy(model)))
table = pd.DataFrame(rows, columns=["方法", "步数", "前向次数", "秒", "测试准确率"])
table["测试准确率"] = table["测试准确率"].map("{:.1%}".format)
table.head(len(rows))

# %% [markdown]
# MeZO-SVRG 的“前向次数”把一次全批也算一次，因为这里给它的是一个闭包；
# 按小批量计，全批要算 $n/b$ 次，实验里就是这样计的。
#
# ### 估计的质量：随机方向与坐标方向
#
# $q$ 个高斯方向平均的余弦平方约为 $q/(d+q+1)$；坐标差分用同样多的前向，却几乎精确。

# %%
model = network().double()
params = list(model.parameters())
xb, yb = x[train[:64]].double(), y[train[:64]]


def loss():
    return F.cross_entropy(model(xb), yb)


truth = torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss(), params)])
d = len(truth)


def cosine(estimate):
    vector = torch.cat([g.reshape(-1) for g in estimate.gradients])
    return float(vector @ truth / vector.norm() / truth.norm())


found = []
for q in (1, 16, 256, d):
    angle = cosine(random_gradient(loss, params, q=q, mu=1e-4))
    found.append((f"随机方向，q = {q}", q + 1, angle, math.sqrt(q / (d + q + 1))))
found.append(("坐标差分，全部坐标", d + 1, cosine(coordinate_gradient(loss, params, mu=1e-4)), 1.0))
pd.DataFrame(found, columns=["估计", "前向次数", "余弦", "公式"]).round(4)

# %% [markdown]
# ### 学习率为零，权重应当一点不动
#
# 官方的做法是加、减两倍、再加；bfloat16 中每步都留下舍入误差。

# %%
start = torch.randn(50_000, generator=torch.Generator().manual_seed(0)).bfloat16()
walked = start.clone()
for step in range(200):
    for factor in (1, -2, 1):
        z = torch.empty_like(walked).normal_(generator=torch.Generator().manual_seed(step))
        walked.add_(factor * z * 1e-3)
ours = start.clone().requires_grad_()
optimizer = MeZO([ours], lr=0.0)
for _ in range(200):
    optimizer.step(lambda: ours[0])
print(f"官方规则：{float((walked != start).float().mean()):.1%} 的权重变了，", end="")
print(
    f"均方根 {float((walked - start).float().square().mean().sqrt()):.4f}；本项目：逐位相等 {torch.equal(ours, start)}"
)

# %% [markdown]
# ### 一次训练就是一串（种子，标量）
#
# 记下日志，从初始权重重放，得到逐位相同的最终权重。

# %%
model = network()
optimizer = MeZO(model, lr=3e-3, log=True)
for xb, yb in batches(100):
    optimizer.step(lambda xb=xb, yb=yb: F.cross_entropy(model(xb), yb))
again = network()
steps = replay(again, optimizer.log)
same = all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters()))
print(f"重放 {steps} 步，逐位相等：{same}")

# %% [markdown]
# ## 二、实验记录
#
# 每次运行是一个 JSON 文件。文件夹由环境变量 `DLOPT_RESULTS` 指定，默认是 `results`。

# %%
from IPython.display import SVG, Markdown, display  # noqa: E402

from dlopt.lab import figures  # noqa: E402
from dlopt.lab.record import load_all  # noqa: E402

folder = Path(os.environ.get("DLOPT_RESULTS", "results")) / "zeroth"
records, broken = load_all(folder) if folder.is_dir() else ([], [])
for problem in broken:
    print("略去：", problem)
if not records:
    display(Markdown("还没有记录：先运行 `dlopt run zeroth/estimators --scale cpu` 等，再执行本节。"))


def of(name, /, **settings):
    """一个实验中正常结束的记录。"""
    mine = [r for r in records if r.experiment == f"zeroth/{name}" and r.status == "done"]
    return [r for r in mine if all(r.config.get(k) == v for k, v in settings.items())]


def series(record):
    """方法的名字，连同方向数与动量。"""
    params = record.config["params"]
    n, momentum = params.get("n_directions", 1), params.get("momentum")
    if record.config.get("gradient"):
        return "rge:q=16"
    if record.method == "lozo" and momentum is not None:
        return "lozo-m"
    return record.method + (f":q={n}" if n > 1 else "")


# %% [markdown]
# ### 运行一览

# %%
if records:
    overview = pd.DataFrame([{"实验": r.experiment, "状态": r.status} for r in records])
    display(overview.value_counts(sort=False).rename("运行数").reset_index())

# %% [markdown]
# ### 估计量：$q$ 个方向

# %%
for r in of("estimators", part="law"):
    columns = ["step", "cosine2", "cosine2_predicted", "mse", "mse_predicted", "ratio"]
    display(Markdown(f"**{r.config['params']['direction']}**"), pd.DataFrame(r.curve)[columns].round(6))

# %% [markdown]
# ### 图像：验证损失对前向次数与秒数

# %%
for task in dict.fromkeys(r.config["task"] for r in of("vision")):
    group = [r for r in of("vision", task=task) if r.config["seed"] < 1000]
    if group:
        display(Markdown(f"**{task}**"))
        for axis in ("forwards", "seconds"):
            display(SVG(figures.svg(figures.curves(group, axis, ["val_loss", "val_accuracy"], by=series, log_x=True))))

# %% [markdown]
# ### 语言模型

# %%
trained = [r for r in of("lm", part="train") if r.config["seed"] < 1000]
if trained:
    summary = [
        {"任务": r.config["task"], "方法": series(r), "种子": r.config["seed"], "步数": r.config["steps"],
         "前向次数": r.summary["forwards"], "测试准确率": r.summary["test_accuracy"], "AUC": r.summary["test_auc"]}
        for r in trained
    ]  # fmt: skip
    display(pd.DataFrame(summary).round(4))
    for task in dict.fromkeys(r.config["task"] for r in trained):
        group = [r for r in trained if r.config["task"] == task]
        display(
            SVG(figures.svg(figures.curves(group, "forwards", ["val_loss", "val_accuracy"], by=series, log_x=True)))
        )
for r in of("lm", part="zero-shot"):
    values = {
        k.removesuffix("_test_accuracy") or "零样本": v for k, v in r.summary.items() if k.endswith("test_accuracy")
    }
    print(r.config["task"], {k: round(v, 4) for k, v in values.items()})

# %% [markdown]
# ### 官方规则：低精度中的漂移

# %%
drifts = [
    (r.config["dtype"], r.config["spread"], r.config["rule"], r.summary["rms_shift"], r.summary["largest_shift"])
    for r in of("official", part="drift")
]
pd.DataFrame(drifts, columns=["精度", "权重标准差", "规则", "均方根偏移", "最大偏移"])
