"""What one arm did with one prompt."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from dlopt.speculative import Stats


@dataclass
class Told:
    """One prompt by one arm. tokens: new ones. cpu, seconds: of decoding, after the prefill. stats: of our engine."""

    tokens: list[int]
    cpu: float
    seconds: float
    prefill: float
    stats: Stats | None = None

    def as_dict(self) -> dict[str, Any]:
        """As JSON holds it, but for the cost table, which all prompts share."""
        stats = self.stats and {**vars(self.stats), "costs": None, "widths": dict(self.stats.widths)}
        return {**vars(self), "stats": stats}

    @classmethod
    def of(cls, state: dict[str, Any]) -> Told:
        """From `as_dict`, also after a file of JSON, whose keys are texts."""
        stats = state["stats"]
        if stats is not None:
            stats = Stats(**stats | {"widths": Counter({int(k): n for k, n in stats["widths"].items()})})
        return cls(**state | {"stats": stats})
