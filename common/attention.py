"""Attention over packed sequences, and over keys and values that a method puts before those of the text.

transformers lets the attention function be chosen by name, so the encoder's own modules are kept.
"""

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
    from common.packing import Packing

PACKED = "packed"
PREPENDED = "prepended"

KeyValue = tuple[torch.Tensor, torch.Tensor]
"""Keys and values of a layer that every sequence begins with, each (heads, first, size)."""


class PackedAttention(torch.autograd.Function):
    """softmax(Q K^T * scaling) V within each sequence, by plain matrix products, in float32 or better.

    The products are too small for bfloat16 to pay on a CPU. The backward pass writes the gradients of all groups into
    one tensor each, where slicing would add them up.
    """

    @staticmethod
    @torch.autocast("cpu", enabled=False)
    def forward(ctx, query, key, value, first_key, first_value, groups, scaling, dropout):  # type: ignore[no-untyped-def]
        """query, key, value: (tokens, heads, size) -> (tokens, heads, size)

        first_key, first_value: (heads, first, size), before the keys and values of each sequence; first may be 0.
        """
        dtypes = [x.dtype for x in (query, key, value, first_key, first_value)]
        kind = torch.promote_types(query.dtype, torch.float32)
        end = sum(n * length for _, n, length in groups)  # idle tokens may follow
        dropped = 1 / kept_share(dropout)  # dropout's factor is cheaper here than on every weight
        scales = scaling, 1.0, dropped, 1.0, dropped
        inputs = [
            x.to(kind) * scale if scale != 1 else x.to(kind)
            for x, scale in zip((query, key, value, first_key, first_value), scales, strict=True)
        ]
        query, key, value, first_key, first_value = inputs
        out = torch.empty_like(query)
        out[end:] = 0
        ctx.attention = []
        for start, n, length in groups:
            q, k, v, o = (_group(x, start, n, length) for x in (query, key, value, out))
            k, v = _behind(first_key, k), _behind(first_value, v)  # (n, heads, first + length, size)
            weights = torch.matmul(q, k.transpose(-2, -1)).softmax(dim=-1)  # (n, heads, length, first + length)
            kept = keep(weights.shape, dropout, kind) if dropout > 0 else None
            ctx.attention.append((weights, kept))
            o.copy_(torch.matmul(_dropped(weights, kept), v))
        ctx.save_for_backward(*inputs)
        ctx.settings = groups, end, scales, dtypes
        return out.to(dtypes[0])

    @staticmethod
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        """gradient: (tokens, heads, size) -> gradients of the five tensors, each in its shape"""
        groups, end, scales, dtypes = ctx.settings
        query, key, value, first_key, first_value = inputs = ctx.saved_tensors
        gradient = gradient.to(query.dtype)
        gradients = [torch.empty_like(x) for x in inputs[:3]]
        for x in gradients:
            x[end:] = 0
        firsts = [torch.zeros_like(x) for x in inputs[3:]]
        n_first = first_key.shape[1]
        for (start, n, length), (weights, kept) in zip(groups, ctx.attention, strict=True):
            q, k, v, g, dq, *dkv = (_group(x, start, n, length) for x in (query, key, value, gradient, *gradients))
            k, v = _behind(first_key, k), _behind(first_value, v)
            d = _dropped(torch.matmul(g, v.transpose(-2, -1)), kept)  # (n, heads, length, first + length)
            d = torch._softmax_backward_data(d, weights, -1, weights.dtype)
            dq.copy_(torch.matmul(d, k))
            both = torch.matmul(d.transpose(-2, -1), q), torch.matmul(_dropped(weights, kept).transpose(-2, -1), g)
            for whole, text, first in zip(both, dkv, firsts, strict=True):
                text.copy_(whole[:, :, n_first:])
                if n_first:
                    first += whole[:, :, :n_first].sum(0)
        scaled = (
            x.mul_(scale).to(dtype) for x, scale, dtype in zip((*gradients, *firsts), scales, dtypes, strict=True)
        )
        return *scaled, None, None, None


def _dropped(x: torch.Tensor, kept: torch.Tensor | None) -> torch.Tensor:
    return x if kept is None else x * kept


def _group(x: torch.Tensor, start: int, n: int, length: int) -> torch.Tensor:
    """x: (tokens, heads, size) -> a view of n sequences of one length, (n, heads, length, size)"""
    return x[start : start + n * length].unflatten(0, (n, length)).transpose(1, 2)


def _behind(first: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """first: (heads, first, size), x: (n, heads, length, size) -> (n, heads, first + length, size)"""
    return torch.cat((first.expand(len(x), -1, -1, -1), x), dim=2) if first.shape[1] else x


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
    if q.is_cuda:  # many small products would keep a GPU waiting
        return padded_attention(q, k, v, *first, packing.padded, scaling, dropout)[None], None
    return PackedAttention.apply(q, k, v, *first, packing.groups, scaling, dropout)[None], None


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
    k, v = _behind(first_key.to(k.dtype), k), _behind(first_value.to(v.dtype), v)
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
