"""Linear maps by oneDNN on x86 CPUs, each weight that stays as it is laid out once in the order it is multiplied in.

F.linear lays every weight out anew in each call, and its float32 products are MKL's, which run at less than half of
oneDNN's speed on AMD's processors. The operators are those that torch.compile calls on CPUs.
"""

import platform
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

TOKENS = 1024
"""Rows of a product that layouts are chosen for; any number of rows may meet them."""


def _dtypes() -> tuple[torch.dtype, ...]:
    if not torch.backends.mkldnn.is_available() or platform.machine() not in ("x86_64", "AMD64"):
        return ()
    return (torch.float32, torch.bfloat16) if torch.ops.mkldnn._is_mkldnn_bf16_supported() else (torch.float32,)


DTYPES = _dtypes()
"""What it multiplies on this machine; nothing where it is not there."""


def use_onednn(model: nn.Module) -> None:
    """Let the linear maps of a model on a CPU go through `linear_map`, and lay out the frozen ones' weights for it."""
    for module in model.modules():
        if not isinstance(module, nn.Linear) or module.weight.device.type != "cpu" or module.weight.dtype not in DTYPES:
            continue
        if type(module) is nn.Linear:
            module.__class__ = OneDnnLinear  # hooks, names and parameters stay
        if not module.weight.requires_grad:
            weight: Any = module.weight
            both = weight.detach(), weight.detach().t().contiguous()  # of the forward and of the backward pass
            weight.laid_out = tuple(torch.ops.mkldnn._reorder_linear_weight(w, TOKENS) for w in both)
            weight.laid_out_from = _version(weight)


def linear_map(x: torch.Tensor, weight: Any, bias: torch.Tensor | None = None) -> torch.Tensor:
    """F.linear, by oneDNN where that is there. x: (..., in), weight: (out, in), bias: (out,) -> (..., out)"""
    autocast = torch.is_autocast_enabled("cpu")
    kind = torch.get_autocast_dtype("cpu") if autocast else x.dtype
    plain = type(weight) in (torch.Tensor, nn.Parameter)  # no shard of a tensor
    fits = weight.dtype in DTYPES if autocast else weight.dtype == kind
    if not (plain and fits and weight.device.type == "cpu" and kind in DTYPES):
        return F.linear(x, weight, bias)
    valid = hasattr(weight, "laid_out") and weight.laid_out_from == _version(weight)  # else written to since
    return _LinearMap.apply(x, weight, bias, kind, weight.laid_out if valid and weight.dtype == kind else ())


def _version(tensor: torch.Tensor) -> tuple[int, int]:
    """What changes where other numbers come into a tensor."""
    return tensor.data_ptr(), tensor._version


class OneDnnLinear(nn.Linear):
    """nn.Linear by `linear_map`."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: (..., in) -> (..., out)"""
        return linear_map(x, self.weight, self.bias)


class _LinearMap(torch.autograd.Function):
    """x W^T + b in one type; gradients come in that type, and autograd takes them to the types of x, W and b."""

    @staticmethod
    def forward(ctx, x, weight, bias, kind, laid_out):  # type: ignore[no-untyped-def]
        """x: (..., in), weight: (out, in), bias: (out,) or None -> (..., out)"""
        x, weight = x.to(kind).contiguous(), weight.to(kind)
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight)
        ctx.laid_out, ctx.bias_dtype = laid_out, None if bias is None else bias.dtype
        return _product(x, laid_out[0] if laid_out else weight, None if bias is None else bias.to(kind))

    @staticmethod
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        """gradient: (..., out) -> gradients of x, weight and bias"""
        x, weight = ctx.saved_tensors
        of_x = of_weight = of_bias = None
        gradient = gradient.contiguous()
        rows = gradient.flatten(0, -2)  # (tokens, out)
        if ctx.needs_input_grad[0]:
            of_x = _product(gradient, ctx.laid_out[1] if ctx.laid_out else weight.t())
        if ctx.needs_input_grad[1]:
            x = x.flatten(0, -2)  # the narrower one first, since oneDNN copies the first one where it is transposed
            wide = rows.shape[1] > x.shape[1]
            of_weight = _product(x.t(), rows.t()).t() if wide else _product(rows.t(), x.t())
        if ctx.needs_input_grad[2]:
            of_bias = rows.sum(0, dtype=ctx.bias_dtype)
        return of_x, of_weight, of_bias, None, None


def _product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
