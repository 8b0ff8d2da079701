"""The device of a run: its cores, its memory, its name, and how tensors get there."""

import contextlib
import ctypes
import gc
import os
import platform
import re
import resource
import sys
from pathlib import Path

import psutil
import torch


def use_all_cores() -> None:
    """Give each process on a CPU its share of the cores.

    `accelerate launch` sets OMP_NUM_THREADS to 1 where nobody chose a number, which leaves a laptop training on one
    core. Any other value is somebody's choice and is kept.
    """
    if os.environ.get("OMP_NUM_THREADS") == "1" and not torch.cuda.is_available():
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        torch.set_num_threads(max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


def send(tensors: dict[str, torch.Tensor], device: torch.device) -> dict[str, torch.Tensor]:
    """Tensors on a device: to a GPU in one transfer, during which the host goes on."""
    if device.type != "cuda":
        return {name: tensor.to(device) for name, tensor in tensors.items()}
    return split_bytes(concatenate_bytes(tensors).pin_memory().to(device, non_blocking=True), tensors)


def concatenate_bytes(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    """The bytes of some tensors, (bytes,) of uint8: those of wide types first, so that each begins where it may."""
    widest = sorted(tensors.values(), key=lambda tensor: -tensor.element_size())
    return torch.cat([tensor.flatten().view(torch.uint8) for tensor in widest])


def split_bytes(row: torch.Tensor, like: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors that `joined` put into a row of bytes, as views of it, in the types and shapes of `like`."""
    names = sorted(like, key=lambda name: -like[name].element_size())
    parts = row.split([like[name].numel() * like[name].element_size() for name in names])
    return {n: part.view(like[n].dtype).view_as(like[n]) for n, part in zip(names, parts, strict=True)}


def host_memory() -> int:
    """Bytes of memory that the machine has."""
    return psutil.virtual_memory().total


def release_memory() -> None:
    """Give back what earlier runs of this process have left, so that the peak of the next one is its own."""
    gc.collect()  # a model and its hooks refer to one another
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    with contextlib.suppress(OSError, AttributeError):  # glibc keeps what was freed; others do not know the word
        ctypes.CDLL(None).malloc_trim(0)


def reset_peak_memory(device: torch.device) -> None:
    """Start measuring the peak from here; on a CPU outside Linux it stays that of the whole process."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif sys.platform == "linux":
        with contextlib.suppress(OSError):  # not permitted everywhere
            Path("/proc/self/clear_refs").write_text("5")


def peak_memory(device: torch.device) -> int:
    """Bytes: most memory allocated on a GPU, largest resident set of the process on a CPU.

    The latter holds what malloc cannot give back, too: the same run reads up to a quarter higher in a process that has
    trained before. To compare methods on a CPU, measure each in a process of its own, as tune does.
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
    """What to call the device in a result, such as "NVIDIA A100-SXM4-40GB" or "AMD EPYC CPU, 2 threads"."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu":
        return f"{_processor()} CPU, {torch.get_num_threads()} threads"
    return device.type


def _processor() -> str:
    """The model of the processor where the system tells it, else its architecture."""
    with contextlib.suppress(OSError):
        found = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        if found:
            return found[1]
    return platform.machine()
