"""How attention takes the sequences of a packed row: in lines of equally many slots, many such lines at once."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

STEP = 16
"""What widths of lines are multiples of: torch's softmax is made for such rows (it takes ten times as long for a number
on rows of 15), and kernels that are compiled for each size meet few."""

NARROWEST = 32
"""Least width of a line: as many numbers of 16 bits as a processor takes at once."""

GROUP = 6_000
"""What a group costs beside its scores, in scores of one head: a dozen operations more in either direction."""

Line = tuple[int, ...]
"""The sequences in a line, by their numbers in packed order, one behind the other."""


@dataclass(frozen=True)
class Group:
    """Lines of one width, which attention takes at once."""

    width: int
    """Slots of a line."""
    lines: tuple[Line, ...]


def grouped(lengths: Sequence[int]) -> list[Group]:
    """Lay sequences in lines: each in one of its own among lines of similar ones, or short ones together.

    Lines of their own cost no scores of other sequences, shared ones fewer operations: from some length on, which a
    guess at the costs decides, all shorter sequences share.

    Args:
        lengths: tokens of each sequence, falling.
    """
    begins = [0]  # no sequence of a group is shorter than nine tenths of its longest or of another STEP tokens
    for i, length in enumerate(lengths):
        longest = lengths[begins[-1]]
        if length < min(0.9 * longest, _rounded(longest) - STEP + 1):
            begins.append(i)
    alone = [
        Group(_rounded(lengths[begin]), tuple((i,) for i in range(begin, end)))
        for begin, end in zip(begins, [*begins[1:], len(lengths)], strict=True)
    ]
    best, least = alone, sum(_cost(group.width, len(group.lines)) for group in alone)
    before = 0
    for number, group in enumerate(alone):
        rest = lengths[begins[number] :]
        n_lines = max(-(-sum(rest) // group.width), sum(2 * length > group.width for length in rest))  # or a few more
        cost = before + _cost(group.width, n_lines)
        if cost < least:
            best, least = [*alone[:number], Group(group.width, _together(lengths, begins[number], group.width))], cost
        before += _cost(group.width, len(group.lines))
    return best


def _rounded(length: int) -> int:
    return max(NARROWEST, -(-length // STEP) * STEP)


def _cost(width: int, n_lines: int) -> int:
    return n_lines * width**2 + GROUP


def _together(lengths: Sequence[int], begin: int, width: int) -> tuple[Line, ...]:
    """Each sequence from `begin` on in the first line where it fits."""
    lines: list[Line] = []
    room: list[int] = []
    for i in range(begin, len(lengths)):
        place = next((k for k, left in enumerate(room) if left >= lengths[i]), len(lines))
        if place == len(lines):
            lines.append(())
            room.append(width)
        lines[place] += (i,)
        room[place] -= lengths[i]
    return tuple(lines)


@dataclass(frozen=True)
class Places:
    """Where each head of each token is, where each group is (lines, heads, width), one group behind the other."""

    sources: torch.Tensor
    """(slots * heads,), token and head, flat, in each place; 0 where there is none."""
    rows: torch.Tensor
    """(tokens * heads,), the way back: the place of each."""
    idle: torch.Tensor
    """The places where there is none."""


class Slots:
    """The slots of some groups, and the tokens in them."""

    def __init__(self, groups: Sequence[Group], lengths: Sequence[int]):
        """
        Args:
            groups: the lines.
            lengths: tokens of each sequence.
        """
        self.groups, self.lengths = groups, lengths
        self.kept: dict[Any, Any] = {}

    @cached_property
    def single(self) -> "Slots":
        """The same lines with one token of each sequence."""
        widest = (max(len(line) for line in group.lines) for group in self.groups)
        groups = [Group(width, group.lines) for width, group in zip(widest, self.groups, strict=True)]
        return Slots(groups, [1] * len(self.lengths))

    @cached_property
    def sizes(self) -> list[int]:
        """Slots of each group."""
        return [group.width * len(group.lines) for group in self.groups]

    @cached_property
    def sequences(self) -> torch.Tensor:
        """(slots,), the sequence in each slot; -1 in idle ones, which are at the ends of lines."""
        parts = []
        for group in self.groups:
            for line in group.lines:
                parts += [(i, self.lengths[i]) for i in line]
                parts.append((-1, group.width - sum(self.lengths[i] for i in line)))
        sequences, sizes = torch.tensor(parts).T
        return sequences.repeat_interleave(sizes)

    def places(self, heads: int) -> Places:
        """Those of all tokens, in the order of the packed row."""
        if heads not in self.kept:
            idle = self.sequences < 0
            # Sorted by sequence, which is stable, the busy slots are in the order of the row.
            slots = self.sequences.masked_fill(idle, len(self.lengths)).argsort(stable=True)
            tokens = torch.empty_like(slots)
            tokens[slots] = torch.arange(len(slots))
            tokens[idle] = -1
            parts = zip(tokens.split(self.sizes), self.groups, strict=True)
            of_heads = torch.arange(heads)[:, None]
            sources = torch.cat([(t.view(-1, 1, g.width) * heads + of_heads).flatten() for t, g in parts])
            busy = (sources >= 0).nonzero()[:, 0]
            rows = torch.empty_like(busy)
            rows[sources[busy]] = busy
            self.kept[heads] = Places(sources.clamp(min=0), rows, (sources < 0).nonzero()[:, 0])
        return self.kept[heads]

    def unseen(self, number: int, text: "Slots", heads: int, first: int, dtype: torch.dtype) -> torch.Tensor | None:
        """What is added to the scores of the tokens in a group: minus infinity at keys that are not of their sequence.

        Args:
            number: of the group.
            text: the slots of the keys.
            heads, first: of the scores, (lines * heads, width, first + the text's width); all see the first.
            dtype: of the scores.

        Returns:
            (lines * heads, width or 1, first + the text's width), or None where it would be zero.
        """
        key = number, heads, first, dtype
        if key not in self.kept:
            lines = len(self.groups[number].lines)
            queries, keys = (x.sequences.split(x.sizes)[number].view(lines, -1) for x in (self, text))
            if self.single.groups[number].width == 1:
                others = (keys < 0)[:, None]
            else:  # an idle slot sees everything: without anything to see there is no softmax
                others = (queries[:, :, None] != keys[:, None]) & (queries >= 0)[:, :, None]
            added = torch.zeros(*others.shape[:2], first + others.shape[2], dtype=dtype)
            added[:, :, first:].masked_fill_(others, -torch.inf)
            self.kept[key] = added.repeat_interleave(heads, dim=0) if others.any() else None
        return self.kept[key]
