"""Sophia-G: momentum over a Gauss-Newton diagonal from sampled labels, clipped by element (Liu et al. 2023)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dlopt.adam import _shared as shared
from dlopt.adam import _sophia as common
from dlopt.catalog import method
from dlopt.memory import Bytes

RANKS = 1_000_000_007_003  # the labels of a rank are those of the seed + RANKS * rank


@method(
    "sophia-g",
    topic="adam",
    kind="optimizer",
    cite="liu2024sophia",
    summary="clipped steps over a Gauss-Newton diagonal from sampled labels",
    search={"lr": (1e-5, 1e-2, "log"), "rho": (5e-3, 0.5, "log")},
)
class SophiaG(torch.optim.Optimizer):
    """Sophia with the Gauss-Newton-Bartlett estimator (arXiv 2305.14342, algorithms 2 and 3). At every step::

        M = b1 M + (1 - b1) G
        W = (1 - lr weight_decay) W - lr clip(M / max(rho H, 1e-12), 1)        element by element

    and before the steps 1, 1 + interval, 1 + 2 interval, ... (when `curvature_due`), from logits of B targets with
    labels drawn from softmax(logits), whose mean cross-entropy has the gradient g::

        H = b2 H + (1 - b2) B g^2

    Args:
        params: tensors, (name, tensor) pairs or groups, as for every torch optimizer.
        lr: length of a clipped element's step, at least 0; about AdamW's.
        betas: (b1, b2), in [0, 1).
        rho: the paper's gamma, above 0: larger values clip less. Aim at `share_unclipped` of 0.1 to 0.5.
        weight_decay: decoupled, at least 0.
        interval: steps between two rounds of curvature, at least 1.
        seed: of the sampled labels, which no global generator touches.
        rule: "paper"; or "official" for that of the published code, where H averages g^2 without B, and the step is
            clip(M / (rho batch H + 1e-15), 1). The same for a constant B = batch, but for the floors.
        batch: the official rule's `bs`, targets in a whole batch; not used by the paper's.
        maximize: ascend instead of descend. (H stays: a curvature of the likelihood is never negative.)
        foreach: one kernel over many tensors. Default: on accelerators; on a CPU a loop that stays in cache is faster.
        compile: fuse the step by `torch.compile`: faster still, after half a minute and given a C++ compiler.
        process_group: the ranks over which `update_curvature` sums where `torch.distributed` is in use; default: all,
            as for `DistributedDataParallel`. So replicas keep one H. Give it the logits of the pass that is trained
            on: each rank draws labels of its own, and every rank has to call `update_curvature`. It is neither saved
            nor copied: give it again to what is loaded, and set it on a copy. Save between rounds, not within one: the
            sums of a round that has begun are each rank's own.

    Without a round of curvature H is 0, and the step is lr sign(M). State is in float32 for low-precision weights.

    Raises:
        ValueError: at construction, for a hyper-parameter outside its range; or for logits and masks that do not fit.
            RuntimeError: in `step`, for complex or sparse gradients; in `update_curvature`, if nothing was counted.

    Example:
        >>> import torch
        >>> from dlopt.adam import SophiaG
        >>> model = torch.nn.Linear(4, 3)
        >>> optimizer = SophiaG(model.parameters(), lr=1e-2, betas=(0.9, 0.9), rho=1, interval=2)
        >>> x, y = torch.randn(8, 4), torch.arange(8) % 3
        >>> for _ in range(4):
        ...     optimizer.zero_grad()
        ...     logits = model(x)
        ...     torch.nn.functional.cross_entropy(logits, y).backward(retain_graph=optimizer.curvature_due)
        ...     if optimizer.curvature_due:
        ...         optimizer.accumulate_curvature(logits)  # once for each micro-batch
        ...         optimizer.update_curvature()
        ...     optimizer.step()
        >>> optimizer.rounds, 0 < optimizer.share_unclipped <= 1
        (2, True)
    """

    process_group: Any = None  # no option of the groups, since it cannot be saved; of the class too, for copies

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-4,
        betas: tuple[float, float] = (0.965, 0.99),
        rho: float = 0.04,
        weight_decay: float = 0.1,
        *,
        interval: int = 10,
        seed: int = 0,
        rule: str = "paper",
        batch: int = 5120,
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
        shared.require(group, rule=("paper or official", lambda x: x in ("paper", "official")), batch=shared.POSITIVE)
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

    def accumulate_curvature(self, logits: Tensor, mask: Tensor | None = None, *, retain_graph: bool = False) -> None:
        """Draw labels for one micro-batch and add up the gradient of their cross-entropy; `.grad` is left alone.

        Gradients of all micro-batches are summed, and squared only by `update_curvature`; they are not clipped. So
        neither the split into micro-batches nor the padding changes H: labels are drawn in the order of the targets.

        Args:
            logits: (..., classes), still with their graph; those of the training loss will do.
            mask: (...), True or 1 where a target counts; default: everywhere.
            retain_graph: keep the graph for a backward pass that comes after.
        """
        if logits.dim() < 2:
            raise ValueError(f"logits have shape {tuple(logits.shape)}; they must be (..., classes)")
        if mask is not None and mask.shape != logits.shape[:-1]:
            raise ValueError(f"the mask has shape {tuple(mask.shape)}; logits have {tuple(logits.shape[:-1])} targets")
        logits = logits.flatten(0, -2) if mask is None else logits[mask.to(logits.device, torch.bool)]
        if len(logits) == 0:
            return
        group = self.param_groups[0]
        logits = logits.to(shared.state_dtype(logits))
        seed = group["seed"] + common.DRAWS * group["rounds"] + RANKS * common.rank(self.process_group)
        labels = _sample(logits.detach(), seed, skip=group["targets"])
        params = common.tensors(self)
        loss = F.cross_entropy(logits, labels, reduction="sum")
        for p, g in zip(params, torch.autograd.grad(loss, params, retain_graph=retain_graph, allow_unused=True)):
            if g is not None:
                state = common.state_of(self, p)
                if "gradient_sum" in state:
                    state["gradient_sum"] += g
                else:
                    state["gradient_sum"] = g.to(state["momentum"].dtype, copy=True)
        for group in self.param_groups:
            group["targets"] += len(logits)

    @torch.no_grad()
    def update_curvature(self) -> None:
        """End the round: square the summed gradient (over all ranks), move H, and free the sums.

        Where a sum is not finite, on any rank, the whole round is dropped: H stays, and `rounds_skipped` counts it.
        """
        targets = common.gather_round(self, "gradient_sum", self.process_group)
        if not targets:
            raise RuntimeError(
                "no target was counted: call accumulate_curvature(logits, mask) before update_curvature()"
            )
        sums = common.take_sums(self, "gradient_sum")
        for group in self.param_groups:
            b2 = group["betas"][1]
            # g = sum / B, so that B g^2 = sum^2 / B
            weight = (1 - b2) / targets ** (2 if group["rule"] == "official" else 1)
            for p in (p for p in group["params"] if p in sums):
                self.state[p]["curvature"].mul_(b2).addcmul_(sums[p], sums[p], value=weight)

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
        """Bytes for training `params`: state (exact between rounds) is two numbers an element; in a round it has a
        third, which is counted as scratch.

        So are its gradients, which are there at the same time; the graph from logits and labels comes on top.
        """
        return common.memory(params, lists=1)  # gradients


def _sample(logits: Tensor, seed: int, skip: int) -> Tensor:
    """One label for each row, drawn from its softmax; the numbers skip, skip + 1, ... of that seed's stream."""
    generator = torch.Generator().manual_seed(seed)  # on the CPU: the same labels on every device
    uniform = torch.rand(skip + len(logits), generator=generator)[skip:].to(logits.device, logits.dtype)
    below = logits.softmax(-1).cumsum(-1)
    # the first class whose sum exceeds the number; scaled, since rounding may leave the last sum short of 1
    labels = torch.searchsorted(below, (uniform * below[:, -1]).unsqueeze(-1), right=True).squeeze(-1)
    return labels.clamp_(max=logits.shape[-1] - 1)
