"""The difference z delta, z the stretched hard concrete of Louizos et al. (2018), and its sparse form."""

import math

import torch
from torch import nn

from common.encoders import Branch

SCALE = 1e4
"""Factor on the gradients of alpha."""


class Gated(torch.autograd.Function):
    """z z_group delta, z = clamp(l + (r - l) s, 0, 1), s = sigmoid(c a + noise). Backward needs only s of it."""

    @staticmethod
    def forward(ctx, delta, a, groups, noise, sizes, c, low, high):  # type: ignore[no-untyped-def]
        """delta, a: (n,), groups: z_group, (tensors,), noise: (n,) or (1,) -> (n,)"""
        s = torch.mul(a, c).add_(noise).sigmoid_()
        ctx.save_for_backward(delta, s, groups)
        ctx.settings = sizes, c, low, high
        return _times((s * (high - low)).add_(low).clamp_(0, 1).mul_(delta), groups, sizes)

    @staticmethod
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        (delta, s, groups), (sizes, c, low, high) = ctx.saved_tensors, ctx.settings
        z = (s * (high - low)).add_(low).clamp_(0, 1)
        to_a = s.mul(c * (high - low)).mul_(1 - s).mul_((z > 0) & (z < 1)).mul_(delta).mul_(gradient)
        z.mul_(gradient)
        to_groups = torch.stack([torch.dot(*parts) for parts in zip(z.split(sizes), delta.split(sizes), strict=True)])
        return _times(z, groups, sizes), _times(to_a, groups, sizes), to_groups, None, None, None, None, None


def _times(x: torch.Tensor, factors: torch.Tensor, sizes: list[int]) -> torch.Tensor:
    for part, factor in zip(x.split(sizes), factors, strict=True):
        part.mul_(factor)
    return x


class Gates(Branch):
    """z z_group delta of all tensors or, when the mask is fixed, mask * delta: (n,). It has no matrices to decay."""

    mask: torch.Tensor
    state: torch.Tensor

    def __init__(self, sizes: list[int], k: int, alpha: float, c: float, stretch: tuple[float, float]):
        super().__init__()
        self.sizes, self.k, self.c, self.stretch, n = sizes, k, c, stretch, sum(sizes)
        self.delta, self.a = nn.Parameter(torch.zeros(n)), nn.Parameter(torch.full((n,), alpha / c))
        self.groups = nn.Parameter(torch.full((len(sizes),), alpha / c))
        self.register_buffer("mask", torch.ones(n, dtype=torch.bool))
        # Whether the mask is fixed, the number of steps, and the seed of the noise.
        self.register_buffer("state", torch.cat((torch.zeros(2, dtype=torch.int64), torch.randint(2**31, (1,)))))

    def forward(self, x: None, out: None, host: nn.Module) -> torch.Tensor:
        return self.delta * self.mask if self.state[0] else self.gated(random=self.training)

    def gated(self, random: bool) -> torch.Tensor:
        """(n,). The noise depends on the step alone, so that all its micro-batches and processes see one model."""
        c, (low, high), n_groups, noise = self.c, self.stretch, len(self.sizes), self.a.new_zeros(1)
        if random:
            generator = torch.Generator(noise.device).manual_seed(int(self.state[1:].sum()))
            noise = noise.new_empty(len(self.a) + n_groups).uniform_(generator=generator).logit_(1e-6)
        groups = low + (high - low) * torch.sigmoid(c * self.groups + noise[-n_groups:])
        noise = noise[: len(self.a)]
        return Gated.apply(self.delta, self.a, groups.clamp(0, 1), noise, self.sizes, c, low, high)

    def expected(self) -> torch.Tensor:
        """The expected number of entries of z z_group that are not 0."""
        shift = math.log(-self.stretch[0] / self.stretch[1])
        of_tensors = [part.sum() for part in torch.sigmoid(self.c * self.a - shift).split(self.sizes)]
        return torch.stack(of_tensors) @ torch.sigmoid(self.c * self.groups - shift)

    def scale_gradients(self) -> None:
        """Make those of alpha neither vanish beside AdamW's epsilon nor fill the norm that is clipped.

        The step of AdamW does not depend on their scale. A group has the mean gradient of its tensor, not the sum.
        """
        if self.a.grad is not None and self.groups.grad is not None:
            self.a.grad *= SCALE / self.c
            self.groups.grad *= SCALE / self.c / torch.tensor(self.sizes, device=self.groups.device)

    @torch.no_grad()
    def fix(self) -> None:
        """Keep the k largest entries of z z_group delta, then of delta where these are 0; of equal ones, any."""
        gated = self.gated(random=False)
        self.mask.zero_()[(gated.abs() + 1e-30 * self.delta.abs()).topk(self.k).indices] = True
        self.delta.copy_(gated)
        self.state[0] = 1


class Sparse(Branch):
    """k values at their places among all parameters, both (k,), and 0 elsewhere: (n,)."""

    places: torch.Tensor

    def __init__(self, k: int, n: int):
        super().__init__()
        self.n, self.values = n, nn.Parameter(torch.zeros(k))
        self.register_buffer("places", (torch.arange(k) * n // k).to(torch.int32))

    def forward(self, x: None, out: None, host: nn.Module) -> torch.Tensor:
        return self.values.new_zeros(self.n).scatter(0, self.places.long(), self.values)
