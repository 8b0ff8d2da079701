"""Batches without padding: the sequences lie end to end in one row, and only attention sees where each one ends.

Embeddings, linear maps, LayerNorms and every method that works token by token then run on real tokens alone, with the
encoder's own modules: transformers lets the attention function be chosen, and a hook hands the [CLS] vectors on.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from common.attention import PACKED, packed_attention
from common.dropout import drop_faster
from common.encoders import stack


@dataclass(frozen=True)
class Packing:
    """Where the sequences of a packed row lie, the longest first."""

    groups: tuple[tuple[int, int, int], ...]
    """(first token, sequences, tokens of each): neighbours of one length, which attention takes at once."""
    first_tokens: torch.Tensor
    """(batch,), the place of every sequence's [CLS], in the order in which the rows were asked for."""
    padded: torch.Tensor
    """(batch, longest), the place of each token, sequences in packed order; -1 behind the end of a sequence."""

    def lengthened(self, n: int, tokens: int) -> tuple["Packing", torch.Tensor, torch.Tensor]:
        """Make room for n more tokens in front of every sequence of a row of so many tokens.

        Returns:
            The packing, in which `first_tokens` still are the places of [CLS]; new places of the tokens that were
            there, (tokens,); places of the new ones, (batch, n), sequences in packed order.
        """
        device, batch = self.padded.device, len(self.padded)
        before = torch.arange(1, batch + 1, device=device) * n  # new tokens up to a sequence's own ones, included
        end = sum(count * length for _, count, length in self.groups)
        moved = torch.arange(tokens, device=device)
        moved[:end] += before.repeat_interleave((self.padded >= 0).sum(1), output_size=end)
        moved[end:] += batch * n  # idle tokens
        places = (self.padded[:, 0] + before - n)[:, None] + torch.arange(n, device=device)
        padded = torch.where(self.padded >= 0, self.padded + before[:, None], -1)
        groups, done = [], 0
        for start, count, length in self.groups:
            groups.append((start + done * n, count, length + n))
            done += count
        packing = Packing(tuple(groups), moved[self.first_tokens], torch.cat((places, padded), dim=1))
        return packing, moved, places


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


def take_packed(model: Any) -> Any:
    """Make a model take packed batches, as `pack` gives them, and answer with one row of logits for each sequence."""
    from transformers import AttentionInterface

    AttentionInterface.register(PACKED, packed_attention)
    model.set_attn_implementation(PACKED)
    drop_faster(model)

    def hand_on_first_tokens(_module: nn.Module, _args: Any, kwargs: dict[str, Any], output: Any) -> Any:
        # The pooler or head takes the first token of each row: there is one row for each sequence from here on.
        output.last_hidden_state = output.last_hidden_state[0, kwargs["packing"].first_tokens][:, None]
        return output

    stack(model).register_forward_hook(hand_on_first_tokens, with_kwargs=True)
    return model
