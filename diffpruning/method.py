"""Diff pruning: w = w0 + z delta in the whole encoder, where k entries of z are not 0 at the end (Guo et al., 2021)."""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from common.encoders import Branch, Place, weights
from common.errors import DoesNotFit, check
from common.methods import Method, own_buffers, trainable
from diffpruning.gates import Gates, Sparse


@dataclass(frozen=True)
class DiffPruning(Method):
    """A sparse difference from the pretrained encoder, whose places are learned (Guo et al., 2021)."""

    density: float = 0.005
    """Share of the encoder's parameters that differ from the pretrained ones at the end."""
    n_nonzero: int | None = None
    """k: this number of parameters instead of a share; None = the share."""
    relaxed: float = 0.5
    """Share of the steps with random gates. Then the largest k differences are kept, and they alone are trained."""
    sparsity_penalty: float = 1.25e-7
    """Weight of the expected number of non-zeros in the loss."""
    alpha_init: float = 5.0
    """Logit alpha of every gate at the start."""
    alpha_rate: float = 500.0
    """c: learning rate of alpha, as a multiple of that of the differences."""
    stretch: tuple[float, float] = (-1.5, 1.5)
    """l and r: gates are stretched to this interval and clamped to [0, 1], so that they can be 0 and 1."""
    fixed_mask: bool = False
    """Train k evenly spread parameters from the start, without gates. A trained model is stored in this form."""

    default_lr: ClassVar[float] = 2e-3
    size: ClassVar[str] = "n_nonzero"
    written: ClassVar[str] = "diff pruning"
    symbols: ClassVar[dict[str, str]] = {"n_nonzero": "k", "alpha_rate": "c"}

    def __post_init__(self) -> None:
        super().__post_init__()
        k, low, high = self.n_nonzero, *self.stretch
        finite = all(map(math.isfinite, (self.alpha_init, *self.stretch)))
        check(
            {
                f"density is {self.density}: choose a share above 0, at most 1": not 0 < self.density <= 1,
                f"n_nonzero is {k}: choose at least 1": k is not None and k < 1,
                f"relaxed is {self.relaxed}: choose a share between 0 and 1": not 0 < self.relaxed < 1,
                f"sparsity_penalty is {self.sparsity_penalty}: choose at least 0": (
                    not 0 <= self.sparsity_penalty < math.inf
                ),
                f"alpha_rate is {self.alpha_rate}: choose a number above 0": not 0 < self.alpha_rate < math.inf,
                f"alpha_init is {self.alpha_init}: choose a finite number": not math.isfinite(self.alpha_init),
                f"stretch is {low} {high}: choose a number below 0 and one above 1": (
                    not (finite and low < 0 and high > 1)
                ),
            }
        )

    def branches(self, model: nn.Module) -> Iterator[tuple[Place, Branch]]:
        place = weights(model)
        n = sum(place.sizes)
        k = int(self.density * n) if self.n_nonzero is None else self.n_nonzero
        if not 1 <= k <= n < 2**31:
            raise DoesNotFit(f"n_nonzero would be {k:,} of an encoder of {n:,} parameters: choose from 1 to {n:,}")
        settings = k, self.alpha_init, self.alpha_rate, self.stretch
        yield place, Sparse(k, n) if self.fixed_mask else Gates(place.sizes, *settings)

    def penalty(self, model: nn.Module) -> Any:
        gates = _gates(model)
        return 0.0 if gates is None or gates.state[0] else self.sparsity_penalty * gates.expected()

    def on_step(self, model: nn.Module, done: float) -> None:
        if (gates := _gates(model)) is not None:
            gates.state[1] += 1
            gates.scale_gradients()
        self.on_epoch(model, done)

    def on_epoch(self, model: nn.Module, done: float) -> bool:
        """Fix the mask at the end of the first phase; until then, the difference is dense."""
        gates = _gates(model)
        if gates is not None and done >= self.relaxed and not gates.state[0]:
            gates.fix()
        return gates is None or bool(gates.state[0])

    def stored(self, model: nn.Module) -> tuple[Method, Mapping[str, torch.Tensor]]:
        """The k values and their places, which load with `fixed_mask`; before the mask is fixed, what is trained."""
        gates = _gates(model)
        if gates is None or gates.state.is_meta or not gates.state[0]:
            return self, trainable(model) | own_buffers(model)
        name = next(name for name, module in model.named_modules() if module is gates)
        own = {f"{name}.{inner}" for inner, _ in gates.named_parameters()}
        kept: dict[str, torch.Tensor] = {n: p for n, p in trainable(model).items() if n not in own}
        kept |= {f"{name}.values": gates.delta[gates.mask], f"{name}.places": gates.mask.nonzero()[:, 0].int()}
        return self.kept(), kept

    def kept(self) -> Method:
        return dataclasses.replace(self, fixed_mask=True)

    def uses_all(self) -> bool:
        return False  # gates get no gradient once the mask is fixed


def _gates(model: nn.Module) -> Gates | None:
    return next((module for module in model.modules() if isinstance(module, Gates)), None)
