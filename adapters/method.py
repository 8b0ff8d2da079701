"""Adapters: h <- h + W_up f(W_down x + b_down) + b_up inside every layer (Houlsby et al., 2019, figure 2)."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch.nn.functional as F
from torch import nn

from adapters.bottleneck import Adapter, Dropped
from adapters.invertible import Activation, Coupling, Inverse
from common.encoders import (
    Branch,
    Place,
    Sublayer,
    before_vocabulary,
    embeddings,
    hidden_size,
    is_encoder_decoder,
    layers,
    norm_first,
    outer_layer_norms,
    sharing,
    sublayer,
    sublayers,
    word_embeddings,
)
from common.errors import DoesNotFit, check
from common.methods import ByLayer


@dataclass(frozen=True)
class Adapters(ByLayer):
    """Small bottleneck networks inside frozen layers (Houlsby et al., 2019)."""

    bottleneck_size: int = 64
    """m: hidden units of each adapter."""
    placement: Literal["houlsby", "pfeiffer", "parallel"] = "houlsby"
    """houlsby: on the output of both sublayers; parallel: beside the feed-forward sublayer, on the same input;
    pfeiffer: after the feed-forward LayerNorm, with the skip connection taken before it."""
    activation: Literal["gelu", "relu"] | None = None
    """f. None = as in the paper of the placement: gelu for houlsby, relu for the others."""
    scaling: float = 4.0
    """s: factor on the output of a parallel adapter; the other placements have none."""
    train_layernorm: bool | None = None
    """Train the LayerNorms too. None = as in the placement's paper: yes for houlsby without dropped layers; else no."""
    drop_layers: int | Literal["random"] = 0
    """AdapterDrop: the number of lowest layers without adapters; random: another number in every training batch."""

    invertible: bool = False
    """Add an invertible adapter after the embeddings and, where the head predicts tokens, its inverse before the output
    layer (MAD-X)."""

    default_lr: ClassVar[float] = 1e-3
    size: ClassVar[str] = "bottleneck_size"
    symbols: ClassVar[dict[str, str]] = {"bottleneck_size": "m"}
    later: ClassVar[dict[str, object]] = {**ByLayer.later, "invertible": False}
    old_names: ClassVar[dict[str, str]] = {r"\.adapter\.": ".adapters."}

    def __post_init__(self) -> None:
        super().__post_init__()
        n = self.drop_layers
        check(
            {
                f"bottleneck_size is {self.bottleneck_size}: choose at least 1": self.bottleneck_size < 1,
                f"scaling is {self.scaling}: choose a number above 0": not 0 < self.scaling < math.inf,
                f"drop_layers is {n}: choose at least 0, or random": n != "random" and n < 0,
                f"drop_layers is {n} and layers are {self.layers}: choose one": n != 0 and self.layers != "all",
                "drop_layers is random and train_layernorm is on: training the LayerNorms below the lowest adapter "
                "would cost the work that dropping saves; choose one of the two": (
                    n == "random" and bool(self.train_layernorm)
                ),
            }
        )

    def function(self) -> Activation:
        """f, by the name in `activation` or as in the paper of the placement."""
        return getattr(F, self.activation or ("gelu" if self.placement == "houlsby" else "relu"))

    def branches(self, model: nn.Module) -> Iterator[tuple[Place, Branch]]:
        if is_encoder_decoder(model) and (self.invertible or self.drop_layers == "random"):
            raise DoesNotFit("an encoder-decoder has no invertible adapters and no random drop_layers: leave them out")
        if self.invertible:
            coupling = Coupling(word_embeddings(model).embedding_dim, self.function())
            yield embeddings(model), coupling
            if (output := before_vocabulary(model)) is not None:
                yield output, Inverse(coupling)
        dropped = None
        if self.drop_layers == "random":
            n_layers = len(layers(model))
            if n_layers < 2:
                raise DoesNotFit(f"drop_layers is random, but the encoder has 1 layer{sharing(model)}: choose 0")
            dropped = Dropped(n_layers)
            yield embeddings(model), dropped
        for number, layer in self.with_adapters(model).items():
            names: tuple[Sublayer, ...] = sublayers(layer) if self.placement == "houlsby" else ("feedforward",)
            for name in names:
                yield sublayer(layer, name), Adapter(self, hidden_size(model), number, dropped, norm_first(layer))

    def inject(self, model: nn.Module) -> None:
        super().inject(model)
        train = self.train_layernorm
        if train is None:
            train = self.placement == "houlsby" and self.drop_layers == 0
        if train:
            for layer in self.with_adapters(model).values():
                for name in sublayers(layer):
                    sublayer(layer, name).host.requires_grad_(True)  # its LayerNorm
            if self.layers == "all" and self.drop_layers == 0:
                outer_layer_norms(model).requires_grad_(True)

    def with_adapters(self, model: nn.Module) -> dict[int, nn.Module]:
        """The layers that get adapters, by number."""
        lowest = 0 if self.drop_layers == "random" else self.drop_layers
        if lowest >= len(layers(model)):
            has = f"{len(layers(model))} layers{sharing(model)}"
            raise DoesNotFit(f"drop_layers is {lowest}, but the encoder has {has}: choose fewer")
        return {number: layer for number, layer in self.changed(model).items() if number >= lowest}

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
