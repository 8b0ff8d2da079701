"""Places in a model where methods add something, and branches, the modules that compute what is added.

He et al. (2022) showed that adapters, prefixes and LoRA are one thing: a change added to a hidden state at some place.
A place takes any number of branches. Its module, the host, keeps its class, its parameter names and its memory.
"""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn


class Branch(nn.Module):
    """What a method adds at a place. Its parameters are named HOST.METHOD.NAME, as in `...query.lora.A`."""

    adds = True
    """False if its result is not added to the output of the place: it works for other branches, or inserts tokens."""
    place: tuple["Place", ...] = ()
    """Where it was added; in a tuple, so that its modules are not registered as its own."""
    needs_all_tokens = False
    """Whether it needs the inputs of all tokens in the top layer too, where packed batches compute [CLS] alone."""

    def forward(self, x: Any, out: Any, host: Any) -> Any:
        """The term to add to `out`, the output of the place for input `x`; None = nothing. host: the module there."""
        raise NotImplementedError


class Place:
    """The output of a module: y = host(x) + branch(x, host(x), host)."""

    of_positions = False
    """Whether the module is given relative positions too, which belong to no sequence."""

    def __init__(self, host: Any, owner: Any = None):
        """host: passed to branches. owner: the module that branches are registered under, if it is not the host."""
        self.host, self.owner = host, host if owner is None else owner

    def add(self, branch: Branch) -> None:
        """Add a branch after the existing ones."""
        self.register(branch)
        self.owner.register_forward_hook(partial(_add_to_output, branch, self.host), with_kwargs=True)

    def register(self, branch: Branch) -> None:
        """Make a branch a child of the owner, named after the folder of its method; a second one gets a number."""
        name = folder = type(branch).__module__.partition(".")[0]
        number = 1
        while hasattr(self.owner, name):
            number += 1
            name = f"{folder}_{number}"
        self.owner.add_module(name, branch)
        branch.place = (self,)


# Hooks are partial functions or methods, not closures, so that a copy of a model has its own hooks.


def _add_to_output(branch: Branch, host: Any, _module: nn.Module, args: Any, kwargs: dict[str, Any], out: Any) -> Any:
    y, *others = out if isinstance(out, tuple) else (out,)
    added = branch(args[0] if args else next(iter(kwargs.values())), y, host)
    if added is None:
        return out
    return (y + added, *others) if isinstance(out, tuple) else y + added


class BeforeResidual(Place):
    """A sublayer's output before the residual sum: out + branch(x, out, LayerNorm) + x.

    The sum is computed in the owner, or behind it.
    """

    def __init__(self, host: nn.Module, owner: Any, start: nn.Module, end: nn.Module, argument: int = 0):
        """start: the module that x is an argument of. end: the module whose output, or the first of it, is out."""
        super().__init__(host, owner)
        self.start, self.end, self.argument = start, end, argument

    def add(self, branch: Branch) -> None:
        self.register(branch)
        hooks = _AddBeforeResidual(branch, self.host, self.argument)
        self.start.register_forward_pre_hook(hooks.keep)
        self.end.register_forward_hook(hooks.add)


class _AddBeforeResidual:
    def __init__(self, branch: Branch, norm: nn.Module, argument: int):
        self.branch, self.norm, self.argument, self.x = branch, norm, argument, torch.empty(0)

    def keep(self, _module: nn.Module, args: Any) -> None:
        self.x = args[self.argument]

    def add(self, end: nn.Module, _args: Any, out: Any) -> Any:
        return _add_to_output(self.branch, self.norm, end, (self.x,), {}, out)


class Weights(Place):
    """All parameters of some modules in the host, flattened one after the other: it computes with them + branch(...).

    Branches return a vector, (n,). The parameters are not written, so that other models may share them, and are back in
    their modules after the forward pass of the host.
    """

    def __init__(self, host: nn.Module, modules: list[nn.Module]):
        super().__init__(host)
        self.named = [(module, name) for module in modules for name, _ in module.named_parameters(recurse=False)]
        self.sizes = [module.get_parameter(name).numel() for module, name in self.named]

    def add(self, branch: Branch) -> None:
        self.register(branch)
        weights = _AddToWeights(branch, self.named, self.sizes)
        self.owner.register_forward_pre_hook(weights.add)
        # Before other hooks, so that the last of several branches is undone first; also after an error.
        self.owner.register_forward_hook(weights.undo, prepend=True, always_call=True)


