"""Token recycling: what the target thought likely after a token before, as a tree (Luo et al. 2024)."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

from torch import Tensor

from dlopt.catalog import method
from dlopt.speculative.draft import Draft, whole
from dlopt.speculative.sampling import Sampling

Path = tuple[int, ...]


@method(
    "token-recycling",
    topic="speculative",
    kind="drafter",
    cite="luo2024recycling",
    summary="a tree of the likeliest successors that the target last gave to each token",
    search={"k": (2, 8, "int"), "nodes": (3, 80, "int"), "depth": (2, 8, "int")},
    needs=("transformers",),
)
class TokenRecycling:
    """Keeps for every token the k likeliest ones that the target gave when it last went in, and unfolds them as a tree.

    The matrix (vocabulary, k) is filled from every pass, also from drafted tokens that are rejected; of several in one
    pass with the same token the most probable node of the tree counts. The draft follows a fixed template: a node is a
    path of ranks, (0, 2) is the third successor of the first successor of the last token. Tokens that the matrix does
    not know yet have no children. Deterministic.

    The template holds the `nodes` paths with the smallest sum of (rank + 1), which are the likeliest if a rank is half
    as likely as the one before; of equal ones the shallower, then the smaller ranks. By depth that gives 7, 21, 30, 15,
    6, 1 nodes of 80; the hand-made tree of the paper's code has 8, 21, 25, 15, 8, 3.

    k: at least 1 (8). nodes: at least 1 (80; where v(k) grows with k, a gate or a smaller tree pays). depth: at least
    1 (6). template: paths of your own in place of these, each after its parent, ranks below k. matrix: a dict
    {token: its successors} that requests read and write, so that one starts with what another learned; the paper does.
    None begins every row with an empty one. It grows to vocabulary x k numbers.
    """

    def __init__(
        self,
        k: int = 8,
        nodes: int = 80,
        depth: int = 6,
        template: Sequence[Sequence[int]] | None = None,
        matrix: dict[int, list[int]] | None = None,
    ) -> None:
        for name, value in (("k", k), ("nodes", nodes), ("depth", depth)):
            whole(name, value)
        paths = likeliest(k, nodes, depth) if template is None else [tuple(path) for path in template]
        known: dict[Path, int] = {(): -1}
        for path in paths:
            if not path or path[:-1] not in known or path in known or not 0 <= path[-1] < k:
                raise ValueError(
                    f"template: {list(path)} must be new, come after its parent and have ranks from 0 to {k - 1}"
                )
            known[path] = len(known) - 1
        if not paths:
            raise ValueError("template needs at least one path")
        # (index of the parent, rank, depth) of each node
        self.template = [(known[path[:-1]], path[-1], len(path)) for path in paths]
        self.k, self.matrix = k, matrix

    def begin(self, prompt: list[int], sampling: Sampling) -> RecyclingSession:
        return RecyclingSession(self, prompt)


class RecyclingSession:
    """Token recycling on one row."""

    def __init__(self, drafter: TokenRecycling, prompt: list[int]) -> None:
        self.drafter = drafter
        self.matrix: dict[int, list[int]] = {} if drafter.matrix is None else drafter.matrix
        self.last = prompt[-1]

    def propose(self, limit: int) -> Draft:
        tokens: list[int] = []
        parents: list[int] = []
        place: list[int | None] = []  # of each node of the template in the draft
        for above, rank, depth in self.drafter.template:
            parent = place[above] if above >= 0 else -1
            place.append(None)
            if parent is None or depth > limit:
                continue
            successors = self.matrix.get(tokens[parent] if parent >= 0 else self.last, ())
            if rank < len(successors):
                place[-1] = len(tokens)
                tokens.append(successors[rank])
                parents.append(parent)
        return Draft(tokens, parents)

    def learn(self, inputs: list[int], logits: Tensor) -> None:
        rows = logits.topk(min(self.drafter.k, logits.shape[-1])).indices.tolist()
        # the likeliest node is written last, and then the root
        for token, row in zip(reversed(inputs), reversed(rows)):
            self.matrix[token] = row

    def observe(self, tokens: list[int]) -> None:
        self.last = tokens[-1]


def likeliest(k: int, nodes: int, depth: int) -> list[Path]:
    """The `nodes` paths of ranks below k, to `depth` long, with the smallest sums of (rank + 1), or all there are."""
    heap: list[tuple[int, int, Path]] = [(rank + 1, 1, (rank,)) for rank in range(k)]
    found: list[Path] = []
    while heap and len(found) < nodes:
        total, length, path = heapq.heappop(heap)
        found.append(path)
        if length < depth:
            for rank in range(k):
                heapq.heappush(heap, (total + rank + 1, length + 1, (*path, rank)))
    return found
