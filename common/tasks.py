"""The table of tasks of GLUE and SuperGLUE (Wang et al., 2019). No other code depends on a particular task."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from common.errors import InputError
from common.targets import Classes, Score


@dataclass(frozen=True)
class Benchmark:
    """A collection of tasks that share a data set on the hub and an official download."""

    name: str
    hub: str
    """The hub's data set."""


GLUE = Benchmark("GLUE", "nyu-mll/glue")
SUPERGLUE = Benchmark("SuperGLUE", "aps/super_glue")


@dataclass(frozen=True)
class Source:
    """The location of one split of a task: on the hub, and in the official download."""

    hub: tuple[str, str]
    """Configuration and split of the benchmark's data set on the hub."""
    file: str
    """Path inside the official download: a TSV file, or JSON lines if it ends in .jsonl."""
    header: tuple[str, ...] = ()
    """Column names of a file without a header line."""
    broken_rows: int = 0
    """Number of lines of the official file that may lack fields. They are skipped, as on the hub, with a message."""


@dataclass(frozen=True)
class GlueTask:
    """One task of GLUE or SuperGLUE. Class indices are those of the hub's data set, also for the official files."""

    name: str
    texts: tuple[str, ...]
    """Text columns on the hub: one sentence or a pair; or premise, question and choices, see `questions`."""
    labels: tuple[str, ...]
    """Class names in the hub's order; empty for a regression."""
    metrics: tuple[str, ...]
    """Official metrics; the score of a run is their mean, as in the GLUE average."""
    splits: dict[str, Source] = field(hash=False)
    """`train`, one or more `validation...` (the first one selects the best epoch), `test`."""
    synthetic: str
    """Generator of the demo data, see common/synthetic.py."""
    submission: str = ""
    """File name of the submission."""
    test_rows: int = 0
    """Examples in the official test set."""
    file_texts: tuple[str, ...] = ()
    """Text columns in the official files, if they differ from the hub's."""
    file_label: str = "label"
    """Label column in the official files."""
    file_labels: tuple[str, ...] = ()
    """Class names in the official files and in a submission, in the order of `labels`, if they differ from them."""
    trained_as: str = ""
    """For a task with a test set only: the task whose model is used."""
    benchmark: Benchmark = GLUE
    also: tuple[str, ...] = ()
    """Further metrics that are reported. They are not part of the score."""
    questions: Mapping[str, str] = field(default_factory=dict, hash=False)
    """For multiple choice: word in the second text column -> the question about the first one that it stands for. The
    columns after it are the choices; empty for other tasks."""

    floor: ClassVar[str] = "majority class"
    """What has the scores of `majority_...` in a row: a constant answer."""

    @property
    def reported(self) -> tuple[str, ...]:
        """All metrics, the official ones first."""
        return self.metrics + self.also

    @property
    def of_epochs(self) -> tuple[str, ...]:
        """Those of them that are known after every epoch."""
        return self.reported

    @property
    def n_texts(self) -> int:
        """Texts of a sequence: 1, or 2 for a pair."""
        return 2 if self.questions else len(self.texts)

    @property
    def n_outputs(self) -> int:
        """Outputs of the head: a choice is scored by itself, with one output."""
        return 1 if self.questions else self.targets.n_outputs

    @property
    def targets(self) -> Classes | Score:
        """Classes or scores, as in the official files."""
        return Classes(self.file_labels or self.labels) if self.labels else Score()

    def suffix(self, split: str) -> str:
        """The suffix of score names on a validation split; empty for the first split."""
        return "" if split == self.validations[0] else "_" + split.removeprefix("validation_")

    @property
    def validations(self) -> tuple[str, ...]:
        return tuple(split for split in self.splits if split.startswith("validation"))


def _splits(config: str, folder: str, header: tuple[str, ...] = (), broken_rows: int = 0) -> dict[str, Source]:
    return {
        "train": Source((config, "train"), f"{folder}/train.tsv", header, broken_rows),
        "validation": Source((config, "validation"), f"{folder}/dev.tsv", header),
        "test": Source((config, "test"), f"{folder}/test.tsv"),
    }


