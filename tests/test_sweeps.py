"""Shell sweeps run everything once, resume where they stopped, and list at the end what failed."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import REPOSITORY, exits_with_one_line

from common import methods, tasks
from common.runs import CHECKPOINT
from common.study.grid import commands
from scripts import grid

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
    words = f"lora --launch python --tasks rte sst2 --checkpoints {bert} --data demo --output_dir {tmp_path}"
    words += " --lr 1e-3 --rank 2 --n_epochs 2 --max_train_samples 64 --max_eval_samples 20 --batch_size 4"
    return shlex.split(words + " --checkpoint_every 3 --report_to none")


@pytest.mark.parametrize("method", methods.names())
def test_every_grid_but_that_of_full_fine_tuning_has_eight_configurations(method):
    """All methods have the same number of trials, but full fine-tuning has the grid of the mirrored repository."""
    lines = list(commands("tune", method, ["rte"], ["minilm"], ["1", "2"], []))
    assert len(lines) == len(set(map(tuple, lines))) == 2 * (24 if method == "baseline" else 8)
    everything = commands("tune", method, [], [], [], ["--lr", "1e-3"])
    assert {line[line.index("--task_name") + 1] for line in everything} == set(tasks.AVERAGED)  # all of GLUE


def test_an_option_that_is_given_is_not_varied():
    lines = list(commands("tune", "lora", ["rte"], [], [], ["--rank=2", "--n-epochs", "1"]))
    assert [" ".join(line) for line in lines] == [
        f"lora.tune --task_name rte --lr {lr} --rank 2 --n_epochs 1" for lr in ("0.0001", "0.0005")
    ]


def test_an_option_with_several_values_is_varied_over_them():
    words = [
        "--vary_rank",
        "1",
        "2",
        "--vary-lr",
        "1e-3",
        "2e-3",
        "--n_epochs",
        "3",
        "--betas",
        "0.9",
        "0.99",
        "--debug",
    ]
    assert [" ".join(line) for line in commands("tune", "lora", ["rte"], [], [], words)] == [
        f"lora.tune --task_name rte --lr {one}e-3 --rank {other} --n_epochs 3 --betas 0.9 0.99 --debug"
        for one in (1, 2) for other in (1, 2)
    ]  # fmt: skip
    words = ["--vary_lr", "1e-3", "2e-3", "--sizes", "1", "8"]
    assert [" ".join(line) for line in commands("experiment", "lora", ["rte"], [], [], words)] == [
        f"lora.experiment --task_name rte --lr {one}e-3 --sizes 1 8" for one in (1, 2)
    ]


def test_a_value_with_spaces_is_one_value(tmp_path):
    """Only the words of an option that takes several are separated."""
    folder = tmp_path / "my encoder"
    folder.mkdir()
    words = ["--output_dir", "my results", "--vary_targets", "query value", "key", "--lr", "1e-3", "--n_epochs", "1"]
    lines = list(commands("tune", "lora", ["rte"], [str(folder)], [], [*words, "--rank", "2"]))
    shared = ["--output_dir", "my results", "--lr", "1e-3", "--n_epochs", "1", "--rank", "2"]
    assert lines == [
        ["lora.tune", "--task_name", "rte", "--checkpoint", str(folder), "--targets", *targets, *shared]
        for targets in (["query", "value"], ["key"])
    ]
    (line,) = commands("tune", "prompt", ["rte"], [], [], shlex.split("--init text --vary_init_text 'a b' --vary_lr 1 "
        "--vary_n_epochs 1 --prompt_length 3"))  # fmt: skip
    assert line[line.index("--init_text") + 1] == "a b"


def test_a_checkpoint_folder_with_a_space_in_its_name_is_one_checkpoint(bert, tmp_path):
    """Through the shell too."""
    folder = shutil.copytree(bert, tmp_path / "my encoder")
    words = ["lora", "--launch", "python", "--tasks", "rte", "--checkpoints", str(folder), "minilm"]
    words += ["--lr", "1e-3", "--n_epochs", "1", "--rank", "2"]
    done = sweep("run_tune.sh", *words, "--dry_run")
    printed, said = done.communicate(timeout=60)
    assert done.returncode == 0, said
    assert [shlex.split(line)[5:7] for line in printed.splitlines()] == [
        ["--checkpoint", str(folder)], ["--checkpoint", "minilm"]
    ]  # fmt: skip


def test_an_experiment_trains_the_seeds_that_are_given_and_no_others():
    lines = commands("experiment", "lora", ["rte"], [], ["44", "42", "43", "7", "42"], [])
    assert [line[3:] for line in lines] == [["--seed", "7", "--n_seeds", "1"], ["--seed", "42", "--n_seeds", "3"]]
    assert [line[3:] for line in commands("experiment", "lora", ["rte"], [], [], [])] == [[]]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("tune lora --rnak 8", "Unrecognized options: --rnak"),
        ("tune lora --rank 0", "rank is 0"),
        ("tune lora --vary_rank 4 0", "rank is 0"),
        ("tune lora --vary_rank", "--vary_rank: give at least one value"),
        ("tune lora --vary_rank 4 --rank 8", "no --rank beside it"),
        ("tune lora --lr '1e-4 5e-4'", "to try several, --vary_lr 1e-4 5e-4"),
        ("tune lora --task_name rte", "--task_name is given, but --tasks decides it"),
        ("tune lora --seeds 1 2 --seed 3", "--seed is given, but --seeds decides it"),
        ("tune lora --seeds 1 x", "no seed 'x'"),
        ("tune lora --seeds 4294967296", "seed is 4294967296"),
        ("experiment lora --seeds 1 2 --n_seeds 3", "--n_seeds is given, but --seeds decides it"),
        ("experiment lora --rank 8", "Unrecognized options: --rank"),
        ("tune lora --checkpoints 'minilm bert-base-uncased'", "no folder 'minilm bert-base-uncased'"),
        ("test lora --seeds 1", "Unrecognized options: --seed"),
        ("tune lora --lr 1 --lr 2", "--lr is given 2 times"),
    ],
)
def test_a_wrong_option_is_one_line_before_the_first_run(words, said, capfd):
    assert said in exits_with_one_line(capfd, *shlex.split(words), program=grid.main)


def test_the_number_of_runs_and_a_guess_at_the_time_are_said_first(tmp_path, monkeypatch, capsys):
    words = f"grid tune lora --plan --tasks rte cola --lr 1e-3 --rank 4 --output_dir {tmp_path}"
    monkeypatch.setattr(sys, "argv", words.split())
    grid.main()
    assert capsys.readouterr().err == "4 runs; no finished run tells how long one takes\n"
    result = {"method": "lora", "run": "a", "task_name": "rte", "data": "hub", "checkpoint": "minilm", "seed": 1}
    result |= {"frozen_dtype": "float32", "n_epochs": 1, "best_epoch": 1, "validation_examples": 9, "total_params": 1}
    result |= dict.fromkeys(("trainable_params_without_head", "trainable_params", "examples_per_second"), 1)
    result |= dict.fromkeys(("best_score", "majority_score", "best_accuracy", "majority_accuracy"), 0.5)
    for name, seconds in (("a", 100.0), ("b", 50.0), ("c", "damaged")):
        folder = tmp_path / "lora" / "rte" / name
        folder.mkdir(parents=True)
        (folder / "result.json").write_text(json.dumps(result | {"train_seconds": seconds}))
    grid.main()
    said = "4 runs, about 0:05:00 if each takes as long as the finished runs\n"
    assert capsys.readouterr().err == said


def test_a_dry_run_prints_the_commands_and_runs_none(small, tmp_path):
    done = sweep("run_tune.sh", *small, "--dry_run")
    said, _ = done.communicate(timeout=60)
    assert [line.split()[:5] for line in said.splitlines()] == [
        ["python", "-m", "lora.tune", "--task_name", task] for task in ("rte", "sst2")
    ]
    assert not list(tmp_path.iterdir())


@pytest.mark.long
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
    failing = [word if word != "sst2" else "wnli" for word in small]
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
