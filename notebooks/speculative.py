# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # 投机解码
#
# 第一部分用随机的小模型实际运行几种起草者，一分钟内结束，不需要下载任何东西；
# 第二部分读取实验记录，展示报告所用的表和图。
#
# 运行前安装：`pip install 'dlopt[lab,llm]'`。

# %% [markdown]
# ## 一、现场运行
#
# ### 输出与逐词解码相同，目标模型的遍数更少

# %%
import os
from pathlib import Path

import pandas as pd
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from dlopt.speculative import Costs, PromptLookup, SuffixDrafter, TokenRecycling, generate

torch.set_num_threads(1)


def llama(layers):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=2,
        initializer_range=0.3,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config).eval()


model = llama(2)
prompt = [1, 2, 3, 4, 1, 2, 3, 4, 1, 2]
plain = generate(model, [prompt], max_new_tokens=64)
rows = {}
for drafter in (PromptLookup(), SuffixDrafter(), TokenRecycling()):
    found = generate(model, [prompt], drafter, max_new_tokens=64, gate=False)
    assert found.tokens == plain.tokens
    rows[type(drafter).__name__] = {
        "遍数": found.stats.rounds,
        "每遍词元": found.stats.tokens_per_round,
        "接受率": found.stats.acceptance,
    }
pd.DataFrame(rows).T.round(2)

# %% [markdown]
# ### 采样：确定的草稿，同一种子，逐词相同

# %%
drawn = generate(model, [prompt], max_new_tokens=32, temperature=0.8, seed=3)
drafted = generate(model, [prompt], PromptLookup(), max_new_tokens=32, temperature=0.8, seed=3, gate=False)
print(drawn.tokens == drafted.tokens)

# %% [markdown]
# ### 草稿多长才划算：期望词元数与 v(k)
#
# 接受率为 a、草稿长 g 时，一遍的期望词元数是 (1 − a^(g+1)) / (1 − a)；一遍的代价是 v(g+1)。
# 左边是随 k 几乎不变的代价（GPU 式），右边是第二个词元就翻倍的代价（CPU 上矩阵乘向量变为矩阵乘矩阵）。

# %%
flat = Costs((1, 2, 16), (1.0, 1.03, 1.45))
jump = Costs((1, 2, 8, 16), (1.0, 1.8, 2.0, 2.6))
lengths = range(9)
table = {}
for a in (0.3, 0.6, 0.9):
    for name, costs in (("平缓", flat), ("跳变", jump)):
        speeds = [sum(a**i for i in range(g + 1)) * costs.at(1) / costs.at(g + 1) for g in lengths]
        table[f"a = {a}，{name}"] = speeds
pd.DataFrame(table, index=pd.Index(lengths, name="草稿长度")).round(2)

# ## 二、实验记录
#
# 每次运行是一个 JSON 文件。文件夹由环境变量 `DLOPT_RESULTS` 指定，默认是 `results`。

# %%
from IPython.display import Markdown, display  # noqa: E402

from dlopt.lab.record import load_all  # noqa: E402

folder = Path(os.environ.get("DLOPT_RESULTS", "results")) / "speculative"
records, broken = load_all(folder) if folder.is_dir() else ([], [])
for problem in broken:
    print("略去：", problem)
if not records:
    display(Markdown("还没有记录：先运行 `dlopt run speculative/bench --scale cpu`，再执行本节。"))


def finished(part):
    """一个实验的正常结束的记录。"""
    return [r for r in records if r.experiment == f"speculative/{part}" and r.status == "done"]


# %% [markdown]
# ### 运行一览

# %%
if records:
    shown = pd.DataFrame([{"实验": r.experiment, "状态": r.status} for r in records])
    display(shown.value_counts(sort=False).rename("运行数").reset_index())

# %% [markdown]
# ### 各类任务的加速
#
# 逐词解码每个词元的 CPU 时间，除以各方法的；都不含预填充。

# %%
from dlopt.experiments.speculative._names import category, title  # noqa: E402
from dlopt.experiments.speculative._ratios import names, speedup, tokens_per_round  # noqa: E402

mine = [r for r in finished("bench") if r.config["temperature"] == 0]
rows = [
    {"任务": category(r.config["category"]), "方法": title(arm), "加速": speedup(r, arm).mean,
     "每轮词元": tokens_per_round(r, arm)}
    for r in mine
    for arm in names(r)
]  # fmt: skip
if rows:
    display(pd.DataFrame(rows).pivot_table(index="方法", columns="任务", values="加速").round(2))
    display(pd.DataFrame(rows).pivot_table(index="方法", columns="任务", values="每轮词元").round(2))