def _superglue(config: str, folder: str) -> dict[str, Source]:
    files = {"train": "train", "validation": "val", "test": "test"}
    return {split: Source((config, split), f"{folder}/{file}.jsonl") for split, file in files.items()}


_PAIR = ("sentence1", "sentence2")
_BINARY = ("0", "1")
_ENTAILMENT = ("entailment", "not_entailment")
_INFERENCE = ("entailment", "neutral", "contradiction")

_TASKS = (
    GlueTask(
        "cola",
        texts=("sentence",),
        labels=("unacceptable", "acceptable"),
        file_labels=_BINARY,
        metrics=("matthews_correlation",),
        splits=_splits("cola", "CoLA", header=("source", "label", "star", "sentence")),
        submission="CoLA.tsv",
        test_rows=1_063,
        synthetic="acceptability",
    ),
    GlueTask(
        "sst2",
        texts=("sentence",),
        labels=("negative", "positive"),
        file_labels=_BINARY,
        metrics=("accuracy",),
        splits=_splits("sst2", "SST-2"),
        submission="SST-2.tsv",
        test_rows=1_821,
        synthetic="sentiment",
    ),
    GlueTask(
        "mrpc",
        texts=_PAIR,
        labels=("not_equivalent", "equivalent"),
        file_texts=("#1 String", "#2 String"),
        file_label="Quality",
        file_labels=_BINARY,
        metrics=("accuracy", "f1"),
        splits=_splits("mrpc", "MRPC"),
        submission="MRPC.tsv",
        test_rows=1_725,
        synthetic="paraphrase",
    ),
    GlueTask(
        "stsb",
        texts=_PAIR,
        labels=(),
        file_label="score",
        metrics=("pearson", "spearmanr"),
        splits=_splits("stsb", "STS-B"),
        submission="STS-B.tsv",
        test_rows=1_379,
        synthetic="similarity",
    ),
    GlueTask(
        "qqp",
        texts=("question1", "question2"),
        labels=("not_duplicate", "duplicate"),
        file_label="is_duplicate",
        file_labels=_BINARY,
        metrics=("accuracy", "f1"),
        splits=_splits("qqp", "QQP", broken_rows=10),
        submission="QQP.tsv",
        test_rows=390_965,
        synthetic="duplicate_question",
    ),
    GlueTask(
        "mnli",
        texts=("premise", "hypothesis"),
        labels=_INFERENCE,
        file_texts=_PAIR,
        file_label="gold_label",
        metrics=("accuracy",),
        splits={
            "train": Source(("mnli", "train"), "MNLI/train.tsv"),
            "validation_matched": Source(("mnli", "validation_matched"), "MNLI/dev_matched.tsv"),
            "validation_mismatched": Source(("mnli", "validation_mismatched"), "MNLI/dev_mismatched.tsv"),
        },
        synthetic="inference",
    ),
    GlueTask(
        "mnli-m",
        texts=("premise", "hypothesis"),
        labels=_INFERENCE,
        file_texts=_PAIR,
        metrics=("accuracy",),
        splits={"test": Source(("mnli", "test_matched"), "MNLI/test_matched.tsv")},
        submission="MNLI-m.tsv",
        test_rows=9_796,
        trained_as="mnli",
        synthetic="inference",
    ),
    GlueTask(
        "mnli-mm",
        texts=("premise", "hypothesis"),
        labels=_INFERENCE,
        file_texts=_PAIR,
        metrics=("accuracy",),
        splits={"test": Source(("mnli", "test_mismatched"), "MNLI/test_mismatched.tsv")},
        submission="MNLI-mm.tsv",
        test_rows=9_847,
        trained_as="mnli",
        synthetic="inference",
    ),
    GlueTask(
        "qnli",
        texts=("question", "sentence"),
        labels=_ENTAILMENT,
        metrics=("accuracy",),
        splits=_splits("qnli", "QNLI"),
        submission="QNLI.tsv",
        test_rows=5_463,
        synthetic="answerability",
    ),
    GlueTask(
        "rte",
        texts=_PAIR,
        labels=_ENTAILMENT,
        metrics=("accuracy",),
        splits=_splits("rte", "RTE"),
        submission="RTE.tsv",
        test_rows=3_000,
        synthetic="entailment",
    ),
    GlueTask(
        "wnli",
        texts=_PAIR,
        labels=("not_entailment", "entailment"),
        file_labels=_BINARY,
        metrics=("accuracy",),
        splits=_splits("wnli", "WNLI"),
        submission="WNLI.tsv",
        test_rows=146,
        synthetic="coreference",
    ),
    GlueTask(
        "ax",
        texts=("premise", "hypothesis"),
        labels=_INFERENCE,
        file_texts=_PAIR,
        metrics=("matthews_correlation",),
        splits={"test": Source(("ax", "test"), "diagnostic/diagnostic.tsv")},
        submission="AX.tsv",
        test_rows=1_104,
        trained_as="mnli",
        synthetic="inference",
    ),
    GlueTask(
        "boolq",
        texts=("question", "passage"),
        labels=("False", "True"),
        file_labels=("false", "true"),
        metrics=("accuracy",),
        also=("f1", "f1_macro"),
        splits=_superglue("boolq", "BoolQ"),
        submission="BoolQ.jsonl",
        test_rows=3_245,
        synthetic="yes_or_no",
        benchmark=SUPERGLUE,
    ),
    GlueTask(
        "cb",
        texts=("premise", "hypothesis"),
        labels=("entailment", "contradiction", "neutral"),
        metrics=("accuracy", "f1_macro"),
        splits=_superglue("cb", "CB"),
        submission="CB.jsonl",
        test_rows=250,
        synthetic="commitment",
        benchmark=SUPERGLUE,
    ),
    GlueTask(
        "copa",
        texts=("premise", "question", "choice1", "choice2"),
        labels=("choice1", "choice2"),
        file_labels=_BINARY,
        metrics=("accuracy",),
        also=("f1_macro",),
        splits=_superglue("copa", "COPA"),
        submission="COPA.jsonl",
        test_rows=500,
        synthetic="causality",
        benchmark=SUPERGLUE,
        questions={"cause": "What was the cause of this?", "effect": "What happened as a result?"},  # as in jiant
    ),
    GlueTask(
        "superglue_rte",
        texts=("premise", "hypothesis"),
        labels=_ENTAILMENT,
        metrics=("accuracy",),
        also=("f1_macro",),
        splits=_superglue("rte", "RTE"),
        submission="RTE.jsonl",
        test_rows=3_000,
        synthetic="entailment",
        benchmark=SUPERGLUE,
    ),
)
TASKS: dict[str, GlueTask] = {task.name: task for task in _TASKS}

TRAINED = tuple(name for name, task in TASKS.items() if "train" in task.splits)
"""Names of tasks with a training set."""

AVERAGED = tuple(name for name in TRAINED if TASKS[name].benchmark == GLUE)
"""Names of the tasks in the GLUE average: those of GLUE with a training set."""

TESTED = tuple(TASKS)
"""Names of tasks with one or more test sets: all tasks; mnli has three."""


def find(name: str) -> GlueTask:
    """The task with this name. Raises InputError for an unknown name."""
    if name not in TASKS:
        raise InputError(f"unknown task {name!r}: choose one of {', '.join(TASKS)}")
    return TASKS[name]


def held_out(name: str) -> list[GlueTask]:
    """The test sets for a model of this task: the three of MNLI for mnli, else its own."""
    task = find(name)
    if "test" in task.splits:
        return [task]
    return [other for other in TASKS.values() if other.trained_as == name]
