"""Packed batches: all sequences of a batch in one row without padding; only attention separates them.

Embeddings, linear layers, LayerNorms and every method that works token by token then compute real tokens only, with the
encoder's own modules: transformers accepts another attention function, and a hook passes on the [CLS] vectors.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import accumulate, pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from common.encoders import keys_and_values, layers, runs_of_top_layer, stack
from common.fast import bias as by_head
from common.fast import disentangled
from common.fast.attention import PackedAttention, Padding, padded_attention
from common.fast.slots import Slots, Window, grouped
from common.places import Branch

PACKED = "packed"
"""Name of `packed_attention` in transformers."""


class Packing:
    """Positions of the sequences in a packed row, the longest sequence first."""

    def __init__(
        self,
        lengths: tuple[int, ...],
        n_tokens: int,
        first_tokens: torch.Tensor,
        ranks: torch.Tensor,
        padded: torch.Tensor,
        n_front: int = 0,
    ):
        """
        Args:
            lengths: tokens of each sequence, in packed order: descending.
            n_tokens: tokens of the row, with its padding.
            first_tokens: (batch,), index of the [CLS] of each sequence, in packed order.
            ranks: (batch,), position of each example of the batch in packed order.
            padded: (batch, longest), index of each token, in packed order; -1 after the end of a sequence.
            n_front: tokens before the text of each sequence, the first columns of `padded`.
        """
        self.n_front = n_front
        self.lengths, self.n_tokens = lengths, n_tokens
        self.first_tokens, self.ranks, self.padded = first_tokens, ranks, padded
        self._longer: dict[int, tuple[Packing, torch.Tensor, torch.Tensor]] = {}

    @cached_property
    def slots(self) -> Slots:
        """Layout of the sequences for attention on a CPU."""
        order = sorted(range(len(self.lengths)), key=lambda i: -self.lengths[i])  # those of several parts are unsorted
        groups = grouped([self.lengths[i] for i in order])
        lines = (tuple(tuple(order[i] for i in line) for line in group.lines) for group in groups)
        return Slots([replace(group, lines=own) for group, own in zip(groups, lines, strict=True)], self.lengths)

    @cached_property
    def padding(self) -> Padding:
        """Layout of the sequences for attention on a GPU."""
        return Padding(self.padded, self.n_tokens, sum(self.lengths))

    def with_room(self, n: int) -> tuple["Packing", torch.Tensor, torch.Tensor]:
        """`lengthened`, computed once for all layers."""
        if n not in self._longer:
            self._longer[n] = self.lengthened(n)
        return self._longer[n]

    def lengthened(self, n: int) -> tuple["Packing", torch.Tensor, torch.Tensor]:
        """Insert n tokens in front of every sequence.

        Returns:
            The new packing, whose `first_tokens` are still those of [CLS]; new indices of the old tokens, (tokens,);
            indices of the inserted tokens, (batch, n), in packed order.
        """
        device, batch, end = self.padded.device, len(self.padded), sum(self.lengths)
        before = torch.arange(1, batch + 1, device=device) * n  # tokens inserted up to and in front of each sequence
        moved = torch.arange(self.n_tokens, device=device)
        moved[:end] += before.repeat_interleave((self.padded >= 0).sum(1), output_size=end)
        moved[end:] += batch * n  # padding tokens
        inserted = (self.padded[:, 0] + before - n)[:, None] + torch.arange(n, device=device)
        padded = torch.where(self.padded >= 0, self.padded + before[:, None], -1)
        longer = tuple(length + n for length in self.lengths)
        first_tokens, padded = moved[self.first_tokens], torch.cat((inserted, padded), dim=1)
        packing = Packing(longer, self.n_tokens + batch * n, first_tokens, self.ranks, padded, self.n_front + n)
        return packing, moved, inserted

    def tensors(self) -> dict[str, torch.Tensor]:
        """Its tensors by name."""
        return {name: getattr(self, name) for name in ("first_tokens", "ranks", "padded")}

    def without_filler(self) -> "Packing":
        """The same packing in a row without padding."""
        return Packing(self.lengths, sum(self.lengths), **self.tensors(), n_front=self.n_front)

    def moved_to(self, tensors: dict[str, torch.Tensor]) -> "Packing":
        """The same packing with these tensors, such as copies on another device."""
        return Packing(self.lengths, self.n_tokens, **tensors, n_front=self.n_front)


class Joined(Packing):
    """The packings of several batches, its parts, whose rows follow each other in one row.

    A part keeps its own order and its own tokens in front, and is a range of the tokens of the row.
    """

    def __init__(self, parts: Sequence[Packing], n_tokens: int):
        """n_tokens: of the row, with padding at its end that belongs to no part."""
        self.parts = parts
        self.tokens = _ranges(part.n_tokens for part in parts)
        self.examples = _ranges(len(part.ranks) for part in parts)
        self.attended: int | None = None
        """The part whose attention is computed now, if it is that of one part alone."""
        self._merged: dict[tuple[int, ...], Packing] = {}
        both = _merged(parts, n_tokens, text_only=True)
        super().__init__(both.lengths, n_tokens, both.first_tokens, both.ranks, both.padded)

    def ranges(self, n: int) -> list[slice]:
        """Where each part is among n tokens: all of the row or, if there is one of each example, those."""
        return self.tokens if n == self.n_tokens else self.examples

    def attend(
        self,
        module: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        prefix: Any,
        text: Any,
        settings: dict[str, Any],
    ) -> torch.Tensor:
        """`packed_attention` of each part; prefix: a list of those of the parts, None = it has none.

        Neighbours without a prefix are computed together, but for relative positions, which ask whose they are.
        """
        found = []
        of_text = None if text is None else text()
        ranges = self.ranges(query.shape[2])
        for numbers in self._together(prefix, settings["relative"] is None):
            first, last = numbers[0], numbers[-1]
            self.attended = first if len(numbers) == 1 else None
            tokens = slice(self.tokens[first].start, self.tokens[last].stop)
            q, k, v = (x[:, :, ranges[first].start : ranges[last].stop] for x in (query, key, value))
            own_text = None if of_text is None else partial(_cut, of_text, tokens)
            own_prefix = None if prefix is None else prefix[first]
            packing = self._packing_of(numbers)
            own = packed_attention(module, q, k, v, None, packing=packing, prefix=own_prefix, text=own_text, **settings)
            found.append(own[0])
        self.attended = None
        out = torch.cat(found, dim=1)
        return F.pad(out, (0, 0, 0, 0, 0, query.shape[2] - out.shape[1]))

    def _together(self, prefix: Any, may_join: bool) -> list[tuple[int, ...]]:
        """The parts, by number, whose attention is computed at once."""
        found: list[tuple[int, ...]] = []
        before: int | None = None
        for number, part in enumerate(self.parts):
            kind = None if prefix is not None and prefix[number] is not None else part.n_front
            if found and may_join and kind is not None and kind == before:
                found[-1] += (number,)
            else:
                found.append((number,))
            before = kind
        return found

    def _packing_of(self, numbers: tuple[int, ...]) -> Packing:
        if len(numbers) == 1:
            return self.parts[numbers[0]]
        if numbers not in self._merged:
            some = [self.parts[number] for number in numbers]
            self._merged[numbers] = _merged(some, sum(part.n_tokens for part in some))
        return self._merged[numbers]


def _merged(parts: Sequence[Packing], n_tokens: int, text_only: bool = False) -> Packing:
    """One packing of several in one row of n tokens. text_only: `padded` is without the tokens in front of a text."""
    starts = [at.start for at in _ranges(part.n_tokens for part in parts)]
    examples = [at.start for at in _ranges(len(part.ranks) for part in parts)]
    padded = [torch.where(p.padded >= 0, p.padded + start, -1) for p, start in zip(parts, starts, strict=True)]
    if text_only:
        padded = [each[:, part.n_front :] for part, each in zip(parts, padded, strict=True)]
    longest = max(each.shape[1] for each in padded)
    return Packing(
        tuple(length for part in parts for length in part.lengths),
        n_tokens,
        torch.cat([part.first_tokens + start for part, start in zip(parts, starts, strict=True)]),
        torch.cat([part.ranks + start for part, start in zip(parts, examples, strict=True)]),
        torch.cat([F.pad(each, (0, longest - each.shape[1]), value=-1) for each in padded]),
        0 if text_only else parts[0].n_front,
    )


def _ranges(sizes: Iterable[int]) -> list[slice]:
    ends = [0, *accumulate(sizes)]
    return [slice(begin, end) for begin, end in pairwise(ends)]


def _cut(pair: tuple[torch.Tensor, torch.Tensor], tokens: slice) -> tuple[torch.Tensor, ...]:
    return tuple(each[:, tokens] for each in pair)


@dataclass(frozen=True)
class Layout:
    """Layout of the packed batches of a run."""

    first_position: int = 0
    """Position id of the first token of a sequence: 0, but in RoBERTa the one after the padding token's id."""
    rounded: bool = False
    """Pad the row to one of 16 sizes per power of two: 2 % of padding tokens, which nothing attends to.

    On a CPU, oneDNN compiles its kernels for every new size, which costs more than these tokens, and caches them.
    """

    def filler(self, tokens: int) -> int:
        """Number of padding tokens of a row."""
        return -tokens % (1 << max(0, tokens.bit_length() - 5)) if self.rounded else 0

    def pack(self, columns: dict[str, torch.Tensor], starts: torch.Tensor, lengths: torch.Tensor) -> dict[str, Any]:
        """Pack the sequences of a batch, the longest first.

        Args:
            columns: input_ids and, if the encoder has them, token_type_ids of a whole split, each (tokens,).
            starts: (batch,), index in these columns of the first token of each example.
            lengths: (batch,), tokens of each example.

        Returns:
            Keyword arguments of a forward pass: input_ids, token_type_ids, position_ids: each (1, tokens); packing.
        """
        sizes, order = lengths.sort(descending=True, stable=True)
        begins = sizes.cumsum(0) - sizes  # indices in the packed row
        within = torch.arange(int(sizes.sum())) - begins.repeat_interleave(sizes)
        source = starts[order].repeat_interleave(sizes) + within
        within, source = (F.pad(x, (0, self.filler(len(x)))) for x in (within, source))
        inputs = {name: column[source].long()[None] for name, column in columns.items()}
        positions = within + self.first_position
        is_counted = (
            inputs["input_ids"][0] != self.first_position - 1
        )  # RoBERTa counts no padding tokens written in a text
        if self.first_position and not is_counted.all():
            total = is_counted.cumsum(0)
            firsts = torch.arange(len(within)) - within  # index of the first token of the same sequence
            positions = self.first_position - 1 + (total - total[firsts] + is_counted[firsts]) * is_counted

        steps = torch.arange(int(sizes[0]))
        padded = torch.where(steps < sizes[:, None], begins[:, None] + steps, -1)
        ranks = torch.empty_like(order).scatter_(0, order, torch.arange(len(order)))
        packing = Packing(tuple(sizes.tolist()), len(within), begins, ranks, padded)
        return inputs | {"position_ids": positions[None], "packing": packing}

    def join(self, batches: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """One batch of several from `pack`, whose examples follow each other; all padding is at the end of the row."""
        packings = [batch["packing"].without_filler() for batch in batches]
        names = set.intersection(*(set(batch) for batch in batches)) - {"packing"}  # some have a mask too
        columns = {
            name: torch.cat(
                [batch[name][:, : part.n_tokens] for batch, part in zip(batches, packings, strict=True)], dim=1
            )
            for name in names
        }
        n = columns["input_ids"].shape[1]
        columns = {name: F.pad(column, (0, self.filler(n))) for name, column in columns.items()}
        return columns | {"packing": Joined(packings, n + self.filler(n))}


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
    text: Any = None,
    bias: Any = None,
    relative: Any = None,
    sliding_window: int | None = None,
    **_kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention function for transformers. query, key, value: (1, heads, tokens, size) -> (1, tokens, heads, size)

    Args:
        prefix: keys and values in front of every sequence, each (heads, prefix, size); or in front of each sequence,
            (batch, heads, prefix, size), in packed order. Of each part, if the packing is a joined one.
        text: computes keys and values of all tokens, each (1, tokens, hidden), if the module got one token of each
            sequence only, so that query, key and value are (1, heads, batch, size).
        bias: added to the scores by head and distance, see bias.py.
        relative: keys and queries by distance, see disentangled.py.
        sliding_window: a query sees only keys of its text at distances below it.
    """
    if isinstance(packing, Joined):
        settings = {"scaling": scaling, "dropout": dropout, "bias": bias, "relative": relative}
        settings["sliding_window"] = sliding_window
        return packing.attend(module, query, key, value, prefix, text, settings), None
    q, k, v = (x.squeeze(0).transpose(0, 1) for x in (query, key, value))  # (tokens, heads, size)
    if text is not None:
        k, v = (x[0].unflatten(-1, q.shape[1:]) for x in text())
    query_at = packing.n_front if len(q) < len(k) else None
    window = None if sliding_window is None else Window(sliding_window - 1, query_at)
    if prefix is None:
        prefix = (q.new_empty(q.shape[1], 0, q.shape[2]),) * 2
    if q.device.type != "cpu":  # many small products are slow on a GPU
        added = None if bias is None else by_head.of_padded(bias, packing.padded.shape[1], query_at, q.device)
        if relative is not None:
            added = disentangled.of_padded(relative, q, k, packing.padded, scaling, query_at)
        return padded_attention(q, k, v, *prefix, packing.padding, scaling, dropout, added, window)[None], None
    if prefix[0].ndim == 4:  # as further tokens, whose queries and outputs are not used
        n_prefix = prefix[0].shape[-2]
        longer, moved, inserted = packing.with_room(n_prefix)
        k, v = (_inserted(x, p.transpose(1, 2), moved, inserted) for x, p in zip((k, v), prefix, strict=True))
        q = _inserted(q, None, moved, inserted)
        prefix = (q.new_empty(q.shape[1], 0, q.shape[2]),) * 2
        biases = _biases(bias, relative, q, k, longer, scaling, None, n_prefix)
        window = None if window is None else Window(window.size, None, n_prefix)
        out = PackedAttention.apply(q, k, v, *prefix, longer.slots, scaling, dropout, window, *biases)
        return out[moved][None], None
    biases = _biases(bias, relative, q, k, packing, scaling, query_at, 0)
    return PackedAttention.apply(q, k, v, *prefix, packing.slots, scaling, dropout, window, *biases)[None], None


def _biases(
    bias: Any,
    relative: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    packing: Packing,
    scaling: float,
    query_at: int | None,
    n_prefix: int,
) -> tuple[torch.Tensor, ...]:
    """What is added to the scores of each group; none for most encoders."""
    if relative is not None:
        return disentangled.of_slots(relative, query, key, packing, scaling, query_at, n_prefix)
    return () if bias is None else by_head.of_slots(bias, packing.slots, query_at, n_prefix)


def _inserted(x: torch.Tensor, new: torch.Tensor | None, moved: torch.Tensor, inserted: torch.Tensor) -> torch.Tensor:
    """x: (tokens, heads, size), new: (batch, n, heads, size), None = zeros -> both, at the indices of the packing"""
    out = x.new_zeros(len(moved) + inserted.numel(), *x.shape[1:]).index_copy(0, moved, x)
    return out if new is None else out.index_copy(0, inserted.flatten(), new.flatten(0, 1).to(x.dtype))


packed_attention.takes_prefix = True  # type: ignore[attr-defined]  # as common.prepending asks


def take_packed(model: Any) -> Any:
    """Make a model accept packed batches from `Layout.pack` and return one row of logits for each example."""
    from transformers import AttentionInterface

    AttentionInterface.register(PACKED, packed_attention)
    model.set_attn_implementation(PACKED)
    if getattr(model, "reads_all_tokens", False):  # by a hook of its own
        return model
    ends = not any(isinstance(module, Branch) and module.needs_all_tokens for module in model.modules())
    if ends:
        end_with_first_tokens(model)

    def unpack(_module: nn.Module, _args: Any, kwargs: dict[str, Any], output: Any) -> Any:
        # Pooler and head take the first token of each row: from here on, a row is one example with one token.
        packing = kwargs["packing"]
        indices = packing.ranks if ends else packing.first_tokens[packing.ranks]
        output.last_hidden_state = output.last_hidden_state[0, indices][:, None]
        return output

    stack(model).register_forward_hook(unpack, with_kwargs=True)
    return model


def end_with_first_tokens(model: nn.Module) -> None:
    """Make the top layer, in the last of its runs, compute its output at each [CLS] only, (1, batch, hidden).

    They are in packed order. Pooler and head use nothing else of it. Its keys and values are still computed for every
    token.
    """
    first_tokens = _FirstTokens(runs_of_top_layer(model))
    stack(model).register_forward_pre_hook(first_tokens.start)
    layers(model)[-1].register_forward_pre_hook(first_tokens.pick, with_kwargs=True)


class _FirstTokens:
    def __init__(self, runs: int):
        self.runs = self.left = runs

    def start(self, _stack: nn.Module, _args: Any) -> None:
        self.left = self.runs  # also after a forward pass that was not finished

    def pick(self, layer: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        self.left -= 1
        if self.left:
            return None
        text, first = args[0], kwargs["packing"].first_tokens
        rotation = kwargs.get("position_embeddings")
        kwargs = kwargs | {"text": partial(keys_and_values, layer, text, rotation)}
        if rotation is not None:
            kwargs["position_embeddings"] = tuple(each[:, first] for each in rotation)
        return (text[:, first], *args[1:]), kwargs
