"""The table of tasks agrees with the benchmarks."""

import pytest

from common.errors import InputError
from common.metrics import METRICS
from common.synthetic import GENERATORS
from common.tasks import AVERAGED, GLUE, SUPERGLUE, TASKS, TRAINED, find, held_out


def test_nine_tasks_are_trained_and_eleven_files_are_submitted():
    assert set(AVERAGED) == {"cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli"}
    files = {task.submission for task in TASKS.values() if "test" in task.splits and task.benchmark == GLUE}
    assert files == {
        "CoLA.tsv", "SST-2.tsv", "MRPC.tsv", "STS-B.tsv", "QQP.tsv", "MNLI-m.tsv", "MNLI-mm.tsv", "QNLI.tsv",
        "RTE.tsv", "WNLI.tsv", "AX.tsv",
    }  # fmt: skip


def test_four_tasks_of_superglue_are_trained_and_files_of_their_names_submitted():
    of_superglue = [TASKS[name] for name in TRAINED if name not in AVERAGED]
    assert {task.benchmark for task in of_superglue} == {SUPERGLUE}
    files = {task.name: (task.submission, task.test_rows) for task in of_superglue}
    assert files == {
        "boolq": ("BoolQ.jsonl", 3_245), "cb": ("CB.jsonl", 250), "copa": ("COPA.jsonl", 500),
        "superglue_rte": ("RTE.jsonl", 3_000),
    }  # fmt: skip


def test_class_order_is_that_of_the_hub():
    assert find("rte").labels == find("qnli").labels == ("entailment", "not_entailment")
    assert find("mnli").labels == ("entailment", "neutral", "contradiction")
    assert find("wnli").labels == ("not_entailment", "entailment")
    assert find("boolq").labels == ("False", "True")
    assert find("cb").labels == ("entailment", "contradiction", "neutral")
    assert find("copa").labels == ("choice1", "choice2")
    assert find("superglue_rte").labels == find("rte").labels
    assert not find("stsb").targets.has_classes


def test_the_metrics_are_the_official_ones():
    wanted = {
        "cola": ("matthews_correlation",),
        "mrpc": ("accuracy", "f1"),
        "qqp": ("accuracy", "f1"),
        "stsb": ("pearson", "spearmanr"),
        "ax": ("matthews_correlation",),
        "cb": ("accuracy", "f1_macro"),
    }
    assert all(task.metrics == wanted.get(name, ("accuracy",)) for name, task in TASKS.items())


def test_one_model_predicts_the_three_test_sets_of_mnli():
    assert [task.name for task in held_out("mnli")] == ["mnli-m", "mnli-mm", "ax"]
    assert [task.name for task in held_out("ax")] == ["ax"]
    assert {task.trained_as for task in held_out("mnli")} == {"mnli"}


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_every_entry_is_complete(task):
    assert len(task.texts) == len(task.file_texts or task.texts)
    assert len(task.labels) == len(task.file_labels or task.labels)
    assert set(task.reported) <= set(METRICS)
    assert not set(task.also) & set(task.metrics)
    assert task.synthetic in GENERATORS
    assert ("test" in task.splits) == bool(task.submission)


def test_an_unknown_task_is_refused_with_the_known_ones():
    with pytest.raises(InputError, match=r"unknown task 'glue': choose one of cola, sst2"):
        find("glue")
