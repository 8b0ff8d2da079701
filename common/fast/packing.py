"""Batches without padding: the sequences lie end to end in one row, and only attention sees where each one ends.

Embeddings, linear maps, LayerNorms and every method that works token by token then run on real tokens alone, with the
encoder's own modules: transformers lets the attention function be chosen, and a hook hands the [CLS] vectors on.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from common.encoders import keys_and_values, layers, stack
from common.fast.attention import PackedAttention, padded_attention
from common.fast.slots import Slots, grouped

PACKED = "packed"
"""Name under which transformers knows `packed_attention`."""


class Packing:
    """Where the sequences of a packed row lie, the longest first."""

    def __init__(
        self,
        lengths: tuple[int, ...],
        n_tokens: int,
        first_tokens: torch.Tensor,
        ranks: torch.Tensor,
        padded: torch.Tensor,
    ):
        """
        Args:
            lengths: tokens of each sequence, in packed order: falling.
            n_tokens: tokens of the row, idle ones included.
            first_tokens: (batch,), the place of every sequence's [CLS], in packed order.
            ranks: (batch,), where in that order each sequence is, in the order in which the rows were asked for.
            padded: (batch, longest), the place of each token, sequences in packed order; -1 behind the end of one.
        """
        self.lengths, self.n_tokens = lengths, n_tokens
        self.first_tokens, self.ranks, self.padded = first_tokens, ranks, padded

    @cached_property
    def slots(self) -> Slots:
        """How attention on a CPU takes the sequences."""
        return Slots(grouped(self.lengths), self.lengths)

    def lengthened(self, n: int) -> tuple["Packing", torch.Tensor, torch.Tensor]:
        """Make room for n more tokens in front of every sequence.

        Returns:
            The packing, in which `first_tokens` still are the places of [CLS]; new places of the tokens that were
            there, (tokens,); places of the new ones, (batch, n), sequences in packed order.
        """
        device, batch, end = self.padded.device, len(self.padded), sum(self.lengths)
        before = torch.arange(1, batch + 1, device=device) * n  # new tokens up to a sequence's own ones, included
        moved = torch.arange(self.n_tokens, device=device)
        moved[:end] += before.repeat_interleave((self.padded >= 0).sum(1), output_size=end)
        moved[end:] += batch * n  # idle tokens
        places = (self.padded[:, 0] + before - n)[:, None] + torch.arange(n, device=device)
        padded = torch.where(self.padded >= 0, self.padded + before[:, None], -1)
        longer = tuple(length + n for length in self.lengths)
        first_tokens, padded = moved[self.first_tokens], torch.cat((places, padded), dim=1)
        return Packing(longer, self.n_tokens + batch * n, first_tokens, self.ranks, padded), moved, places

    def tensors(self) -> dict[str, torch.Tensor]:
        """Its tensors by name, to be sent to a device."""
        return {name: getattr(self, name) for name in ("first_tokens", "ranks", "padded")}

    def moved_to(self, tensors: dict[str, torch.Tensor]) -> "Packing":
        """The same with its tensors on another device."""
        return Packing(self.lengths, self.n_tokens, **tensors)


@dataclass(frozen=True)
class Layout:
    """How the packed batches of a run look."""

    first_position: int = 0
    """Position of a sequence's first token (RoBERTa does not count from 0)."""
    rounded: bool = False
    """Fill the row up to one of 16 sizes for each power of two, with 2 % of idle tokens that nothing attends to.

    oneDNN compiles its products anew for every size on a CPU, which costs more than those tokens do, and keeps them.
    """

    def filler(self, tokens: int) -> int:
        """Idle tokens behind a row of so many."""
        return -tokens % (1 << max(0, tokens.bit_length() - 5)) if self.rounded else 0

    def pack(self, columns: dict[str, torch.Tensor], starts: torch.Tensor, lengths: torch.Tensor) -> dict[str, Any]:
        """Lay the sequences of a batch end to end, the longest first.

        Args:
            columns: input_ids and, where the encoder has them, token_type_ids of a whole split, each (tokens,).
            starts: (batch,), places of the batch's rows in these columns.
            lengths: (batch,), their tokens.

        Returns:
            The keywords of a forward pass: input_ids, token_type_ids, position_ids: each (1, tokens); packing.
        """
        sizes, order = lengths.sort(descending=True, stable=True)
        begins = sizes.cumsum(0) - sizes  # places in the packed row
        within = torch.arange(int(sizes.sum())) - begins.repeat_interleave(sizes)
        source = starts[order].repeat_interleave(sizes) + within
        within, source = (F.pad(x, (0, self.filler(len(x)))) for x in (within, source))
        inputs = {name: column[source].long()[None] for name, column in columns.items()}

        steps = torch.arange(int(sizes[0]))
        padded = torch.where(steps < sizes[:, None], begins[:, None] + steps, -1)
        ranks = torch.empty_like(order).scatter_(0, order, torch.arange(len(order)))
        packing = Packing(tuple(sizes.tolist()), len(within), begins, ranks, padded)
        return inputs | {"position_ids": (within + self.first_position)[None], "packing": packing}


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
    prefix: tuple[torch.Tensor, torch.Tensor] | None = None,
    text: torch.Tensor | None = None,
    **_kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """What transformers calls for attention. query, key, value: (1, heads, tokens, size) -> (1, tokens, heads, size)

    Args:
        prefix: keys and values that every sequence begins with, each (heads, first, size).
        text: (1, tokens, hidden), what keys and values are of, where the module was given one token of each sequence,
            so that query, key and value are (1, heads, batch, size).
    """
    q, k, v = (x.squeeze(0).transpose(0, 1) for x in (query, key, value))  # (tokens, heads, size)
    if text is not None:
        k, v = (x[0].unflatten(-1, q.shape[1:]) for x in keys_and_values(module, text))
    if prefix is None:
        prefix = (q.new_empty(q.shape[1], 0, q.shape[2]),) * 2
    if q.device.type != "cpu":  # many small products would keep a GPU waiting
        return padded_attention(q, k, v, *prefix, packing.padded, scaling, dropout)[None], None
    return PackedAttention.apply(q, k, v, *prefix, packing.slots, scaling, dropout)[None], None


packed_attention.takes_prefix = True  # type: ignore[attr-defined]  # as common.prepending asks


def take_packed(model: Any) -> Any:
    """Make a model take packed batches, as `pack` gives them, and answer with one row of logits for each sequence."""
    from transformers import AttentionInterface

    AttentionInterface.register(PACKED, packed_attention)
    model.set_attn_implementation(PACKED)
    end_with_first_tokens(layers(model)[-1])

    def hand_on(_module: nn.Module, _args: Any, kwargs: dict[str, Any], output: Any) -> Any:
        # The pooler or head takes the first token of each row: there is one row for each sequence from here on.
        output.last_hidden_state = output.last_hidden_state[0, kwargs["packing"].ranks][:, None]
        return output

    stack(model).register_forward_hook(hand_on, with_kwargs=True)
    return model


def end_with_first_tokens(layer: nn.Module) -> None:
    """Let a layer compute nothing but its output at [CLS] of each sequence, in packed order: (1, batch, hidden).

    That is all of the top layer that pooler and head take. Keys and values are those of every token as before.
    """

    def pick(_module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        text = args[0]
        return (text[:, kwargs["packing"].first_tokens], *args[1:]), kwargs | {"text": text}

    layer.register_forward_pre_hook(pick, with_kwargs=True)
