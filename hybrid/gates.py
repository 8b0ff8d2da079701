"""Gates: h + g b, where b is what a branch adds to h (UniPELT: Mao et al., 2022, section 3.2).

g = mean over the tokens of sigmoid(w^T x + c), one number for each sequence and branch; x is the input of the place.
"""

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from common.encoders import Branch, Place, Sequences, hidden_size
from common.errors import DoesNotFit
from common.methods import Method


class Gated(Branch):
    """What another branch adds, times g. w: (features,), c: a number; g = 0.5 on average at the start."""

    needs_all_tokens = True

    def __init__(self, branch: Branch, features: int, of_model: Sequences):
        super().__init__()
        self.branch, self.gate = branch, nn.Linear(features, 1)
        nn.init.normal_(self.gate.weight, std=0.02)  # as BERT initializes its weights
        nn.init.zeros_(self.gate.bias)
        self.of_model = of_model

    def forward(self, x: torch.Tensor, out: Any, host: Any) -> Any:
        """x: (..., features) -> as the branch, for keys and values with the batch before them"""
        added = self.branch(x, out, host)
        if added is None:
            return None
        g = self.of_model.mean(torch.sigmoid(self.gate(x)))  # (batch, 1)
        if isinstance(added, tuple):
            return tuple(g[..., None, None] * each for each in added)
        return self.of_model.spread(g) * added


def gated(method: Method, of_model: Sequences) -> Method:
    """The method with a gate around each branch that adds something."""
    found = copy.copy(method)

    def branches(model: nn.Module) -> Iterator[tuple[Place, Branch]]:
        for place, branch in method.branches(model):
            if branch.adds and place.of_positions:
                raise DoesNotFit(
                    "gates are on, and a part changes queries or keys, which this encoder has for relative positions "
                    "too, and a gate is that of a text: choose other layers, as in lora:targets=value, or no gates"
                )
            features = getattr(place.host, "in_features", hidden_size(model))
            yield place, Gated(branch, features, of_model) if branch.adds else branch

    object.__setattr__(found, "branches", branches)
    return found
