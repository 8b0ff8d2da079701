"""Dropout for CPUs: torch draws one double for each unit there, which costs more than a tenth of a training step."""

import numpy as np
import torch
from torch import nn

STEPS = 1 << 16
"""A unit is dropped by 16 random bits, so the probability is rounded to a multiple of 1 / 65,536 (0.1: 0.100006)."""


def kept(shape: torch.Size | tuple[int, ...], probability: float, dtype: torch.dtype) -> torch.Tensor:
    """0 where a unit is dropped, 1 / (1 - probability) where it is kept, from torch's global generator.

    One number of that generator seeds a faster one (SFC64), so torch's state alone decides what is drawn.

    Returns:
        (*shape) of the given type; its expected value is 1.
    """
    n_dropped = min(round(probability * STEPS), STEPS - 1)
    n = int(np.prod(shape))
    fast = np.random.SFC64(int(torch.randint(1 << 62, (1,))))
    bits = torch.from_numpy(fast.random_raw((n + 3) // 4).view(np.int16))[:n].view(shape)
    return torch.where(bits >= n_dropped - STEPS // 2, STEPS / (STEPS - n_dropped), 0.0).to(dtype)


class CpuDropout(nn.Dropout):
    """nn.Dropout with `kept` as its source on a CPU."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: any shape -> the same"""
        if not self.training or self.p == 0 or x.device.type != "cpu":
            return super().forward(x)
        return x * kept(x.shape, self.p, x.dtype)


def drop_faster(model: nn.Module) -> None:
    """Replace every nn.Dropout of a model."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is nn.Dropout:
                setattr(module, name, CpuDropout(child.p).train(child.training))
