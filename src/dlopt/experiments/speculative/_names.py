"""How arms and categories are written in the report."""

from __future__ import annotations

from dlopt.lab import palette

CATEGORIES = {"translation": "翻译", "summaries": "摘要", "qa": "问答", "math": "数学", "retrieval": "检索问答",
              "chat": "闲聊", "articles": "新闻摘要", "rewriting": "改错", "code": "代码"}  # fmt: skip
STAGES = {
    "lookup": "查找类",
    "models": "模型类",
    "stores": "数据库",
    "cascades": "级联",
    "trees": "树与链",
    "lengths": "草稿长度",
    "drawn": "采样",
}
_BASELINES = {"plain-bf16": "bf16 逐词", "hf-lookup": "transformers 查找", "hf-assisted": "transformers 辅助"}


def category(name: str) -> str:
    return CATEGORIES.get(name, name)


def title(arm: str) -> str:
    """The method's class, its settings, and whether lengths are fixed."""
    body, _, fixed = arm.partition("/")
    name, _, settings = body.partition(":")
    text = _BASELINES.get(name, palette.title(name)) + (f"（{settings}）" if settings else "")
    return text + ("，定长" if fixed else "")
