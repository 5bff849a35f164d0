"""The bundle to hand in: one zip with report, notebook, code, records and a readme in Chinese.

The same files give the same bytes: entries are sorted and carry a fixed date and mode. Data sets, checkpoints and
everything a computer can make again (caches, gen/) stay out; the readme says how to get or make them.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from pathlib import Path

from dlopt import __version__
from dlopt.lab.record import write_atomic
from dlopt.lab.typeset import ReportError

_DATE = (1980, 1, 1, 0, 0, 0)  # the earliest that zip knows
_PROJECT = ("pyproject.toml", "constraints.txt", "LICENSE", "README.md", "README.zh.md", "CITATION.cff")
_HEAVY = {".pt", ".pth", ".ckpt", ".bin", ".safetensors", ".gguf", ".npy", ".npz", ".parquet", ".whl"}
_MADE = {"__pycache__", "gen", ".ipynb_checkpoints", ".work"}

README = """\
# 实验代码说明：{topic}

本压缩包由 `dlopt bundle {topic}` 生成（dlopt {version}）。内容：

| 路径 | 内容 |
| --- | --- |
| `report.pdf` | 项目报告 |
| `{topic}.ipynb` | 已执行的笔记本：先在一分钟内实际运行各方法，再展示记录中的结果 |
| `src/dlopt/` | 全部源代码 |
| `results/{topic}/` | 实验记录，每次运行一个 JSON 文件 |
| `reports/` | 报告源文件（Typst）、版式、参考文献、成员分工 |
| `notebooks/{topic}.py` | 笔记本源文件（jupytext 格式） |

## 代码的运行逻辑

1. **方法**：`src/dlopt/<专题>/` 中每个文件是一种方法，是普通的 PyTorch 对象，只依赖 torch；论文、公式与参数含义写在
   文件开头。`catalog.py` 读取源码中的 `@method(...)` 标记得到方法目录。
2. **任务**：`src/dlopt/tasks/` 固定模型、数据、损失与指标，不知道运行的是哪种方法。
3. **实验**：`src/dlopt/experiments/` 每个专题一个文件，规定要运行的全部设置：先用相同次数的 Sobol 试验在调参种子上
   选超参数（tune），再在新的种子上报告结果（report）。
4. **记录**：`src/dlopt/lab/` 执行每次运行，写成一个 JSON 记录（设置、状态、指标、曲线、内存字节、环境、校验和）。
   已有记录的运行不会重复；中断后用同一命令继续。发散与失败同样是记录。
5. **报告**：图、表与正文中的每个实验数字都由记录计算，没有手写的数字。

## 运行

```
python -m venv .venv && . .venv/bin/activate
pip install -e '.[lab]'
dlopt run {topic} --scale smoke      # 一分钟左右的小规模实验
dlopt run {topic} --scale cpu        # 报告所用的规模；可以中断，用同一命令继续
dlopt report {topic}                 # 由记录重新生成图表、PDF 与笔记本
```

需要的数据集不在压缩包内：`dlopt data list` 列出全部数据集，`dlopt data get 名称` 从公开来源下载并校验；也可用环境变量
`DLOPT_DATA` 指向本地文件夹。训练得到的模型不随包提交，可由上面的命令重新得到。

## 来源声明

方法按论文独立实现，论文见报告的参考文献与各文件开头；与官方代码的差异写在文件说明中。依赖的开源软件列在
`pyproject.toml`，所用数据与模型的出处写在报告的"代码与数据来源"一节。
"""


def bundle(topic: str, root: Path, out: Path, *, results: Path | None = None) -> Path:
    """Zip a topic's report, notebook, code and records to `out`; everything lies in one folder named like the zip.

    root: the project folder. results: the folder of records, by default <root>/results. A readme.md beside the
    report's source stands in for the general one. Raises `ReportError` if the PDF or the executed notebook is missing.
    """
    pdf, book = root / "reports" / topic / "report.pdf", root / "notebooks" / f"{topic}.ipynb"
    for path, needed in ((pdf, True), (book, book.with_suffix(".py").exists())):
        if needed and not path.is_file():
            raise ReportError(f"{path} is missing; make it with `dlopt report {topic}`, then bundle again")
    own = root / "reports" / topic / "readme.md"
    readme = own.read_text(encoding="utf-8") if own.is_file() else README.format(topic=topic, version=__version__)
    entries = {"readme.md": readme.encode(), "report.pdf": pdf.read_bytes()}
    if book.is_file():
        entries[book.name] = book.read_bytes()
    for name, path in _files(topic, root, results or root / "results"):
        entries[name] = path.read_bytes()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name in sorted(entries):
            info = zipfile.ZipInfo(f"{out.stem}/{name}", _DATE)
            info.external_attr = 0o100644 << 16
            archive.writestr(info, entries[name], zipfile.ZIP_DEFLATED)
    write_atomic(out, buffer.getvalue())
    return out


def _files(topic: str, root: Path, results: Path) -> Iterator[tuple[str, Path]]:
    """(name in the zip, file) of sources and records."""
    for name in _PROJECT:
        if (root / name).is_file():
            yield name, root / name
    reports = root / "reports"
    found = [*(root / "src").rglob("*"), *reports.glob("*.*"), *(reports / topic).rglob("*")]
    found += [root / "notebooks" / f"{topic}.py"]
    for path in sorted(found):
        inside = path.relative_to(root)
        if path.is_file() and path.suffix not in _HEAVY | {".pdf", ".pyc"} and not _MADE & set(inside.parts):
            yield str(inside), path
    for path in sorted((results / topic).rglob("*.json")):
        inside = path.relative_to(results)
        if not any(part.startswith(".") for part in inside.parts):
            yield f"results/{inside}", path
