"""Models with parameters sharded over the processes (FSDP 2): shard, unshard and reshard tensors."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from common.errors import check

if TYPE_CHECKING:
    from accelerate import Accelerator


def shard_by_layer(accelerator: "Accelerator", layer: nn.Module, uses_all: bool) -> None:
    """Make `accelerator.prepare` shard a model of any architecture layer by layer; no effect without FSDP.

    Args:
        layer: any layer of the encoder.
        uses_all: whether every forward pass uses all trained parameters.

    Raises:
        InputError: FSDP 1, or a method whose processes may need different parameters in one step.
    """
    if accelerator.distributed_type.value != "FSDP":
        return
    plugin = accelerator.state.fsdp_plugin
    check(
        {
            "launched with FSDP 1, which flattens parameters: set fsdp_version to 2": plugin.fsdp_version != 2,
            "FSDP and a method that skips parameters in some steps: launch without FSDP": not uses_all,
        }
    )
    plugin.transformer_cls_names_to_wrap = [type(layer).__name__]


def unshard(tensor: torch.Tensor) -> torch.Tensor:
    """The full tensor of one that may be sharded. Every process must call it."""
    tensor = tensor.detach()
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def unshard_all(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: unshard(tensor) for name, tensor in tensors.items()}


def shard_like(value: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Shard a full tensor as `like` is sharded, or return it if `like` is not. Every process must call it."""
    if not hasattr(like, "full_tensor"):
        return value
    from torch.distributed.tensor import distribute_tensor

    sharded: Any = like
    return distribute_tensor(value.to(like.device), sharded.device_mesh, sharded.placements)


def reshard(model: nn.Module) -> None:
    """Reshard all parameters: FSDP leaves some unsharded after a forward pass without a backward pass."""
    modules: Any = model.modules()
    for module in modules:
        if hasattr(module, "reshard"):
            module.reshard()
