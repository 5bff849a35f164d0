"""Who may import whom: read from source, for edges between our own rooms only (design, section 1)."""

import ast
from pathlib import Path

import pytest

SRC = Path(__file__).parent.parent / "src" / "dlopt"
TOPICS = {"adam", "precision", "blockwise", "zeroth", "subspace", "kvcache", "transformer", "poetry", "sampling",
          "distributed", "speculative"}  # fmt: skip
SHARED = {"catalog", "memory", "__init__"}


def room(parts):
    return parts[0] if parts and parts != ("__version__",) else "__init__"


def imports(path):
    """Modules of dlopt that a file imports, wherever in the file, as tuples below `dlopt`."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} uses a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            if name.split(".")[0] == "dlopt":
                yield tuple(name.split(".")[1:]), node.lineno


def allowed(source, target, source_parts, target_parts):
    if source == target and source != "experiments":
        return True
    if target in SHARED:
        return True
    if source in TOPICS:
        return (source, target) in {("poetry", "transformer"), ("speculative", "kvcache")}
    if source == "tasks":
        return target == "transformer" and source_parts[:2] == ("tasks", "models")
    if source == "lab":
        return False
    if source == "experiments":
        if target == "experiments":
            # shared helpers begin with an underscore, a topic's own with its name; other topics' experiments are out
            # of bounds
            here, there = source_parts[1], target_parts[1] if len(target_parts) > 1 else ""
            return there.startswith("_") or there == "" or here == there or here.startswith(f"_{there}_")
        return target in TOPICS | {"tasks", "lab"}
    return source in {"cli", "commands", "apps", "__main__"}


FILES = sorted(SRC.rglob("*.py"))


def violations():
    for path in FILES:
        parts = path.relative_to(SRC).with_suffix("").parts
        for target_parts, line in imports(path):
            source, target = room(parts), room(target_parts)
            if source in SHARED and target not in SHARED:
                yield f"{path.relative_to(SRC)}:{line} (a shared room) imports {target}"
            elif source not in SHARED and not allowed(source, target, parts, target_parts):
                yield f"{path.relative_to(SRC)}:{line} imports {'.'.join(target_parts)}"


def test_every_import_is_allowed():
    assert list(violations()) == []


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("lab/engine.py", "adam/adafactor.py"),
        ("adam/x.py", "lab/log.py"),
        ("adam/x.py", "zeroth/mezo.py"),
        ("tasks/data/x.py", "experiments/demo.py"),
        ("lab/x.py", "tasks/data/x.py"),
        ("experiments/adam.py", "experiments/demo.py"),
    ],
)
def test_the_rule_can_fail(source, target):
    a, b = Path(source).with_suffix("").parts, Path(target).with_suffix("").parts
    assert not allowed(room(a), room(b), a, b)


def third_party(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in tree.body:  # module level only: what an import of the file pulls in
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [str(node.module)]
        yield from (name.split(".")[0] for name in names)


@pytest.mark.parametrize("topic", sorted(TOPICS))
def test_the_core_of_a_topic_needs_torch_and_numpy_alone(topic):
    import sys

    more = {"kvcache": {"transformers"}, "speculative": {"transformers"}}.get(topic, set())
    for path in (SRC / topic).rglob("*.py"):
        extra = set(third_party(path)) - set(sys.stdlib_module_names) - {"torch", "numpy", "dlopt"} - more
        assert not extra, f"{path} needs {extra} when it is imported"
