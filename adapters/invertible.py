"""Invertible adapters (Pfeiffer et al., 2020): a coupling of NICE (Dinh et al., 2015) and its exact inverse.

o1 = e1 + F(e2), o2 = e2 + G(o1) for the two halves of each embedding; before the tied output layer, which has the
matrix of the embeddings, e2 = o2 - G(o1), e1 = o1 - F(e2).
"""

from collections.abc import Callable

import torch
from torch import nn

from common.encoders import Branch
from common.errors import DoesNotFit

Activation = Callable[[torch.Tensor], torch.Tensor]


class Bottleneck(nn.Module):
    """W_up f(W_down x + b_down) + b_up, 0 at the start. W_down: (width / 2, width), W_up: (width, width / 2)."""

    def __init__(self, width: int, activation: Activation):
        super().__init__()
        self.down, self.up, self.activation = nn.Linear(width, width // 2), nn.Linear(width // 2, width), activation
        for zero in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zero)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., width) -> (..., width)"""
        return self.up(self.activation(self.down(x)))


class Coupling(Branch):
    """The change of the embeddings: (F(e2), G(o1)). F and G have no skip connection of their own."""

    def __init__(self, width: int, activation: Activation):
        super().__init__()
        if width % 4:
            raise DoesNotFit(f"the embeddings have {width} features: invertible adapters need a multiple of 4")
        self.F, self.G = Bottleneck(width // 2, activation), Bottleneck(width // 2, activation)

    def forward(self, x: torch.Tensor, out: torch.Tensor, host: nn.Module) -> torch.Tensor:
        """out: embeddings, (..., width) -> what is added to them"""
        e1, e2 = out.chunk(2, dim=-1)
        change = self.F(e2)
        return torch.cat((change, self.G(e1 + change)), dim=-1)


class Inverse(Branch):
    """The change before the tied output layer: (-F(e2), -G(o1)), with the parameters of a coupling."""

    def __init__(self, coupling: Coupling):
        super().__init__()
        self.coupling = (coupling,)  # in a tuple, so that it is not registered twice

    def forward(self, x: torch.Tensor, out: torch.Tensor, host: nn.Module) -> torch.Tensor:
        """out: what the output layer is given, (..., width) -> what is added to it"""
        (coupling,) = self.coupling
        o1, o2 = out.chunk(2, dim=-1)
        change = -coupling.G(o1)
        return torch.cat((-coupling.F(o2 + change), change), dim=-1)
