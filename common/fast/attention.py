"""Attention within packed sequences, with an optional prefix of keys and values in front of each of them."""

import itertools

import torch
import torch.nn.functional as F

from common.fast.dropout import INTEGERS, keep_masks
from common.fast.slots import Slots, Window


class PackedAttention(torch.autograd.Function):
    """softmax(Q K^T * scaling) V within each sequence, by batched matrix products over groups of sequences (slots.py).

    Scores and softmax are in float32 or higher precision, the other products in the dtype of the values.
    """

    @staticmethod
    @torch.autocast("cpu", enabled=False)
    def forward(ctx, query, key, value, prefix_key, prefix_value, slots, scaling, dropout, window=None, *biases):  # type: ignore[no-untyped-def]
        """query: (tokens, heads, size), or (batch, heads, size): one per sequence, in packed order -> the same shape

        key, value: (tokens, heads, size)
        prefix_key, prefix_value: (heads, prefix, size), in front of the keys and values of each sequence; may be empty.
        slots: of the keys.
        window: of the queries, see slots.py; None = they see all keys of their sequence.
        biases: for each group, added to the scores of the text, (lines, heads, width, width), see bias.py; or none.
        """
        heads, dtype, n_prefix = key.shape[1], value.dtype, prefix_key.shape[1]
        score_dtype = torch.promote_types(dtype, torch.float32)
        query_slots = slots if len(query) == len(key) else slots.single
        q, k, v = _to_slots(query, query_slots), _to_slots(key, slots), _to_slots(value, slots)
        out = torch.empty_like(q)
        score_prefix = prefix_key.to(score_dtype)
        parts = [_groups(x, query_slots, heads) for x in (q.to(score_dtype), out)]
        parts += [_groups(x, slots, heads) for x in (k.to(score_dtype), v)]
        shapes = [(*queries.shape[:2], n_prefix + keys.shape[1]) for queries, _, keys, _ in zip(*parts, strict=True)]
        integer = INTEGERS[dtype.itemsize]
        masks = keep_masks(shapes, dropout, integer) if dropout > 0 else itertools.repeat(None)
        ctx.weights = []
        for number, (queries, o, keys, values, keep) in enumerate(zip(*parts, masks, strict=False)):
            keys, values = _prepend(score_prefix, keys), _prepend(prefix_value, values)
            mask = query_slots.unseen(number, slots, heads, n_prefix, score_dtype, window)
            scores = _product(queries, keys.mT, scaling, mask)
            if biases:
                _of_text(scores, heads, n_prefix).add_(biases[number])
            weights = scores.softmax(dim=-1).to(dtype)
            dropped = weights if keep is None else keep.mul_(weights.view(integer)).view(dtype)
            _product(dropped, values, 1 / (1 - dropout), out=o)
            ctx.weights.append((weights, dropped))
        ctx.save_for_backward(q, k, v, prefix_key, prefix_value)
        ctx.settings = slots, query_slots, heads, len(query), len(key), scaling, 1 / (1 - dropout)
        ctx.bias_shapes = [bias.shape for bias in biases]
        return _from_slots(out, query_slots, heads, len(query))

    @staticmethod
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        """gradient: of the output -> gradients of the five tensors and of the biases"""
        slots, query_slots, heads, n_queries, n_keys, scaling, keep_scale = ctx.settings
        q, k, v, prefix_key, prefix_value = ctx.saved_tensors
        n_prefix = prefix_key.shape[1]
        gradient = _to_slots(gradient, query_slots).index_fill_(0, query_slots.places(heads).idle, 0)
        dq, dk, dv = (torch.empty_like(x) for x in (q, k, v))
        d_biases: list[torch.Tensor | None] = [None] * len(ctx.bias_shapes)
        d_prefixes = [torch.zeros_like(x) for x in (prefix_key, prefix_value)]
        parts = [ctx.weights, *(_groups(x, query_slots, heads) for x in (q, gradient, dq))]
        parts += [_groups(x, slots, heads) for x in (k, v, dk, dv)]
        for number, each in enumerate(zip(*parts, strict=True)):
            (weights, dropped), queries, g, to_queries, keys, values, to_keys, to_values = each
            keys, values = _prepend(prefix_key, keys), _prepend(prefix_value, values)
            d = _product(g, values.mT, scaling * keep_scale).mul_(dropped)  # (lines * heads, width, prefix + key width)
            d.addcmul_(weights, d.sum(dim=-1, keepdim=True), value=-1)
            if ctx.bias_shapes and ctx.needs_input_grad[9 + number]:
                d_biases[number] = _of_text(d, heads, n_prefix).sum_to_size(ctx.bias_shapes[number]) / scaling
            _product(d, keys, out=to_queries)
            if not n_prefix:
                _product(d.mT, queries, out=to_keys)
                _product(dropped.mT, g, keep_scale, out=to_values)
                continue
            both = _product(d.mT, queries), _product(dropped.mT, g, keep_scale)  # (lines * heads, prefix + width, size)
            for d_both, d_text, d_prefix in zip(both, (to_keys, to_values), d_prefixes, strict=True):
                d_text.copy_(d_both[:, n_prefix:])
                d_prefix += d_both[:, :n_prefix].unflatten(0, (-1, heads)).sum(0)
        dk, dv = (_from_slots(x, slots, heads, n_keys) for x in (dk, dv))
        return _from_slots(dq, query_slots, heads, n_queries), dk, dv, *d_prefixes, *(None,) * 4, *d_biases


