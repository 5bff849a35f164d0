"""Writes what would otherwise be typed twice: docs/methods.md, and the blocks between markers in both READMEs.

`python -m docs.generate` (or `make docs`) writes; with `--check` it writes nothing and exits 1 if a file is out of
date. The catalogue and the commands come from the source, the accuracies from the records in results/demo through
the lab's own statistics; where these records are missing, each number stays a {{placeholder}}.

A block is `<!-- made: NAME -->` ... `<!-- end -->`; `BLOCKS` says what stands in it.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
import textwrap
from collections.abc import Callable, Iterator
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

from dlopt import catalog
from dlopt.catalog import Method

ROOT = Path(__file__).parent.parent
RECORDS = ROOT / "results"
WIDTH = 100

TOPICS = {
    "adam": "Adam and its relatives",
    "precision": "Mixed precision",
    "blockwise": "Blockwise training",
    "zeroth": "Zeroth-order optimization",
    "subspace": "Low-rank subspaces",
    "kvcache": "Key-value caches",
    "transformer": "Transformers",
    "poetry": "Poetry",
    "sampling": "Sampling",
    "distributed": "Distributed training",
    "speculative": "Speculative decoding",
}


def methods() -> dict[str, Method]:
    """The methods of this package. Those of other packages on this machine are not ours to document."""
    return {name: m for name, m in catalog.methods().items() if m.origin == "dlopt"}


# ---------------------------------------------------------------- the catalogue


def methods_page() -> str:
    """docs/methods.md."""
    lines = [
        "# Methods",
        "",
        "Made by `make docs` from the source; do not edit. What a hyper-parameter means, its range, errors and an",
        "example stand in the docstring: `python -c 'from dlopt.adam import Adafactor; help(Adafactor)'`. A search box",
        "is where the lab tunes a hyper-parameter unless an experiment says otherwise.",
        "[How to add a method](add_a_method.md).",
    ]
    for topic, group in groupby(methods().values(), key=lambda m: m.topic):
        lines += ["", f"## {TOPICS.get(topic, topic)} (`dlopt.{topic}`)"]
        for m in group:
            lines += ["", f"### {m.name}", "", f"{m.summary}.", ""]
            lines += [
                f"* object: `{m.module}.{m.attribute}`, kind: {m.kind}",
                f"* paper: {reference(m.cite)}",
                *([f"* needs: {', '.join(m.needs)}"] if m.needs else []),
                *([f"* search box: {box(m)}"] if m.search else []),
                *([f"* memory: {told}"] if (told := memory_line(m)) else []),
                "",
                "```text",
                signature(m),
                "```",
            ]
    return "\n".join(lines) + "\n"


def box(m: Method) -> str:
    return "; ".join(f"`{name}` from {low:g} to {high:g}, {scale}" for name, (low, high, scale) in m.search.items())


def node(m: Method) -> ast.ClassDef | ast.FunctionDef:
    """The class or function of a method in its source."""
    tree = ast.parse(m.path.read_text(encoding="utf-8"))
    return next(n for n in tree.body if isinstance(n, ast.ClassDef | ast.FunctionDef) and n.name == m.attribute)


def signature(m: Method) -> str:
    """Name, parameters and defaults without types: from the source if it is written there, else from the object."""
    found = node(m)
    if isinstance(found, ast.ClassDef):
        found = next((n for n in found.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"), found)
    if isinstance(found, ast.FunctionDef):
        for argument in ast.walk(found.args):
            if isinstance(argument, ast.arg):
                argument.annotation = None
        parts = re.sub(r"^self(, |$)", "", ast.unparse(found.args))
    elif m.missing():
        parts = "..."
    else:
        given = inspect.signature(m.load())
        plain = [p.replace(annotation=p.empty) for p in given.parameters.values()]
        parts = str(given.replace(parameters=plain, return_annotation=given.empty))[1:-1]
    indent = " " * (len(m.attribute) + 1)
    return textwrap.fill(f"{m.attribute}({parts})", WIDTH, subsequent_indent=indent, break_long_words=False)


def memory_line(m: Method) -> str:
    """The first line of the docstring of the method's memory formula."""
    found = node(m)
    for n in found.body if isinstance(found, ast.ClassDef) else ():
        if isinstance(n, ast.FunctionDef) and n.name == "memory":
            return " ".join((ast.get_docstring(n) or "").split("\n\n")[0].split())
    return ""


