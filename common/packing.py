"""Batches without padding: the sequences lie end to end in one row, and only attention sees where each one ends.

Embeddings, linear maps, LayerNorms and every method that works token by token then run on real tokens alone, with the
encoder's own modules: transformers lets the attention function be chosen, and a hook hands the [CLS] vectors on.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from common.dropout import drop_faster, keep, kept_share
from common.encoders import stack

NAME = "packed"


@dataclass(frozen=True)
class Packing:
    """Where the sequences of a packed row lie, the longest first."""

    groups: tuple[tuple[int, int, int], ...]
    """(first token, sequences, tokens of each): neighbours of one length, which attention takes at once."""
    first_tokens: torch.Tensor
    """(batch,), the place of every sequence's [CLS], in the order in which the rows were asked for."""
    padded: torch.Tensor
    """(batch, longest), the place of each token, sequences in packed order; -1 behind the end of a sequence."""

    def to(self, device: torch.device, non_blocking: bool = False) -> "Packing":
        """The same on a device."""
        tensors = (x.to(device, non_blocking=non_blocking) for x in (self.first_tokens, self.padded))
        return Packing(self.groups, *tensors)

    def pin_memory(self) -> "Packing":
        """The same where a GPU can fetch it while the host goes on."""
        return Packing(self.groups, self.first_tokens.pin_memory(), self.padded.pin_memory())


@dataclass(frozen=True)
class Layout:
    """How the packed batches of a run look."""

    first_position: int = 0
    """Position of a sequence's first token (RoBERTa does not count from 0)."""
    rounded: bool = False
    """Fill the row up to one of 16 sizes for each power of two, with 2 % of idle tokens that nothing attends to.

    Products in bfloat16 are compiled anew for every size on a CPU, at more than the price of those tokens.
    """

    def filler(self, tokens: int) -> int:
        """Idle tokens behind a row of so many."""
        return -tokens % (1 << max(0, tokens.bit_length() - 5)) if self.rounded else 0


def pack(
    columns: dict[str, torch.Tensor], starts: torch.Tensor, lengths: torch.Tensor, layout: Layout
) -> dict[str, Any]:
    """Lay the sequences of a batch end to end, the longest first.

    Args:
        columns: input_ids and, where the encoder has them, token_type_ids of a whole split, each (tokens,).
        starts: (batch,), places of the batch's rows in these columns.
        lengths: (batch,), their tokens.
        layout: positions, and whether the row is filled up.

    Returns:
        The keywords of a forward pass: input_ids, token_type_ids, position_ids: each (1, tokens); packing.
    """
    sizes, order = lengths.sort(descending=True, stable=True)
    begins = sizes.cumsum(0) - sizes  # places in the packed row
    within = torch.arange(int(sizes.sum())) - begins.repeat_interleave(sizes)
    source = starts[order].repeat_interleave(sizes) + within
    within, source = (F.pad(x, (0, layout.filler(len(x)))) for x in (within, source))
    inputs = {name: column[source].long()[None] for name, column in columns.items()}

    kinds, counts = sizes.unique_consecutive(return_counts=True)
    ends = (kinds * counts).cumsum(0)
    groups = tuple(zip((ends - kinds * counts).tolist(), counts.tolist(), kinds.tolist(), strict=True))
    steps = torch.arange(int(sizes[0]))
    padded = torch.where(steps < sizes[:, None], begins[:, None] + steps, -1)
    packing = Packing(groups, torch.empty_like(begins).scatter_(0, order, begins), padded)
    return inputs | {"position_ids": (within + layout.first_position)[None], "packing": packing}


