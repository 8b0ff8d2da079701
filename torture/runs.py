"""Tiny runs in child processes, their outcomes, and checks of their folders."""

import faulthandler
import json
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import tqdm

from adapters.method import Adapters
from common.errors import one_line_errors
from common.methods import Method, find, names
from common.options import TuneOptions
from common.training import train
from hybrid.method import Hybrid
from prefix.method import PrefixTuning

sys.path.append(str(Path(__file__).resolve().parent.parent / "tests"))
from conftest import TIMES, outcome, save_checkpoint  # noqa: F401

tqdm.tqdm.monitor_interval = 0  # its thread can hold a lock that a forked process then waits for
torch.set_num_threads(1)  # before the first matrix product: threads do not survive a fork

METHODS: list[Method] = [find(name)() for name in names()]
METHODS += [
    Adapters(drop_layers="random"),
    PrefixTuning(hidden_dim=8),
    Hybrid(("lora", "bitfit")),
    Hybrid(preset="unipelt"),
]
"""Every method of the repository, and their variants with more state."""

LIMIT = 300.0
"""Seconds after which a process counts as hanging."""
_logs: dict[int, Path] = {}


def settings(checkpoint: Path, out: Path, **changes: Any) -> TuneOptions:
    """Options of a run of about a second."""
    small: dict[str, Any] = {"checkpoint": str(checkpoint), "data": "demo", "task_name": "sst2", "output_dir": str(out)}
    small |= {"max_train_samples": 64, "max_eval_samples": 20, "n_epochs": 3, "batch_size": 8, "checkpoint_every": 3}
    return TuneOptions(**small | changes)


def tiny_checkpoint(folder: Path) -> Path:
    """Save a random encoder of two layers."""
    return save_checkpoint("bert", folder / "bert")


def start(work: Callable[[], object], log: Path) -> int:
    """Call `work` in a child process with its output in a file; returns the process id."""
    process = os.fork()
    if process:
        _logs[process] = log
        return process
    code = 1
    try:
        with open(log, "a") as output:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
            faulthandler.enable()  # so that SIGABRT writes where it hangs
            with one_line_errors():
                work()
            code = 0
    except SystemExit as stop:
        code = int(stop.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def ended(process: int) -> int | None:
    """Exit code of a child process, negative for a signal; None while it runs."""
    found, status = os.waitpid(process, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if found else None


def finish(process: int) -> int:
    """Wait for a child process; returns its exit code. Raises TimeoutError if it hangs."""
    until = time.monotonic() + LIMIT
    while (code := ended(process)) is None:
        if time.monotonic() > until:
            os.kill(process, signal.SIGABRT)
            os.waitpid(process, 0)
            raise TimeoutError(f"{process} did not end in {LIMIT:.0f} seconds: {_logs[process].read_text()[-4000:]}")
        time.sleep(0.005)
    return code


def run_whole(method: Method, options: TuneOptions, log: Path) -> tuple[dict[str, Any], float]:
    """Outcome and seconds of an undisturbed run."""
    began = time.monotonic()
    code = finish(start(lambda: train(method, options), log))
    assert code == 0, log.read_text()
    return outcome(next(Path(options.output_dir).glob("*/*/*/result.json")).parent), time.monotonic() - began


def check_readable(home: Path) -> None:
    """Check that every file under its final name is complete. Raises the error of reading it otherwise."""
    for folder in home.glob("*/*/*"):
        if (folder / "result.json").is_file():
            assert (folder / "adapter.safetensors").is_file(), folder
            assert (folder / "adapter.json").is_file(), folder
    for path in [*home.rglob("*.json"), *home.rglob("*.jsonl"), *home.rglob("*.safetensors")]:
        try:
            if path.suffix == ".safetensors":
                # Opened once: safe_open opens it twice, and the run may replace the file in between.
                safetensors.torch.load(path.read_bytes())
            else:
                for line in path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]:
                    json.loads(line)
        except FileNotFoundError:  # deleted after the folder was listed
            continue


def kill_at_random(process: int, seconds: float, home: Path, chance: random.Random) -> str | None:
    """Check the files of a process for a random time, then kill it; the name of the signal, None if it ended before."""
    until = time.monotonic() + chance.uniform(0, seconds)
    while time.monotonic() < until:
        if os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            return None
        check_readable(home)
        time.sleep(0.002)
    number = chance.choice((signal.SIGKILL, signal.SIGTERM))
    os.kill(process, number)
    return number.name
