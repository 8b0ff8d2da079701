"""The table of GLUE tasks agrees with the benchmark."""

import pytest

from common.errors import InputError
from common.metrics import METRICS
from common.synthetic import GENERATORS
from common.tasks import TASKS, TRAINED, find, held_out


def test_nine_tasks_are_trained_and_eleven_files_are_submitted():
    assert set(TRAINED) == {"cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli"}
    files = {task.submission for task in TASKS.values() if "test" in task.splits}
    assert files == {
        "CoLA.tsv", "SST-2.tsv", "MRPC.tsv", "STS-B.tsv", "QQP.tsv", "MNLI-m.tsv", "MNLI-mm.tsv", "QNLI.tsv",
        "RTE.tsv", "WNLI.tsv", "AX.tsv",
    }  # fmt: skip


def test_class_order_is_that_of_the_hub():
    assert find("rte").labels == find("qnli").labels == ("entailment", "not_entailment")
    assert find("mnli").labels == ("entailment", "neutral", "contradiction")
    assert find("wnli").labels == ("not_entailment", "entailment")
    assert not find("stsb").targets.has_classes


def test_the_metrics_are_the_official_ones():
    wanted = {
        "cola": ("matthews_correlation",),
        "mrpc": ("accuracy", "f1"),
        "qqp": ("accuracy", "f1"),
        "stsb": ("pearson", "spearmanr"),
        "ax": ("matthews_correlation",),
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
    assert set(task.metrics) <= set(METRICS)
    assert task.synthetic in GENERATORS
    assert ("test" in task.splits) == bool(task.submission)


def test_an_unknown_task_is_refused_with_the_known_ones():
    with pytest.raises(InputError, match=r"unknown task 'glue': choose one of cola, sst2"):
        find("glue")
