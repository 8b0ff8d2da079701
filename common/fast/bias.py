"""A bias of attention scores by head and distance of the key (MPNet), in the layouts of packed attention.

`bias` below is a function of distances, position of the key minus position of the query: (...) -> (..., heads). Its
`kept` holds results for all layers of a forward pass.
"""

from typing import Any

import torch

from common.fast.slots import Slots


def of_slots(bias: Any, slots: Slots, query_at: int | None, n_prefix: int) -> tuple[torch.Tensor, ...]:
    """The bias of the scores of each group, to be added to (lines, heads, width, width).

    Args:
        slots: of the keys.
        query_at: position of the only query of each sequence; None = every token has a query.
        n_prefix: number of tokens in front of each sequence, among those in slots, that are keys without a position.
    """
    key = slots, query_at, n_prefix
    if key not in bias.kept:  # for all layers of a forward pass
        bias.kept[key] = tuple(_of_group(bias, slots, n, query_at, n_prefix) for n in range(len(slots.groups)))
    return bias.kept[key]


def _of_group(bias: Any, slots: Slots, number: int, query_at: int | None, n_prefix: int) -> torch.Tensor:
    """(heads, width, width), the same for all lines; (lines, heads, 1 or width, width) where it depends on them."""
    width = slots.groups[number].width
    if query_at is not None:
        positions = slots.positions.split(slots.sizes)[number].view(-1, width)
        return bias(positions - query_at).mT[:, :, None].contiguous()
    steps = torch.arange(width)  # a distance in a line is one in its sequence: other sequences are masked
    every = bias(steps - steps[:, None]).permute(2, 0, 1).contiguous()
    if not n_prefix:
        return every
    positions = slots.positions.split(slots.sizes)[number].view(-1, 1, 1, width)
    return every.masked_fill(positions < n_prefix, 0)


def of_padded(bias: Any, length: int, query_at: int | None, device: torch.device) -> torch.Tensor:
    """The bias of the scores in padded batches, (heads, length or 1, length)."""
    key = length, query_at
    if key not in bias.kept:
        steps = torch.arange(length, device=device)
        queries = steps if query_at is None else steps[query_at : query_at + 1]
        bias.kept[key] = bias(steps - queries[:, None]).permute(2, 0, 1)
    return bias.kept[key]
