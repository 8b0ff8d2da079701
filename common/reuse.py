"""What lies below the lowest trained parameter is the same in every epoch: compute it once and reuse it."""

from dataclasses import replace
from typing import Any

import psutil
import torch
from torch import nn

from common.encoders import encoder, hidden_size, layers, pooler, stack, store_embeddings
from common.errors import InputError
from common.fast.packing import end_with_first_tokens
from common.methods import trainable
from common.tokens import Tokens


class Store(nn.Module):
    """Stands for the embeddings and the frozen layers above them: looks their output up by a token's place."""

    table: torch.Tensor

    def __init__(self, table: torch.Tensor):
        super().__init__()
        self.register_buffer("table", table, persistent=False)

    def forward(self, input_ids: torch.Tensor, *_: Any, **_unused: Any) -> torch.Tensor:
        """input_ids: (batch, length) places -> (batch, length, hidden)"""
        return self.table[input_ids]


class Skipped(nn.Module):
    """Stands for a layer whose work is done."""

    def forward(self, hidden_states: torch.Tensor, *_: Any, **_unused: Any) -> torch.Tensor:
        """The input itself."""
        return hidden_states


def n_frozen(model: nn.Module) -> int:
    """Layers, counted from the lowest, below which and in which nothing is trained."""
    ids = {id(p) for p in trainable(model).values()}
    above = [*layers(model), *filter(None, [pooler(model)])]
    elsewhere = {id(p) for p in encoder(model).parameters()} - {id(p) for m in above for p in m.parameters()}
    if ids & elsewhere:  # embeddings, or a method's parameters that all layers use
        return 0
    trained = [any(p.requires_grad for p in layer.parameters()) for layer in layers(model)]
    return trained.index(True) if True in trained else len(trained)


@torch.no_grad()
def reuse(model: Any, splits: dict[str, Tokens], batch_size: int, device: torch.device) -> dict[str, Tokens]:
    """Run the frozen layers over all splits, without dropout, and let the model begin above them.

    Args:
        model: takes packed batches, as the splits give them; its lower part is gone afterwards.
        splits: tokens with a layout.

    Returns:
        The splits with places in the model's store in place of token ids. Where no layer is left but the head, [CLS]
        is all there is of a sequence.

    Raises:
        InputError: there is nothing to reuse, or it does not fit into memory.
    """
    n_below, width = n_frozen(model), hidden_size(model)
    if n_below == 0:
        raise InputError("reuse_frozen is on, but something in or below the lowest layer is trained: leave it out")
    head_only = n_below == len(layers(model))
    sizes = {name: len(tokens) if head_only else int(tokens.lengths.sum()) for name, tokens in splits.items()}
    needed, there = 4 * width * sum(sizes.values()), psutil.virtual_memory().available
    if needed > there / 2:
        raise InputError(
            f"reuse_frozen needs {needed / 2**30:.1f} GiB, but {there / 2**30:.1f} GiB are free: leave it out"
        )

    seen: list[torch.Tensor] = []
    top: Any = stack(model) if head_only else layers(model)[n_below - 1]
    # The stack's output is [CLS] of each sequence, handed on by the hook of packed batches, which comes first.
    hook = top.register_forward_hook(
        lambda _m, _a, out: seen.append(out.last_hidden_state[:, 0] if head_only else out[0])
    )
    model.eval()
    table = torch.empty(sum(sizes.values()), width)
    changed, begin = {}, 0
    for name, tokens in splits.items():
        lengths = torch.ones_like(tokens.lengths) if head_only else tokens.lengths
        starts = lengths.cumsum(0) - lengths + begin
        for rows in tokens.lengths.argsort(stable=True).split(batch_size):
            batch, _ = tokens.batch(rows, device)
            model(**batch)
            out = seen.pop().float().cpu()  # (batch, hidden) or (tokens, hidden)
            if head_only:
                table[starts[rows]] = out
            else:
                packing = batch["packing"]
                firsts = packing.first_tokens[packing.ranks].tolist()
                for row, first in zip(rows.tolist(), firsts, strict=True):
                    n = int(lengths[row])
                    table[starts[row] : starts[row] + n] = out[first : first + n]
        places = torch.arange(begin, begin + sizes[name], dtype=torch.int32)
        changed[name] = replace(tokens, columns={"input_ids": places}, lengths=lengths)
        begin += sizes[name]
    hook.remove()
    store_embeddings(model, Store(table.to(device)))
    for number in range(n_below):
        layers(model)[number] = Skipped()
    if head_only:
        end_with_first_tokens(layers(model)[-1])
    return changed
