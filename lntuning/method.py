"""LN tuning: y = g * (x - mean) / std + b, where only the g and b of all LayerNorms are trained (Qi et al., 2022)."""

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from common.encoders import layer_norm_parameters
from common.methods import Method


@dataclass(frozen=True)
class LnTuning(Method):
    """Train the gains and biases of all LayerNorms of the encoder (Qi et al., 2022)."""

    default_lr: ClassVar[float] = 3e-3
    written: ClassVar[str] = "LN tuning"

    def inject(self, model: nn.Module) -> None:
        for parameter in layer_norm_parameters(model).values():
            parameter.requires_grad_(True)
