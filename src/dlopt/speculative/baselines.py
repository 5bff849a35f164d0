"""Plain decoding, as a method: what every drafter is compared with."""

from __future__ import annotations

from dlopt.catalog import method
from dlopt.speculative.draft import Draft
from dlopt.speculative.sampling import Sampling


@method(
    "plain-decoding",
    topic="speculative",
    kind="drafter",
    cite="leviathan2023speculative",
    summary="one token per pass of the target, no drafts: the baseline",
    needs=("transformers",),
)
class PlainDecoding:
    """Drafts nothing: `generate` with it is `generate(drafter=None)`, token after token."""

    def begin(self, prompt: list[int], sampling: Sampling) -> PlainSession:
        return PlainSession()


class PlainSession:
    def propose(self, limit: int) -> Draft:
        return Draft()

    def observe(self, tokens: list[int]) -> None:
        """There is nothing to remember."""
