"""Starting several processes on CPUs, which accelerate launch does not do without MPI."""

import math
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
from common.runtime.environment import check_environment
from common.runtime.stopping import STOP_SIGNALS


def start_cpu_processes() -> None:
    """Start the processes that `accelerate launch --cpu --num_processes N` was asked for; else return at once.

    accelerate starts one process on CPUs whatever N is, and N is only in its command line or configuration file.
    torchrun starts N, but it ends all at once when one fails, perhaps before rank 0 has reported the error, and exits
    with 1 whatever their exit codes were.

    Raises:
        InputError: the processes cannot be divided among the machines, a GPU is asked for and there is none, or as in
            `check_environment`.
    """
    check_environment()
    refuse_missing_gpu()
    n, n_machines, machine = _launch_options()
    if max(n, n_machines) < 2:
        return
    variables = _process_variables(n, n_machines, machine)
    children = [subprocess.Popen([sys.executable, *sys.orig_argv[1:]], env=os.environ | own) for own in variables]
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the children directly

    def pass_on(number: int, _frame: object) -> None:
        for child in children:
            child.send_signal(number)

    for number in STOP_SIGNALS:
        signal.signal(number, pass_on)
    until = math.inf
    while None in (codes := [child.poll() for child in children]) and time.monotonic() < until:
        if until == math.inf and {*codes} - {None, 0, INTERRUPTED}:
            until = time.monotonic() + 10  # the others fail too, or wait for it for ever
        time.sleep(0.1)
    for child in children:
        child.kill()
        child.wait()
    known = [
        code for code in (INPUT_ERROR, 130) if code in codes
    ]  # bad input or Ctrl-C, whatever the others ended with
    failed = known[0] if known else min(filter(None, codes), default=0)
    if failed < 0:
        rank = variables[codes.index(failed)]["RANK"]
        print(f"error: process {rank} of {n} was killed by signal {-failed}, the others were stopped", file=sys.stderr)
    sys.exit(failed if failed >= 0 else 128 - failed)  # killed by a signal: 128 + its number, as a shell says it


def refuse_missing_gpu() -> None:
    """Raise InputError where `accelerate launch` was given a file for a GPU on a machine without one.

    accelerate itself would train on the CPU without a word.
    """
    import torch

    if os.environ.get("ACCELERATE_USE_CPU") != "False" or torch.accelerator.is_available():
        return
    from accelerate.commands.config.config_args import load_config_from_file

    asked = _launch_arguments()
    if asked is not None and asked.config_file and not load_config_from_file(asked.config_file).use_cpu:
        raise InputError(
            f"launched with {asked.config_file}, which is for a GPU, and there is none: launch with "
            "configs/accelerate/cpu.yaml, or on a machine with a GPU"
        )


def _launch_arguments() -> Any:
    """The command line of `accelerate launch` as it reads it; None if it did not start this process."""
    parent = psutil.Process().parent()
    words = parent.cmdline() if parent else []
    after = next((n for n, word in enumerate(words, start=1) if re.search(r"\blaunch(\.py)?$", word)), None)
    if after is None:
        return None
    from accelerate.commands.launch import launch_command_parser

    return launch_command_parser().parse_args(words[after:])


def _launch_options() -> tuple[int, int, int]:
    """Numbers of processes and machines, and the rank of this machine, from the options of `accelerate launch`."""
    # One of these is set where all processes were started, as by MPI.
    counted = {"WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE"}
    if os.environ.get("ACCELERATE_USE_CPU") != "True" or "MASTER_ADDR" not in os.environ or counted & os.environ.keys():
        return 1, 1, 0
    asked = _launch_arguments()
    if asked is None:
        return 1, 1, 0
    from accelerate.commands.config.config_args import load_config_from_file

    filed = vars(load_config_from_file(asked.config_file)) if asked.config_file or not asked.cpu else {}
    known = filed | {name: value for name, value in vars(asked).items() if value is not None}
    return known.get("num_processes", 1), known.get("num_machines", 1), known.get("machine_rank", 0)


def _process_variables(n: int, n_machines: int, machine: int) -> list[dict[str, str]]:
    """Environment variables of each process of this machine."""
    check(
        {
            f"num_processes is {n} for all {n_machines} machines: choose a multiple of {n_machines}": (
                n == 0 or n % n_machines > 0
            ),
            f"machine_rank is {machine}: choose from 0 to {n_machines - 1}": not 0 <= machine < n_machines,
        }
    )
    share = n // n_machines
    world = {"WORLD_SIZE": str(n), "LOCAL_WORLD_SIZE": str(share)}
    if n_machines == 1:  # else the user chooses a port, which all machines know
        with socket.create_server(("127.0.0.1", 0)) as free:
            world["MASTER_PORT"] = str(free.getsockname()[1])
    return [world | {"RANK": str(machine * share + local), "LOCAL_RANK": str(local)} for local in range(share)]
