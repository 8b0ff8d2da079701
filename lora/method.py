"""LoRA: y = W x + b + s B A x, where only A: (r, in) and B: (out, r) are trained (Hu et al., 2021, equation 3)."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from common.encoders import Linear, layers, replace
from common.errors import DoesNotFit, check
from common.fast.linear import linear_map
from common.methods import Method


class LoraLinear(nn.Linear):
    """A frozen linear map plus a trained one of low rank; W is shared with the layer it replaces, never copied."""

    def __init__(self, linear: nn.Linear, rank: int, scaling: float, dropout: float):
        """
        Args:
            linear: the map W x + b to adapt; its parameters are kept under their names.
            rank: r, at most the smaller side of W.
            scaling: s, alpha / r or alpha / sqrt(r).
            dropout: probability on the input of A.
        """
        nn.Module.__init__(self)  # nn.Linear's own would allocate a second W
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        if rank > min(self.in_features, self.out_features):
            raise DoesNotFit(
                f"rank {rank} is larger than a layer of {self.in_features} to {self.out_features} features: "
                f"choose at most {min(self.in_features, self.out_features)}"
            )
        self.lora_A = nn.Parameter(self.weight.new_empty(rank, self.in_features))
        self.lora_B = nn.Parameter(self.weight.new_zeros(self.out_features, rank))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))  # as nn.Linear draws its weight; with B = 0 the sum is W
        self.scaling = scaling
        self.dropout = nn.Dropout(dropout)
        self.unmerged: tuple[nn.Parameter, ...] = ()  # a tuple, so that it is not registered as a parameter

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: (..., in) -> (..., out)"""
        y = linear_map(x, self.weight, self.bias)
        if self.unmerged:
            if self.training:
                raise RuntimeError("a merged LoRA layer has nothing to train: call unmerge(model) first")
            return y
        low = linear_map(self.dropout(x), self.lora_A)  # (..., r)
        return y + linear_map(low * self.scaling, self.lora_B)

    @torch.no_grad()
    def merge(self) -> None:
        """Fold s B A into a new weight; the old one is set aside untouched, so that others may share it."""
        if not self.unmerged:
            self.unmerged = (self.weight,)
            merged = self.weight + self.scaling * self.lora_B @ self.lora_A
            self.weight = nn.Parameter(merged, requires_grad=self.weight.requires_grad)

    def unmerge(self) -> None:
        """Take W back, bit for bit (subtracting s B A would leave rounding errors behind)."""
        if self.unmerged:
            (self.weight,) = self.unmerged
            self.unmerged = ()


@dataclass(frozen=True)
class Lora(Method):
    """Low-rank updates beside frozen linear maps (Hu et al., 2021)."""

    rank: int = 8
    """r: rank of the update."""
    alpha: float = 8.0
    """Scale of the update: alpha / rank."""
    dropout: float = 0.0
    """Dropout on the input of A."""
    targets: tuple[Linear, ...] = ("query", "value")
    """Linear maps of every layer that get an update."""
    rslora: bool = False
    """Scale by alpha / sqrt(rank) instead, which keeps large ranks learning (Kalajdzievski, 2023)."""

    default_lr: ClassVar[float] = 5e-4
    size: ClassVar[str] = "rank"

    def __post_init__(self) -> None:
        check(
            {
                f"rank is {self.rank}: choose at least 1": self.rank < 1,
                f"alpha is {self.alpha}: choose a number above 0": not 0 < self.alpha < math.inf,
                f"dropout is {self.dropout}: choose a probability from 0 to below 1": not 0 <= self.dropout < 1,
                f"targets are {' '.join(self.targets)}: name at least one, and each once": (
                    not self.targets or len(set(self.targets)) < len(self.targets)
                ),
            }
        )

    def inject(self, model: nn.Module) -> None:
        scaling = self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)
        for layer in layers(model):
            for target in self.targets:
                replace(layer, target, lambda linear: LoraLinear(linear, self.rank, scaling, self.dropout))


def merge(model: nn.Module) -> None:
    """Fold every update of a model into its weights: the speed of the plain encoder. Twice is as good as once."""
    for module in model.modules():
        if isinstance(module, LoraLinear):
            module.merge()


def unmerge(model: nn.Module) -> None:
    """Undo `merge`, exactly."""
    for module in model.modules():
        if isinstance(module, LoraLinear):
            module.unmerge()
