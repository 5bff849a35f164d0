"""The keys or the values of one layer: the oldest tokens as codes, the newest whole. `KIVICache` has one of each."""

from __future__ import annotations

import torch
from torch import Tensor

from dlopt.kvcache.layer import appended
from dlopt.kvcache.packing import dequantize, pack, quantize, unpack
from dlopt.kvcache.rows import Rows, pick

AXES = ("channel", "token")
FLUSHES = ("token", "block")


class Coded:
    """Codes of each row's first tokens, counted from its own first token, and a residual aligned at the right.

    codes: (B, H, N, D bits / 8) bytes; row r uses the first `counts` of its N columns. scales, zeros: (B, H, N / group,
    D) for axis "channel", (B, H, N, D / group) for "token". rest: (B, H, m, D), the newest columns. A row's place in
    the codes is counted without its left pads, so a pad is never in a group, and every row has the schedule it has
    alone.
    """

    def __init__(self, axis: str, bits: int, group: int, residual: int, flush: str):
        self.axis, self.bits, self.group, self.residual, self.flush = axis, bits, group, residual, flush
        self.codes: Tensor | None = None
        self.scales: Tensor | None = None
        self.zeros: Tensor | None = None
        self.rest: Tensor | None = None

    def due(self, tokens: int) -> int:
        """How many of a row's `tokens` are codes, by the schedule."""
        if self.bits == 16:
            return 0
        whole = tokens - tokens % self.residual
        if self.axis == "channel":
            return whole
        return max(0, (tokens if self.flush == "token" else whole) - self.residual)

    def counts(self, rows: Rows, committed: int) -> list[int]:
        """Coded tokens of each row (of all rows alike without pads) after the commit at `committed` columns."""
        return [self.due(max(0, committed - pad)) for pad in rows.pads or (0,)]

    def append(self, new: Tensor) -> None:
        (self.rest,) = appended((self.rest,), (new.detach(),))

    def drop(self, count: int) -> None:
        left = 0 if self.rest is None else self.rest.shape[2] - count
        self.rest = self.rest[:, :, :left].clone() if left > 0 else None

    def commit(self, rows: Rows, committed: int) -> None:
        """Code what the schedule wants now that rows.seen columns are final; the last commit was at `committed`."""
        if self.rest is None or self.bits == 16:
            return
        tokens = [max(0, rows.seen - pad) for pad in rows.pads or (0,)]
        have, want = self.counts(rows, committed), self.counts(rows, rows.seen)
        if rows.pads is not None and max(want) > 0:
            self._grow(max(want))
        for row, (old, new, count) in enumerate(zip(have, want, tokens, strict=True)):
            start = self.rest.shape[2] - (count - old)
            if new == old:
                continue
            if rows.pads is None:
                made = self._encode(self.rest[:, :, start : start + new - old])
                self.codes, self.scales, self.zeros = appended((self.codes, self.scales, self.zeros), made)
            else:
                self._write(row, old, new, self._encode(self.rest[row : row + 1, :, start : start + new - old]))
        keep = max(count - new for count, new in zip(tokens, want, strict=True))
        if keep < self.rest.shape[2]:
            self.rest = self.rest[:, :, self.rest.shape[2] - keep :].clone() if keep else None

    def _grow(self, size: int) -> None:
        batch, heads, _, dim = self.rest.shape
        held = 0 if self.codes is None else self.codes.shape[2]
        if size <= held:
            return
        channel = self.axis == "channel"
        steps, width = (self.group, dim) if channel else (1, dim // self.group)
        for name, columns, breadth, dtype in (
            ("codes", size, dim * self.bits // 8, torch.uint8),
            ("scales", size // steps, width, torch.float16),
            ("zeros", size // steps, width, torch.float16),
        ):
            old = getattr(self, name)
            grown = self.rest.new_zeros(batch, heads, columns, breadth, dtype=dtype)
            if old is not None:
                grown[:, :, : old.shape[2]] = old
            setattr(self, name, grown)

    def _encode(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        dim = 2 if self.axis == "channel" else 3
        codes, scales, zeros = quantize(x.unflatten(dim, (-1, self.group)), self.bits, dim + 1)
        return pack(codes.flatten(dim, dim + 1), self.bits), scales.squeeze(dim + 1), zeros.squeeze(dim + 1)

    def _write(self, row: int, start: int, end: int, made: tuple[Tensor, Tensor, Tensor]) -> None:
        # in place: attention was given other tensors, made from these
        steps = self.group if self.axis == "channel" else 1
        self.codes[row, :, start:end] = made[0][0]
        for held, new in zip((self.scales, self.zeros), made[1:], strict=True):
            held[row, :, start // steps : end // steps] = new[0]

    def dense(self, rows: Rows, committed: int, dtype: torch.dtype) -> Tensor:
        """(B, H, rows.seen, D): all columns as floats, the coded ones as what their codes stand for."""
        if self.codes is None and self.rest.shape[2] == rows.seen:
            return self.rest
        parts = [] if self.codes is None else [self.decoded(dtype)]
        parts += [] if self.rest is None else [self.rest]
        found = torch.cat(parts, dim=2)
        return found if rows.pads is None else pick(found, self.places(rows, committed, found.device))

    def decoded(self, dtype: torch.dtype) -> Tensor:
        """(B, H, N, D) floats of the codes, row by row from its first token."""
        codes = unpack(self.codes, self.bits)
        dim, steps = (2, 3) if self.axis == "channel" else (3, 4)
        codes, scales, zeros = codes.unflatten(dim, (-1, self.group)), self.scales, self.zeros
        return dequantize(codes, scales.unsqueeze(steps), zeros.unsqueeze(steps), dtype).flatten(dim, dim + 1)

    def places(self, rows: Rows, committed: int, device: torch.device | None = None) -> Tensor:
        """(B, rows.seen): where each column stands in the codes followed by the residual; anywhere for pads."""
        coded = 0 if self.codes is None else self.codes.shape[2]
        end = coded + (0 if self.rest is None else self.rest.shape[2])
        column = torch.arange(rows.seen, device=device)
        token = column - torch.tensor(rows.pads or (0,), device=device)[:, None]
        limit = torch.tensor(self.counts(rows, committed), device=device)[:, None]
        # the newest column is the last of the residual
        return torch.where(token < limit, token, end - rows.seen + column).clamp(0, end - 1)
