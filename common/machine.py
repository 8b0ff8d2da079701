"""The machine a run is on: its processes, its cores, its memory, its name."""

import contextlib
import ctypes
import gc
import logging
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

from common.errors import INPUT_ERROR, INTERRUPTED, InputError, check

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
"""What asks a run to save and stop: a shell's or a scheduler's polite end, and SLURM's warning before its limit."""


def start_cpu_processes() -> None:
    """Be the several processes that `accelerate launch --cpu --num_processes N` was asked for.

    accelerate starts a single one on CPUs unless MPI is there, without a word, whether N is in the command line or in a
    configuration file. So this process starts N of itself, or its machine's share of them, waits for them and ends with
    their exit code. In every other case it returns at once.

    Raises:
        InputError: the processes cannot be shared out to the machines, or the launcher wants more than we do.
    """
    refuse_launchers()
    started_alone = "MASTER_ADDR" in os.environ and "WORLD_SIZE" not in os.environ
    if not started_alone or os.environ.get("ACCELERATE_USE_CPU") != "True" or _under_mpi():
        return
    places = _places()
    if not places:
        return
    n = places[0]["WORLD_SIZE"]
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    command = [sys.executable, *(["-m", spec.name] if spec else [sys.argv[0]]), *sys.argv[1:]]
    children = [subprocess.Popen(command, env=os.environ | place) for place in places]

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
        failed, rank = next(
            ((c.returncode, place["RANK"]) for c, place in zip(children, places, strict=True) if c.returncode), (0, "0")
        )
    finally:
        _end(children)
    if any(child.returncode == INPUT_ERROR for child in children):  # said, whatever came of it to others
        failed = INPUT_ERROR
    if failed < 0:
        print(f"error: process {rank} of {n} was killed by signal {-failed}, the others were stopped", file=sys.stderr)
    sys.exit(failed if failed >= 0 else 128 - failed)  # killed by a signal: 128 + its number, as a shell says it


def refuse_launchers() -> None:
    """Raise InputError where `accelerate launch` was asked for a library that takes the optimizer out of our hands."""
    for name in ("DeepSpeed", "Megatron_LM"):
        if os.environ.get(f"ACCELERATE_USE_{name.upper()}", "false").lower() == "true":
            raise InputError(
                f"launched with {name}, which would put an optimizer of its own in the place of AdamW: launch without "
                "it, as with configs/accelerate/gpus4_bf16.yaml or fsdp.yaml"
            )


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


def _places() -> list[dict[str, str]]:
    """The place of each process of this machine among all of them, as the environment tells it; empty = it is alone."""
    asked = _asked_of_launcher()
    if asked is None or max(asked.num_processes, asked.num_machines) < 2:
        return []
    n, n_machines, machine = asked.num_processes, asked.num_machines, asked.machine_rank or 0
    check(
        {
            f"num_processes is {n} and counts those of all {n_machines} machines: choose a multiple of {n_machines}": (
                n == 0 or n % n_machines > 0
            ),
            f"machine_rank is {machine}: choose from 0 to {n_machines - 1}, another one on each machine": (
                not 0 <= machine < n_machines
            ),
        }
    )
    share = n // n_machines
    world = {"WORLD_SIZE": str(n), "LOCAL_WORLD_SIZE": str(share)}
    if n_machines == 1:  # else the port has to be known to the other machines
        world["MASTER_PORT"] = str(_free_port())
    return [world | {"RANK": str(machine * share + local), "LOCAL_RANK": str(local)} for local in range(share)]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _asked_of_launcher() -> Any:
    """The options of the accelerate launch that started this process, as it reads its command line and configuration.

    None = something else started it. The numbers of processes and machines are not in the environment.
    """
    parent = psutil.Process().parent()
    words = parent.cmdline() if parent else []
    after = next((n for n, word in enumerate(words, start=1) if re.search(r"(^|[/.-])launch(\.py)?$", word)), None)
    if after is None:
        return None
    from accelerate.commands import launch

    logging.getLogger(launch.__name__).setLevel(logging.ERROR)  # it has said by itself which defaults it takes
    asked, _, _ = launch._validate_launch_command(launch.launch_command_parser().parse_args(words[after:]))
    return asked


def told_by_main(find: Callable[[], Any]) -> Any:
    """What `find` gives on the main process, told to all the others, so that all of them go the same way."""
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return find()
    from accelerate import PartialState
    from accelerate.utils import broadcast_object_list, parse_flag_from_env

    state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))  # as Accelerator makes it, later on
    if state.num_processes != int(os.environ["WORLD_SIZE"]):  # each would take itself for the only one
        raise InputError(
            f"launched as {os.environ['WORLD_SIZE']} processes, and there is no GPU for them: "
            "launch on a machine with GPUs, or with accelerate launch --cpu"
        )
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
