"""Baselines: train the whole encoder, its top k layers and pooler, nothing but the head, or weights drawn at random."""

from dataclasses import dataclass
from itertools import product
from typing import ClassVar, get_args

import numpy as np
import torch
from torch import nn

from common.encoders import Linear, encoder, layers, linear, pooler, replace
from common.errors import DoesNotFit, check
from common.fast.linear import linear_map
from common.methods import Method


class SparseLinear(nn.Linear):
    """y = (W + D) x + b + e, where D and e are zero but for a few trained entries."""

    def __init__(self, linear: nn.Linear, places: torch.Tensor):
        """
        Args:
            linear: the map W x + b; its parameters are kept under their names.
            places: (n,), trained entries, counted row by row through W and on through b.
        """
        nn.Module.__init__(self)  # nn.Linear's own would allocate a second W
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self.delta = nn.Parameter(self.weight.new_zeros(len(places)))
        self.register_buffer("places", places, persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: (..., in) -> (..., out)"""
        size = self.weight.numel()
        flat = self.delta.new_zeros(size + self.out_features).scatter(0, self.places, self.delta)
        return linear_map(x, self.weight, self.bias) + linear_map(x, flat[:size].view_as(self.weight), flat[size:])


@dataclass(frozen=True)
class Baseline(Method):
    """Fine-tuning of the encoder's own parameters (Devlin et al., 2019), all of them, the top ones or random ones."""

    top_k: int | None = None
    """Train this many layers from the top, and the pooler; 0 = the head alone, None = everything."""

    random_params: int | None = None
    """Train this many entries of the layers' linear maps, drawn at random: BitFit's control."""
    random_seed: int = 0
    """Decides which ones, apart from --seed, so that a saved run finds them again."""

    default_lr: ClassVar[float] = 5e-5
    size: ClassVar[str] = "top_k"

    def __post_init__(self) -> None:
        k, n = self.top_k, self.random_params
        check(
            {
                f"top_k is {k}: choose at least 0, or None for full fine-tuning": k is not None and k < 0,
                f"random_params is {n}: choose at least 1": n is not None and n < 1,
                "top_k (which param_budget sets) and random_params are both given: choose one": n is not None
                and k is not None,
                f"random_seed is {self.random_seed}: choose at least 0": self.random_seed < 0,
            }
        )

    def inject(self, model: nn.Module) -> None:
        if self.random_params is not None:
            self.inject_random(model, self.random_params)
            return
        if self.top_k is None:
            encoder(model).requires_grad_(True)
            return
        stack = layers(model)
        if self.top_k > len(stack):
            raise DoesNotFit(f"top_k is {self.top_k}, but the encoder has {len(stack)} layers: choose at most that")
        if self.top_k == 0:
            return
        stack[-self.top_k :].requires_grad_(True)
        pool = pooler(model)
        if pool is not None:
            pool.requires_grad_(True)

    def inject_random(self, model: nn.Module, n: int) -> None:
        """Train n entries of the linear maps of all layers, weights and biases, each as likely as any other."""
        maps = list(product(layers(model), get_args(Linear)))
        sizes = [sum(p.numel() for p in linear(layer, name).parameters(recurse=False)) for layer, name in maps]
        if n > sum(sizes):
            raise DoesNotFit(f"random_params is {n:,}, but the linear maps have {sum(sizes):,}: choose fewer")
        chosen = np.sort(np.random.default_rng(self.random_seed).choice(sum(sizes), n, replace=False))
        ends = np.cumsum(sizes)
        for (layer, name), size, end in zip(maps, sizes, ends, strict=True):
            first, last = np.searchsorted(chosen, (end - size, end))
            if first < last:
                places = torch.from_numpy(chosen[first:last] - (end - size))
                replace(layer, name, lambda inner, places=places: SparseLinear(inner, places.to(inner.weight.device)))
