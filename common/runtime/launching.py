"""Starting several processes on CPUs, which accelerate launch does not do without MPI."""

import logging
import os
import re
import signal
import socket
import subprocess
import sys
import time
from typing import Any

import psutil

from common.errors import INPUT_ERROR, INTERRUPTED, InputError, check
from common.runtime.stopping import STOP_SIGNALS


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
