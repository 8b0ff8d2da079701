"""Dropout for CPUs, where drawing the random numbers of nn.Dropout is a noticeable share of a training step."""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import nn

INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
"""The type that holds the bits of a number of so many bytes: products of whole numbers are the faster ones."""


def keeps(shapes: Sequence[tuple[int, ...]], probability: float, dtype: torch.dtype) -> Iterator[torch.Tensor]:
    """Tensors of these shapes that are 0 where a unit is dropped and 1 where it is kept, of a type of whole numbers.

    A unit is dropped where its 8 random bits are below 256 * probability, rounded up or down at random for each row
    of a last dimension, so that the probability is met. Units of one row share that rounding: with 0.1, their
    correlation is 0.00004.

    One number of torch's global generator seeds a faster one (SFC64), so torch's state alone decides what is drawn.
    """
    sizes = [math.prod(shape) for shape in shapes]
    rows = [size // shape[-1] for size, shape in zip(sizes, shapes, strict=True)]
    fast = np.random.SFC64(int(torch.randint(1 << 62, (1,))))
    bits = torch.from_numpy(fast.random_raw(-(-sum(sizes) // 8)).view(np.int8))[: sum(sizes)]
    whole, part = divmod(256 * probability, 1)
    least = (torch.rand(sum(rows)) < part).to(torch.int8 if whole < 255 else torch.int16).add_(int(whole) - 128)
    for shape, own_bits, own_least in zip(shapes, bits.split(sizes), least.split(rows), strict=True):
        into = torch.empty(shape, dtype=dtype)
        yield torch.ge(own_bits.view(shape), own_least.view(*shape[:-1], 1), out=into)


def keep(shape: tuple[int, ...], probability: float, dtype: torch.dtype) -> torch.Tensor:
    """A tensor of this shape that is 0 where a unit is dropped and 1 / (1 - probability) where it is kept."""
    integer = INTEGERS[dtype.itemsize]
    kept_as = torch.tensor(1 / (1 - probability), dtype=dtype).view(integer)
    return next(keeps([shape], probability, integer)).mul_(kept_as).view(dtype)


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
