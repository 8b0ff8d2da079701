"""Threads of a CPU process: how many they are, and how long they spin while they wait."""

import contextlib
import functools
import itertools
import os
import re

import psutil

SPINS = 10_000
"""Rounds that an OpenMP thread spins before it sleeps, about 0.1 ms; libgomp's default is 300,000."""
NUMBER = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
LAUNCHER = re.compile(
    r"\baccelerate\S* launch\b|\baccelerate[./-](commands[./])?launch\b|\btorchrun\b|\btorch\.distributed\.run\b"
)
RUN = re.compile(r"\w+\.(tune|experiment)|scripts\.(search|recommend)")
"""Modules that train."""


def bound_spinning() -> None:
    """Let waiting threads sleep soon, unless the user chose how they wait; without effect once torch is loaded.

    Threads that spin for long take the cores from other runs on the machine: two runs of two threads on two cores then
    do a tenth of the work of one.
    """
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = str(SPINS)


def share_cores() -> int:
    """Set the number of threads of a CPU process, unless the user chose it, to its share of the cores.

    Returns:
        The number of other processes that train on the same cores; 0 if the user chose the number of threads.
    """
    import torch

    if torch.cuda.is_available() or _is_chosen():
        return 0
    cores = set(os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1))
    n_here = max(int(os.environ.get("LOCAL_WORLD_SIZE", "1")), _count_training(cores))
    torch.set_num_threads(max(1, _threads_alone(len(cores)) // n_here))
    return n_here - 1


def _is_chosen() -> bool:
    """Whether a variable holds the user's number of threads: a launcher sets one too, where the user did not."""
    if not any(name in os.environ for name in NUMBER):
        return False
    for process in psutil.Process().parents():
        with contextlib.suppress(psutil.Error):
            words = process.cmdline()
            if LAUNCHER.search(" ".join(words)):
                asked = any(re.match("--num[_-]cpu[_-]threads[_-]per[_-]process", word) for word in words)
                return asked or any(name in process.environ() for name in NUMBER)
    return True


@functools.cache
def _threads_alone(n_cores: int) -> int:
    """Number of threads of a process that is alone on its cores: torch's own, but for a launcher's number."""
    import torch

    if any(name in os.environ for name in NUMBER):
        return min(n_cores, psutil.cpu_count(logical=False) or n_cores)
    return torch.get_num_threads()


def _count_training(cores: set[int]) -> int:
    """Number of processes, with this one, that train on some of these cores."""
    found = {}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            shared = cores & set(process.cpu_affinity()) if hasattr(process, "cpu_affinity") else cores
            if shared and RUN.fullmatch(_module(process.cmdline())):
                found[process.pid] = process.ppid()
    # A process that has started others only waits for them.
    return len(found.keys() - found.values() | {os.getpid()})


def _module(words: list[str]) -> str:
    """The module that a command line of Python runs, as in `python -u -m lora.tune`; empty = none."""
    for word, following in itertools.pairwise(words[1:]):
        if word == "-m":
            return following
        if not word.startswith("-"):
            break
    return ""
