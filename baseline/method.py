"""Baselines: train the whole encoder, its top k layers and pooler, the head alone, or random entries."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import ClassVar, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from common.encoders import Branch, Linear, Place, encoder, final_layer_norm, layers, linears, pooler, sharing
from common.errors import DoesNotFit, check
from common.merging import Mergeable, Weights
from common.methods import Method


class SparseUpdate(Mergeable):
    """D x + e beside W x + b, where a few entries of D and e are trained and the others are 0."""

    places: torch.Tensor

    def __init__(self, places: torch.Tensor):
        """places: (n,), indices of the trained entries in W, flattened row by row and followed by b."""
        super().__init__()
        self.delta = nn.Parameter(torch.zeros(len(places)))
        self.register_buffer("places", places, persistent=False)

    def forward(self, x: torch.Tensor, out: torch.Tensor, host: nn.Linear) -> torch.Tensor | None:
        """x: (..., in) -> (..., out)"""
        return None if self.is_merged() else F.linear(x, *self.dense(host.weight))

    def dense(self, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """D, (out, in), and e, (out,), of a layer with this weight."""
        size = weight.numel()
        flat = self.delta.new_zeros(size + len(weight)).scatter(0, self.places, self.delta)
        return flat[:size].view_as(weight), flat[size:]

    def merged(self, weight: torch.Tensor, bias: torch.Tensor | None, frozen: Weights) -> Weights:
        d, e = self.dense(weight)
        return weight + d, None if bias is None else bias + e


@dataclass(frozen=True)
class Baseline(Method):
    """Fine-tuning of the encoder's own parameters: all, the top layers, or random ones (Devlin et al., 2019)."""

    top_k: int | None = None
    """Train this many layers from the top, and a pooler or LayerNorm above; 0 = the head alone, None = everything."""
    random_params: int | None = None
    """Train this many random entries of the linear layers: the control of the BitFit paper."""
    random_seed: int = 0
    """Seed that selects these entries. It is separate from --seed, so that a saved run finds them again."""

    default_lr: ClassVar[float] = 5e-5
    size: ClassVar[str] = "top_k"
    written: ClassVar[str] = "fine-tuning"
    symbols: ClassVar[dict[str, str]] = {"top_k": "top layers"}
    old_names: ClassVar[dict[str, str]] = {r"\.delta$": ".baseline.delta"}

    def __post_init__(self) -> None:
        super().__post_init__()
        k, n = self.top_k, self.random_params
        check(
            {
                f"top_k is {k}: choose at least 0, or None for full fine-tuning": k is not None and k < 0,
                f"random_params is {n}: choose at least 1": n is not None and n < 1,
                "top_k (which param_budget sets) and random_params are both given: choose one": None not in (k, n),
                f"random_seed is {self.random_seed}: choose at least 0": self.random_seed < 0,
            }
        )

    def inject(self, model: nn.Module) -> None:
        super().inject(model)
        k, stack = self.top_k, layers(model)
        if k is None and self.random_params is None:
            encoder(model).requires_grad_(True)
        elif k:
            if k > len(stack):
                has = f"{len(stack)} layers{sharing(model)}"
                raise DoesNotFit(f"top_k is {k}, but the encoder has {has}: choose at most that")
            stack[-k:].requires_grad_(True)
            for above in (pooler(model), final_layer_norm(model)):
                if above is not None:
                    above.requires_grad_(True)

    def branches(self, model: nn.Module) -> Iterator[tuple[Place, Branch]]:
        """n entries of the linear layers, weights and biases, sampled uniformly."""
        n = self.random_params
        if n is None:
            return
        parts = product(layers(model), get_args(Linear))
        found = [place for layer, name in parts for place in linears(layer, name)]
        sizes = [sum(p.numel() for p in (place.host.weight, place.host.bias) if p is not None) for place in found]
        if n > sum(sizes):
            raise DoesNotFit(f"random_params is {n:,}, but the linear layers have {sum(sizes):,}: choose fewer")
        chosen = np.sort(np.random.default_rng(self.random_seed).choice(sum(sizes), n, replace=False))
        for place, size, end in zip(found, sizes, np.cumsum(sizes), strict=True):
            first, last = np.searchsorted(chosen, (end - size, end))
            if first < last:
                entries = torch.from_numpy(chosen[first:last] - (end - size))
                yield place, SparseUpdate(entries.to(place.host.weight.device))