class PackedAttention(torch.autograd.Function):
    """softmax(Q K^T * scaling) V within each sequence, by plain matrix products, in float32 or better.

    The products are too small for bfloat16 to pay on a CPU. The backward pass writes the gradients of all groups into
    one tensor each, where slicing would add them up.
    """

    @staticmethod
    @torch.autocast("cpu", enabled=False)
    def forward(ctx, query, key, value, groups, scaling, dropout):  # type: ignore[no-untyped-def]
        """query, key, value: (tokens, heads, size) -> (tokens, heads, size)"""
        kind = torch.promote_types(query.dtype, torch.float32)
        scales = scaling, 1.0, 1 / kept_share(dropout)  # dropout's factor is cheaper here than on every weight
        inputs = [
            x.to(kind) * scale if scale != 1 else x.to(kind)
            for x, scale in zip((query, key, value), scales, strict=True)
        ]
        out = torch.empty_like(inputs[0])
        end = sum(n * length for _, n, length in groups)  # idle tokens may follow
        out[end:] = 0
        ctx.attention = []
        for start, n, length in groups:
            q, k, v, o = (_group(x, start, n, length) for x in (*inputs, out))
            weights = torch.matmul(q, k.transpose(-2, -1)).softmax(dim=-1)  # (n, heads, length, length)
            kept = keep(weights.shape, dropout, kind) if dropout > 0 else None
            ctx.attention.append((weights, kept))
            o.copy_(torch.matmul(_dropped(weights, kept), v))
        ctx.save_for_backward(*inputs)
        ctx.settings = groups, scales, query.dtype
        return out.to(query.dtype)

    @staticmethod
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        """gradient: (tokens, heads, size) -> the same for query, key and value"""
        groups, scales, given = ctx.settings
        inputs = ctx.saved_tensors
        gradient = gradient.to(inputs[0].dtype)
        gradients = [torch.empty_like(x) for x in inputs]
        for x in gradients:
            x[sum(n * length for _, n, length in groups) :] = 0
        for (start, n, length), (weights, kept) in zip(groups, ctx.attention, strict=True):
            q, k, v, g, dq, dk, dv = (_group(x, start, n, length) for x in (*inputs, gradient, *gradients))
            dv.copy_(torch.matmul(_dropped(weights, kept).transpose(-2, -1), g))
            d = _dropped(torch.matmul(g, v.transpose(-2, -1)), kept)  # (n, heads, length, length)
            d = torch._softmax_backward_data(d, weights, -1, weights.dtype)
            dq.copy_(torch.matmul(d, k))
            dk.copy_(torch.matmul(d.transpose(-2, -1), q))
        return *(x.mul_(scale).to(given) for x, scale in zip(gradients, scales, strict=True)), None, None, None


def _dropped(x: torch.Tensor, kept: torch.Tensor | None) -> torch.Tensor:
    return x if kept is None else x * kept


def _group(x: torch.Tensor, start: int, n: int, length: int) -> torch.Tensor:
    """x: (tokens, heads, size) -> a view of n sequences of one length, (n, heads, length, size)"""
    return x[start : start + n * length].unflatten(0, (n, length)).transpose(1, 2)


def packed_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    *,
    packing: Packing,
    **_kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """What transformers calls for attention. query, key, value: (1, heads, tokens, size) -> (1, tokens, heads, size)"""
    q, k, v = (x.squeeze(0).transpose(0, 1) for x in (query, key, value))  # (tokens, heads, size)
    if q.is_cuda:  # many small products would keep a GPU waiting
        return padded_attention(q, k, v, packing.padded, scaling, dropout)[None], None
    return PackedAttention.apply(q, k, v, packing.groups, scaling, dropout)[None], None


def padded_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    padded: torch.Tensor,
    scaling: float,
    dropout: float,
) -> torch.Tensor:
    """The same by one fused kernel over a padded view. query, key, value: (tokens, heads, size) -> the same"""
    there = padded >= 0  # (batch, longest)
    places = padded.clamp(min=0)
    q, k, v = (x[places].transpose(1, 2) for x in (query, key, value))  # (batch, heads, longest, size)
    out = F.scaled_dot_product_attention(q, k, v, there[:, None, None], dropout, scale=scaling)
    # Boolean indexing would ask the device for a count; the places of the real tokens are known.
    flat = out.transpose(1, 2).flatten(0, 1)  # (batch * longest, heads, size)
    slots = torch.arange(padded.numel(), device=query.device)
    back = slots.new_zeros(len(query) + 1).scatter_(0, torch.where(there, padded, len(query)).flatten(), slots)
    return flat[back[:-1]]


def take_packed(model: Any) -> Any:
    """Make a model take packed batches, as `pack` gives them, and answer with one row of logits for each sequence."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, packed_attention)
    model.set_attn_implementation(NAME)
    drop_faster(model)

    def hand_on_first_tokens(_module: nn.Module, _args: Any, kwargs: dict[str, Any], output: Any) -> Any:
        # The pooler or head takes the first token of each row: there is one row for each sequence from here on.
        output.last_hidden_state = output.last_hidden_state[0, kwargs["packing"].first_tokens][:, None]
        return output

    stack(model).register_forward_hook(hand_on_first_tokens, with_kwargs=True)
    return model
