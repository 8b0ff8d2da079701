"""One of several processes of a run is killed: the launch must fail, and the next one must resume exactly."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

from common.runs import CHECKPOINT
from torture import runs

REPOSITORY = Path(__file__).resolve().parent.parent
LAUNCH = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_machines", "1", "--mixed_precision", "no"]
LAUNCH += ["--dynamo_backend", "no"]
NUMBERS = (2, 3, 4)
"""Of processes: two add their gradients in one order only, three or more in several."""


def launch(n_processes: int, checkpoint: Path, out: Path) -> subprocess.Popen[str]:
    """Launch a run of some seconds, in its own process group."""
    words = f"--checkpoint {checkpoint} --data demo --task_name sst2 --output_dir {out} --max_train_samples 64"
    words += " --max_eval_samples 20 --n_epochs 60 --batch_size 4 --checkpoint_every 3 --lr 1e-3"
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [*LAUNCH, "--num_processes", str(n_processes), "-m", "lora.tune", *words.split()],
        cwd=REPOSITORY,
        stdout=pipe,
        stderr=pipe,
        text=True,
        process_group=0,
    )


def ranks(launcher: int) -> list[psutil.Process]:
    """The training processes of a launch."""
    found = []
    for process in psutil.Process(launcher).children(recursive=True):
        try:
            if "RANK" in process.environ():
                found.append(process)
        except psutil.Error:
            continue
    return found


def torture(home: Path, chance: random.Random, n_times: int) -> str:
    """Run the test and describe the result. Raises AssertionError or TimeoutExpired for a wrong result or a hang."""
    checkpoint = runs.tiny_checkpoint(home)
    for n_processes in NUMBERS:
        interrupt(n_processes, checkpoint, home / str(n_processes), chance, n_times)
    counts = ", ".join(map(str, NUMBERS))
    done = f"{n_times} launches each of {counts} processes with one killed or SIGTERM to all"
    return f"{done}: none hung, all resumed to the same bits"


def interrupt(n_processes: int, checkpoint: Path, home: Path, chance: random.Random, n_times: int) -> None:
    """Interrupt a run on some processes and resume it, several times. Raises what `torture` raises."""
    running = launch(n_processes, checkpoint, home / "whole")
    output = running.communicate(timeout=runs.LIMIT)
    assert running.returncode == 0, output
    whole = runs.outcome(next((home / "whole").rglob("result.json")).parent)
    for number in range(n_times):
        out = home / f"ranks{number}"
        running = launch(n_processes, checkpoint, out)
        while not list(out.rglob(CHECKPOINT)):
            assert running.poll() is None, running.communicate()
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 0.5))
        if number % 2:
            os.killpg(running.pid, signal.SIGTERM)
        else:
            chance.choice(ranks(running.pid)).kill()
        began = time.monotonic()
        output = running.communicate(timeout=60)
        assert running.returncode != 0, output
        assert time.monotonic() - began < 60
        again = launch(n_processes, checkpoint, out)
        output = again.communicate(timeout=runs.LIMIT)
        assert again.returncode == 0, output
        assert "resuming at step" in output[0], output
        found = runs.outcome(next(out.rglob("result.json")).parent)
        for part, value in whole.items():
            assert found[part] == value, f"a run on {n_processes} processes differs in {part}: {out}"