def _of_text(scores: torch.Tensor, heads: int, n_prefix: int) -> torch.Tensor:
    """scores: (lines * heads, width, prefix + key width) -> those of the text, (lines, heads, width, width)"""
    return scores.unflatten(0, (-1, heads))[..., n_prefix:]


def _product(
    left: torch.Tensor,
    right: torch.Tensor,
    factor: float = 1.0,
    added: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """left: (batch, m, k), right: (batch, k, n) -> left right * factor + added, (batch, m, n)"""
    beta = 0 if added is None else 1  # with beta 0, baddbmm does not read its first argument
    return torch.baddbmm(left.new_empty(1) if added is None else added, left, right, beta=beta, alpha=factor, out=out)


def _to_slots(x: torch.Tensor, slots: Slots) -> torch.Tensor:
    """x: (tokens, heads, size) -> (slots * heads, size): each group as (lines, heads, width), any values in padding"""
    return x.reshape(-1, x.shape[2]).index_select(0, slots.places(x.shape[1]).sources)


def _from_slots(x: torch.Tensor, slots: Slots, heads: int, n_tokens: int) -> torch.Tensor:
    """x: (slots * heads, size) -> (tokens, heads, size), with zeros at the padding tokens, which are the last ones"""
    rows = slots.places(heads).rows
    out = x.new_empty(n_tokens * heads, x.shape[1])
    torch.index_select(x, 0, rows, out=out[: len(rows)])
    out[len(rows) :] = 0
    return out.unflatten(0, (-1, heads))


def _groups(x: torch.Tensor, slots: Slots, heads: int) -> list[torch.Tensor]:
    """x: (slots * heads, size) -> a view of each group, (lines * heads, width, size)"""
    parts = x.split([size * heads for size in slots.sizes])
    return [part.view(-1, group.width, x.shape[1]) for part, group in zip(parts, slots.groups, strict=True)]


def _prepend(prefix: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """x: (batch, heads, length, size) or (batch * heads, length, size) -> behind the prefix

    prefix: (heads, prefix, size), or if x has four dimensions (batch, heads, prefix, size)
    """
    if not prefix.shape[-2]:
        return x
    if prefix.ndim == 4:
        return torch.cat((prefix, x), dim=-2)
    batch = x.shape[:-2].numel() // len(prefix)
    repeated = prefix.expand(batch, -1, -1, -1).reshape(*x.shape[:-2], *prefix.shape[1:])
    return torch.cat((repeated, x), dim=-2)


class Padding:
    """Where the tokens of packed sequences are in padded ones, and back."""

    def __init__(self, padded: torch.Tensor, n_tokens: int, n_real: int):
        """padded: (batch, longest), as in `Packing`; n_tokens: of the packed row, whose first n_real are of texts."""
        self.real = padded >= 0
        positions = torch.arange(padded.numel(), device=padded.device)
        # Boolean indexing would wait for the device to count the real tokens; their indices are known.
        places = torch.where(self.real, padded, n_tokens).flatten()
        positions = positions.new_zeros(n_tokens + 1).scatter_(0, places, positions)[:-1]  # (tokens,)
        self._of_tokens = padded.clamp(min=0), ~self.real[..., None, None]
        filler = torch.arange(n_tokens, device=padded.device)[:, None, None] >= n_real if n_real < n_tokens else None
        self._of_positions = positions, filler

    def pad(self, x: torch.Tensor) -> torch.Tensor:
        """x: (tokens, heads, size) -> (batch, heads, longest, size), any values in padding"""
        return _Moved.apply(x, self._of_tokens[0], None, *self._of_positions).transpose(1, 2)

    def unpad(self, x: torch.Tensor) -> torch.Tensor:
        """Undo `pad`."""
        return _Moved.apply(x.transpose(1, 2).flatten(0, 1), *self._of_positions, *self._of_tokens)


class _Moved(torch.autograd.Function):
    """Rows of x by an index, with zeros in some; the gradient is the same by the index of the inverse.

    Rows of the output that the inverse does not name must have no gradient. Torch's own gradient of an index is slower:
    it sorts the index, which could have an entry twice.
    """

    @staticmethod
    def forward(ctx, x, index, zeros, inverse, inverse_zeros):  # type: ignore[no-untyped-def]
        """x: (n, heads, size), index: any shape -> (*index, heads, size). zeros: where; None = nowhere."""
        ctx.inverse, ctx.n_dims = (inverse, inverse_zeros), index.ndim
        return _rows(x, index, zeros)

    @staticmethod
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        out = _rows(gradient.flatten(0, ctx.n_dims - 1), *ctx.inverse)
        return out.flatten(0, out.ndim - 3), *(None,) * 4


def _rows(x: torch.Tensor, index: torch.Tensor, zeros: torch.Tensor | None) -> torch.Tensor:
    return x[index] if zeros is None else x[index].masked_fill_(zeros, 0)


def padded_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    prefix_key: torch.Tensor,
    prefix_value: torch.Tensor,
    padding: Padding,
    scaling: float,
    dropout: float,
    bias: torch.Tensor | None = None,
    window: Window | None = None,
) -> torch.Tensor:
    """PackedAttention by one fused kernel over padded sequences.

    padding: of the keys. bias: of the scores, (heads, longest or 1, longest). window: of queries.
    """
    all_queries = len(query) == len(key)
    k, v = padding.pad(key), padding.pad(value)  # (batch, heads, longest, size)
    q = padding.pad(query) if all_queries else query[:, :, None]
    k, v = _prepend(prefix_key, k), _prepend(prefix_value, v)
    seen = padding.real[:, None]  # (batch, longest or 1, longest)
    if window is not None:  # padding sees every key: softmax over no key would be NaN
        far = window.hides(torch.arange(k.shape[2] - prefix_key.shape[-2], device=k.device))
        seen = seen & ~(far & padding.real[:, :, None] if all_queries else far)
    mask = F.pad(seen, (prefix_key.shape[-2], 0), value=True)[:, None]
    if bias is not None:
        bias = F.pad(bias, (prefix_key.shape[-2], 0)).to(q.dtype)
        mask = torch.where(mask, bias, -torch.inf)  # (batch, heads, longest or 1, prefix + longest)
    out = F.scaled_dot_product_attention(q, k, v, mask, dropout, scale=scaling)
    return padding.unpad(out) if all_queries else out[:, :, 0]
