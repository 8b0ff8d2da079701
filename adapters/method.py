"""Adapters: h <- h + W_up f(W_down x + b_down) + b_up inside every layer (Houlsby et al., 2019, figure 2)."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import nn

from common.encoders import Sublayer, adapt, embedding_layer_norm, hidden_size, layer_norm, layers, stack
from common.errors import DoesNotFit, check
from common.methods import Method

Placement = Literal["houlsby", "pfeiffer", "parallel"]
SUBLAYERS: dict[Placement, tuple[Sublayer, ...]] = {
    "houlsby": ("attention", "feedforward"),
    "pfeiffer": ("feedforward",),
    "parallel": ("feedforward",),
}
ACTIVATIONS = {"gelu": F.gelu, "relu": F.relu}


class Dropped:
    """How many of the lowest layers do without their adapters: one object for all layers of a model."""

    n = 0
    """In the forward pass that runs."""
    in_evaluation = 0
    """In every forward pass of model.eval()."""


class Adapter(nn.Module):
    """A bottleneck beside one sublayer's output, which it leaves as it is until it is trained."""

    def __init__(self, method: "Adapters", width: int, layer: int, dropped: Dropped):
        """
        Args:
            method: the options.
            width: features of a token.
            layer: number of the layer, lowest first.
            dropped: shared by the adapters of a model.
        """
        super().__init__()
        self.down = nn.Linear(width, method.bottleneck_size)
        self.up = nn.Linear(method.bottleneck_size, width)
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        for zero in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zero)
        self.placement = method.placement
        self.activation = ACTIVATIONS[method.nonlinearity()]
        self.scaling = method.scaling if method.placement == "parallel" else 1.0
        self.layer, self.dropped = layer, dropped

    def forward(self, output: torch.Tensor, residual: torch.Tensor, norm: nn.Module) -> torch.Tensor:
        """What stands in the place of the sublayer's output, before the residual sum and LayerNorm.

        output, residual (the sublayer's input): (..., hidden) -> (..., hidden)
        """
        if self.layer < self.dropped.n:
            return output
        if self.placement == "houlsby":
            x = output
        elif self.placement == "parallel":
            x = residual
        else:
            x = norm(output + residual)
        return output + self.scaling * self.up(self.activation(self.down(x)))


@dataclass(frozen=True)
class Adapters(Method):
    """Small bottleneck networks inside frozen layers (Houlsby et al., 2019)."""

    bottleneck_size: int = 64
    """m: units of each adapter."""
    placement: Placement = "houlsby"
    """houlsby: on the output of both sublayers; pfeiffer: after the feed-forward LayerNorm, with the skip taken before
    it; parallel: beside the feed-forward sublayer, from its input."""
    activation: Literal["gelu", "relu"] | None = None
    """f. None = as in the placement's paper: gelu for houlsby, relu for the others."""
    scaling: float = 4.0
    """s: factor of a parallel adapter's output; the others have none."""
    train_layernorm: bool | None = None
    """Train the encoder's LayerNorms too. None = as in the placement's paper: houlsby yes, but not with
    dropped layers."""
    drop_layers: int | Literal["random"] = 0
    """AdapterDrop: no adapters in so many of the lowest layers; random: another number in every training batch."""

    default_lr: ClassVar[float] = 1e-3
    size: ClassVar[str] = "bottleneck_size"

    def __post_init__(self) -> None:
        check(
            {
                f"bottleneck_size is {self.bottleneck_size}: choose at least 1": self.bottleneck_size < 1,
                f"scaling is {self.scaling}: choose a number above 0": not 0 < self.scaling < math.inf,
                f"drop_layers is {self.drop_layers}: choose at least 0, or random": (
                    self.drop_layers != "random" and self.drop_layers < 0
                ),
                "drop_layers is random and train_layernorm is on: the LayerNorms below the lowest adapter would bring "
                "back the work that dropping saves; choose one of the two": (
                    self.drop_layers == "random" and bool(self.train_layernorm)
                ),
            }
        )

    def nonlinearity(self) -> str:
        """Name of f."""
        return self.activation or ("gelu" if self.placement == "houlsby" else "relu")

    def trains_layernorm(self) -> bool:
        """Whether the LayerNorms of the layers that have adapters are trained."""
        if self.train_layernorm is None:
            return self.placement == "houlsby" and self.drop_layers == 0
        return self.train_layernorm

    def inject(self, model: nn.Module) -> None:
        lowest = 0 if self.drop_layers == "random" else self.drop_layers
        n_layers = len(layers(model))
        if lowest >= n_layers:
            raise DoesNotFit(f"drop_layers is {lowest}, but the encoder has {n_layers} layers: choose fewer")
        dropped = Dropped()
        for number, layer in list(enumerate(layers(model)))[lowest:]:
            if self.trains_layernorm():
                for sublayer in ("attention", "feedforward"):
                    layer_norm(layer, sublayer).requires_grad_(True)
            for sublayer in SUBLAYERS[self.placement]:
                adapt(layer, sublayer, Adapter(self, hidden_size(model), number, dropped))
        if self.trains_layernorm() and lowest == 0:
            embedding_layer_norm(model).requires_grad_(True)
        if self.drop_layers == "random":

            def draw(module: nn.Module, _args: Any) -> None:
                dropped.n = int(torch.randint(n_layers, ())) if module.training else dropped.in_evaluation

            stack(model).register_forward_pre_hook(draw)

    def skips_some(self) -> bool:
        return self.drop_layers == "random"

    def states(self, model: nn.Module) -> Iterator[str]:
        """After random dropping: the model without the adapters of its lowest 0, 1, 2, ... layers."""
        if self.drop_layers == "random":
            dropped = next(module.dropped for module in model.modules() if isinstance(module, Adapter))
            for n in range(len(layers(model))):
                dropped.in_evaluation = n
                yield f"dropped_{n}"
            dropped.in_evaluation = 0
