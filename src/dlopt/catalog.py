"""The catalogue: which methods exist, read from source without importing anything.

A method registers itself by one decorator with literal arguments, in its own file::

    @method("adafactor", topic="adam", kind="optimizer", cite="shazeer2018adafactor",
            summary="factored second moments", search={"lr": (1e-4, 1e-1, "log")})
    class Adafactor(torch.optim.Optimizer): ...

`methods()` finds every such decorator by parsing files (`ast`), so `dlopt list` needs no torch. Other
packages join through the entry-point group ``dlopt.methods``, whose value names a module or package::

    [project.entry-points."dlopt.methods"]
    mine = "my_package.my_optimizers"

There is no other registry: tests, grids, documentation and the command line walk over what is found here.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import importlib.util
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.machinery import PathFinder
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, TypeVar

ENTRY_POINTS = "dlopt.methods"
T = TypeVar("T")


class CatalogError(ValueError):
    """A registration that cannot be read, a name used twice, or a name that nobody registered."""


def method(
    name: str,
    *,
    topic: str,
    kind: str,
    cite: str,
    summary: str,
    search: Mapping[str, tuple[Any, ...]] | None = None,
    needs: tuple[str, ...] = (),
) -> Callable[[T], T]:
    """Register a class or function as a method. All arguments must be literals: they are read, not run.

    name: how users ask for it, unique over all topics. topic: the room it lives in. kind: which interface it
    has ("optimizer", "zeroth", "zeroth-model", "controller", "module", "sampler", "cache", "drafter", "compressor",
    "rounds", "precision"). cite: a key of reports/refs.bib. summary: one line. search: the box in which it is tuned,
    {parameter: (low, high, "log" | "linear" | "int")}. needs: third-party modules beyond torch and numpy.
    """

    def mark(target: T) -> T:
        target.__dlopt_method__ = name  # type: ignore[attr-defined]
        return target

    return mark


@dataclass(frozen=True)
class Method:
    """One registered method, as read from source. `load()` imports it."""

    name: str
    topic: str
    kind: str
    cite: str
    summary: str
    module: str
    attribute: str
    path: Path
    line: int
    origin: str = "dlopt"
    search: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    needs: tuple[str, ...] = ()

    def load(self) -> Any:
        """Import and return the class or function."""
        return getattr(importlib.import_module(self.module), self.attribute)

    def missing(self) -> tuple[str, ...]:
        """The modules in `needs` that are not installed."""
        return tuple(name for name in self.needs if not _installed(name))

    def parameters(self) -> dict[str, Any]:
        """{hyper-parameter: default}, from the method's own signature; `inspect.Parameter.empty` where required.

        The first argument, if it has no default, is what the method acts on (parameters, model, data) and is left out.
        """
        found = list(inspect.signature(self.load()).parameters.values())
        if found and found[0].default is found[0].empty:
            found = found[1:]
        return {p.name: p.default for p in found if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}

    def check(self, params: Mapping[str, Any]) -> None:
        """Raise `CatalogError` with a sentence if a hyper-parameter is not one of this method's."""
        known = self.parameters()
        for name in params:
            if name not in known:
                hint = suggest(name, known)
                raise CatalogError(f"{self.name} has no hyper-parameter {name!r}{hint}; it has {', '.join(known)}")


def methods(topic: str | None = None, kind: str | None = None) -> dict[str, Method]:
    """All methods by name, of one topic or kind if given, in the order topic, name."""
    found = sorted(_all().values(), key=lambda m: (m.topic, m.name))
    return {m.name: m for m in found if topic in (None, m.topic) and kind in (None, m.kind)}


def find(name: str) -> Method:
    """The method of that name; a `CatalogError` that suggests the nearest names if there is none."""
    if name not in _all():
        raise CatalogError(f"no method is called {name!r}{suggest(name, _all())}; `dlopt list` shows all")
    return _all()[name]


