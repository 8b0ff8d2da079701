"""Merging branches into the weights of the linear layers that they change, so that inference costs no extra work."""

from typing import Any

import torch
from torch import nn

from common.encoders import Branch
from common.errors import InputError
from common.places import Rows, fold_weights

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
                _set(host, *branch.merged(*now, frozen=branches[0].before[0]))


def unmerge(model: nn.Module) -> None:
    """Undo `merge` bit for bit; subtracting what was added would leave rounding errors."""
    for host, branches in _mergeable(model):
        for branch in reversed(branches):
            if branch.before:
                _set(host, *branch.before[0])
                branch.before = ()


def fold(model: nn.Module) -> dict[str, torch.Tensor]:
    """The parameters and buffers of the model as it was before a method, with which it computes the same as now.

    They include trained ones of its own. The model itself must not be used any more.

    Raises:
        InputError: it has branches that do more than other weights would.
    """
    folded = fold_weights(model)  # first, since branches of a linear layer see its weight with what is added
    branches = {branch: name for name, branch in model.named_modules() if isinstance(branch, Branch)}
    if any(isinstance(branch, Mergeable) for branch in branches):
        merge(model)
    left = [name for branch, name in branches.items() if branch not in folded and not getattr(branch, "before", ())]
    if left:
        raise InputError(f"{left[0]} is more than a change of weights, so that no plain model computes the same")
    inside = tuple(f"{name}." for name in branches.values())
    return {name: tensor for name, tensor in model.state_dict().items() if not name.startswith(inside)}


def _mergeable(model: nn.Module) -> list[tuple[Any, list[Mergeable]]]:
    """Linear layers and their branches in the order in which they act: of the output as injected, then of the input."""
    groups = []
    for name, host in model.named_modules():
        branches = [child for child in host.children() if isinstance(child, Branch)]
        can = [branch for branch in branches if isinstance(branch, Mergeable)]
        if isinstance(host, nn.Linear | Rows) and can:
            if len(can) < len(branches):
                raise InputError(f"{name} cannot be merged: another branch there depends on the input")
            groups.append((host, sorted(can, key=lambda branch: branch.at_input)))
    return groups


def _set(host: Any, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
    """Give a linear layer, or rows of a fused one, this weight and bias; a Parameter is put back as it is."""
    layer, rows = (host.whole[0], host.rows) if isinstance(host, Rows) else (host, None)
    for name, new in (("weight", weight), ("bias", bias)):
        if new is None:
            continue
        old = getattr(layer, name)
        if rows is not None:
            of_rows, new = new, old.detach().clone()
            new[rows] = of_rows
        if not isinstance(new, nn.Parameter):
            new = nn.Parameter(new.to(old.dtype), requires_grad=old.requires_grad)
        setattr(layer, name, new)
