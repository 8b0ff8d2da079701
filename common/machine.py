"""The machine a run is on: its cores, its memory, its name."""

import os
import platform
import resource
import sys
from pathlib import Path

import torch


def use_all_cores() -> None:
    """Give each process on a CPU its share of the cores.

    `accelerate launch` sets OMP_NUM_THREADS to 1 where nobody chose a number, which leaves a laptop training on one
    core. Any other value is somebody's choice and is kept.
    """
    if os.environ.get("OMP_NUM_THREADS") == "1" and not torch.cuda.is_available():
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        torch.set_num_threads(max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


def reset_peak_memory(device: torch.device) -> None:
    """Start measuring the peak from here; on a CPU outside Linux it stays that of the whole process."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif sys.platform == "linux":
        try:
            Path("/proc/self/clear_refs").write_text("5")
        except OSError:  # not permitted everywhere
            pass


def peak_memory(device: torch.device) -> int:
    """Bytes: most memory allocated on a GPU, largest resident set of the process on a CPU."""
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
    """What to call the device in a result, such as "NVIDIA A100-SXM4-40GB" or "x86_64 CPU, 2 threads"."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu":
        return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
    return device.type