class _AddToWeights:
    def __init__(self, branch: Branch, named: list[tuple[nn.Module, str]], sizes: list[int]):
        self.branch, self.named, self.sizes, self.before = branch, named, sizes, list[torch.Tensor]()

    def add(self, host: nn.Module, _args: Any) -> None:
        added = self.branch(None, None, host)
        if added is None:
            return
        parts, self.before = added.split(self.sizes), [getattr(module, name) for module, name in self.named]
        for (module, name), weight, part in zip(self.named, self.before, parts, strict=True):
            tensors: dict[str, Any] = module._parameters  # which takes no tensor that is not a leaf by setattr
            tensors[name] = weight + part.view_as(weight)

    def undo(self, _host: nn.Module, _args: Any, _out: Any) -> None:
        for (module, name), weight in zip(self.named, self.before, strict=False):
            module._parameters[name] = weight  # type: ignore[assignment]
        self.before = []


def with_added_weights(model: nn.Module) -> set[nn.Module]:
    """The modules whose parameters a branch adds to."""
    hooks = (hook for module in model.modules() for hook in module._forward_pre_hooks.values())
    owners = (getattr(hook, "__self__", None) for hook in hooks)
    return {module for owner in owners if isinstance(owner, _AddToWeights) for module, _ in owner.named}


@torch.no_grad()
def fold_weights(model: nn.Module) -> set[Branch]:
    """Write what branches add to weights into new weights; returns these branches, which would add it again."""
    folded = set()
    for host in model.modules():
        for hook in host._forward_pre_hooks.values():
            weights = getattr(hook, "__self__", None)
            if isinstance(weights, _AddToWeights):
                weights.add(host, None)
                weights.before = [nn.Parameter(getattr(module, name)) for module, name in weights.named]
                weights.undo(host, None, None)
                folded.add(weights.branch)
    return folded


class Input(Place):
    """The input of a module: y = host(x + branch(x, x, host))."""

    def add(self, branch: Branch) -> None:
        self.register(branch)
        self.owner.register_forward_pre_hook(partial(_add_to_input, branch))


def _add_to_input(branch: Branch, module: nn.Module, args: Any) -> Any:
    added = branch(args[0], args[0], module)
    return args if added is None else (args[0] + added, *args[1:])


class Rows(nn.Module):
    """Some rows of a fused linear layer, such as those of the queries: a host like a linear layer of its own.

    A hook of the whole layer runs it. Its name, under which it is a part of that layer, is in the names of branches.
    """

    def __init__(self, whole: nn.Linear, first: int, n: int):
        super().__init__()
        self.whole, self.rows = (whole,), slice(first, first + n)  # in a tuple, so that it is no child of its child
        self.in_features, self.out_features = whole.in_features, n

    @property
    def weight(self) -> torch.Tensor:
        """(rows, in)"""
        return self.whole[0].weight[self.rows]

    @property
    def bias(self) -> torch.Tensor | None:
        """(rows,)"""
        bias: torch.Tensor | None = self.whole[0].bias
        return None if bias is None else bias[self.rows]

    def forward(self, x: torch.Tensor, before: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """x: input with what branches added to it, before: without, (..., in); out: for that, (..., rows)"""
        return out if x is before else F.linear(x, self.weight, self.bias)


def rows_of(whole: nn.Linear, names: tuple[str, ...], name: str) -> Rows:
    """One of the equal parts that a fused linear layer consists of, in this order."""
    if not hasattr(whole, name):
        size = whole.out_features // len(names)
        for number, each in enumerate(names):
            whole.add_module(each, Rows(whole, number * size, size))
        whole.register_forward_hook(_run_rows)
    return whole.get_submodule(name)  # type: ignore[return-value]


def _run_rows(whole: nn.Module, args: Any, out: torch.Tensor) -> torch.Tensor | None:
    rows = [child for child in whole.children() if isinstance(child, Rows)]
    parts = out.split([each.out_features for each in rows], dim=-1)
    changed = [each(args[0], args[0], part) for each, part in zip(rows, parts, strict=True)]
    is_same = all(new is old for new, old in zip(changed, parts, strict=True))
    return None if is_same else torch.cat(changed, dim=-1)
