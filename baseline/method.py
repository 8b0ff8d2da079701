"""Baselines: train the whole encoder, its top k layers and pooler, nothing but the head, or weights drawn at random."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import ClassVar, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from common.encoders import Branch, Linear, Place, encoder, layers, linear, pooler
from common.errors import DoesNotFit, check
from common.methods import Method


class SparseUpdate(Branch):
    """D x + e beside W x + b, where D and e are zero but for a few trained entries."""

    places: torch.Tensor

    def __init__(self, places: torch.Tensor):
        """
        Args:
            places: (n,), trained entries, counted row by row through W and on through b.
        """
        super().__init__()
        self.delta = nn.Parameter(torch.zeros(len(places)))
        self.register_buffer("places", places, persistent=False)

    def forward(self, x: torch.Tensor, out: torch.Tensor, host: nn.Linear) -> torch.Tensor:
        """x: (..., in) -> (..., out)"""
        size = host.weight.numel()
        flat = self.delta.new_zeros(size + host.out_features).scatter(0, self.places, self.delta)
        return F.linear(x, flat[:size].view_as(host.weight), flat[size:])


@dataclass(frozen=True)
class Baseline(Method):
    """Fine-tuning of the encoder's own parameters (Devlin et al., 2019), all of them, the top ones or random ones."""

    top_k: int | None = None
    """Train this many layers from the top, and the pooler; 0 = the head alone, None = everything."""

    random_params: int | None = None
    """Train this many entries of the linear layers, drawn at random: BitFit's control."""
    random_seed: int = 0
    """Decides which ones, apart from --seed, so that a saved run finds them again."""

    default_lr: ClassVar[float] = 5e-5
    size: ClassVar[str] = "top_k"
    old_names: ClassVar[dict[str, str]] = {r"\.delta$": ".baseline.delta"}

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
        super().inject(model)
        if self.random_params is not None or self.top_k == 0:
            return
        if self.top_k is None:
            encoder(model).requires_grad_(True)
            return
        stack = layers(model)
        if self.top_k > len(stack):
            raise DoesNotFit(f"top_k is {self.top_k}, but the encoder has {len(stack)} layers: choose at most that")
        stack[-self.top_k :].requires_grad_(True)
        pool = pooler(model)
        if pool is not None:
            pool.requires_grad_(True)

    def branches(self, model: nn.Module) -> Iterator[tuple[Place, Branch]]:
        """n entries of the linear layers, weights and biases, each as likely as any other."""
        n = self.random_params
        if n is None:
            return
        found = [linear(layer, name) for layer, name in product(layers(model), get_args(Linear))]
        sizes = [sum(p.numel() for p in place.host.parameters(recurse=False)) for place in found]
        if n > sum(sizes):
            raise DoesNotFit(f"random_params is {n:,}, but the linear layers have {sum(sizes):,}: choose fewer")
        chosen = np.sort(np.random.default_rng(self.random_seed).choice(sum(sizes), n, replace=False))
        for place, size, end in zip(found, sizes, np.cumsum(sizes), strict=True):
            first, last = np.searchsorted(chosen, (end - size, end))
            if first < last:
                entries = torch.from_numpy(chosen[first:last] - (end - size))
                yield place, SparseUpdate(entries.to(place.host.weight.device))
