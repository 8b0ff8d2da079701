"""Attention over packed sequences, and over keys and values that a method puts before those of the text."""

import copy
import functools
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn

from common.dropout import keep, kept_share
from common.encoders import layers, self_attention

if TYPE_CHECKING:
    from common.packing import Group, Packing

PACKED = "packed"
PREPENDED = "prepended"

KeyValue = tuple[torch.Tensor, torch.Tensor]
"""Keys and values of a layer that every sequence begins with, each (heads, first, size)."""


class PackedAttention(torch.autograd.Function):
    """softmax(Q K^T * scaling) V within each sequence, by plain matrix products, in float32 or better.

    The products are too small for bfloat16 to pay on a CPU. Sequences of similar lengths are taken at once, padded to
    the longest of them: a call costs more than the few numbers that are computed for nothing.
    """

    @staticmethod
    @torch.autocast("cpu", enabled=False)
    def forward(ctx, query, key, value, first_key, first_value, packing, scaling, dropout):  # type: ignore[no-untyped-def]
        """query, key, value: (tokens, heads, size) -> (tokens, heads, size)

        first_key, first_value: (heads, first, size), before the keys and values of each sequence; first may be 0.
        """
        dtypes = [x.dtype for x in (query, key, value, first_key, first_value)]
        kind = torch.promote_types(query.dtype, torch.float32)
        dropped = 1 / kept_share(dropout)  # dropout's factor is cheaper here than on every weight
        scales = scaling, 1.0, dropped, 1.0, dropped
        heads = query.shape[1]
        inputs = [_laid(x, packing, kind, scale) for x, scale in zip((query, key, value), scales, strict=False)]
        inputs += [x.to(kind) * scale for x, scale in zip((first_key, first_value), scales[3:], strict=True)]
        query, key, value, first_key, first_value = inputs
        out = torch.empty_like(query)
        ctx.attention = []
        for group in packing.groups:
            q, k, v, o = (_of(x, group, heads) for x in (query, key, value, out))  # (n * heads, length, size)
            k, v = _behind(first_key, k), _behind(first_value, v)
            scores = torch.bmm(q, k.transpose(1, 2))  # (n * heads, length, first + length)
            if group.uneven:
                scores += packing.unseen(group, heads, first_key.shape[1], kind)
            weights = scores.softmax(dim=-1)
            kept = keep(weights.shape, dropout, kind) if dropout > 0 else None
            ctx.attention.append((weights, kept))
            torch.bmm(_dropped(weights, kept), v, out=o)
        ctx.save_for_backward(*inputs)
        ctx.settings = packing, heads, scales, dtypes
        return _packed(out, packing, heads).to(dtypes[0])

    @staticmethod
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        """gradient: (tokens, heads, size) -> gradients of the five tensors, each in its shape"""
        packing, heads, scales, dtypes = ctx.settings
        query, key, value, first_key, first_value = inputs = ctx.saved_tensors
        gradient = _laid(gradient, packing, query.dtype, 1.0)
        gradients = [torch.empty_like(x) for x in inputs[:3]]
        firsts = [torch.zeros_like(x) for x in inputs[3:]]
        n_first = first_key.shape[1]
        for group, (weights, kept) in zip(packing.groups, ctx.attention, strict=True):
            q, k, v, g, dq, *dkv = (_of(x, group, heads) for x in (query, key, value, gradient, *gradients))
            k, v = _behind(first_key, k), _behind(first_value, v)
            d = _dropped(torch.bmm(g, v.transpose(1, 2)), kept)  # (n * heads, length, first + length)
            d = torch._softmax_backward_data(d, weights, -1, weights.dtype)
            torch.bmm(d, k, out=dq)
            for left, right, text, first in zip((d, _dropped(weights, kept)), (q, g), dkv, firsts, strict=True):
                if n_first:
                    whole = torch.bmm(left.transpose(1, 2), right)  # (n * heads, first + length, size)
                    text.copy_(whole[:, n_first:])
                    first += whole[:, :n_first].unflatten(0, (-1, heads)).sum(0)
                else:
                    torch.bmm(left.transpose(1, 2), right, out=text)
        texts = [_packed(x, packing, heads) for x in gradients]
        scaled = (x.mul_(scale).to(dtype) for x, scale, dtype in zip((*texts, *firsts), scales, dtypes, strict=True))
        return *scaled, None, None, None


def _dropped(x: torch.Tensor, kept: torch.Tensor | None) -> torch.Tensor:
    return x if kept is None else x * kept


