"""Losses at many weights that differ from the current ones in one coordinate each, computing no more than changes.

`Graph` is the model as a graph of calls (torch.fx). One pass fills in the value of every node; a changed weight can
change only the nodes that depend on it, so a new pass restarts there, from stored values: the "feature reuse" of
arXiv 2310.02025, at the level of single calls, with residual connections as they come. Many coordinates of one tensor
share such a pass: their values are stacked and vmapped over.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.func import functional_call, vmap
from torch.utils._pytree import tree_leaves, tree_map

from dlopt.zeroth._stack import has_linear_step, linear_step
from dlopt.zeroth.estimators import number

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class Graph:
    """A model's calls in order, and which of them depend on a parameter.

    Raises whatever torch.fx raises where the model cannot be traced (branches that depend on data).
    """

    def __init__(self, model: nn.Module) -> None:
        self.modules = dict(model.named_modules())
        self.nodes = list(fx.Tracer().trace(model).nodes)
        self.model = model
        self.calls = sum(node.op.startswith("call") for node in self.nodes)
        self.sources: dict[int, dict[fx.Node, str]] = {}  # id of a tensor -> {node that reads it: its name there}
        for node in self.nodes:
            if node.op == "call_module":
                for name, p in self.modules[str(node.target)].named_parameters(remove_duplicate=False):
                    self.sources.setdefault(id(p), {})[node] = name
            elif node.op == "get_attr":
                self.sources.setdefault(id(_attribute(model, str(node.target))), {})[node] = ""

    def after(self, sources: Sequence[fx.Node]) -> list[fx.Node]:
        """These nodes and all that depend on them, in order."""
        found = set(sources)
        for node in self.nodes:
            if any(n in found for n in node.all_input_nodes):
                found.add(node)
        return [node for node in self.nodes if node in found]


class Pass:
    """One batch: all nodes' values at the current weights, and losses at other weights from them.

    graph: of the model. loss_fn(outputs, targets): the loss. batch_bytes: at most so many bytes in one node's stacked
    values, as long as one copy fits.
    """

    def __init__(
        self, graph: Graph, loss_fn: Callable[[Any, Any], Any], inputs: tuple[Any, ...], targets: Any, batch_bytes: int
    ) -> None:
        self.graph, self.loss_fn, self.targets, self.batch_bytes = graph, loss_fn, targets, batch_bytes
        self.work = 0.0  # in passes of the whole model
        self.plans: dict[int, tuple[list[fx.Node], int]] = {}
        self.keep = False  # whether every node gets copies of its inputs, since one writes into them
        self._fill(inputs)
        if self._overwritten():
            self.keep = True
            self._fill(inputs)

    def loss(self) -> float:
        """At the current weights."""
        return number(self.loss_fn(self.values[self.graph.nodes[-1]], self.targets))

    def restart(self, p: Tensor) -> float:
        """The loss where `p` differs from what it was when the values were computed, and nothing else does."""
        nodes, _ = self._plan(p)
        self.work += self._share(nodes)
        return number(self._loss(self._run(nodes, {})))

    def stacked(self, p: Tensor, indices: Tensor, new: Tensor, steps: Tensor) -> list[float]:
        """The losses where element indices[k] of `p` is new[k] = old + steps[k], for each k on its own.

        Raises RuntimeError where an operation has no rule for stacked values.
        """
        nodes, size = self._plan(p)
        at_once = max(1, self.batch_bytes // max(1, size))
        found: list[float] = []
        for start in range(0, len(indices), at_once):
            part = slice(start, start + at_once)
            found += self._stack(p, nodes, indices[part], new[part], steps[part])
        return found

    def _stack(self, p: Tensor, nodes: list[fx.Node], indices: Tensor, new: Tensor, steps: Tensor) -> list[float]:
        sources = self.graph.sources[id(p)]
        (first, name), *more = sources.items()
        module = self.graph.modules.get(str(first.target)) if first.op == "call_module" else None
        if not more and module is not None and has_linear_step(module, name, self.values, first):
            x, y = self.values[first.all_input_nodes[0]], self.values[first]
            stack = linear_step(module, name, x, y, indices, steps)
            rest = [n for n in nodes if n is not first]
            losses = vmap(lambda value: self._loss(self._run(rest, {first: value})), randomness="error")(stack)
        else:
            stack = p.detach().expand(len(indices), *p.shape).clone(memory_format=torch.contiguous_format)
            stack.view(len(indices), -1)[torch.arange(len(indices), device=p.device), indices] = new
            losses = vmap(lambda weight: self._loss(self._run(nodes, {}, (sources, weight))), randomness="error")(stack)
        if losses.dim() != 1:
            raise ValueError(f"the loss must be one number, but it is a tensor of shape {tuple(losses.shape[1:])}")
        self.work += len(indices) * self._share(nodes)
        return losses.double().tolist()

    def _loss(self, values: Mapping[fx.Node, Any]) -> Any:
        output = self.graph.nodes[-1]
        return self.loss_fn(values.get(output, self.values[output]), self.targets)

    def _share(self, nodes: list[fx.Node]) -> float:
        return sum(n.op.startswith("call") for n in nodes) / max(1, self.graph.calls)

    def _fill(self, inputs: tuple[Any, ...]) -> None:
        given = iter(inputs)
        start: dict[fx.Node, Any] = {}
        for node in self.graph.nodes:
            if node.op == "placeholder":
                start[node] = next(given, node.args[0] if node.args else None)
        self.values: dict[fx.Node, Any] = dict(start)
        self.versions: dict[fx.Node, list[int]] = {n: _versions(v) for n, v in start.items()}
        for node in self.graph.nodes:
            if node not in start:
                self.values[node] = self._call(node, self.values, None)
                self.versions[node] = _versions(self.values[node])

    def _overwritten(self) -> bool:
        # an output may be its input (Identity, an operation in place): the version then counts for both
        return any(_versions(v) != self.versions[n] for n, v in self.values.items())

    def _plan(self, p: Tensor) -> tuple[list[fx.Node], int]:
        """(the nodes that depend on p, bytes of the largest of their values)."""
        if id(p) not in self.plans:
            nodes = self.graph.after(list(self.graph.sources[id(p)]))
            tensors = [t for n in nodes for t in tree_leaves(self.values[n]) if isinstance(t, Tensor)]
            self.plans[id(p)] = nodes, max((t.numel() * t.element_size() for t in tensors), default=1)
        return self.plans[id(p)]

    def _run(self, nodes: list[fx.Node], values: dict[fx.Node, Any], override: Any = None) -> dict[fx.Node, Any]:
        """New values of these nodes; what they need beyond each other comes from the stored ones."""
        for node in nodes:
            values[node] = self._call(node, values, override)
        return values

    def _call(self, node: fx.Node, values: Mapping[fx.Node, Any], override: Any) -> Any:
        def value(n: fx.Node) -> Any:
            found = values[n] if n in values else self.values[n]
            return tree_map(lambda t: t.clone() if isinstance(t, Tensor) else t, found) if self.keep else found

        args = fx.node.map_arg(node.args, value)
        kwargs = fx.node.map_arg(node.kwargs, value)
        name = override[0].get(node) if override is not None else None
        if node.op == "output":
            return args[0]
        if node.op == "get_attr":
            return override[1] if name is not None else _attribute(self.graph.model, str(node.target))
        if node.op == "call_function":
            return node.target(*args, **kwargs)  # type: ignore[operator]
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        module = self.graph.modules[str(node.target)]
        own = {name: override[1]} if name is not None else {}
        if type(module) in BATCH_NORMS and module.training:
            # batch statistics, and the running ones stay: the model's own pass has counted this batch
            weight, bias = own.get("weight", module.weight), own.get("bias", module.bias)
            return F.batch_norm(args[0], None, None, weight, bias, True, 0.0, module.eps)
        return functional_call(module, own, args, kwargs) if own else module(*args, **kwargs)


def _attribute(model: nn.Module, target: str) -> Any:
    found: Any = model
    for part in target.split("."):
        found = getattr(found, part)
    return found


def _versions(value: Any) -> list[int]:
    return [t._version for t in tree_leaves(value) if isinstance(t, Tensor)]
