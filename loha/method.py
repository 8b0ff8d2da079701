"""LoHa: y = W x + b + s ((A1 B1) * (A2 B2)) x, a Hadamard product of low rank factors (Hyeon-Woo et al., 2021)."""

import dataclasses
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
from common.methods import ByLayer, Method


class Hadamard(Mergeable):
    """s ((A1 B1) * (A2 B2)) x beside a frozen W. A1, A2: (out, r), B1, B2: (r, in), s = alpha / r."""

    def __init__(self, host: nn.Linear, rank: int, alpha: float):
        super().__init__()
        n_in, n_out = host.in_features, host.out_features
        if rank > min(n_in, n_out):
            raise DoesNotFit(
                f"rank {rank} is larger than a layer of {n_in} to {n_out} features: choose at most {min(n_in, n_out)}"
            )
        self.A1, self.A2 = (nn.Parameter(torch.empty(n_out, rank)) for _ in range(2))
        self.B1, self.B2 = (nn.Parameter(torch.zeros(rank, n_in)) for _ in range(2))  # so the product is 0 at the start
        for factor in (self.A1, self.B1, self.A2):
            nn.init.kaiming_uniform_(factor, a=math.sqrt(5))  # as nn.Linear initializes its weight
        self.scaling = alpha / rank
        self.factored = rank**2 * (n_in + n_out) < n_in * n_out

    def forward(self, x: torch.Tensor, out: torch.Tensor, host: nn.Module) -> torch.Tensor | None:
        """x: (..., in) -> (..., out)"""
        if self.is_merged():
            return None
        if not self.factored:
            return F.linear(x, self.scaling * _Product.apply(self.A1, self.B1, self.A2, self.B2))
        # The same as two products of inner size r^2, since (A1 B1) * (A2 B2) = a b with a[o, ij] = A1[o, i] A2[o, j]
        # and b[ij, n] = B1[i, n] B2[j, n]: no (out, in) matrix is built.
        a = (self.A1[:, :, None] * self.A2[:, None, :]).flatten(1)
        b = (self.B1[:, None, :] * self.B2[None, :, :]).flatten(0, 1)
        return F.linear(F.linear(x, b) * self.scaling, a)

    def merged(self, weight: torch.Tensor, bias: torch.Tensor | None, frozen: Weights) -> Weights:
        return weight + self.scaling * (self.A1 @ self.B1) * (self.A2 @ self.B2), bias


class _Product(torch.autograd.Function):
    """(A1 B1) * (A2 B2), (out, in); the backward pass computes both factors again instead of keeping them."""

    @staticmethod
    def forward(ctx, a1, b1, a2, b2):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(a1, b1, a2, b2)
        return (a1 @ b1) * (a2 @ b2)

    @staticmethod
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        a1, b1, a2, b2 = ctx.saved_tensors
        first, second = gradient * (a2 @ b2), gradient * (a1 @ b1)
        return first @ b1.t(), a1.t() @ first, second @ b2.t(), a2.t() @ second


@dataclass(frozen=True)
class Loha(ByLayer):
    """Updates of frozen linear layers that are Hadamard products of two low-rank products (Hyeon-Woo et al., 2021)."""

    rank: int = 8
    """r: rank of each of the two products; their Hadamard product has a rank of up to r^2."""
    alpha: float = 8.0
    """The update is scaled by alpha / rank."""
    targets: tuple[Linear, ...] = ("query", "value")
    """Linear layers of every Transformer layer that get an update."""

    default_lr: ClassVar[float] = 4e-3
    size: ClassVar[str] = "rank"
    written: ClassVar[str] = "LoHa"
    symbols: ClassVar[dict[str, str]] = {"rank": "r", "alpha": "\u03b1"}

    def __post_init__(self) -> None:
        super().__post_init__()
        each_once = 0 < len(self.targets) == len(set(self.targets))
        check(
            {
                f"rank is {self.rank}: choose at least 1": self.rank < 1,
                f"alpha is {self.alpha}: choose a number above 0": not 0 < self.alpha < math.inf,
                f"targets are {' '.join(self.targets)}: name at least one, and each once": not each_once,
            }
        )

    def branches(self, model: nn.Module) -> Iterator[tuple[Place, Branch]]:
        for layer in self.changed(model).values():
            for target in self.targets:
                for place in linears(layer, target):
                    yield place, Hadamard(place.host, self.rank, self.alpha)

    def of_size(self, size: int) -> Method:
        """With the same alpha / rank, so that a parameter budget does not change the scale of the update."""
        return dataclasses.replace(self, rank=size, alpha=self.alpha * size / self.rank)
