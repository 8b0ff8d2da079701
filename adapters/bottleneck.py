"""The bottleneck of an adapter, and which layers have none in this batch (AdapterDrop)."""

import math
from typing import Any

import torch
from torch import nn

from common.encoders import Branch


class Dropped(Branch):
    """n, the number of lowest layers without adapters: one for all layers, sampled in every training forward pass."""

    adds = False

    def __init__(self, n_layers: int):
        super().__init__()
        self.n_layers = n_layers
        self.n = self.in_evaluation = 0

    def forward(self, x: torch.Tensor, out: torch.Tensor, host: nn.Module) -> None:
        """Sample n before the lowest layer and add nothing."""
        self.n = int(torch.randint(self.n_layers, ())) if self.training else self.in_evaluation


class Adapter(Branch):
    """s (W_up f(W_down h + b_down) + b_up) of one sublayer, 0 at the start. W_down: (m, hidden), W_up: (hidden, m)."""

    def __init__(self, method: Any, width: int, layer: int, dropped: Dropped | None, norm_first: bool = False):
        """
        Args:
            method: an `Adapters`.
            layer: its index, lowest first.
            dropped: shared by all adapters of a model; None = none is dropped.
            norm_first: whether the LayerNorm is at the input of the sublayer.
        """
        super().__init__()
        self.norm_first = norm_first
        self.down = nn.Linear(width, method.bottleneck_size)
        self.up = nn.Linear(method.bottleneck_size, width)
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        for zero in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zero)
        self.placement = method.placement
        self.activation = method.function()
        self.scaling = method.scaling if method.placement == "parallel" else 1.0
        self.layer, self.dropped = layer, (dropped,)  # in a tuple, so that it is not registered with every adapter

    def forward(self, x: torch.Tensor, out: torch.Tensor, host: nn.Module) -> torch.Tensor | None:
        """x, out: the two terms of the residual sum, host: the sublayer's LayerNorm. (..., hidden) -> (..., hidden)"""
        (dropped,) = self.dropped
        if dropped is not None and self.layer < dropped.n:
            return None
        h = out
        if self.placement == "parallel":
            h = host(x) if self.norm_first else x
        elif self.placement == "pfeiffer":
            h = out + x if self.norm_first else host(out + x)
        return self.scaling * self.up(self.activation(self.down(h)))
