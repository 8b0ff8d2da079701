"""Submission files have the format of the leaderboard and come from the right run."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from common import tasks
from common.errors import InputError
from common.options import PredictOptions
from common.prediction import answer
from common.results import find_run
from common.submission import submission_lines
from common.training import train
from lora.method import Lora

pytestmark = pytest.mark.slow


def answers(settings, **choice):
    return answer("lora", PredictOptions(output_dir=settings.output_dir, **choice))


@pytest.mark.parametrize(
    ("name", "labels"),
    [
        ("cola", {"0", "1"}),
        ("qnli", {"entailment", "not_entailment"}),
        ("wnli", {"0", "1"}),
        ("mnli-m", {"entailment", "neutral", "contradiction"}),
        ("ax", {"entailment", "neutral", "contradiction"}),
    ],
)
def test_classes_are_written_as_in_the_official_files(name, labels):
    task = tasks.find(name)
    lines = submission_lines(task, np.eye(task.targets.n_outputs))
    assert lines[0] == "index\tprediction"
    assert [line.split("\t")[0] for line in lines[1:]] == [str(index) for index in range(task.targets.n_outputs)]
    assert {line.split("\t")[1] for line in lines[1:]} == labels


def test_scores_are_clipped_to_the_range():
    lines = submission_lines(tasks.find("stsb"), np.array([[-0.2], [3.14159], [5.7]]))
    assert lines[1:] == ["0\t0.000", "1\t3.142", "2\t5.000"]


def test_answers_of_superglue_are_json_lines_with_the_idx_of_the_file():
    lines = submission_lines(tasks.find("boolq"), np.array([[0.0, 1.0], [1.0, 0.0]]))
    assert lines == ['{"idx": 0, "label": "true"}', '{"idx": 1, "label": "false"}']
    lines = submission_lines(tasks.find("copa"), np.array([[0.0, 1.0], [1.0, 0.0]]), [7, 5])
    assert lines == ['{"idx": 7, "label": 1}', '{"idx": 5, "label": 0}']
    assert submission_lines(tasks.find("cb"), np.eye(3))[2] == '{"idx": 2, "label": "neutral"}'


def test_the_file_has_a_line_for_each_test_example(options):
    settings = options(task_name="rte")
    folder, _ = train(Lora(rank=2), settings)
    (path,) = answers(settings, task_name="rte")
    assert path == folder / "RTE.tsv"
    lines = path.read_text().splitlines()
    assert len(lines) == 1 + 250
    assert lines[1].split("\t")[0] == "0"


def test_a_model_of_mnli_predicts_three_test_sets(options):
    settings = options(task_name="mnli")
    folder, _ = train(Lora(rank=2), settings)
    assert [path.name for path in answers(settings, task_name="mnli")] == ["MNLI-m.tsv", "MNLI-mm.tsv", "AX.tsv"]
    assert [path.name for path in answers(settings, run=str(folder))] == ["MNLI-m.tsv", "MNLI-mm.tsv", "AX.tsv"]
    assert [path.name for path in answers(settings, task_name="ax")] == ["AX.tsv"]


def test_predictions_do_not_depend_on_the_batch_size(options):
    settings = options()
    train(Lora(rank=2), settings)
    found = []
    for batch_size in (1, 64, 1000):
        (path,) = answers(settings, task_name="sst2", batch_size=batch_size)
        found.append(path.read_text())
    assert len(set(found)) == 1


def test_the_run_with_the_best_validation_score_is_taken(options):
    settings = options()
    folders = [train(Lora(rank=rank), settings)[0] for rank in (1, 2, 3)]
    for folder, score in zip(folders, (0.5, 0.9, 0.7), strict=True):
        result = json.loads((folder / "result.json").read_text()) | {"best_score": score}
        (folder / "result.json").write_text(json.dumps(result))
    assert find_run("lora", PredictOptions(task_name="sst2", output_dir=settings.output_dir)) == folders[1]


def test_a_score_on_fewer_validation_examples_does_not_win(options):
    settings = options()
    large = train(Lora(rank=1), settings)[0]
    small = train(Lora(rank=1), dataclasses.replace(settings, max_eval_samples=1))[0]
    for folder, score in ((large, 0.5), (small, 1.0)):
        result = json.loads((folder / "result.json").read_text()) | {"best_score": score}
        (folder / "result.json").write_text(json.dumps(result))
    assert find_run("lora", PredictOptions(task_name="sst2", output_dir=settings.output_dir)) == large


def test_runs_on_different_data_are_not_mixed(options):
    settings = options()
    demo = train(Lora(rank=1), settings)[0]
    other = train(Lora(rank=2), settings)[0]
    result = json.loads((other / "result.json").read_text()) | {"data": "hub", "best_score": 1.0}
    (other / "result.json").write_text(json.dumps(result))
    choice = PredictOptions(task_name="sst2", output_dir=settings.output_dir)
    with pytest.raises(InputError, match=r"different data \(demo, hub\)"):
        find_run("lora", choice)
    assert find_run("lora", dataclasses.replace(choice, data="demo")) == demo


def test_runs_on_different_encoders_are_not_mixed(options, checkpoints):
    settings = options()
    homes = {
        name: train(Lora(rank=1), dataclasses.replace(settings, checkpoint=name))[0]
        for name in (checkpoints["bert"], checkpoints["roberta"])
    }
    choice = PredictOptions(task_name="sst2", output_dir=settings.output_dir)
    with pytest.raises(InputError, match=r"have different encoders \(.*bert, .*roberta\): choose with --checkpoint"):
        find_run("lora", choice)
    assert {name: find_run("lora", dataclasses.replace(choice, checkpoint=name)) for name in homes} == homes


def test_the_chosen_run_is_named(options, capsys):
    settings = options()
    runs = dict(train(Lora(rank=rank), settings) for rank in (1, 2))
    answers(settings, task_name="sst2")
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "the best of 2 runs" in line)
    best = max(runs, key=lambda run: runs[run]["best_score"])
    score = runs[best]["best_score"]
    assert line.endswith(f" on {settings.checkpoint}: the best of 2 runs, with the score {score:.4f}")
    assert runs[Path(line.partition(" on ")[0])]["best_score"] == score


def test_runs_with_different_ways_of_selection_are_not_mixed(options):
    settings = options()
    homes = {
        select: train(Lora(rank=1), dataclasses.replace(settings, select=select))[0] for select in ("dev", "holdout")
    }
    choice = PredictOptions(task_name="sst2", output_dir=settings.output_dir)
    with pytest.raises(InputError, match="selected on dev and on holdout"):
        find_run("lora", choice)
    assert {way: find_run("lora", dataclasses.replace(choice, select=way)) for way in homes} == homes


def test_an_unfinished_run_is_not_taken(options):
    settings = options()
    folder, _ = train(Lora(rank=1), settings)
    (folder / "result.json").unlink()
    with pytest.raises(InputError, match="no finished lora run"):
        find_run("lora", PredictOptions(task_name="sst2", output_dir=settings.output_dir))
