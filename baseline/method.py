"""Baselines: train the whole encoder, its top k layers and pooler, or nothing but the head."""

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from common.encoders import layers, pooler
from common.errors import DoesNotFit, InputError
from common.methods import Method


@dataclass(frozen=True)
class Baseline(Method):
    """Fine-tuning of the encoder's own parameters (Devlin et al., 2019), all of them or the top ones."""

    top_k: int | None = None
    """Train this many layers from the top, and the pooler; 0 = the head alone, None = everything."""

    default_lr: ClassVar[float] = 5e-5

    def __post_init__(self) -> None:
        if self.top_k is not None and self.top_k < 0:
            raise InputError(f"top_k is {self.top_k}: choose at least 0, or None for full fine-tuning")

    def inject(self, model: nn.Module) -> None:
        if self.top_k is None:
            model.base_model.requires_grad_(True)
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
