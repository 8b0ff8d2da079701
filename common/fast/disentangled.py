"""Scores by distance of DeBERTa's disentangled attention, in the layouts of packed attention.

Beside the product of its query and its key, a score has those of the query with a key of their distance and of the key
with a query of it. `relative` below computes these: lowest and highest distance, position of the key minus position of
the query -> their keys and their queries, each (distances, heads, size), or None for what the encoder does not have.
"""

from typing import Any

import torch
import torch.nn.functional as F


def of_slots(
    relative: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    packing: Any,
    scaling: float,
    query_at: int | None,
    n_prefix: int,
) -> tuple[torch.Tensor, ...]:
    """What is added to the scores of each group, (lines, heads, width or 1, width).

    Args:
        query: (tokens, heads, size), or (batch, heads, size) if each sequence has one query.
        key: (tokens, heads, size).
        packing: of the sequences.
        scaling: of the scores.
        query_at: position of the only query of each sequence; None = every token has a query.
        n_prefix: number of tokens in front of each sequence that are keys without a position.
    """
    slots, dtype = packing.slots, torch.promote_types(key.dtype, torch.float32)
    query, key = query.to(dtype), key.to(dtype)
    positions = slots.positions.split(slots.sizes)
    shapes = [(len(group.lines), group.width) for group in slots.groups]
    if query_at is not None:
        scores = _of_one_query(relative, query, key, packing.padded, scaling, query_at)
        within = slots.positions.clamp(max=scores.shape[2] - 1)
        parts = scores[slots.sequences.clamp(min=0), :, within].split(slots.sizes)  # (lines * width, heads)
        return tuple(part.view(*shape, -1).mT[:, :, None] for part, shape in zip(parts, shapes, strict=True))
    widest = max(width for _, width in shapes)
    tables = _scaled(relative, 1 - widest, widest - 1, scaling, dtype)
    sources = slots.places(1).sources
    parts = zip(
        *(F.embedding(sources, x.flatten(1)).view(-1, *x.shape[1:]).split(slots.sizes) for x in (query, key)),
        strict=True,
    )
    found = []
    for (queries, keys), (_, width), at in zip(parts, shapes, positions, strict=True):
        near = slice(widest - width, widest + width - 1)  # the distances within a line
        scores = ByDistance.apply(queries, keys, *(None if x is None else x[near] for x in tables), width)
        found.append(scores.masked_fill(at.view(-1, 1, 1, width) < n_prefix, 0) if n_prefix else scores)
    return tuple(found)


def of_padded(
    relative: Any, query: torch.Tensor, key: torch.Tensor, padded: torch.Tensor, scaling: float, query_at: int | None
) -> torch.Tensor:
    """The same for padded sequences, (batch, heads, longest or 1, longest). padded: as in `Packing`."""
    length = padded.shape[1]
    if query_at is not None:
        return _of_one_query(relative, query, key, padded, scaling, query_at)[:, :, None]
    index = padded.clamp(min=0).flatten()
    tables = _scaled(relative, 1 - length, length - 1, scaling, query.dtype)
    return ByDistance.apply(query[index], key[index], *tables, length)


def _scaled(relative: Any, low: int, high: int, scaling: float, dtype: torch.dtype) -> list[torch.Tensor | None]:
    return [None if x is None else x.to(dtype) * scaling for x in relative(low, high)]


def _of_one_query(
    relative: Any, query: torch.Tensor, key: torch.Tensor, padded: torch.Tensor, scaling: float, query_at: int
) -> torch.Tensor:
    """query: (batch, heads, size), key: (tokens, heads, size) -> (batch, heads, longest)"""
    pos_key, pos_query = _scaled(relative, -query_at, padded.shape[1] - 1 - query_at, scaling, query.dtype)
    found: Any = 0
    if pos_key is not None:
        found = torch.einsum("bhs,lhs->bhl", query, pos_key)
    if pos_query is not None:
        found = found + torch.einsum("blhs,lhs->bhl", key[padded.clamp(min=0)], pos_query)
    return found


class ByDistance(torch.autograd.Function):
    """Scores within lines, each width tokens: query i with the key of distance j - i, plus key j with the query of it.

    A product with the keys of all distances has these scores on diagonals, which are read and written as a view.
    """

    @staticmethod
    def forward(ctx, query, key, pos_key, pos_query, width):  # type: ignore[no-untyped-def]
        """query, key: (lines * width, heads, size), pos_key, pos_query: (2 width - 1, heads, size) or None

        Returns (lines, heads, width, width).
        """
        ctx.save_for_backward(query, key, pos_key, pos_query)
        ctx.width, parts = width, []
        with torch.autocast(query.device.type, enabled=False):
            if pos_key is not None:
                parts.append(_diagonals(_product(query, pos_key), width))
            if pos_query is not None:
                parts.append(_diagonals(_product(key, pos_query.flip(0)), width).mT)
        return (parts[0] + parts[1] if len(parts) > 1 else parts[0].clone()).transpose(0, 1)

    @staticmethod
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        """gradient: of the scores -> gradients of the four tensors"""
        query, key, pos_key, pos_query = ctx.saved_tensors
        gradient = gradient.transpose(0, 1)
        found: list[torch.Tensor | None] = [None] * 5
        if pos_key is not None:
            found[0], found[2] = _gradients(gradient, query, pos_key, ctx.needs_input_grad[2])
        if pos_query is not None:
            found[1], flipped = _gradients(gradient.mT, key, pos_query.flip(0), ctx.needs_input_grad[3])
            found[3] = None if flipped is None else flipped.flip(0)
        return tuple(found)


def _product(x: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """x: (tokens, heads, size), table: (distances, heads, size) -> (heads, tokens, distances)"""
    return torch.bmm(x.transpose(0, 1), table.permute(1, 2, 0))


def _diagonals(x: torch.Tensor, width: int) -> torch.Tensor:
    """x: (heads, lines * width, 2 width - 1) -> a view, (heads, lines, width, width)

    Its [i, j] is the [i, j - i + width - 1] of x.
    """
    heads, n, distances = x.shape
    strides = (n * distances, width * distances, distances - 1, 1)
    return x.as_strided((heads, n // width, width, width), strides, width - 1)


def _gradients(
    gradient: torch.Tensor, x: torch.Tensor, table: torch.Tensor, of_table: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """gradient: (heads, lines, width, width) -> those of x and table in `_product`"""
    by_distance = gradient.new_zeros(x.shape[1], x.shape[0], table.shape[0])
    _diagonals(by_distance, gradient.shape[-1]).copy_(gradient)
    to_x = torch.bmm(by_distance, table.transpose(0, 1)).transpose(0, 1)
    return to_x, torch.bmm(by_distance.mT, x.transpose(0, 1)).transpose(0, 1) if of_table else None
