"""What is left of a sentence encoder is measured with what a run adds, against the untouched encoder."""

import json
import subprocess
import sys

import pytest
from conftest import REPOSITORY

from baseline.method import Baseline
from benchmarks.forgetting import measure, untouched
from common.options import TuneOptions
from common.training import train
from parity.peft.method import Peft
from prompt.method import PromptTuning


@pytest.mark.parametrize(
    ("method", "is_same"), [(Baseline(top_k=0), True), (PromptTuning(3), False), (Baseline(), False)]
)
def test_only_what_changes_the_encoder_changes_the_correlation(method, is_same, bert, tmp_path):
    options = {"task_name": "sst2", "data": "demo", "checkpoint": bert, "n_epochs": 1, "batch_size": 8, "lr": 3e-2}
    options |= {"max_train_samples": 80, "max_eval_samples": 16, "output_dir": str(tmp_path), "report_to": ("none",)}
    row = measure(train(method, TuneOptions(**options))[0], "demo")
    assert row["before"] == untouched(bert, "demo")
    assert (abs(row["after"] - row["before"]) < 1e-3) == is_same


def test_a_folder_without_finished_runs_is_one_line(tmp_path):
    command = [sys.executable, "-m", "benchmarks.forgetting", str(tmp_path), "--data", "demo"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "holds no run" in done.stderr


@pytest.mark.long
def test_rows_are_appended_for_all_runs_below_a_folder(bert, tmp_path):
    home, out = tmp_path / "runs", tmp_path / "rows.jsonl"
    options = {"task_name": "sst2", "data": "demo", "checkpoint": bert, "n_epochs": 1, "max_train_samples": 8}
    for seed in (1, 2):
        train(Baseline(0), TuneOptions(**options, seed=seed, output_dir=str(home), report_to=("none",)))
    train(Peft("prompt"), TuneOptions(**options, output_dir=str(home), report_to=("none",)))
    command = [sys.executable, "-m", "benchmarks.forgetting", str(home), "--data", "demo", "--out", str(out)]
    for _ in range(2):  # the second time, nothing is measured again
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "calls its encoder in another way: leave it out" in done.stderr
        rows = [json.loads(line) for line in out.read_text().splitlines()]
        assert [(row["seed"], row["data"], row["top_k"]) for row in rows] == [(1, "demo", 0), (2, "demo", 0)]
    assert done.stdout == ""
