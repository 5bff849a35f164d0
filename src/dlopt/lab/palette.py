"""How things look and are called: colour and marker per method, Chinese names of known columns.

A method has the same colour and marker in every figure and page. Methods listed here are told apart within their
topic; any other name gets a look from its own hash, so nothing has to be edited for a new method to work.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

from dlopt import catalog

# safe for the common kinds of colour blindness: Okabe and Ito's set without yellow, with four of Paul Tol's
COLOURS = (
    "#0072B2",  # blue
    "#D55E00",  # vermilion
    "#009E73",  # green
    "#CC79A7",  # pink
    "#E69F00",  # orange
    "#56B4E9",  # sky
    "#882255",  # wine
    "#332288",  # indigo
    "#999933",  # olive
    "#7A4A1E",  # brown
)
MARKERS = ("^", "D", "v", "P", "X", "*", "<", ">", "p", "h")
BLACK, GREY = "#000000", "#6E6E6E"

# what users would pick instead is drawn without colour
_BASELINES = {
    "adamw": (BLACK, "o"),
    "sgd": (GREY, "s"),
    "adam": (GREY, "d"),
    "lora": (GREY, "s"),
    "full": (BLACK, "o"),
    "plain": (BLACK, "o"),
    "with_replacement": (BLACK, "o"),
    "dense": (BLACK, "o"),
    "prox_sgd": (GREY, "s"),
}
_KNOWN = {
    "adafactor": 0, "adam_mini": 1, "sophia_g": 2, "sophia_h": 3, "lion": 4, "muon": 5,
    "lisa": 0, "badam": 1,
    "mezo": 1, "mezo-svrg": 2, "lozo": 3, "lozo-m": 6, "deepzero": 4,
    "galore": 0, "golore": 1, "flora_compress": 2, "flora_tucker": 3, "relora": 4, "sltrain": 5,
    "sinks": 0, "kivi": 1, "quant": 2, "h2o": 3, "snapkv": 4, "pyramid": 5, "tova": 6, "knorm": 7, "window": 8,
    "kivi_2": 1, "int8": 2, "fp8": 9,
    "importance": 0, "fixed_order": 1, "shuffle_once": 2, "random_reshuffling": 3, "class_blocks": 4,
    "class_balanced": 5, "grab": 6, "weighted": 7, "saga": 8, "svrg": 9,
    "dgd": 0, "extra": 1, "gradient_tracking": 2, "exact_diffusion": 3, "ef14": 4, "ef21": 5, "local_sgd": 6,
    "fedavg": 7, "scaffold": 8, "fedvarp": 9, "diloco": 0,
    "topk": 0, "randk": 1, "sign": 2, "qsgd": 3, "natural": 4, "powersgd": 5,
    "speculative_sampling": 0, "cascade": 1, "llma": 2, "draft_and_verify": 3, "rest": 4, "prompt_lookup": 5,
    "suffix_decoding": 6, "token_recycling": 7, "best_of_drafts": 8,
}  # fmt: skip
# another setting of a method that is drawn beside it: the same colour, another marker, dashed
_VARIANTS = {"kivi_4": 1, "kivi_2:packed": 1, "int4": 2, "sinks:original": 0}
_DASHES = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)))

LABELS = {
    "accuracy": "准确率",
    "batch": "批量",
    "bytes_sent": "通信量",
    "cpu_seconds": "CPU 时间（秒）",
    "epoch": "轮次",
    "epochs": "轮次",
    "eps": "光滑半径",
    "examples": "样本数",
    "experiment": "实验",
    "forwards": "前向次数",
    "loss": "训练损失",
    "lr": "学习率",
    "method": "方法",
    "nll": "NLL（纳特/词元）",
    "p": "p 值",
    "p_holm": "p 值（Holm 校正）",
    "params": "超参数",
    "peak_bytes": "峰值字节",
    "perplexity": "困惑度",
    "reason": "原因",
    "seconds": "时间（秒）",
    "seconds_per_step": "每步时间（秒）",
    "seed": "种子",
    "seeds": "种子数",
    "state_bytes": "状态字节",
    "status": "状态",
    "step": "步数",
    "steps": "步数",
    "steps_to_target": "达标步数",
    "stored_bytes": "缓存字节",
    "test_accuracy": "测试准确率",
    "test_loss": "测试损失",
    "tokens": "词元数",
    "tokens_per_second": "每秒词元数",
    "total": "合计",
    "train_loss": "训练损失",
    "trials": "调参次数",
    "val_accuracy": "验证准确率",
    "val_loss": "验证损失",
    "val_perplexity": "验证困惑度",
}
STATUSES = {"done": "完成", "failed": "失败", "diverged": "发散", "skipped": "跳过", "running": "进行中"}
KINDS = {
    "weights": ("权重", "#0072B2"),
    "gradients": ("梯度", "#E69F00"),
    "state": ("优化器状态", "#009E73"),
    "scratch": ("临时", "#56B4E9"),
    "saved": ("激活", "#CC79A7"),
    "cache": ("KV 缓存", "#882255"),
    "wire": ("通信", "#999933"),
}


@dataclass(frozen=True)
class Look:
    """Colour, marker and line style (as matplotlib takes it) of one series."""

    colour: str
    marker: str
    dash: str | tuple[float, tuple[float, ...]]


def look(name: str) -> Look:
    """The fixed look of a method, or of a series called after its settings ("kivi:bits=2")."""
    plain = name.lower().replace("-", "_")
    if plain in _BASELINES:
        return Look(*_BASELINES[plain], "-")
    if plain in _VARIANTS:
        number = _VARIANTS[plain]
        return Look(COLOURS[number], MARKERS[(number + 5) % len(MARKERS)], _DASHES[1])
    if plain in _KNOWN:
        return Look(COLOURS[_KNOWN[plain]], MARKERS[_KNOWN[plain]], "-")
    # not hash(): it differs from process to process
    code = zlib.crc32(name.encode())
    count = len(COLOURS)
    return Look(COLOURS[code % count], MARKERS[code // count % count], _DASHES[code // count**2 % len(_DASHES)])


def title(name: str) -> str:
    """How a method is written: by the name of its class (`adamw` -> AdamW), else as it stands."""
    entry = catalog.methods().get(name)
    return entry.attribute if entry is not None and entry.attribute[0].isupper() else name


def label(column: str) -> str:
    """The Chinese name of a known column, summary figure, setting or kind of bytes; else the name as it stands."""
    kind, _, rest = column.partition(".")
    if kind == "bytes" and rest in KINDS:
        return KINDS[rest][0]
    if kind in ("params", "config", "summary", "bytes") and rest:
        return LABELS.get(rest, rest)
    return LABELS.get(column, column)


def is_share(column: str) -> bool:
    """True for columns that hold a share of 1 and read best in percent."""
    return column.rpartition(".")[2].endswith(("accuracy", "share", "acceptance"))


def is_bytes(column: str) -> bool:
    """True for columns that hold bytes."""
    return column.startswith("bytes.") or column.endswith("bytes") or column == "bytes_sent"
