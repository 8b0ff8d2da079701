"""Dropout for CPUs, where drawing the random numbers of nn.Dropout is a noticeable share of a training step."""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import nn

_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def keeps(shapes: Sequence[tuple[int, ...]], probability: float, dtype: torch.dtype) -> Iterator[torch.Tensor]:
    """Tensors of these shapes that are 0 where a unit is dropped and 1 / (1 - probability) where it is kept.

    A unit is dropped where its 8 random bits are below 256 * probability, rounded up or down at random for each row
    of a last dimension, so that the probability is met. Units of one row share that rounding: with 0.1, their
    correlation is 0.00004.

    One number of torch's global generator seeds a faster one (SFC64), so torch's state alone decides what is drawn.
    """
    sizes = [math.prod(shape) for shape in shapes]
    fast = np.random.SFC64(int(torch.randint(1 << 62, (1,))))
    bits = torch.from_numpy(fast.random_raw(-(-sum(sizes) // 8)).view(np.int8))[: sum(sizes)]
    whole, part = divmod(256 * probability, 1)
    kept_as = torch.tensor(1 / (1 - probability), dtype=dtype)
    integer = _INTEGERS[dtype.itemsize]
    small = torch.int8 if whole < 255 else torch.int16  # 256 is no int8
    for shape, row in zip(shapes, bits.split(sizes), strict=True):
        least = (torch.rand(*shape[:-1], 1) < part).to(small).add_(int(whole) - 128)
        # The number's bits are an integer, and whole numbers are made of a comparison several times faster.
        kept = torch.ge(row.view(shape), least, out=torch.empty(shape, dtype=integer))
        yield kept.mul_(kept_as.view(integer)).view(dtype)


def keep(shape: tuple[int, ...], probability: float, dtype: torch.dtype) -> torch.Tensor:
    """One tensor of `keeps`."""
    return next(keeps([shape], probability, dtype))


class CpuDropout(nn.Dropout):
    """nn.Dropout with `keep` as its source on a CPU."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: any shape -> the same"""
        if not self.training or self.p == 0 or x.device.type != "cpu":
            return super().forward(x)
        return x * keep(x.shape, self.p, x.dtype)


def drop_faster(model: nn.Module) -> None:
    """Replace every nn.Dropout of a model."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is nn.Dropout:
                setattr(module, name, CpuDropout(child.p).train(child.training))
