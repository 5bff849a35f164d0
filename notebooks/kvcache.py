# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # 大模型推理的 KV 缓存压缩
#
# 第一部分用一个随机的小模型实际运行各种缓存，一分钟内结束，不需要下载任何东西；
# 第二部分读取实验记录，展示报告所用的表和图。
#
# 运行前安装：`pip install 'dlopt[lab,llm]'`。

# %% [markdown]
# ## 一、现场运行
#
# ### 缓存就是普通的 `past_key_values`

# %%
import os
from pathlib import Path

import pandas as pd
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from dlopt.kvcache import kv_bytes, make_cache

torch.set_num_threads(1)
torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=256,
    hidden_size=128,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    initializer_range=0.2,
    bos_token_id=None,
    eos_token_id=None,
)
model = LlamaForCausalLM(config).eval()
prompt = torch.randint(256, (1, 400))
specs = {
    "完整缓存": "full",
    "滑动窗口": "window:window=64",
    "StreamingLLM": "sinks:sinks=4,window=60",
    "KIVI-2": "kivi:bits=2,residual=32",
    "KIVI-4": "kivi:bits=4,residual=32",
    "int8": "quant:code=int8",
    "H2O": "h2o:budget=64,recent=32",
    "SnapKV": "snapkv:budget=64,window=16",
    "PyramidKV": "pyramid:budget=64,window=16",
    "TOVA": "tova:budget=64",
    "Knorm": "knorm:budget=64",
}
rows = {}
exact = None
for name, spec in specs.items():
    cache = make_cache(spec, model)
    with torch.no_grad():
        model(input_ids=prompt, past_key_values=cache)
        logs = model(input_ids=prompt[:, :32], past_key_values=cache).logits[0].double().log_softmax(-1)
    exact = logs if exact is None else exact
    divergence = float((exact.exp() * (exact - logs)).sum(-1).mean())
    rows[name] = {"字节": cache.nbytes().total, "与完整缓存的 KL": divergence}
pd.DataFrame(rows).T.round(4)

# %% [markdown]
# ### 字节可以不运行模型就算出来
#
# 一个 7B 形状（没有分组查询）的模型，一行文本，键值 16 位，单位 GiB。

# %%
large = LlamaConfig(hidden_size=4096, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=32)
lengths = (4096, 32768, 131072)
table = {
    name: [kv_bytes(large, spec, n, dtype=torch.bfloat16).total / 2**30 for n in lengths]
    for name, spec in {"完整缓存": "full", "int8": "quant", "KIVI-2": "kivi", "StreamingLLM": "sinks"}.items()
}
pd.DataFrame(table, index=lengths).T.round(3)

# %% [markdown]
# ### 无尽的流：字节是常数

# %%
cache = make_cache("sinks:sinks=4,window=60", model)
sizes = []
with torch.no_grad():
    for piece in torch.randint(256, (1, 2048)).split(256, dim=1):
        model(input_ids=piece, past_key_values=cache)
        sizes.append(cache.nbytes().total)
print(cache.describe())
print(sizes)

# %% [markdown]
# ## 二、实验记录
#
# 每次运行是一个 JSON 文件。文件夹由环境变量 `DLOPT_RESULTS` 指定，默认是 `results`。

# %%
from IPython.display import SVG, Markdown, display  # noqa: E402

from dlopt.lab import figures  # noqa: E402
from dlopt.lab.record import load_all  # noqa: E402

folder = Path(os.environ.get("DLOPT_RESULTS", "results")) / "kvcache"
records, broken = load_all(folder) if folder.is_dir() else ([], [])
for problem in broken:
    print("略去：", problem)
if not records:
    display(Markdown("还没有记录：先运行 `dlopt run kvcache/openbookqa --scale cpu` 等，再执行本节。"))


def finished(part):
    """一个实验的正常结束的记录。"""
    return [r for r in records if r.experiment == f"kvcache/{part}" and r.status == "done"]


# %% [markdown]
# ### 运行一览

# %%
if records:
    shown = pd.DataFrame([{"实验": r.experiment, "状态": r.status} for r in records])
    display(shown.value_counts(sort=False).rename("运行数").reset_index())

# %% [markdown]
# ### OpenbookQA：与完整缓存的 KL

# %%
mine = [r for r in finished("openbookqa") if r.config["prefix"] != "zero" and r.config["order"] == "packed"]
if mine:
    columns = {"前缀": "prefix", "方法": "method"}
    rows = [
        {name: r.config[key] for name, key in columns.items()}
        | {"超参数": str(r.overrides.get("params", {}))}
        | {"字节（16 位）": r.summary["bytes_16bit"], "KL": r.summary["divergence"], "一致": r.summary["agreement"]}
        for r in mine
    ]
    display(pd.DataFrame(rows).sort_values(["前缀", "KL"]).round(4))

# %% [markdown]
# ### 长文本：NLL 随位置

# %%
mine = [r for r in finished("books") if r.config["passage"] == 0 and r.config["tokens"] > 10_000]
if mine:
    display(SVG(figures.svg(figures.curves(mine, "tokens", "nll", height=3.2))))

# %% [markdown]
# ### 密钥：正确的数字

# %%
mine = [r for r in finished("passkey") if r.config["asked"] == "after"]
if mine:
    rows = [
        {
            "方法": r.config["method"] + (f"-{r.config['params']['bits']}" if r.config["method"] == "kivi" else ""),
            "长度": r.config["length"],
            "正确的数字": r.summary["digits_share"],
        }
        for r in mine
    ]
    display(pd.DataFrame(rows).pivot_table(index="方法", columns="长度", values="正确的数字").round(2))
