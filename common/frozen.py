"""Linear maps with frozen weights on a CPU: the weights are laid out once, in the order that oneDNN multiplies fastest.

F.linear lays them out anew in every call, and its float32 products are MKL's, which run at half of oneDNN's speed on
processors that are not Intel's.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

TOKENS = 1024
"""Rows of a product that the layout is chosen for; any number of them can be multiplied."""


class _Product(torch.autograd.Function):
    """x W^T + b, where W and b are frozen."""

    @staticmethod
    def forward(ctx, x, laid, laid_back, bias):  # type: ignore[no-untyped-def]
        """x: (..., in) -> (..., out)"""
        ctx.laid_back = laid_back
        return _multiply(x, laid, bias)

    @staticmethod
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        """gradient: (..., out) -> (..., in)"""
        return _multiply(gradient.contiguous(), ctx.laid_back, None), None, None, None


def _multiply(x: torch.Tensor, laid: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, laid, bias, "none", [], "")


def lay_out(model: nn.Module) -> None:
    """Let the frozen weights of a model's linear maps have the layouts for their products, beside the weights."""
    if not torch.backends.mkldnn.is_available():
        return
    for module in model.modules():
        if isinstance(module, nn.Linear) and not module.weight.requires_grad and module.weight.device.type == "cpu":
            weight = module.weight.detach()
            module.weight.laid = tuple(
                torch.ops.mkldnn._reorder_linear_weight(w, TOKENS) for w in (weight, weight.t().contiguous())
            )
            if type(module) is nn.Linear:
                module.__class__ = FrozenLinear


def frozen_linear(x: torch.Tensor, weight: Any, bias: torch.Tensor | None) -> torch.Tensor:
    """F.linear, faster where the weight has been through `lay_out`. x: (..., in) -> (..., out)"""
    laid = getattr(weight, "laid", None)
    autocast = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu")
    if laid is None or autocast not in (False, weight.dtype):
        return F.linear(x, weight, bias)
    if bias is None or not bias.requires_grad:
        return _Product.apply(x.to(weight.dtype), *laid, bias)
    y = _Product.apply(x.to(weight.dtype), *laid, None)
    return y + bias.to(y.dtype)


class FrozenLinear(nn.Linear):
    """nn.Linear by `frozen_linear`."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: (..., in) -> (..., out)"""
        return frozen_linear(x, self.weight, self.bias)
