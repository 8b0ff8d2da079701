"""The zip for the leaderboard holds the checked files of the best runs; missing files are reported."""

import json
import shutil
import sys
import zipfile

import pytest
from conftest import exits_with_one_line

from common import data, tasks
from common.submission import problem, submission_lines
from scripts import submission

SUBMITTED = [task for task in tasks.TASKS.values() if task.submission and task.benchmark == tasks.GLUE]


def test_the_eleven_files_have_the_sizes_that_the_leaderboard_wants():
    sizes = {task.submission.removesuffix(".tsv"): task.test_rows for task in SUBMITTED}
    assert sizes == {
        "CoLA": 1_063, "SST-2": 1_821, "MRPC": 1_725, "STS-B": 1_379, "QQP": 390_965, "MNLI-m": 9_796,
        "MNLI-mm": 9_847, "QNLI": 5_463, "RTE": 3_000, "WNLI": 146, "AX": 1_104,
    }  # fmt: skip


@pytest.fixture
def runs(tmp_path):
    """Two finished runs of every task on demo data: what a submission reads of them."""
    import numpy as np

    for name in tasks.AVERAGED:
        task = tasks.find(name)
        for number, score in enumerate((0.5, 0.7)):
            folder = tmp_path / "lora" / name / f"run{number}"
            folder.mkdir(parents=True)
            result = {"method": "lora", "run": folder.name, "task_name": name, "data": "demo", "checkpoint": "minilm"}
            result |= {"frozen_dtype": "float32", "seed": 1, "n_epochs": 1, "best_epoch": 1, "validation_examples": 9}
            result |= dict.fromkeys(("trainable_params_without_head", "trainable_params", "total_params"), 1)
            result |= {"best_score": score, "majority_score": 0.5, "examples_per_second": 1.0}
            result |= {f"{kind}_{metric}": score for metric in task.metrics for kind in ("best", "majority")}
            (folder / "result.json").write_text(json.dumps(result))
            for needed in ("adapter.json", "adapter.safetensors"):
                (folder / needed).touch()
            for test in tasks.held_out(name):
                n = len(data.read(test, "test", "demo"))
                lines = submission_lines(
                    test, np.eye(max(2, test.targets.n_outputs))[np.zeros(n, int)][:, : test.targets.n_outputs]
                )
                (folder / test.submission).write_text("\n".join(lines) + "\n")
    return tmp_path


def zipped(monkeypatch, runs, *words):
    out = runs / "submission.zip"
    arguments = ["submission", "lora", "--output_dir", str(runs), "--out", str(out), *words]
    monkeypatch.setattr(sys, "argv", arguments)
    submission.main()
    return {name: zipfile.ZipFile(out).read(name).decode() for name in zipfile.ZipFile(out).namelist()}


def test_the_zip_is_flat_and_holds_the_files_of_the_best_runs(monkeypatch, runs):
    (runs / "lora" / "rte" / "run0" / "RTE.tsv").write_text("of the worse run")
    files = zipped(monkeypatch, runs)
    assert set(files) == {task.submission for task in SUBMITTED}
    assert files["RTE.tsv"] == (runs / "lora" / "rte" / "run1" / "RTE.tsv").read_text()


def test_each_file_is_named_with_its_run(monkeypatch, runs, capsys):
    zipped(monkeypatch, runs)
    said = capsys.readouterr().out.splitlines()
    best = runs / "lora" / "rte" / "run1"
    assert f"RTE.tsv: {best} on minilm: the best of 2 runs, with the score 0.7000" in said
    assert sum(": the best of 2 runs" in line for line in said) == 11


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"checkpoint": "bert"}, "different encoders (minilm, bert): choose --checkpoint"),
        ({"data": "hub"}, "some files are of synthetic data, others are not: choose --data"),
    ],
)
def test_files_of_different_encoders_or_data_are_not_mixed(runs, capfd, change, said, monkeypatch):
    monkeypatch.setattr("common.submission.problem", lambda *_: "")
    for path in (runs / "lora" / "rte").rglob("result.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
    words = ["lora", "--output_dir", str(runs), "--out", str(runs / "s.zip")]
    assert said in exits_with_one_line(capfd, *words, program=submission.main)
    assert not (runs / "s.zip").exists()


def test_missing_files_are_reported_and_nothing_is_written(monkeypatch, runs, capfd):
    (runs / "lora" / "mnli" / "run1" / "AX.tsv").unlink()
    shutil.rmtree(runs / "lora" / "wnli")
    words = ["lora", "--output_dir", str(runs), "--out", str(runs / "s.zip")]
    line = exits_with_one_line(capfd, *words, program=submission.main)
    assert "2 of 11 files are missing: nothing was written" in line
    assert not (runs / "s.zip").exists()
    assert len(zipped(monkeypatch, runs, "--partial")) == 9
    said = capfd.readouterr().out
    assert "missing: AX.tsv: " in said
    assert "missing: WNLI.tsv: no finished lora run for wnli" in said


def test_a_file_that_is_not_utf_8_counts_as_missing(monkeypatch, runs, capfd):
    (runs / "lora" / "rte" / "run1" / "RTE.tsv").write_bytes(b"index\tprediction\n0\tentailment\xff\n")
    assert "RTE.tsv" not in zipped(monkeypatch, runs, "--partial")
    assert "RTE.tsv, line 2: not UTF-8" in capfd.readouterr().out


def test_no_zip_is_written_of_no_file(tmp_path, capfd):
    words = ["lora", "--output_dir", str(tmp_path), "--out", str(tmp_path / "s.zip"), "--partial"]
    assert "all files are missing: nothing was written" in exits_with_one_line(capfd, *words, program=submission.main)
    assert not (tmp_path / "s.zip").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda text: text.replace("prediction", "label", 1), "first line"),
        (lambda text: text.rpartition("\n2\t")[0] + "\n", "rows, wanted 3"),
        (lambda text: text.replace("\n1\t", "\n7\t"), "line 3 has the index '7', wanted 1"),
        (lambda text: text.replace("not_entailment", "no"), "has the prediction 'no', wanted one of entailment"),
        (lambda text: "", "first line"),
    ],
)
def test_a_wrong_file_is_reported(change, said):
    right = "index\tprediction\n0\tentailment\n1\tnot_entailment\n2\tentailment\n"
    assert problem(tasks.find("rte"), right, 3) == ""
    assert said in problem(tasks.find("rte"), change(right), 3)


def test_scores_outside_0_to_5_are_refused():
    answers = ("0.000", "5", "5.1", "nan", "")
    found = [x for x in answers if not problem(tasks.find("stsb"), f"index\tprediction\n0\t{x}\n", 1)]
    assert found == ["0.000", "5"]