def exports(topic: str) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` for a topic's package: its methods by class name, imported when first used.

    So a new method file can be imported from the package at once, and importing the package costs nothing.
    """

    def get(attribute: str) -> Any:
        for entry in methods(topic).values():
            if entry.attribute == attribute and entry.origin == "dlopt":
                return entry.load()
        raise AttributeError(f"dlopt.{topic} has no method {attribute!r}")

    return get, lambda: sorted(m.attribute for m in methods(topic).values() if m.origin == "dlopt")


def suggest(name: str, known: Iterable[str]) -> str:
    """' (did you mean ...?)' or ''."""
    near = difflib.get_close_matches(name, list(known), n=2)
    return f" (did you mean {' or '.join(near)}?)" if near else ""


@cache
def _all() -> dict[str, Method]:
    found: dict[str, Method] = {}
    here = Path(__file__).parent
    sources = [("dlopt", _module_name(here, path, "dlopt"), path) for path in sorted(here.rglob("*.py"))]
    for point in sorted(entry_points(group=ENTRY_POINTS), key=lambda p: p.name):
        origin = point.dist.name if point.dist else point.name
        sources += [(origin, module, path) for module, path in _locate(point.value)]
    for origin, module, path in sources:
        for entry in _read(path, module, origin):
            if entry.name in found:
                other = found[entry.name]
                raise CatalogError(
                    f"two methods are called {entry.name!r}: {other.path}:{other.line} and {entry.path}:{entry.line}; "
                    "rename one of them"
                )
            found[entry.name] = entry
    return found


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the package around a submodule is missing
        return False


def refresh() -> None:
    """Forget what was read, after files or entry points changed in a running process."""
    _all.cache_clear()


def _module_name(root: Path, path: Path, package: str) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join([package, *(p for p in parts if p != "__init__")])


def _locate(name: str) -> list[tuple[str, Path]]:
    """[(module, file)] of a module or of all modules of a package, found without importing any of them."""
    top, *rest = name.split(".")
    spec = importlib.util.find_spec(top)
    walked = top
    for part in rest:
        if spec is None or spec.submodule_search_locations is None:
            break
        walked += "." + part
        spec = PathFinder.find_spec(walked, list(spec.submodule_search_locations))
    if spec is None or walked != name:
        raise CatalogError(f"the entry point {name!r} in group {ENTRY_POINTS!r} names a module that is not there")
    if spec.submodule_search_locations:
        root = Path(next(iter(spec.submodule_search_locations)))
        return [(_module_name(root, path, name), path) for path in sorted(root.rglob("*.py"))]
    return [(name, Path(spec.origin))] if spec.origin else []


def _read(path: Path, module: str, origin: str) -> list[Method]:
    text = path.read_bytes()  # the parser knows how a file declares its encoding
    if b"@method(" not in text and b".method(" not in text:
        return []
    try:
        tree = ast.parse(text, str(path))
    except SyntaxError as error:
        raise CatalogError(f"{path}:{error.lineno} cannot be parsed: {error.msg}") from error
    found = []
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            calls = [c for c in node.decorator_list if isinstance(c, ast.Call) and _is_method(c.func)]
            found += [_entry(call, node, path, module, origin) for call in calls]
    return found


def _is_method(func: ast.expr) -> bool:
    return (isinstance(func, ast.Name) and func.id == "method") or (
        isinstance(func, ast.Attribute) and func.attr == "method"
    )


def _entry(call: ast.Call, node: ast.ClassDef | ast.FunctionDef, path: Path, module: str, origin: str) -> Method:
    where = f"{path}:{call.lineno}"
    try:
        (name,) = [ast.literal_eval(argument) for argument in call.args]
        given = {str(k.arg): ast.literal_eval(k.value) for k in call.keywords}
    except (ValueError, TypeError) as error:
        raise CatalogError(
            f"{where}: @method takes one name and literal keywords, since it is read, not run"
        ) from error
    try:
        return Method(name, module=module, attribute=node.name, path=path, line=node.lineno, origin=origin, **given)
    except TypeError as error:
        raise CatalogError(f"{where}: @method({name!r}) is incomplete: {error}") from error
