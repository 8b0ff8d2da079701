"""LoRA: y = W x + b + s B A x, where only A: (r, in) and B: (out, r) are trained (Hu et al., 2021, equation 3)."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from common.encoders import Branch, Linear, Place, linears
from common.errors import DoesNotFit, check
from common.merging import Mergeable, Weights
from common.methods import ByLayer


class LowRank(Mergeable):
    """s B A x beside a frozen linear layer. A: (r, in), B: (out, r), s = alpha / r or alpha / sqrt(r)."""

    def __init__(self, host: nn.Linear, rank: int, scaling: float, dropout: float):
        super().__init__()
        n_in, n_out = host.in_features, host.out_features
        if rank > min(n_in, n_out):
            raise DoesNotFit(
                f"rank {rank} is larger than a layer of {n_in} to {n_out} features: choose at most {min(n_in, n_out)}"
            )
        self.A = nn.Parameter(torch.empty(rank, n_in))
        self.B = nn.Parameter(torch.zeros(n_out, rank))  # so B A = 0 at the start
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))  # as nn.Linear initializes its weight
        self.scaling, self.dropout = scaling, nn.Dropout(dropout)

    def forward(self, x: torch.Tensor, out: torch.Tensor, host: nn.Module) -> torch.Tensor | None:
        """x: (..., in) -> (..., out)"""
        if self.is_merged():
            return None
        return F.linear(F.linear(self.dropout(x), self.A) * self.scaling, self.B)

    def merged(self, weight: torch.Tensor, bias: torch.Tensor | None, frozen: Weights) -> Weights:
        return weight + self.scaling * self.B @ self.A, bias


@dataclass(frozen=True)
class Lora(ByLayer):
    """Low-rank updates of frozen linear layers (Hu et al., 2021)."""

    rank: int = 8
    """r: rank of the update."""
    alpha: float = 8.0
    """The update is scaled by alpha / rank. With a fixed alpha the best rate hardly depends on the rank (README)."""
    dropout: float = 0.0
    """Dropout on the input of A."""
    targets: tuple[Linear, ...] = ("query", "value")
    """Linear layers of every Transformer layer that get an update."""
    rslora: bool = False
    """Scale by alpha / sqrt(rank) instead, so that large ranks keep learning (Kalajdzievski, 2023)."""

    default_lr: ClassVar[float] = 5e-4
    size: ClassVar[str] = "rank"
    written: ClassVar[str] = "LoRA"
    symbols: ClassVar[dict[str, str]] = {"rank": "r", "alpha": "\u03b1"}
    old_names: ClassVar[dict[str, str]] = {r"\.lora_(A|B)$": r".lora.\1"}

    def __post_init__(self) -> None:
        super().__post_init__()
        each_once = 0 < len(self.targets) == len(set(self.targets))
        check(
            {
                f"rank is {self.rank}: choose at least 1": self.rank < 1,
                f"alpha is {self.alpha}: choose a number above 0": not 0 < self.alpha < math.inf,
                f"dropout is {self.dropout}: choose a probability from 0 to below 1": not 0 <= self.dropout < 1,
                f"targets are {' '.join(self.targets)}: name at least one, and each once": not each_once,
            }
        )

    def branches(self, model: nn.Module) -> Iterator[tuple[Place, Branch]]:
        scaling = self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)
        for layer in self.changed(model).values():
            for target in self.targets:
                for place in linears(layer, target):
                    yield place, LowRank(place.host, self.rank, scaling, self.dropout)
