"""GPT-2's linear layers as those of all other models, since transformers keeps them as convolutions of width 1."""

from typing import Any

import torch
from torch import nn


def take_places(model: Any) -> None:
    """Make every Conv1D of transformers, with its weight as (in, out), a linear layer with the weight (out, in)."""
    from transformers.pytorch_utils import Conv1D

    for parent in [*model.modules()]:
        for name, child in [*parent.named_children()]:
            if isinstance(child, Conv1D):
                setattr(parent, name, _linear(child))


@torch.no_grad()
def _linear(old: Any) -> nn.Linear:
    n_in, n_out = old.weight.shape
    new = nn.Linear(n_in, n_out, device="meta")  # no memory and no random numbers
    new.weight, new.bias = nn.Parameter(old.weight.t().contiguous()), old.bias
    return new
