"""Linear layers by oneDNN on x86 CPUs, each frozen weight reordered once into the layout it is multiplied in.

F.linear reorders every weight anew in each call, and its float32 products are MKL's, which run at less than half of
oneDNN's speed on AMD's processors. The operators are those that torch.compile calls on CPUs.
"""

import functools
import platform
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from common.places import Branch

TOKENS = 1024
"""Rows of a product that layouts are chosen for; any number of rows may meet them."""


@dataclass(frozen=True)
class OneDnn:
    """The private operators of torch that this file calls, and the types that they multiply on this machine."""

    linear: Callable[..., torch.Tensor]
    reorder: Callable[..., torch.Tensor]
    dtypes: tuple[torch.dtype, ...]


@functools.cache
def onednn() -> OneDnn | None:
    """Looked up at first use; None where they are not there, so that F.linear is used."""
    if not torch.backends.mkldnn.is_available() or platform.machine() not in ("x86_64", "AMD64"):
        return None
    operators = torch.ops.mkldnn
    try:
        half = operators._is_mkldnn_bf16_supported()
        found = operators._linear_pointwise, operators._reorder_linear_weight
    except AttributeError as error:
        print(f"torch {torch.__version__} is too new ({error}): linear layers run at its own speed", file=sys.stderr)
        return None
    return OneDnn(*found, (torch.float32, torch.bfloat16) if half else (torch.float32,))


def use_fast_linear(model: nn.Module) -> None:
    """Let every nn.Linear of a model on a CPU, and every F.linear in a branch, go through `fast_linear`."""
    there = onednn()
    if there is None:
        return
    for module in model.modules():
        if isinstance(module, Branch):
            module.forward = _with_fast_linear(module.forward)  # type: ignore[method-assign]
        if type(module) is nn.Linear and module.weight.device.type == "cpu" and module.weight.dtype in there.dtypes:
            fast: Any = module
            fast.__class__ = FastLinear  # hooks, names and parameters stay
            fast.reordered = None if module.weight.requires_grad else Reordered(module.weight, there)


def _with_fast_linear(forward: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(forward)
    def fast(*args: Any, **kwargs: Any) -> Any:
        with _FastLinearMode():
            return forward(*args, **kwargs)

    return fast


class _FastLinearMode(TorchFunctionMode):
    """Within it F.linear is `fast_linear`."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return (fast_linear if func is F.linear else func)(*args, **(kwargs or {}))


class Reordered:
    """A frozen weight in the layouts of the forward and of the backward pass."""

    def __init__(self, weight: torch.Tensor, there: OneDnn):
        both = weight.detach(), weight.detach().t().contiguous()
        self.layouts = tuple(there.reorder(w, TOKENS) for w in both)
        self.version = _version(weight)

    def is_of(self, weight: torch.Tensor) -> bool:
        """Whether these still are the values of a weight."""
        return self.version == _version(weight)


def _version(tensor: torch.Tensor) -> tuple[int, int]:
    """What changes where other numbers come into a tensor."""
    return tensor.data_ptr(), tensor._version


class FastLinear(nn.Linear):
    """nn.Linear by `fast_linear`."""

    reordered: Reordered | None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: (..., in) -> (..., out)"""
        return fast_linear(x, self.weight, self.bias, self.reordered)


def fast_linear(
    input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, reordered: Reordered | None = None
) -> torch.Tensor:
    """F.linear, by oneDNN where that is there. input: (..., in), weight: (out, in), bias: (out,) -> (..., out)"""
    there = onednn()
    autocast = torch.is_autocast_enabled("cpu")
    kind = torch.get_autocast_dtype("cpu") if autocast else input.dtype
    dtypes = there.dtypes if there is not None else ()
    plain = type(weight) in (torch.Tensor, nn.Parameter)  # no shard of a tensor
    fits = weight.dtype in dtypes if autocast else weight.dtype == kind
    if not (plain and fits and weight.device.type == "cpu" and kind in dtypes):
        return F.linear(input, weight, bias)
    layouts: tuple[torch.Tensor, ...] = ()
    if reordered is not None and weight.dtype == kind and reordered.is_of(weight):
        layouts = reordered.layouts
    return _Linear.apply(input, weight, bias, kind, layouts)


class _Linear(torch.autograd.Function):
    """x W^T + b in one type; gradients come in that type, and autograd takes them to the types of x, W and b."""

    @staticmethod
    def forward(ctx, x, weight, bias, kind, layouts):  # type: ignore[no-untyped-def]
        """x: (..., in), weight: (out, in), bias: (out,) or None -> (..., out)"""
        x, weight = x.to(kind).contiguous(), weight.to(kind)
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight)
        ctx.layouts, ctx.bias_dtype = layouts, None if bias is None else bias.dtype
        return _product(x, layouts[0] if layouts else weight, None if bias is None else bias.to(kind))

    @staticmethod
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        """gradient: (..., out) -> gradients of x, weight and bias"""
        x, weight = ctx.saved_tensors
        of_x = of_weight = of_bias = None
        gradient = gradient.contiguous()
        rows = gradient.flatten(0, -2)  # (tokens, out)
        if ctx.needs_input_grad[0]:
            of_x = _product(gradient, ctx.layouts[1] if ctx.layouts else weight.t())
        if ctx.needs_input_grad[1]:
            x = x.flatten(0, -2)  # the narrower one first, since oneDNN copies the first one where it is transposed
            wide = rows.shape[1] > x.shape[1]
            of_weight = _product(x.t(), rows.t()).t() if wide else _product(rows.t(), x.t())
        if ctx.needs_input_grad[2]:
            of_bias = rows.sum(0, dtype=ctx.bias_dtype)
        return of_x, of_weight, of_bias, None, None


def _product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    there = onednn()
    assert there is not None
    return there.linear(x, weight, bias, "none", [], "")
