"""The device of a run: cores, memory, name, and the transfer of tensors to it."""

import contextlib
import ctypes
import gc
import platform
import re
import resource
import sys
from pathlib import Path

import psutil
import torch


def send(tensors: dict[str, torch.Tensor], device: torch.device) -> dict[str, torch.Tensor]:
    """Copy tensors to a device; to a GPU in one transfer that does not block the host."""
    if device.type != "cuda":
        return {name: tensor.to(device) for name, tensor in tensors.items()}
    return split_bytes(concatenate_bytes(tensors).pin_memory().to(device, non_blocking=True), tensors)


def concatenate_bytes(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    """The bytes of all tensors, (bytes,) of uint8; the widest types come first, so that each tensor is aligned."""
    widest = sorted(tensors.values(), key=lambda tensor: -tensor.element_size())
    return torch.cat([tensor.flatten().view(torch.uint8) for tensor in widest])


def split_bytes(joined: torch.Tensor, like: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Undo `concatenate_bytes`: views of the bytes, in the types and shapes of `like`."""
    names = sorted(like, key=lambda name: -like[name].element_size())
    parts = joined.split([like[name].numel() * like[name].element_size() for name in names])
    return {n: part.view(like[n].dtype).view_as(like[n]) for n, part in zip(names, parts, strict=True)}


def host_memory() -> int:
    """Memory of the machine, in bytes."""
    return psutil.virtual_memory().total


def release_memory() -> None:
    """Free what earlier runs of this process have left, so that it does not count in the next run's peak."""
    gc.collect()  # a model and its hooks reference each other
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    with contextlib.suppress(OSError, AttributeError):  # glibc keeps freed memory; other libraries have no malloc_trim
        ctypes.CDLL(None).malloc_trim(0)


def reset_peak_memory(device: torch.device) -> None:
    """Reset the peak that `peak_memory` returns; on a CPU this works on Linux only."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif sys.platform == "linux":
        with contextlib.suppress(OSError):  # not permitted on every system
            Path("/proc/self/clear_refs").write_text("5")


def peak_memory(device: torch.device) -> int:
    """Peak memory in bytes: allocated memory on a GPU, resident set of the process on a CPU.

    The resident set includes memory that malloc cannot return: the same run shows up to a quarter more in a process
    that has trained before. To compare methods on a CPU, measure each in a new process, as tune does.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def device_name(device: torch.device) -> str:
    """Name of the device in results, such as "NVIDIA A100-SXM4-40GB" or "AMD EPYC CPU, 2 threads"."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu":
        return f"{_processor()} CPU, {torch.get_num_threads()} threads"
    return device.type


def _processor() -> str:
    """Model name of the processor if the system reports it, else its architecture."""
    with contextlib.suppress(OSError):
        found = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        if found:
            return found[1]
    return platform.machine()
