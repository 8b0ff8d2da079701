"""DoRA: y = m * (W + s B A) x / ||W + s B A|| + b, where only A, B and m are trained (Liu et al., 2024, equation 5)."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from common.encoders import Branch, Linear, Place, linears
from common.errors import DoesNotFit, check
from common.merging import Mergeable, Weights
from common.methods import ByLayer


class Decomposed(Mergeable):
    """(m / n - 1) W x + (m / n) s B A x beside a frozen W, n = ||W + s B A|| of each row.

    A: (r, in), B: (out, r), m and n: (out,), s = alpha / r. No gradient flows through n (section 4.3).
    """

    def __init__(self, host: nn.Linear, rank: int, alpha: float, dropout: float):
        super().__init__()
        n_in, n_out = host.in_features, host.out_features
        if rank > min(n_in, n_out):
            raise DoesNotFit(
                f"rank {rank} is larger than a layer of {n_in} to {n_out} features: choose at most {min(n_in, n_out)}"
            )
        self.A = nn.Parameter(torch.empty(rank, n_in))
        self.B = nn.Parameter(torch.zeros(n_out, rank))  # so B A = 0 at the start
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))  # as nn.Linear initializes its weight
        self.m = nn.Parameter(host.weight.detach().norm(dim=1))  # so m / n = 1 at the start
        self.scaling, self.dropout = alpha / rank, nn.Dropout(dropout)

    def forward(self, x: torch.Tensor, out: torch.Tensor, host: Any) -> torch.Tensor | None:
        """x: (..., in), out: W x + b -> (..., out)"""
        if self.is_merged():
            return None
        ratio = self.ratio(host.weight)
        plain = out if host.bias is None else out - host.bias
        update = F.linear(F.linear(self.dropout(x), self.A) * self.scaling, self.B)
        return ((ratio - 1) * plain + ratio * update).to(out.dtype)

    def ratio(self, weight: torch.Tensor) -> torch.Tensor:
        """m / n, (out,). weight: the frozen W"""
        with torch.no_grad():
            n = torch.addmm(weight.to(self.B.dtype), self.B, self.A, alpha=self.scaling).norm(dim=1)
        return self.m / n

    def merged(self, weight: torch.Tensor, bias: torch.Tensor | None, frozen: Weights) -> Weights:
        """(m / n) (W + s B A) and b, which is not scaled."""
        ratio = self.ratio(frozen[0])
        if bias is not None and frozen[1] is not None and bias is not frozen[1]:  # of a branch that acts before
            bias = ratio * (bias - frozen[1]) + frozen[1]
        return ratio[:, None] * (weight + self.scaling * self.B @ self.A), bias


@dataclass(frozen=True)
class Dora(ByLayer):
    """Low-rank updates of the directions of frozen weights, and trained magnitudes (Liu et al., 2024)."""

    rank: int = 8
    """r: rank of the update."""
    alpha: float = 8.0
    """The update is scaled by alpha / rank."""
    dropout: float = 0.0
    """Dropout on the input of A."""
    targets: tuple[Linear, ...] = ("query", "value")
    """Linear layers of every Transformer layer that get an update."""

    default_lr: ClassVar[float] = 1e-3
    size: ClassVar[str] = "rank"
    written: ClassVar[str] = "DoRA"
    symbols: ClassVar[dict[str, str]] = {"rank": "r", "alpha": "\u03b1"}

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
        for layer in self.changed(model).values():
            for target in self.targets:
                for place in linears(layer, target):
                    yield place, Decomposed(place.host, self.rank, self.alpha, self.dropout)