def _laid(x: torch.Tensor, packing: "Packing", kind: torch.dtype, scale: float) -> torch.Tensor:
    """x: (tokens, heads, size) -> (slots * heads, size): each group as (n, heads, length), zeros behind the ends"""
    rows = packing.rows(x.shape[1])
    laid = torch.zeros(packing.n_slots * x.shape[1], x.shape[2], dtype=kind)
    flat = x.reshape(-1, x.shape[2])[: len(rows)].to(kind)
    return laid.index_copy_(0, rows, flat * scale if scale != 1 else flat)


def _packed(laid: torch.Tensor, packing: "Packing", heads: int) -> torch.Tensor:
    """The way back: (slots * heads, size) -> (tokens, heads, size), zeros at idle tokens"""
    rows = packing.rows(heads)
    out = laid.new_empty(packing.n_tokens * heads, laid.shape[1])
    torch.index_select(laid, 0, rows, out=out[: len(rows)])
    out[len(rows) :] = 0
    return out.unflatten(0, (-1, heads))


def _of(laid: torch.Tensor, group: "Group", heads: int) -> torch.Tensor:
    """A view of a group's part, (n * heads, length, size)."""
    slots = group.n * group.length
    return laid[group.slot * heads : (group.slot + slots) * heads].view(group.n * heads, group.length, -1)


def _behind(first: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """first: (heads, first, size), x: (batch, heads, length, size), the first two flat or not -> longer"""
    if not first.shape[1]:
        return x
    batch = x.shape[:-2].numel() // len(first)
    repeated = first.expand(batch, -1, -1, -1).reshape(*x.shape[:-2], *first.shape[1:])
    return torch.cat((repeated, x), dim=-2)


def packed_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    *,
    packing: "Packing",
    first: KeyValue | None = None,
    **_kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """What transformers calls for attention. query, key, value: (1, heads, tokens, size) -> (1, tokens, heads, size)"""
    q, k, v = (x.squeeze(0).transpose(0, 1) for x in (query, key, value))  # (tokens, heads, size)
    if first is None:
        first = (q.new_empty(q.shape[1], 0, q.shape[2]),) * 2
    if q.device.type != "cpu":  # many small products would keep a GPU waiting
        return padded_attention(q, k, v, *first, packing.padded, scaling, dropout)[None], None
    return PackedAttention.apply(q, k, v, *first, packing, scaling, dropout)[None], None


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
    q, k, v = (x[places].transpose(1, 2) for x in (query, key, value))  # (batch, heads, longest, size)
    k, v = _behind(first_key, k), _behind(first_value, v)
    mask = F.pad(there, (first_key.shape[1], 0), value=True)[:, None, None]
    out = F.scaled_dot_product_attention(q, k, v, mask, dropout, scale=scaling)
    # Boolean indexing would ask the device for a count; the places of the real tokens are known.
    flat = out.transpose(1, 2).flatten(0, 1)  # (batch * longest, heads, size)
    slots = torch.arange(padded.numel(), device=query.device)
    back = slots.new_zeros(len(query) + 1).scatter_(0, torch.where(there, padded, len(query)).flatten(), slots)
    return flat[back[:-1]]


def prepend(model: nn.Module, first_of: Callable[[int], KeyValue]) -> None:
    """Let the attention of every layer also see keys and values of a method's own, before those of the text.

    Positions, masks of the text and the 512 tokens that fit are untouched: no query stands at the added places.

    Args:
        first_of: number of a layer, lowest first -> its keys and values; asked in every forward pass.
    """
    from transformers import AttentionInterface

    AttentionInterface.register(PREPENDED, prepended_attention)
    for number, layer in enumerate(layers(model)):
        attention = self_attention(layer)
        # A config of its own: this module's attention changes, and the encoder goes on making masks of its kind.
        attention.shared_config, attention.config = attention.config, copy.copy(attention.config)
        attention.config._attn_implementation = PREPENDED
        attention.first = functools.partial(first_of, number)


def prepended_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **settings: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The encoder's attention function (sdpa, eager, packed) over more keys. query, key: (batch, heads, length, size)

    The mask may be None, bool (True = seen) or float (0 = seen), (batch, 1, length or 1, length).
    """
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    first: Any = tuple(x.to(key.dtype) for x in module.first())
    chosen = module.shared_config._attn_implementation
    if chosen == PACKED:
        return packed_attention(module, query, key, value, attention_mask, first=first, **settings)
    key, value = _behind(first[0], key), _behind(first[1], value)
    if attention_mask is not None:
        seen: Any = True if attention_mask.dtype == torch.bool else 0.0
        attention_mask = F.pad(attention_mask, (first[0].shape[1], 0), value=seen)
    eager = sys.modules[type(module).__module__].eager_attention_forward  # type: ignore[attr-defined]
    attend = ALL_ATTENTION_FUNCTIONS.get_interface(chosen, eager)
    return attend(module, query, key, value, attention_mask, **settings)
