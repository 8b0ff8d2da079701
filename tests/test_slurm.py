"""The jobs for SLURM really run, on a CPU; only SLURM's own commands are replaced."""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import REPOSITORY

from common.runs import CHECKPOINT
from common.study.grid import commands

pytestmark = pytest.mark.slow

JOBS = sorted((REPOSITORY / "scripts" / "slurm").glob("*.sbatch"))

SRUN = """#!/usr/bin/env bash
# Starts the tasks of a step on this machine, passes signals on to them, and ends with the largest of their exit codes.
printf '%s\\n' "$*" >> "$RECORD"
while [[ $1 == --* ]]; do shift; done
tasks=()
for signal in USR1 TERM; do trap "kill -s $signal \\"\\${tasks[@]}\\"" "$signal"; done
for ((rank = 0; rank < SLURM_NTASKS; rank++)); do
    SLURM_PROCID=$rank SLURM_LOCALID=$rank "$@" &
    tasks+=($!)
done
largest=0
for task in "${tasks[@]}"; do
    wait "$task"
    code=$?
    while kill -0 "$task" 2>/dev/null; do
        wait "$task"
        code=$?
    done
    ((code > largest)) && largest=$code
done
exit $largest
"""
SCONTROL = """#!/usr/bin/env bash
printf 'scontrol %s\\n' "$*" >> "$RECORD"
[ "$1 $2" = "show hostnames" ] && echo 127.0.0.1
exit 0
"""


class Cluster:
    """A stand-in for a machine with SLURM. The file `record` holds the commands that jobs give to SLURM."""

    def __init__(self, folder: Path):
        self.record = folder / "record"
        self.commands = folder / "commands"
        self.commands.mkdir()
        for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
            (self.commands / name).write_text(text)
            (self.commands / name).chmod(0o755)

    def start(self, job: str, *words: str, n_tasks: int = 1, array_task: int = 1) -> subprocess.Popen:
        slurm = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_JOB_NODELIST": "node[1-1]", "SLURM_NNODES": "1"}
        slurm |= {"SLURM_NTASKS": str(n_tasks), "SLURM_ARRAY_TASK_ID": str(array_task), "SLURM_CPUS_PER_TASK": "1"}
        slurm |= {"PATH": f"{self.commands}:{Path(sys.executable).parent}:{os.environ['PATH']}"}
        slurm |= {"ACCELERATE_USE_CPU": "True", "ACCELERATE_MIXED_PRECISION": "no", "RECORD": str(self.record)}
        command, pipe = ["bash", f"scripts/slurm/{job}.sbatch", *words], subprocess.PIPE
        return subprocess.Popen(command, cwd=REPOSITORY, env=os.environ | slurm, stderr=pipe, text=True)

    def said(self) -> str:
        return self.record.read_text()

    def requeued(self) -> int:
        return self.said().count(f"scontrol requeue {os.getpid()}\n")


@pytest.fixture
def cluster(tmp_path):
    (tmp_path / "cluster").mkdir()
    return Cluster(tmp_path / "cluster")


@pytest.fixture
def small(bert, tmp_path):
    words = f"--checkpoint {bert} --data demo --output_dir {tmp_path / 'out'} --rank 2 --n_epochs 3 --report_to none"
    return f"{words} --max_train_samples 96 --max_eval_samples 20 --batch_size 2 --checkpoint_every 3".split()


def signalled(job: subprocess.Popen, number: signal.Signals, out: Path) -> str:
    """Signal the job's shell only, once its run has a checkpoint, and return its stderr."""
    while not list(out.rglob(CHECKPOINT)):
        assert job.poll() is None, job.communicate()
        time.sleep(0.01)
    job.send_signal(number)
    return job.communicate(timeout=120)[1]


@pytest.mark.long
def test_a_run_of_two_tasks_is_requeued_after_the_warning_signal_and_resumes(cluster, small, tmp_path):
    words = ["lora.tune", "--task_name", "rte", *small]
    said = signalled(cluster.start("one_run", *words, n_tasks=2), signal.SIGUSR1, tmp_path)
    assert "stopped by SIGUSR1 after step" in said
    assert "exit code 75 after USR1" in said
    assert cluster.requeued() == 1
    again = cluster.start("one_run", *words, n_tasks=2)
    _, said = again.communicate(timeout=120)
    assert again.returncode == 0, said
    assert cluster.requeued() == 1
    (path,) = tmp_path.rglob("result.json")
    result = json.loads(path.read_text())
    assert (result["n_processes"], result["n_resumed"]) == (2, 1)
    assert not list(tmp_path.rglob(CHECKPOINT))


@pytest.mark.long
def test_a_cancelled_run_of_a_grid_saves_and_is_not_requeued(cluster, small, tmp_path):
    words = ["lora", "--tasks", "rte sst2", "--lr", "1e-3", *small]
    job = cluster.start("grid", *words, array_task=2)
    assert "stopped by SIGTERM" in signalled(job, signal.SIGTERM, tmp_path)
    assert (job.returncode, cluster.requeued()) == (75, 0)
    (path,) = tmp_path.rglob(CHECKPOINT)
    assert path.parent.parent.name == "sst2"  # the second of the grid


def test_an_array_that_is_longer_than_its_grid_is_refused(cluster):
    job = cluster.start("grid", "lora", "--tasks", "rte", "--lr", "1e-3", array_task=9)
    n = len(list(commands("tune", "lora", ["rte"], [], [], ["--lr", "1e-3"])))
    assert job.communicate(timeout=60)[1] == f"error: no run 9 in this grid: submit with --array 1-{n}\n"
    assert job.returncode == 2


def test_a_worker_of_a_search_gets_the_arguments_of_the_job(cluster):
    cluster.start("search", "lora", "--help").communicate(timeout=60)
    assert cluster.said().endswith(" task scripts.search lora --help\n")


def test_a_run_that_fails_is_not_requeued(cluster):
    job = cluster.start("one_run", "lora.tune", "--lr", "-1")
    assert "error: lr is -1" in job.communicate(timeout=60)[1]
    assert (job.returncode, cluster.requeued()) == (2, 0)


@pytest.mark.parametrize("job", JOBS, ids=lambda path: path.name)
def test_a_job_uses_options_that_sbatch_knows_and_names_no_cluster(job):
    """Options of sbatch 22 and newer; what differs between clusters comes from the command line."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    names = "job-name nodes ntasks ntasks-per-node gpus-per-node cpus-per-task time signal open-mode"
    for name in names.split():
        parser.add_argument(f"--{name}")
    parser.add_argument("--requeue", action="store_true")
    lines = job.read_text().splitlines()
    first = next(n for n, line in enumerate(lines) if line and not line.startswith("#"))
    asked = [line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH ")]
    assert asked == [line.removeprefix("#SBATCH ") for line in lines[:first] if line.startswith("#SBATCH ")]
    found = parser.parse_args(asked)
    assert (found.requeue, found.open_mode, found.signal) == (True, "append", "B:USR1@120")
    assert "sbatch --partition P --account A" in job.read_text()


@pytest.mark.parametrize("script", [*JOBS, JOBS[0].with_name("job.sh")], ids=lambda path: path.name)
def test_a_script_is_valid_bash(script):
    assert subprocess.run(["bash", "-n", script], capture_output=True, text=True).stderr == ""
    if shutil.which("shellcheck"):
        check = ["shellcheck", "--external-sources", "--shell=bash", script]
        done = subprocess.run(check, cwd=REPOSITORY, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout
