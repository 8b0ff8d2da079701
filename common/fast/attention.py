"""Attention within each of many packed sequences, with a prefix of keys and values before each of them or none."""

import itertools

import torch
import torch.nn.functional as F

from common.fast.dropout import INTEGERS, keep_masks
from common.fast.slots import Slots


class PackedAttention(torch.autograd.Function):
    """softmax(Q K^T * scaling) V within each sequence, by plain matrix products over groups of them (common.slots).

    Scores and their softmax are in float32 or better, the other products in the type of the values.
    """

    @staticmethod
    @torch.autocast("cpu", enabled=False)
    def forward(ctx, query, key, value, first_key, first_value, text, scaling, dropout):  # type: ignore[no-untyped-def]
        """query: (tokens, heads, size), or (batch, heads, size): one for each sequence, in packed order -> the same

        key, value: (tokens, heads, size)
        first_key, first_value: (heads, first, size), before the keys and values of each sequence; first may be 0.
        text: slots of the tokens.
        """
        heads, kind, n_first = key.shape[1], value.dtype, first_key.shape[1]
        exact = torch.promote_types(kind, torch.float32)
        asking = text if len(query) == len(key) else text.single
        q, k, v = _to_slots(query, asking), _to_slots(key, text), _to_slots(value, text)
        out = torch.empty_like(q)
        exact_first = first_key.to(exact)
        parts = [_groups(x, asking, heads) for x in (q.to(exact), out)]
        parts += [_groups(x, text, heads) for x in (k.to(exact), v)]
        shapes = [(*queries.shape[:2], n_first + keys.shape[1]) for queries, _, keys, _ in zip(*parts, strict=True)]
        integer = INTEGERS[kind.itemsize]
        kept = keep_masks(shapes, dropout, integer) if dropout > 0 else itertools.repeat(None)
        ctx.weights = []
        for number, (queries, o, keys, values, keep) in enumerate(zip(*parts, kept, strict=False)):
            keys, values = _behind(exact_first, keys), _behind(first_value, values)
            scores = _product(queries, keys.mT, scaling, asking.unseen(number, text, heads, n_first, exact))
            weights = scores.softmax(dim=-1).to(kind)
            dropped = weights if keep is None else keep.mul_(weights.view(integer)).view(kind)
            _product(dropped, values, 1 / (1 - dropout), out=o)
            ctx.weights.append((weights, dropped))
        ctx.save_for_backward(q, k, v, first_key, first_value)
        ctx.settings = text, asking, heads, len(query), len(key), scaling, 1 / (1 - dropout)
        return _from_slots(out, asking, heads, len(query))

    @staticmethod
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        """gradient: of the output -> gradients of the five tensors, each in its shape"""
        text, asking, heads, n_queries, n_keys, scaling, kept_as = ctx.settings
        q, k, v, first_key, first_value = ctx.saved_tensors
        n_first = first_key.shape[1]
        gradient = _to_slots(gradient, asking).index_fill_(0, asking.places(heads).idle, 0)
        dq, dk, dv = (torch.empty_like(x) for x in (q, k, v))
        firsts = [torch.zeros_like(x) for x in (first_key, first_value)]
        parts = [ctx.weights, *(_groups(x, asking, heads) for x in (q, gradient, dq))]
        parts += [_groups(x, text, heads) for x in (k, v, dk, dv)]
        for (weights, dropped), queries, g, to_queries, keys, values, to_keys, to_values in zip(*parts, strict=True):
            keys, values = _behind(first_key, keys), _behind(first_value, values)
            d = _product(g, values.mT, scaling * kept_as).mul_(dropped)  # (lines * heads, width, first + width of keys)
            d.addcmul_(weights, d.sum(dim=-1, keepdim=True), value=-1)
            _product(d, keys, out=to_queries)
            if not n_first:
                _product(d.mT, queries, out=to_keys)
                _product(dropped.mT, g, kept_as, out=to_values)
                continue
            wholes = _product(d.mT, queries), _product(dropped.mT, g, kept_as)  # (lines * heads, first + width, size)
            for whole, to_text, first in zip(wholes, (to_keys, to_values), firsts, strict=True):
                to_text.copy_(whole[:, n_first:])
                first += whole[:, :n_first].unflatten(0, (-1, heads)).sum(0)
        dk, dv = (_from_slots(x, text, heads, n_keys) for x in (dk, dv))
        return _from_slots(dq, asking, heads, n_queries), dk, dv, *firsts, None, None, None


def _product(
    left: torch.Tensor,
    right: torch.Tensor,
    factor: float = 1.0,
    added: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """left: (batch, m, k), right: (batch, k, n) -> left right * factor + added, (batch, m, n)"""
    beta = 0 if added is None else 1  # what is there is not read where it is 0
    return torch.baddbmm(left.new_empty(1) if added is None else added, left, right, beta=beta, alpha=factor, out=out)


def _to_slots(x: torch.Tensor, slots: Slots) -> torch.Tensor:
    """x: (tokens, heads, size) -> (slots * heads, size): each group as (lines, heads, width), anything in idle slots"""
    return x.reshape(-1, x.shape[2]).index_select(0, slots.places(x.shape[1]).sources)


def _from_slots(laid: torch.Tensor, slots: Slots, heads: int, n_tokens: int) -> torch.Tensor:
    """The way back: (slots * heads, size) -> (tokens, heads, size), zeros at idle tokens, the last ones"""
    rows = slots.places(heads).rows
    out = laid.new_empty(n_tokens * heads, laid.shape[1])
    torch.index_select(laid, 0, rows, out=out[: len(rows)])
    out[len(rows) :] = 0
    return out.unflatten(0, (-1, heads))


def _groups(laid: torch.Tensor, slots: Slots, heads: int) -> list[torch.Tensor]:
    """A view of each group: (lines * heads, width, size)"""
    parts = laid.split([size * heads for size in slots.sizes])
    return [part.view(-1, group.width, laid.shape[1]) for part, group in zip(parts, slots.groups, strict=True)]


def _behind(first: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """first: (heads, first, size), x: (batch, heads, length, size), the first two flat or not -> longer"""
    if not first.shape[1]:
        return x
    batch = x.shape[:-2].numel() // len(first)
    repeated = first.expand(batch, -1, -1, -1).reshape(*x.shape[:-2], *first.shape[1:])
    return torch.cat((repeated, x), dim=-2)


def padded_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    first_key: torch.Tensor,
    first_value: torch.Tensor,
    padded: torch.Tensor,
    scaling: float,
    dropout: float,
) -> torch.Tensor:
    """The same as PackedAttention by one fused kernel over a padded view."""
    there = padded >= 0  # (batch, longest)
    places = padded.clamp(min=0)
    every = len(query) == len(key)
    k, v = (x[places].transpose(1, 2) for x in (key, value))  # (batch, heads, longest, size)
    q = query[places].transpose(1, 2) if every else query[:, :, None]
    k, v = _behind(first_key, k), _behind(first_value, v)
    mask = F.pad(there, (first_key.shape[1], 0), value=True)[:, None, None]
    out = F.scaled_dot_product_attention(q, k, v, mask, dropout, scale=scaling)
    if not every:
        return out[:, :, 0]
    # Boolean indexing would ask the device for a count; the places of the real tokens are known.
    flat = out.transpose(1, 2).flatten(0, 1)  # (batch * longest, heads, size)
    slots = torch.arange(padded.numel(), device=query.device)
    back = slots.new_zeros(len(query) + 1).scatter_(0, torch.where(there, padded, len(query)).flatten(), slots)
    return flat[back[:-1]]