# ---------------------------------------------------------------- references


@cache
def bibliography() -> dict[str, dict[str, str]]:
    """{key: {field: text}} of reports/refs.bib, which keeps one field a line."""
    entries: dict[str, dict[str, str]] = {}
    for line in (ROOT / "reports" / "refs.bib").read_text(encoding="utf-8").splitlines():
        if start := re.match(r"@\w+\{(.+),", line):
            entry = entries.setdefault(start[1], {})
        elif found := re.match(r"\s+(\w+)\s*=\s*\{(.*)\},?$", line):
            entry[found[1]] = re.sub(r"[{}]", "", found[2]).replace("--", "–")
    return entries


def authors(entry: dict[str, str]) -> str:
    """Family names: one, two, or the first "et al."."""
    names = [name.split(",")[0].strip() for name in entry.get("author", "").split(" and ")]
    if len(names) > 2:
        return f"{names[0]} et al."
    return " and ".join(names)


def short(key: str) -> str:
    entry = bibliography()[key]
    return f"{authors(entry)} {entry['year']}"


def reference(key: str) -> str:
    entry = bibliography()[key]
    where = entry.get("journal") or entry.get("booktitle") or entry.get("url") or entry.get("eprint", "")
    return f"{authors(entry)} {entry['year']}, *{entry['title']}*" + (f", {where}" if where else "")


# ---------------------------------------------------------------- blocks of the READMEs


