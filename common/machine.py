"""The machine a run is on: its processes, its cores, its memory, its name."""

import contextlib
import ctypes
import gc
import os
import platform
import re
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import torch

from common.errors import INPUT_ERROR, INTERRUPTED

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
"""What asks a run to save and stop: a shell's or a scheduler's polite end, and SLURM's warning before its limit."""


def start_cpu_processes() -> None:
    """Be the several processes that `accelerate launch --cpu --num_processes N` was asked for.

    accelerate starts a single one on CPUs unless MPI is there, without a word. So this process starts N of itself,
    waits for them and ends with their exit code. In every other case it returns at once.
    """
    started_alone = "MASTER_ADDR" in os.environ and "WORLD_SIZE" not in os.environ
    if not started_alone or os.environ.get("ACCELERATE_USE_CPU") != "True" or _under_mpi():
        return
    n = _processes_asked_of_launcher()
    if n is None or n < 2:
        return
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    command = [sys.executable, *(["-m", spec.name] if spec else [sys.argv[0]]), *sys.argv[1:]]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(n)]
    world = os.environ | {"WORLD_SIZE": str(n), "LOCAL_WORLD_SIZE": str(n), "MASTER_PORT": str(port)}
    children = [subprocess.Popen(command, env=world | rank) for rank in ranks]

    def pass_on(number: int, _frame: object) -> None:
        for child in children:
            child.send_signal(number)

    for number in STOP_SIGNALS:
        signal.signal(number, pass_on)
    try:
        # One that fails leaves the others waiting for it, so they are ended. Those asked to stop save together.
        while any(child.poll() is None for child in children):
            if any(child.returncode not in (None, 0, INTERRUPTED) for child in children):
                break
            time.sleep(0.1)
        failed, rank = next(((c.returncode, rank) for rank, c in enumerate(children) if c.returncode), (0, 0))
    finally:
        _end(children)
    if any(child.returncode == INPUT_ERROR for child in children):  # said, whatever came of it to others
        failed = INPUT_ERROR
    if failed < 0:
        print(f"error: process {rank} of {n} was killed by signal {-failed}, the others were stopped", file=sys.stderr)
    sys.exit(failed if failed >= 0 else 128 - failed)  # killed by a signal: 128 + its number, as a shell says it


def _end(children: list[subprocess.Popen[bytes]]) -> None:
    """See processes end: by themselves at first, as they do that meet the same error; then asked to; then killed."""
    for seconds, ask in ((2.0, subprocess.Popen.terminate), (5.0, subprocess.Popen.kill)):
        until = time.monotonic() + seconds
        while any(child.poll() is None for child in children) and time.monotonic() < until:
            time.sleep(0.05)
        for child in children:
            if child.poll() is None:
                ask(child)
    for child in children:
        child.wait()


def _under_mpi() -> bool:
    return any(name in os.environ for name in ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE"))


def _processes_asked_of_launcher() -> int | None:
    """N of the `--num_processes N` in the command line of the accelerate launch that started this process."""
    parent = psutil.Process().parent()
    words = parent.cmdline() if parent else []
    found = re.search(r" --num[_-]processes[ =](\d+) ", " ".join(words) + " ")
    return int(found[1]) if found else None


def told_by_main(find: Callable[[], Any]) -> Any:
    """What `find` gives on the main process, told to all the others, so that all of them go the same way."""
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return find()
    from accelerate import PartialState
    from accelerate.utils import broadcast_object_list, parse_flag_from_env

    state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))  # as Accelerator makes it, later on
    return broadcast_object_list([find() if state.is_main_process else None])[0]


@contextlib.contextmanager
def leaving_in_order() -> Iterator[None]:
    """Leave the group of processes in the end, also after an error: one that is gone without a word aborts others."""
    try:
        yield
    finally:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


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
    return parted(joined(tensors).pin_memory().to(device, non_blocking=True), tensors)


def joined(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    """The bytes of some tensors, (bytes,) of uint8: those of wide types first, so that each begins where it may."""
    widest = sorted(tensors.values(), key=lambda tensor: -tensor.element_size())
    return torch.cat([tensor.flatten().view(torch.uint8) for tensor in widest])


def parted(row: torch.Tensor, like: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
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
