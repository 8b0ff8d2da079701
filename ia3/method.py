"""(IA)3: softmax(Q (l_k * K)^T / sqrt(size)) (l_v * V) and W_2 (l_ff * f(W_1 x)) (Liu et al., 2022, section 3.3)."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from common.encoders import Branch, Linear, Place, linear_inputs, linears
from common.errors import check
from common.merging import Mergeable, Weights
from common.methods import ByLayer


class Scale(Mergeable):
    """(l - 1) * h, added to h: so h is multiplied by l. l: (features,), 1 at the start."""

    def __init__(self, features: int, at_input: bool):
        super().__init__()
        self.l = nn.Parameter(torch.ones(features))
        self.at_input = at_input

    def forward(self, x: torch.Tensor, out: torch.Tensor, host: nn.Module) -> torch.Tensor | None:
        """out: h, (..., features) -> (..., features)"""
        return None if self.is_merged() else out * (self.l - 1).to(out.dtype)

    def merged(self, weight: torch.Tensor, bias: torch.Tensor | None, frozen: Weights) -> Weights:
        """diag(l) W and l * b if the output is multiplied, W diag(l) and b if the input is."""
        if self.at_input:
            return weight * self.l, bias
        return self.l[:, None] * weight, None if bias is None else self.l * bias


@dataclass(frozen=True)
class Ia3(ByLayer):
    """Learned factors on keys, values and the activations inside the feed-forward part (Liu et al., 2022)."""

    outputs: tuple[Linear, ...] = ("key", "value")
    """Linear layers of every Transformer layer whose outputs are scaled."""
    inputs: tuple[Linear, ...] = ("output",)
    """Linear layers whose inputs are scaled; that of `output` is the activation inside the feed-forward part."""

    default_lr: ClassVar[float] = 1.6e-2
    written: ClassVar[str] = "(IA)3"

    def __post_init__(self) -> None:
        super().__post_init__()
        check(
            {
                "outputs and inputs are empty: name at least one linear layer": not self.outputs + self.inputs,
                **{
                    f"{option} are {' '.join(names)}: name each once": len(set(names)) < len(names)
                    for option, names in (("outputs", self.outputs), ("inputs", self.inputs))
                },
            }
        )

    def branches(self, model: nn.Module) -> Iterator[tuple[Place, Branch]]:
        for layer in self.changed(model).values():
            for name in self.outputs:
                for place in linears(layer, name):
                    yield place, Scale(place.host.out_features, at_input=False)
            for name in self.inputs:
                for place in linear_inputs(layer, name):
                    yield place, Scale(place.host.in_features, at_input=True)