def table(headers: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [headers, tuple("---" for _ in headers), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def methods_block(language: str) -> str:
    headers = {
        "en": ("from `dlopt.TOPIC`", "import", "what it does", "paper"),
        "zh": ("从 `dlopt.专题`", "导入", "做什么", "论文"),
    }[language]
    rows = []
    before = ""
    for m in methods().values():
        rows.append((f"`{m.topic}`" if m.topic != before else "", f"[`{m.attribute}`](docs/methods.md#{m.name})",
                     m.summary, short(m.cite)))  # fmt: skip
        before = m.topic
    return table(headers, rows)


def commands_block(language: str) -> str:
    headers = {"en": ("command", "what it does"), "zh": ("命令", "做什么")}[language]
    return table(headers, [(f"`dlopt {name}`", told) for name, told in commands()])


def commands() -> Iterator[tuple[str, str]]:
    """(command with its arguments, first line of its help), those of groups too."""
    import typer

    from dlopt import cli

    def walk(group: Any, before: str) -> Iterator[tuple[str, str]]:
        for name, command in group.commands.items():
            if hasattr(command, "commands"):
                yield from walk(command, f"{before}{name} ")
            else:
                asked = [p for p in command.params if p.param_type_name == "argument"]
                arguments = "".join(f" {p.name.upper()}" if p.required else f" [{p.name.upper()}]" for p in asked)
                yield f"{before}{name}{arguments}", (command.help or "").split("\n")[0]

    yield from walk(typer.main.get_command(cli.app), "")


def demo_block(language: str) -> str:
    """Test accuracy, state and forward passes of the demonstration, from results/demo; else placeholders."""
    from dlopt.experiments.demo import METHODS, SEEDS, TRIALS
    from dlopt.lab import palette
    from dlopt.memory import human

    texts = {
        "en": (
            ("method", "test accuracy", "optimizer state", "forward passes"),
            f"Mean and 95% interval over {len(SEEDS)} fresh seeds, after {TRIALS} tuning trials of each method.",
        ),
        "zh": (
            ("方法", "测试准确率", "优化器状态", "前向次数"),
            f"每种方法先调参 {TRIALS} 次；表中是 {len(SEEDS)} 个新种子的均值与 95% 区间。",
        ),
    }
    headers, caption = texts[language]
    rows = []
    for name in METHODS:
        group = demo_records().get(name)
        if group is None:
            cells = tuple(f"{{{{{name}.{what}}}}}" for what in ("accuracy", "state", "forwards"))
        else:
            forwards = group[0].summary["forwards"]
            cells = (accuracy(group), human(group[0].bytes.get("state", 0)), f"{forwards:,}")
        rows.append((palette.title(name), *cells))
    return f"{table(headers, rows)}\n\n{caption}"


def accuracy(group: list[Any]) -> str:
    from dlopt.lab.stats import mean_interval

    found = mean_interval([r.summary["test_accuracy"] for r in group])
    return f"{100 * found.mean:.1f}% ± {50 * (found.high - found.low):.1f}"


@cache
def demo_records() -> dict[str, list[Any]]:
    """{method: its reported runs} of results/demo; nothing while the grid is incomplete or a run did not end well."""
    from dlopt.commands import study_of
    from dlopt.lab.study import collect

    found = collect(study_of("demo", "smoke", None, None, "cpu"), RECORDS / "demo")
    reported = found.stages.get("report", ())
    if not found.complete or any(r.status != "done" for r in reported):
        return {}
    groups: dict[str, list[Any]] = {}
    for record in reported:
        groups.setdefault(record.method, []).append(record)
    return groups


def studies_block(language: str) -> str:
    """What each topic's study has led to. Runs are counted for those that have a report, which fixes their number."""
    headers, kinds, waiting = {
        "en": (("study", "report (in Chinese)", "notebook", "runs on record"), ("PDF", "notebook"), "being recorded"),
        "zh": (("研究", "报告", "笔记本", "运行记录"), ("PDF", "笔记本"), "记录尚未齐全"),
    }[language]
    rows = []
    for source in sorted((ROOT / "reports").glob("*/report.typ")):
        topic = source.parent.name
        pdf, notebook = source.with_suffix(".pdf"), ROOT / "notebooks" / f"{topic}.ipynb"
        name = TOPICS.get(topic, "Demonstration") if language == "en" else title(source)
        cells = [f"[{kind}]({path.relative_to(ROOT).as_posix()})" if path.exists() else ""
                 for kind, path in zip(kinds, (pdf, notebook))]  # fmt: skip
        rows.append((f"`{topic}`: {name}", *cells, counted(topic) if pdf.exists() else waiting))
    return table(headers, rows)


def title(source: Path) -> str:
    """Of a report."""
    found = re.search(r'^\s*title: "(.+)",$', source.read_text(encoding="utf-8"), re.MULTILINE)
    return found[1] if found else ""


def counted(topic: str) -> str:
    return f"{sum(1 for _ in (RECORDS / topic).glob('*.json')):,}"


BLOCKS: dict[str, Callable[[str], str]] = {
    "studies": studies_block,
    "methods": methods_block,
    "commands": commands_block,
    "demo": demo_block,
}
READMES = {"README.md": "en", "README.zh.md": "zh"}
_BLOCK = re.compile(r"<!-- made: (\w+) -->\n.*?<!-- end -->", re.DOTALL)


def filled(text: str, language: str) -> str:
    """A README with its blocks made anew."""
    return _BLOCK.sub(lambda found: f"<!-- made: {found[1]} -->\n{BLOCKS[found[1]](language)}\n<!-- end -->", text)


def pages() -> dict[Path, str]:
    """{file: what it must hold}."""
    made = {ROOT / "docs" / "methods.md": methods_page()}
    for name, language in READMES.items():
        made[ROOT / name] = filled((ROOT / name).read_text(encoding="utf-8"), language)
    return made


def main(arguments: list[str]) -> int:
    if arguments not in ([], ["--check"]):
        print("usage: python -m docs.generate [--check]", file=sys.stderr)
        return 2
    stale = {p: text for p, text in pages().items() if not p.exists() or text != p.read_text(encoding="utf-8")}
    for path, text in stale.items():
        if not arguments:
            path.write_text(text, encoding="utf-8")
        print(f"{path.relative_to(ROOT)} {'is out of date: run `make docs`' if arguments else 'written'}")
    return 1 if arguments and stale else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
