"""Layout of packed sequences for attention on a CPU.

A sequence, or several short ones, is put into a line of slots; unused slots are padding. Lines of equal width form a
group, and attention processes a group as one batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

STEP = 16
"""Widths of lines are multiples of this: torch's softmax is vectorized for such rows (on rows of 15 it takes ten times
as long per number), and kernels are compiled for few sizes."""

NARROWEST = 32
"""Smallest width of a line: the 16-bit numbers in one vector register of a processor."""

GROUP = 6_000
"""Fixed cost of a group, in scores of one head: a dozen more operations in the forward and the backward pass."""

Line = tuple[int, ...]
"""Indices, in packed order, of the sequences in a line."""


@dataclass(frozen=True)
class Group:
    """Lines of one width, which attention processes as one batch."""

    width: int
    """Slots per line."""
    lines: tuple[Line, ...]


def grouped(lengths: Sequence[int]) -> list[Group]:
    """Put sequences into lines: one per line, grouped by similar length, or several short ones per line.

    With one sequence per line, no scores between sequences are computed; with shared lines, there are fewer
    operations. Sequences below some length share lines; an estimate of the costs decides that length.

    Args:
        lengths: tokens of each sequence, descending.
    """
    begins = [0]  # a group ends before a sequence below nine tenths of its longest that fits into STEP fewer slots
    for i, length in enumerate(lengths):
        longest = lengths[begins[-1]]
        if length < min(0.9 * longest, _rounded(longest) - STEP + 1):
            begins.append(i)
    alone = [
        Group(_rounded(lengths[begin]), tuple((i,) for i in range(begin, end)))
        for begin, end in zip(begins, [*begins[1:], len(lengths)], strict=True)
    ]
    best, lowest = alone, sum(_cost(group.width, len(group.lines)) for group in alone)
    before = 0
    for number, group in enumerate(alone):
        rest = lengths[begins[number] :]
        n_lines = max(-(-sum(rest) // group.width), sum(2 * length > group.width for length in rest))  # at least
        cost = before + _cost(group.width, n_lines)
        if cost < lowest:
            best, lowest = [*alone[:number], Group(group.width, _first_fit(lengths, begins[number], group.width))], cost
        before += _cost(group.width, len(group.lines))
    return best


def _rounded(length: int) -> int:
    return max(NARROWEST, -(-length // STEP) * STEP)


def _cost(width: int, n_lines: int) -> int:
    return n_lines * width**2 + GROUP


def _first_fit(lengths: Sequence[int], begin: int, width: int) -> tuple[Line, ...]:
    """Put each sequence from `begin` on into the first line that has room for it (first-fit bin packing)."""
    lines: list[Line] = []
    room: list[int] = []
    for i in range(begin, len(lengths)):
        line = next((k for k, left in enumerate(room) if left >= lengths[i]), len(lines))
        if line == len(lines):
            lines.append(())
            room.append(width)
        lines[line] += (i,)
        room[line] -= lengths[i]
    return tuple(lines)


@dataclass(frozen=True)
class Places:
    """Index tensors between tokens (tokens, heads) and slots, in which each group is (lines, heads, width)."""

    sources: torch.Tensor
    """(slots * heads,), flat index of the token and head in each slot; 0 in padding."""
    rows: torch.Tensor
    """(tokens * heads,), the inverse: flat index of the slot of each token and head."""
    idle: torch.Tensor
    """Flat indices of the padding slots."""


@dataclass(frozen=True)
class Window:
    """Which keys of its own sequence a query sees: those that are near."""

    size: int
    """The largest distance."""
    query_at: int | None
    """Position of the only query of each sequence; None = every token has a query."""
    n_prefix: int = 0
    """Tokens in front of each sequence that every query sees."""

    def hides(self, keys: torch.Tensor) -> torch.Tensor:
        """keys: their positions, (..., width) -> whether a query does not see them, (..., width or 1, width)"""
        queries = keys if self.query_at is None else torch.full_like(keys[..., :1], self.query_at)
        far = (keys[..., None, :] - queries[..., None]).abs() > self.size
        return far & (keys >= self.n_prefix)[..., None, :]


class Slots:
    """The slots of groups of lines, and the tokens in them."""

    def __init__(self, groups: Sequence[Group], lengths: Sequence[int]):
        """
        Args:
            groups: the lines, by width.
            lengths: tokens of each sequence.
        """
        self.groups, self.lengths = groups, lengths
        self.kept: dict[Any, Any] = {}

    @cached_property
    def single(self) -> "Slots":
        """The same lines with one token per sequence."""
        widest = (max(len(line) for line in group.lines) for group in self.groups)
        groups = [Group(width, group.lines) for width, group in zip(widest, self.groups, strict=True)]
        return Slots(groups, [1] * len(self.lengths))

    @cached_property
    def sizes(self) -> list[int]:
        """Number of slots of each group."""
        return [group.width * len(group.lines) for group in self.groups]

    @cached_property
    def parts(self) -> torch.Tensor:
        """(2, parts), sequences in the order of the slots and their lengths; -1 for padding, at the ends of lines."""
        parts = []
        for group in self.groups:
            for line in group.lines:
                parts += [(i, self.lengths[i]) for i in line]
                parts.append((-1, group.width - sum(self.lengths[i] for i in line)))
        return torch.tensor(parts).T

    @cached_property
    def sequences(self) -> torch.Tensor:
        """(slots,), index of the sequence in each slot; -1 in padding."""
        sequences, sizes = self.parts
        return sequences.repeat_interleave(sizes)

    @cached_property
    def positions(self) -> torch.Tensor:
        """(slots,), position in its sequence of the token in each slot; in padding they count on from 0."""
        _, sizes = self.parts
        begins = sizes.cumsum(0) - sizes
        return torch.arange(int(sizes.sum())) - begins.repeat_interleave(sizes)

    def places(self, heads: int) -> Places:
        """Index tensors for all tokens, in the order of the packed row."""
        if heads not in self.kept:
            idle = self.sequences < 0
            # A stable sort by sequence puts the used slots in the order of the row.
            slots = self.sequences.masked_fill(idle, len(self.lengths)).argsort(stable=True)
            tokens = torch.empty_like(slots)
            tokens[slots] = torch.arange(len(slots))
            tokens[idle] = -1
            parts = zip(tokens.split(self.sizes), self.groups, strict=True)
            of_heads = torch.arange(heads)[:, None]
            sources = torch.cat([(t.view(-1, 1, g.width) * heads + of_heads).flatten() for t, g in parts])
            used = (sources >= 0).nonzero()[:, 0]
            rows = torch.empty_like(used)
            rows[sources[used]] = used
            self.kept[heads] = Places(sources.clamp(min=0), rows, (sources < 0).nonzero()[:, 0])
        return self.kept[heads]

    def unseen(
        self, number: int, text: "Slots", heads: int, first: int, dtype: torch.dtype, window: Window | None = None
    ) -> torch.Tensor | None:
        """Additive attention mask of a group: minus infinity at padding and at keys of others, or out of the window.

        Args:
            number: index of the group.
            text: slots of the keys.
            heads: number of heads.
            first: length of the prefix, which every query sees.
            dtype: of the scores, (lines * heads, width, first + width of the keys).
            window: of the queries; None = they see all keys of their sequence.

        Returns:
            (lines * heads, width or 1, first + width of the keys), or None if it would be zero everywhere.
        """
        key = number, heads, first, dtype, window
        if key not in self.kept:
            lines = len(self.groups[number].lines)
            queries, keys = (x.sequences.split(x.sizes)[number].view(lines, -1) for x in (self, text))
            if self.single.groups[number].width == 1:
                others = (keys < 0)[:, None]
            else:  # padding sees every key: softmax over no key would be NaN
                others = (queries[:, :, None] != keys[:, None]) & (queries >= 0)[:, :, None]
            if window is not None:
                positions = text.positions.split(text.sizes)[number].view(lines, -1)
                far = window.hides(positions) & (queries >= 0)[:, :, None]
                others = others | far if far.any() else others
            mask = torch.zeros(*others.shape[:2], first + others.shape[2], dtype=dtype)
            mask[:, :, first:].masked_fill_(others, -torch.inf)
            self.kept[key] = mask.repeat_interleave(heads, dim=0) if others.any() else None
        return self.kept[key]
