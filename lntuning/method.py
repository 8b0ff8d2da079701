"""LN tuning: y = g * (x - mean) / std + b, where only the g and b of all LayerNorms are trained (Qi et al., 2022)."""

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from common.encoders import layer_norm, outer_layer_norms, sublayers
from common.methods import ByLayer


@dataclass(frozen=True)
class LnTuning(ByLayer):
    """Train the gains and biases of all LayerNorms of the encoder (Qi et al., 2022)."""

    default_lr: ClassVar[float] = 3e-3
    written: ClassVar[str] = "LN tuning"

    def inject(self, model: nn.Module) -> None:
        """With some layers only, the LayerNorms below and above the layers stay frozen."""
        if self.layers == "all":
            outer_layer_norms(model).requires_grad_(True)
        for layer in self.changed(model).values():
            for name in sublayers(layer):
                layer_norm(layer, name).requires_grad_(True)
