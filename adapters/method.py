"""Adapters: h <- h + W_up f(W_down x + b_down) + b_up inside every layer (Houlsby et al., 2019, figure 2)."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
import torch.nn.functional as F
from torch import nn

from common.encoders import (
    Branch,
    Place,
    Sublayer,
    embedding_layer_norm,
    embeddings,
    hidden_size,
    layer_norm,
    layers,
    sublayer,
)
from common.errors import DoesNotFit, check
from common.methods import Method

Placement = Literal["houlsby", "pfeiffer", "parallel"]
SUBLAYERS: dict[Placement, tuple[Sublayer, ...]] = {
    "houlsby": ("attention", "feedforward"),
    "pfeiffer": ("feedforward",),
    "parallel": ("feedforward",),
}
ACTIVATIONS: dict[str, Callable[..., torch.Tensor]] = {"gelu": F.gelu, "relu": F.relu}


class Dropped(Branch):
    """How many of the lowest layers go without their adapters: one for all layers, drawn anew in each forward pass."""

    def __init__(self, n_layers: int):
        super().__init__()
        self.n_layers = n_layers
        self.n = self.in_evaluation = 0

    def forward(self, x: torch.Tensor, out: torch.Tensor, host: nn.Module) -> None:
        """Draw, below the lowest layer; nothing is added there."""
        self.n = int(torch.randint(self.n_layers, ())) if self.training else self.in_evaluation


class Adapter(Branch):
    """A bottleneck beside one sublayer's output, which it leaves as it is until it is trained."""

    def __init__(self, method: "Adapters", width: int, layer: int, dropped: Dropped | None):
        """
        Args:
            method: the options.
            width: features of a token.
            layer: number of the layer, lowest first.
            dropped: shared by the adapters of a model; None = no adapter is dropped.
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
        self.layer, self.dropped = layer, (dropped,)  # a tuple, so that it is not registered with every adapter

    def forward(self, x: torch.Tensor, out: torch.Tensor, host: nn.Module) -> torch.Tensor | None:
        """x (the sublayer's input), out (its output): (..., hidden) -> (..., hidden). host: the LayerNorm behind."""
        (dropped,) = self.dropped
        if dropped is not None and self.layer < dropped.n:
            return None
        source = {"houlsby": out, "parallel": x}.get(self.placement)
        h = host(out + x) if source is None else source
        return self.scaling * self.up(self.activation(self.down(h)))


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
    old_names: ClassVar[dict[str, str]] = {r"\.adapter\.": ".adapters."}

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

    def branches(self, model: nn.Module) -> Iterator[tuple[Place, Branch]]:
        stack, lowest = layers(model), self.lowest()
        if lowest >= len(stack):
            raise DoesNotFit(f"drop_layers is {lowest}, but the encoder has {len(stack)} layers: choose fewer")
        dropped = None
        if self.drop_layers == "random":
            dropped = Dropped(len(stack))
            yield embeddings(model), dropped
        for number, layer in enumerate(stack):
            for name in SUBLAYERS[self.placement] if number >= lowest else ():
                yield sublayer(layer, name), Adapter(self, hidden_size(model), number, dropped)

    def inject(self, model: nn.Module) -> None:
        super().inject(model)
        if self.trains_layernorm():
            for layer in layers(model)[self.lowest() :]:
                for name in get_args(Sublayer):
                    layer_norm(layer, name).requires_grad_(True)
            if self.lowest() == 0:
                embedding_layer_norm(model).requires_grad_(True)

    def lowest(self) -> int:
        """Number of the lowest layer that has adapters."""
        return 0 if self.drop_layers == "random" else self.drop_layers

    def uses_all(self) -> bool:
        return self.drop_layers != "random"

    def variants(self, model: nn.Module) -> Iterator[str]:
        """After random dropping: the model without the adapters of its lowest 0, 1, 2, ... layers."""
        for dropped in model.modules():
            if isinstance(dropped, Dropped):
                for n in range(dropped.n_layers):
                    dropped.in_evaluation = n
                    yield f"dropped_{n}"
                dropped.in_evaluation = 0
