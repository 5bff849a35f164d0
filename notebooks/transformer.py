# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # 从零搭建 Transformer 与古诗写作
#
# 第一部分在随程序附带的 290 首唐诗上现场运行，一分钟内结束，不需要数据文件，也不需要实验框架；
# 第二部分读取实验记录，展示报告所用的表和图。
#
# 运行前安装：`pip install 'dlopt[lab,poetry]'`。

# %% [markdown]
# ## 一、现场运行
#
# ### 格律检查：每个字的平仄，每处错误的理由

# %%
import math
import os
import time
from pathlib import Path

import pandas as pd
import torch
import torch.nn.functional as F

from dlopt.poetry import ProsodyConstraint, Request, Vocabulary, check, continuation, prepare, tones
from dlopt.poetry.corpus import Couplets
from dlopt.poetry.sample import sample_poems
from dlopt.transformer.config import TransformerConfig
from dlopt.transformer.decoding import Seq2SeqStep, generate
from dlopt.transformer.model import Decoder, Seq2Seq
from dlopt.transformer.sparse import Pattern

torch.set_num_threads(1)
print(check("白日依山盡，黃河入海流。欲窮千里目，更上一層樓。"))
print(check("白日依山盡，黃河向東流。欲窮千里目，更上一層樓。"))
{char: "".join(sorted(tones(char))) for char in "白日依山看過"}

# %% [markdown]
# ### 由上半句写下半句
#
# 从线性层搭起的编码器-解码器：前置 RMSNorm、SwiGLU、RoPE。六百多联只够看个样子。

# %%
corpus = prepare(sample_poems())
pairs = corpus.couplets("train")
vocabulary = Vocabulary.build(a + b for a, b in pairs)
couplets = Couplets(pairs, vocabulary)
config = TransformerConfig(
    len(vocabulary), width=64, layers=2, heads=4, norm="rms", feedforward="swiglu", positions="rope"
)
torch.manual_seed(0)
model = Seq2Seq(config)
optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
begin, losses = time.perf_counter(), []
for _ in range(80):
    rows = torch.randint(len(couplets), (64,))
    source, target = couplets.source[rows], couplets.target[rows]
    logits = model(source, target[:, :-1])
    loss = F.cross_entropy(logits.flatten(0, 1), target[:, 1:].flatten(), ignore_index=vocabulary.pad)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
print(f"{sum(p.numel() for p in model.parameters()):,} 个参数，用时 {time.perf_counter() - begin:.1f} 秒")
pd.Series(losses).rolling(10).mean().iloc[9::14].round(2).rename("训练损失")

# %% [markdown]
# ### 守规矩要付多少概率
#
# 同一批上句，自由采样与受限采样。掩码只屏蔽不合格律的字，其余的比例不变；代价是被屏蔽掉的概率的负对数，逐字相加。

# %%
model.eval()
regular = []
for first, _ in pairs:
    try:
        request = continuation(first, judge_given=True)
        ProsodyConstraint(vocabulary, request, skip_lines=1, punctuation=False)
        regular.append((first, request))
    except ValueError:  # 上句本身不合律
        continue
    if len(regular) == 8:
        break
source = Couplets([(first, first) for first, _ in regular], vocabulary).source
prompt = torch.full((len(regular), 1), vocabulary.bos)
common = {"eos": vocabulary.eos, "pad": vocabulary.pad}
rules = ProsodyConstraint(vocabulary, [r for _, r in regular], skip_lines=1, punctuation=False)
free = generate(Seq2SeqStep(model, source), prompt, 8, generator=torch.Generator().manual_seed(0), **common)
kept = generate(
    Seq2SeqStep(model, source), prompt, 8, processors=[rules], generator=torch.Generator().manual_seed(0), **common
)
cost = (kept.drawn - kept.log_probs).sum(1)
pd.DataFrame(
    {
        "上句": [first for first, _ in regular],
        "自由": [vocabulary.decode(t) for t in free.tokens.tolist()],
        "受限": [vocabulary.decode(t) for t in kept.tokens.tolist()],
        "代价（nat）": cost.numpy().round(2),
    }
)

# %% [markdown]
# ### 一首没有学过的诗
#
# 规则由掩码保证，所以连没有训练过的模型也写得“合律”：合律与好诗是两回事。

# %%
torch.manual_seed(0)
blank = Decoder(TransformerConfig(len(vocabulary), width=32, layers=1, heads=2)).eval()
constraint = ProsodyConstraint(vocabulary, Request("五绝", rhyme="東"))
start = torch.tensor([[vocabulary.bos]])
poem = generate(blank, start, constraint.length, processors=[constraint], **common).tokens[0].tolist()
text = "".join(vocabulary.tokens[t] for t in poem if t != vocabulary.eos)
print(text)
print(check(text))

# %% [markdown]
# ### 初始化时的梯度：后置与层数无关，前置随层数变小


