"""Merging branches into the weights of the linear layers that they change, so that inference costs no extra work."""

from typing import Any

import torch
from torch import nn

from common.encoders import Branch
from common.errors import InputError

Weights = tuple[torch.Tensor, torch.Tensor | None]
"""Weight, (out, in), and bias, (out,), of a linear layer."""


class Mergeable(Branch):
    """A branch at the input or output of an nn.Linear whose effect a new weight and bias can have."""

    at_input = False
    """Whether it changes the input of the layer, which the layer's other branches then get."""
    before: tuple[Weights, ...] = ()
    """Weight and bias before it was merged; in a tuple, so that they are not registered as parameters."""

    def merged(self, weight: torch.Tensor, bias: torch.Tensor | None, frozen: Weights) -> Weights:
        """The new weight and bias of a layer that has these now and had `frozen` before anything was merged."""
        raise NotImplementedError

    def is_merged(self) -> bool:
        """Whether `forward` must add nothing. Raises RuntimeError in training."""
        if self.before and self.training:
            raise RuntimeError("a merged layer cannot be trained: call unmerge(model) first")
        return bool(self.before)


@torch.no_grad()
def merge(model: nn.Module) -> None:
    """Merge every branch into its layer. A second call changes nothing.

    Weights are replaced by new ones, never written, since other models may share them.

    Raises:
        InputError: there is nothing to merge, or a layer has other branches too, which need its input or output as
            it was.
    """
    groups = _mergeable(model)  # all of them first, so that nothing is merged if one is refused
    if not groups:
        raise InputError("nothing to merge: this model has no branch whose effect the weights of a layer can have")
    for host, branches in groups:
        for branch in branches:
            if not branch.before:
                now = host.weight, host.bias
                branch.before = (now,)
                _replace(host, *branch.merged(*now, frozen=branches[0].before[0]))


def unmerge(model: nn.Module) -> None:
    """Undo `merge` bit for bit; subtracting what was added would leave rounding errors."""
    for host, branches in _mergeable(model):
        for branch in reversed(branches):
            if branch.before:
                ((host.weight, host.bias),) = branch.before
                branch.before = ()


def _mergeable(model: nn.Module) -> list[tuple[Any, list[Mergeable]]]:
    """Linear layers and their branches in the order in which they act: of the output as injected, then of the input."""
    groups = []
    for name, host in model.named_modules():
        branches = [child for child in host.children() if isinstance(child, Branch)]
        can = [branch for branch in branches if isinstance(branch, Mergeable)]
        if isinstance(host, nn.Linear) and can:
            if len(can) < len(branches):
                raise InputError(f"{name} cannot be merged: another branch there depends on the input")
            groups.append((host, sorted(can, key=lambda branch: branch.at_input)))
    return groups


def _replace(host: nn.Linear, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
    for name, new in (("weight", weight), ("bias", bias)):
        old = getattr(host, name)
        if new is not None and new is not old:
            setattr(host, name, nn.Parameter(new.to(old.dtype), requires_grad=old.requires_grad))
