"""Shell sweeps run everything once, resume where they stopped, and list at the end what failed."""

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import REPOSITORY

from common import methods, tasks
from common.runs import CHECKPOINT
from common.study.grid import commands

pytestmark = pytest.mark.slow


def sweep(script: str, *words: str) -> subprocess.Popen:
    pipe, path = subprocess.PIPE, f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    command = [f"scripts/{script}", *words]
    settings = {"cwd": REPOSITORY, "env": os.environ | {"PATH": path}, "stdout": pipe, "stderr": pipe, "text": True}
    # Tests in the background ignore SIGINT, and a shell cannot trap a signal that was ignored when it started.
    return subprocess.Popen(command, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL), **settings)


@pytest.fixture
def small(bert, tmp_path):
    """A sweep over two tiny runs, without a launcher."""
    words = f"lora --launch python --tasks 'rte sst2' --checkpoints {bert} --data demo --output_dir {tmp_path}"
    words += " --lr 1e-3 --rank 2 --n_epochs 2 --max_train_samples 64 --max_eval_samples 20 --batch_size 4"
    return shlex.split(words + " --checkpoint_every 3 --report_to none")


@pytest.mark.parametrize("method", methods.names())
def test_every_grid_but_that_of_full_fine_tuning_has_eight_configurations(method):
    """All methods have the same number of trials, but full fine-tuning has the grid of the mirrored repository."""
    lines = list(commands("tune", method, ["rte"], ["minilm"], ["1", "2"], []))
    assert len(lines) == len(set(map(tuple, lines))) == 2 * (24 if method == "baseline" else 8)
    assert len(list(commands("tune", method, [], [], [], ["--lr", "1e-3"]))) % len(tasks.TRAINED) == 0


def test_an_option_that_is_given_is_not_varied():
    lines = list(commands("tune", "lora", ["rte"], [], [], ["--rank=2", "--n-epochs", "1"]))
    assert [" ".join(line) for line in lines] == [
        f"lora.tune --task_name rte --lr {lr} --rank 2 --n_epochs 1" for lr in ("0.0001", "0.0005")
    ]


def test_an_option_with_several_values_is_varied_over_them():
    words = ["--rank", "1 2", "--lr=1e-3 2e-3", "--n_epochs", "3", "--betas", "0.9", "0.99", "--debug", "--alpha", "8"]
    given = "--n_epochs 3 --betas 0.9 0.99 --debug --alpha 8"
    for verb in ("tune", "experiment"):
        assert [" ".join(line) for line in commands(verb, "lora", ["rte"], [], [], words)] == [
            f"lora.{verb} --task_name rte{options} {given}"
            for one in (1, 2) for other in (1, 2)
            for options in [f" --lr {one}e-3 --rank {other}" if verb == "tune" else f" --rank {one} --lr {other}e-3"]
        ]  # fmt: skip


def test_a_dry_run_prints_the_commands_and_runs_none(small, tmp_path):
    done = sweep("run_tune.sh", *small, "--dry_run")
    said, _ = done.communicate(timeout=60)
    assert [line.split()[:5] for line in said.splitlines()] == [
        ["python", "-m", "lora.tune", "--task_name", task] for task in ("rte", "sst2")
    ]
    assert not list(tmp_path.iterdir())


def test_a_stopped_sweep_resumes_and_ends_with_each_run_once(small, tmp_path):
    for number, code, run in ((signal.SIGINT, 130, 1), (signal.SIGTERM, 75, 2)):
        running = sweep("run_tune.sh", *small)
        while len(finished(tmp_path)) < run - 1 or not {*tmp_path.rglob(CHECKPOINT)} - finished(tmp_path):
            assert running.poll() is None
            time.sleep(0.01)
        running.send_signal(number)
        _, said = running.communicate(timeout=60)
        assert running.returncode == code, said
        assert f"stopped in run {run} of 2: the same command resumes from there" in said
        assert (len(finished(tmp_path)), len(list(tmp_path.rglob(CHECKPOINT)))) == (run - 1, 1)
    again = sweep("run_tune.sh", *small)
    said, _ = again.communicate(timeout=120)
    assert again.returncode == 0
    assert said.count("resuming at step") == 1
    assert len(finished(tmp_path)) == 2


def finished(folder: Path) -> set[Path]:
    """Paths that the checkpoints of the finished runs had."""
    return {path.with_name(CHECKPOINT) for path in folder.rglob("result.json")}


def test_a_run_that_fails_stops_no_other_and_is_listed_at_the_end(small, tmp_path):
    failing = [word if word != "rte sst2" else "rte wnli" for word in small]
    (tmp_path / "data" / "RTE").mkdir(parents=True)
    at = failing.index("demo")
    failing[at] = str(tmp_path / "data")
    done = sweep("run_tune.sh", *failing)
    _, said = done.communicate(timeout=120)
    assert done.returncode == 1
    assert "2 of 2 runs failed:" in said
    assert said.count("exit code 2: python -m lora.tune --task_name") == 2


@pytest.mark.parametrize("words", [["nosuch"], ["lora", "--tasks", "nosuch"], []])
def test_an_unknown_method_or_task_or_no_arguments_are_refused(words):
    done = sweep("run_tune.sh", *words)
    _, said = done.communicate(timeout=60)
    assert done.returncode == 2
    assert said.startswith("error: ") if words else said == ""