# %%
def last_gradient(place, layers):
    torch.manual_seed(0)
    shape = {"width": 128, "heads": 4, "feedforward": "relu", "tied": False}
    decoder = Decoder(TransformerConfig(500, layers=layers, norm_position=place, **shape))
    tokens = torch.randint(500, (8, 33))
    F.cross_entropy(decoder(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten()).backward()
    return decoder.decoder.layers[-1].mlp.down_proj.weight.grad.norm().item()


table = pd.DataFrame({p: {n: last_gradient(p, n) for n in (2, 4, 8, 16)} for p in ("post", "pre", "sandwich")})
table.loc["16 层 / 2 层"] = table.loc[16] / table.loc[2]
table.rename(columns={"post": "后置", "pre": "前置", "sandwich": "夹心"}).round(3)

# %% [markdown]
# ### 稀疏模式：谁看见谁
#
# 跨步注意力的两半（$\ell=4$）：最近的若干个位置，和每隔四个的位置。下面是 12 个位置的掩码。

# %%
at = torch.arange(12)
for name, pattern in {"局部": Pattern("local", window=5), "跨步": Pattern("strided", stride=4)}.items():
    seen = pattern.seen(at[:, None], at[None, :])
    print(name)
    print("\n".join("".join("■" if s else "·" for s in row) for row in seen.tolist()))

q, k, v = (torch.randn(1, 4, 2048, 32) for _ in range(3))
timings = {}
for name, work in {
    "全": lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True),
    "跨步（按块）": lambda: Pattern("strided", stride=64).blocked(q, k, v),
}.items():
    work()
    begin = time.process_time()
    for _ in range(5):
        work()
    timings[name] = (time.process_time() - begin) / 5
print({name: f"{1000 * seconds:.1f} ms" for name, seconds in timings.items()})

# %% [markdown]
# 这只是一个种子的演示，没有调参。公平的比较（相同次数的调参、全新的种子、检验）在记录里。

# %% [markdown]
# ## 二、实验记录
#
# 每次运行是一个 JSON 文件。文件夹由环境变量 `DLOPT_RESULTS` 指定，默认是 `results`。

# %%
from IPython.display import SVG, Markdown, display  # noqa: E402

from dlopt.lab import figures  # noqa: E402
from dlopt.lab.record import load_all  # noqa: E402

folder = Path(os.environ.get("DLOPT_RESULTS", "results")) / "transformer"
records, broken = load_all(folder) if folder.is_dir() else ([], [])
for problem in broken:
    print("略去：", problem)
if not records:
    display(Markdown("还没有记录：先运行 `dlopt run transformer/halves --scale cpu` 等，再执行本节。"))


def of(part):
    """一组实验里正常结束、不是调参的记录。"""
    return [
        r for r in records if r.experiment == f"transformer/{part}" and r.status == "done" and r.config["seed"] < 1000
    ]


# %% [markdown]
# ### 运行一览

# %%
if records:
    listed = pd.DataFrame([{"实验": r.experiment, "状态": r.status} for r in records])
    display(listed.value_counts(sort=False).rename("运行数").reset_index())

# %% [markdown]
# ### 半句到半句

# %%
mine = of("halves")
if mine:
    rows = [
        {
            "语料": r.config["corpus"],
            "模型": r.config["method"],
            "测试损失": r.summary["test_loss"],
            "字数": r.summary["t1.length"],
            "对": r.summary["t1.opposite"],
            "κ": r.summary["cost"],
        }
        for r in mine
    ]
    display(pd.DataFrame(rows).groupby(["语料", "模型"]).mean().round(3))
    print("受限采样的前四联：", mine[0].summary["examples"])
curved = [r for r in mine if r.config["corpus"] == "tang" and len(r.curve.get("loss", [])) > 1]
if curved:
    display(SVG(figures.svg(figures.curves(curved, "step", ["loss", "val_loss"]))))

# %% [markdown]
# ### 消融：验证损失

# %%
mine = of("ablation")
if mine:
    names = ("norm", "norm_position", "feedforward", "positions", "attention", "layers", "width")
    rows = [
        {name: r.config["params"][name] for name in names}
        | {"预热": r.config["warmup"], "验证损失": r.summary["val_loss"]}
        for r in mine
    ]
    frame = pd.DataFrame(rows)
    display(frame.groupby([c for c in frame if c != "验证损失"])["验证损失"].agg(["mean", "count"]).round(3))

# %% [markdown]
# ### 梯度尺度

# %%
mine = [r for r in of("gradient") if not r.config["params"]["tied"]]
if mine:
    rows = [
        {
            "位置": r.config["params"]["norm_position"],
            "层数": r.config["params"]["layers"],
            "梯度": r.summary["last_gradient"],
        }
        for r in mine
    ]
    display(pd.DataFrame(rows).pivot_table(index="层数", columns="位置", values="梯度").round(3))

# %% [markdown]
# ### 长序列

# %%
mine = [r for r in of("sparse") if r.config["part"] == "time"]
if mine:
    rows = {
        r.config["length"]: {k.removeprefix("seconds."): v for k, v in r.summary.items() if k.startswith("seconds.")}
        for r in mine
    }
    display(pd.DataFrame(rows).T.sort_index().round(4))

# %% [markdown]
# ### 整首诗

# %%
mine = [r for r in of("poems") if r.config["part"] == "rates"]
if mine:
    rows = [
        {
            "体裁": r.config["form"],
            "原作合律": r.summary["original.lenient"],
            "自由合律": r.summary["free.lenient"],
            "受限合律": r.summary["masked.lenient"],
            "掩码之内（自由）": r.summary["free.inside"] / r.summary["free.count"],
            "E[ΠZ]": sum(math.exp(float(x)) for x in r.summary["log_allowed"].split(",")) / r.summary["masked.count"],
        }
        for r in mine
    ]
    display(pd.DataFrame(rows).set_index("体裁").map("{:.1%}".format))
