"""Sophia-H: momentum over a Hessian diagonal from Hutchinson's probes, clipped by element (Liu et al. 2023)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from dlopt.adam import _shared as shared
from dlopt.adam import _sophia as common
from dlopt.catalog import method
from dlopt.memory import Bytes


@method(
    "sophia-h",
    topic="adam",
    kind="optimizer",
    cite="liu2024sophia",
    summary="clipped steps over a Hessian diagonal from Hutchinson's probes",
    search={"lr": (1e-5, 1e-2, "log"), "rho": (1e-3, 0.1, "log")},
)
class SophiaH(torch.optim.Optimizer):
    """Sophia with Hutchinson's estimator (arXiv 2305.14342, algorithms 1 and 3). The step is that of `SophiaG`;
    a round of curvature is::

        u ~ N(0, I);   H = b2 H + (1 - b2) u * (Hessian of the loss times u)

    Elements with H below 0 take the sign step. The Hessian goes through the graph twice, so every operation of the
    model needs a second derivative (flash attention has none: use the math backend of
    `torch.nn.attention.sdpa_kernel` for these steps), and a round costs about two backward passes.

    Args:
        params, lr, betas, weight_decay, interval, foreach, compile: as in `SophiaG`.
        process_group: the ranks over which `update_curvature` sums, as in `SophiaG`. Give it the loss of this rank's
            rows, with `count` their number; all ranks use the same probe.
        rho: the paper's gamma, above 0.
        seed: of the probes, which no global generator touches.
        probe: "normal", as in the paper, or "rademacher" (random signs): unbiased too, and of least variance.
        maximize: ascend instead of descend; the Hessian is negated too.

    Raises:
        ValueError: at construction, for a hyper-parameter outside its range. RuntimeError: in `step`, for complex or
            sparse gradients; in `update_curvature`, if no loss was given.

    Example:
        >>> import torch
        >>> from dlopt.adam import SophiaH
        >>> w = torch.nn.Parameter(torch.tensor([1.0, 1.0]))
        >>> optimizer = SophiaH([w], lr=0.1, weight_decay=0, probe="rademacher", betas=(0.9, 0.0), rho=1)
        >>> loss = (torch.tensor([1.0, 50.0]) * w**2).sum()  # the Hessian is diagonal, with 2 and 100
        >>> optimizer.update_curvature(loss, retain_graph=True)
        >>> optimizer.state[w]["curvature"].tolist()
        [2.0, 100.0]
        >>> loss.backward()
        >>> optimizer.step()  # momentum over curvature is 0.1 for both
        >>> [round(x, 4) for x in w.tolist()]
        [0.99, 0.99]
    """

    process_group: Any = None  # no option of the groups, since it cannot be saved; of the class too, for copies

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-4,
        betas: tuple[float, float] = (0.965, 0.99),
        rho: float = 0.01,
        weight_decay: float = 0.1,
        *,
        interval: int = 10,
        seed: int = 0,
        probe: str = "normal",
        maximize: bool = False,
        foreach: bool | None = None,
        compile: bool = False,
        process_group: Any = None,
    ) -> None:
        given = {k: v for k, v in locals().items() if k not in ("self", "params", "process_group", "__class__")}
        self.process_group = process_group
        super().__init__(params, {**given, **common.COUNTERS})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As torch's, and checks the group's hyper-parameters."""
        group = {**self.defaults, **param_group}
        common.check(group)
        shared.require(group, probe=("normal or rademacher", lambda x: x in ("normal", "rademacher")))
        super().add_param_group(group)

    @property
    def curvature_due(self) -> bool:
        """Whether the next step should come after a round of curvature."""
        return self.param_groups[0]["steps"] % self.param_groups[0]["interval"] == 0

    @property
    def rounds(self) -> int:
        """How many rounds of curvature are finished, with those that were dropped."""
        return self.param_groups[0]["rounds"]

    @property
    def rounds_skipped(self) -> int:
        """How many rounds were dropped, since a sum was infinite or not a number."""
        return self.param_groups[0].get("rounds_skipped", 0)

    @property
    def share_unclipped(self) -> float:
        """The share of elements that the last step did not clip (the papers' "win rate"); costs a pass when asked."""
        return common.share_unclipped(self)

    def accumulate_curvature(self, loss: Tensor, count: int = 1, *, retain_graph: bool = False) -> None:
        """Add the Hessian-vector product of one micro-batch, with the probe of this round; `.grad` is left alone.

        Args:
            loss: a scalar with its graph, the mean over `count` targets.
            count: its weight among the micro-batches of the round.
            retain_graph: keep the graph for a backward pass that comes after.
        """
        if loss.numel() != 1 or count < 0:
            raise ValueError(f"loss has {loss.numel()} elements and count={count}; they must be 1, and at least 0")
        params = common.tensors(self)
        probes = self._probes()
        first = torch.autograd.grad(loss, params, create_graph=True, allow_unused=True)
        through = [(g, probes[p]) for g, p in zip(first, params) if g is not None and g.requires_grad]
        second: Iterable[Tensor | None] = [None] * len(params)  # of a loss that is linear in all of them
        if through:
            gs, us = zip(*through)
            second = torch.autograd.grad(gs, params, us, retain_graph=retain_graph, allow_unused=True)
        for p, g, product in zip(params, first, second):
            if g is not None:
                state = common.state_of(self, p)
                if "product_sum" not in state:
                    state["product_sum"] = torch.zeros_like(state["momentum"])
                if product is not None:
                    state["product_sum"].add_(product, alpha=count)
        for group in self.param_groups:
            group["targets"] += count

    def update_curvature(self, loss: Tensor | None = None, *, retain_graph: bool = False) -> None:
        """End the round: move H, and free the sums. With a loss, that is the round's last (or only) micro-batch.

        A round with a sum that is not finite is dropped, as in `SophiaG`.
        """
        if loss is not None:
            self.accumulate_curvature(loss, retain_graph=retain_graph)
        targets = common.gather_round(self, "product_sum", self.process_group)
        if not targets:
            raise RuntimeError("no loss was given: call accumulate_curvature(loss, count), or update_curvature(loss)")
        probes = self._probes()  # of this round, before it ends
        sums = common.take_sums(self, "product_sum")
        with torch.no_grad():
            for group in self.param_groups:
                b2, sign = group["betas"][1], -1 if group["maximize"] else 1
                weight = sign * (1 - b2) / targets
                for p in (p for p in group["params"] if p in sums):
                    probe = probes[p].to(sums[p].dtype)
                    self.state[p]["curvature"].mul_(b2).addcmul_(sums[p], probe, value=weight)

    def _probes(self) -> dict[Tensor, Tensor]:
        """{tensor: its probe}, the same throughout a round, drawn anew rather than kept."""
        seed = self.param_groups[0]["seed"] + common.DRAWS * self.param_groups[0]["rounds"]
        normal = self.param_groups[0]["probe"] == "normal"
        generators: dict[torch.device, torch.Generator] = {}
        drawn = {}
        for p in (p for group in self.param_groups for p in group["params"]):
            generator = generators.setdefault(p.device, torch.Generator(p.device).manual_seed(seed))
            if normal:
                drawn[p] = torch.randn(p.shape, generator=generator, dtype=p.dtype, device=p.device)
            else:
                bits = torch.randint(0, 2, p.shape, generator=generator, device=p.device, dtype=torch.int8)
                drawn[p] = bits.to(p.dtype).mul_(2).sub_(1)
        return drawn

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every tensor that has a gradient; returns the closure's loss, if a closure is given."""
        return common.step(self, closure)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's, but state keeps float32 where torch would cast it to the weights' low precision."""
        super().load_state_dict(state_dict)
        shared.restore(self, state_dict)

    @staticmethod
    def memory(params: Iterable[Tensor], **options: Any) -> Bytes:
        """As in `SophiaG`; the graph of a second derivative comes on top of a round.

        scratch: the sums of a round and, at the same time, its probes, gradients and products.
        """
        return common.memory(params, lists=3)  # probes, gradients and products
