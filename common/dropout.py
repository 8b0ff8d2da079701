"""Dropout for CPUs, where drawing the random numbers of nn.Dropout is a noticeable share of a training step."""

import math

import numpy as np
import torch
from torch import nn

STEPS = 1 << 16
"""A unit is dropped by 16 random bits, so the probability is rounded to a multiple of 1 / 65,536 (0.1: 0.100006)."""


def _n_dropped(probability: float) -> int:
    """Of the 65,536 values of 16 bits, how many drop a unit."""
    return min(round(probability * STEPS), STEPS - 1)


def kept_share(probability: float) -> float:
    """The exact probability with which `keep` keeps a unit."""
    return 1 - _n_dropped(probability) / STEPS


def keep(shape: torch.Size | tuple[int, ...], probability: float, dtype: torch.dtype) -> torch.Tensor:
    """(*shape) of 0 and 1: which units are kept when each is dropped with this probability.

    One number of torch's global generator seeds a faster one (SFC64), so torch's state alone decides what is drawn.
    """
    n = math.prod(shape)
    fast = np.random.SFC64(int(torch.randint(1 << 62, (1,))))
    bits = torch.from_numpy(fast.random_raw((n + 3) // 4).view(np.int16))[:n].view(shape)
    # Written as numbers at once: products with a bool tensor are several times slower.
    return torch.ge(bits, _n_dropped(probability) - STEPS // 2, out=torch.empty(shape, dtype=dtype))


class CpuDropout(nn.Dropout):
    """nn.Dropout with `keep` as its source on a CPU."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: any shape -> the same"""
        if not self.training or self.p == 0 or x.device.type != "cpu":
            return super().forward(x)
        return x * keep(x.shape, self.p, x.dtype).mul_(1 / kept_share(self.p))


def drop_faster(model: nn.Module) -> None:
    """Replace every nn.Dropout of a model."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is nn.Dropout:
                setattr(module, name, CpuDropout(child.p).train(child.training))
