"""Linear layers by oneDNN on x86 CPUs, with each frozen weight prepacked once into oneDNN's blocked layout.

F.linear reorders every weight again in each call, and its float32 products are MKL's, which run at less than half the
speed of oneDNN's on AMD processors. The operators here are those that torch.compile calls on CPUs.
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

from common.places import Branch, with_added_weights

TOKENS = 1024
"""Number of tokens that layouts are chosen for; they work with any number."""


@dataclass(frozen=True)
class OneDnn:
    """The private operators of torch that this file calls, and their dtypes on this machine."""

    linear: Callable[..., torch.Tensor]
    reorder: Callable[..., torch.Tensor]
    dtypes: tuple[torch.dtype, ...]


@functools.cache
def onednn() -> OneDnn | None:
    """The operators, looked up at first use; None = not available, F.linear is used."""
    if not torch.backends.mkldnn.is_available() or platform.machine() not in ("x86_64", "AMD64"):
        return None
    mkldnn = torch.ops.mkldnn
    try:
        has_bfloat16 = mkldnn._is_mkldnn_bf16_supported()
        found = mkldnn._linear_pointwise, mkldnn._reorder_linear_weight
    except AttributeError as error:
        print(f"torch {torch.__version__}: {error}; linear layers use the slower F.linear", file=sys.stderr)
        return None
    return OneDnn(*found, (torch.float32, torch.bfloat16) if has_bfloat16 else (torch.float32,))


def use_fast_linear(model: nn.Module) -> None:
    """Make every nn.Linear of a model on a CPU, and every F.linear in a branch, use `fast_linear`."""
    operators = onednn()
    if operators is None:
        return
    changing = with_added_weights(model)
    for module in model.modules():
        if isinstance(module, Branch):
            module.forward = _with_fast_linear(module.forward)  # type: ignore[method-assign]
        if type(module) is nn.Linear and module.weight.device.type == "cpu" and module.weight.dtype in operators.dtypes:
            fast: Any = module
            fast.__class__ = FastLinear  # keeps hooks, names and parameters
            changes = module.weight.requires_grad or module in changing
            fast.reordered = None if changes else Reordered(module.weight, operators)


def _with_fast_linear(forward: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(forward)
    def fast(*args: Any, **kwargs: Any) -> Any:
        with _FastLinearMode():
            return forward(*args, **kwargs)

    return fast


class _FastLinearMode(TorchFunctionMode):
    """Inside it, F.linear is `fast_linear`."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return (fast_linear if func is F.linear else func)(*args, **(kwargs or {}))


class Reordered:
    """A frozen weight, prepacked for the forward and for the backward pass."""

    def __init__(self, weight: torch.Tensor, operators: OneDnn):
        both = weight.detach(), weight.detach().t().contiguous()
        self.layouts = tuple(operators.reorder(w, TOKENS) for w in both)
        self.version = _version(weight)

    def is_of(self, weight: torch.Tensor) -> bool:
        """Whether the weight has not changed since it was prepacked."""
        return self.version == _version(weight)


def _version(tensor: torch.Tensor) -> tuple[int, int]:
    """Differs after the values of a tensor have changed."""
    return tensor.data_ptr(), tensor._version


class FastLinear(nn.Linear):
    """nn.Linear with `fast_linear`."""

    reordered: Reordered | None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: (..., in) -> (..., out)"""
        return fast_linear(x, self.weight, self.bias, self.reordered)


def fast_linear(
    input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, reordered: Reordered | None = None
) -> torch.Tensor:
    """F.linear by oneDNN if available. input: (..., in), weight: (out, in), bias: (out,) -> (..., out)"""
    operators = onednn()
    autocast = torch.is_autocast_enabled("cpu")
    dtype = torch.get_autocast_dtype("cpu") if autocast else input.dtype
    dtypes = operators.dtypes if operators is not None else ()
    plain = type(weight) in (torch.Tensor, nn.Parameter)  # not a DTensor, which is sharded
    fits = weight.dtype in dtypes if autocast else weight.dtype == dtype
    if not (plain and fits and weight.device.type == "cpu" and dtype in dtypes):
        return F.linear(input, weight, bias)
    layouts: tuple[torch.Tensor, ...] = ()
    if reordered is not None and weight.dtype == dtype and reordered.is_of(weight):
        layouts = reordered.layouts
    if not torch.is_grad_enabled():  # as below, without the cost of a function of autograd
        bias = None if bias is None else bias.to(dtype)
        return _product(input.to(dtype).contiguous(), layouts[0] if layouts else weight.to(dtype), bias)
    return _Linear.apply(input, weight, bias, dtype, layouts)


class _Linear(torch.autograd.Function):
    """x W^T + b in one dtype; the gradients have it too, and autograd casts them to the dtypes of x, W and b."""

    @staticmethod
    def forward(ctx, x, weight, bias, dtype, layouts):  # type: ignore[no-untyped-def]
        """x: (..., in), weight: (out, in), bias: (out,) or None -> (..., out)"""
        x, weight = x.to(dtype).contiguous(), weight.to(dtype)
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight)
        ctx.layouts, ctx.bias_dtype = layouts, None if bias is None else bias.dtype
        return _product(x, layouts[0] if layouts else weight, None if bias is None else bias.to(dtype))

    @staticmethod
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        """gradient: (..., out) -> gradients of x, weight and bias"""
        x, weight = ctx.saved_tensors
        grad_x = grad_weight = grad_bias = None
        gradient = gradient.contiguous()
        flat = gradient.flatten(0, -2)  # (tokens, out)
        if ctx.needs_input_grad[0]:
            grad_x = _product(gradient, ctx.layouts[1] if ctx.layouts else weight.t())
        if ctx.needs_input_grad[1]:
            x = x.flatten(0, -2)  # the narrower factor first, since oneDNN copies a first factor that is transposed
            wide = flat.shape[1] > x.shape[1]
            grad_weight = _product(x.t(), flat.t()).t() if wide else _product(flat.t(), x.t())
        if ctx.needs_input_grad[2]:
            grad_bias = flat.sum(0, dtype=ctx.bias_dtype)
        return grad_x, grad_weight, grad_bias, None, None


def _product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    operators = onednn()
    assert operators is not None
    return operators.linear(x, weight, bias, "none", [], "")
