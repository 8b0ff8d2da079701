"""A task of one's own data or text, as options name it and result rows and adapters describe it."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from common.errors import InputError, check, check_types
from common.metrics import NAMES
from common.targets import Classes, Score
from common.tasks import TASKS, GlueTask, Source, find


@dataclass(frozen=True)
class OwnTask(GlueTask):
    """A task of one's own files, with one validation split."""

    splits: dict[str, Source] = field(default_factory=dict, hash=False)
    synthetic: str = ""

    @property
    def targets(self) -> Classes | Score:
        """Classes, or scores of any size that float32 holds."""
        return Classes(self.labels) if self.labels else Score(-3e38, 3e38, ".6g")

    @property
    def validations(self) -> tuple[str, ...]:
        return ("validation",)

    @property
    def facts(self) -> dict[str, Any]:
        """What describes it in a result row or an adapter's config, see `of`."""
        return {
            "text_fields": self.texts,
            "label_field": self.file_label,
            "labels": self.labels,
            "metrics": self.metrics,
        }


@dataclass(frozen=True)
class TextTask(OwnTask):
    """Masked language modelling of one's own text, see common/masked_lm.py."""

    texts: tuple[str, ...] = ("text",)
    labels: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ("log_likelihood",)
    also: tuple[str, ...] = ("perplexity", "accuracy")
    floor: ClassVar[str] = "unigram model"
    mask_share: float = 0.15
    whole_words: bool = False
    line_by_line: bool = False

    @property
    def facts(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("mask_share", "whole_words", "line_by_line")}


@dataclass(frozen=True)
class Search:
    """How a text is searched for, see common/decoding.py."""

    num_beams: int = 5
    max_new_tokens: int = 100
    length_penalty: float = 1.0
    no_repeat_ngram_size: int = 0

    def __post_init__(self) -> None:
        check_types(self)
        beams, new, penalty, size = vars(self).values()
        check(
            {
                f"num_beams is {beams}: choose from 1 to 1,000": not 1 <= beams <= 1_000,
                f"max_new_tokens is {new}: choose from 1 to 1,000,000": not 1 <= new <= 1_000_000,
                f"length_penalty is {penalty}: choose a finite number": not math.isfinite(penalty),
                f"no_repeat_ngram_size is {size}: choose from 0 to 1,000,000": not 0 <= size <= 1_000_000,
            }
        )


SEARCH = tuple(vars(Search()))
"""The options of the search for a text."""


def search_of(values: Mapping[str, Any], usual: Search = Search()) -> Search:
    """The search that options or a row describe; what they have not, or None, is as usual."""
    return replace(usual, **{name: values[name] for name in SEARCH if values.get(name) is not None})


@dataclass(frozen=True)
class GeneratedTask(OwnTask):
    """Generating a target text from a source, such as a sentence from a table, see common/generation.py."""

    texts: tuple[str, ...] = ("source", "target")
    labels: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ("log_likelihood",)
    also: tuple[str, ...] = field(default=("perplexity", "accuracy"), compare=False)  # METEOR is not everywhere
    floor: ClassVar[str] = "constant answer"
    search: Search = Search()
    prefix: str = ""
    """Text before every source."""

    @property
    def of_epochs(self) -> tuple[str, ...]:
        return tuple(name for name in self.reported if name not in OF_TEXT)

    @property
    def facts(self) -> dict[str, Any]:
        fields = {"source_field": self.texts[0], "target_field": self.texts[1]}
        return fields | ({"source_prefix": self.prefix} if self.prefix else {}) | vars(self.search)


OF_TEXT = ("bleu", "chrf", "rouge_l", "meteor", "bertscore")
"""Scores of generated texts, see common/text_metrics.py."""
IN_HUNDREDS = ("bleu", "chrf")
"""Scores from 0 to 100, in the units of sacrebleu."""
LANGUAGES = ("english", "hsilgne")
"""The two languages of the synthetic text, see common/synthetic.py."""
PAIRS = ("events", "translation")
"""The tasks of the synthetic pairs: from tables to sentences, and from one of these languages to the other."""


def is_name(name: str) -> bool:
    """Whether a text can be the name of a task of one's own data, which is also the name of a folder."""
    return name not in TASKS and re.fullmatch(r"\w[\w.+-]{0,99}", name) is not None


def of(row: Mapping[str, Any]) -> GlueTask:
    """The task of a result row or of an adapter's config: one of the table, or one's own, which the row describes.

    Raises:
        InputError: an unknown or impossible name, or a damaged description.
    """
    name: Any = row.get("task_name")
    label: Any = row.get("label_field")
    if "mask_share" in row:
        return _text_task(row)
    if "max_new_tokens" in row:
        return _generated_task(row)
    if label is None:
        return find(str(name))
    lists = {key: row.get(key) for key in ("text_fields", "labels", "metrics")}
    texts, labels, metrics = (tuple(each) if isinstance(each, list | tuple) else (None,) for each in lists.values())
    are_texts = all(isinstance(word, str) for word in (name, label, *texts, *labels, *metrics))
    if not (are_texts and is_name(name) and len(texts) in (1, 2) and metrics and set(metrics) <= set(NAMES)):
        raise InputError(f"the description of the task {name!r} is damaged: {lists | {'label_field': label}}")
    return OwnTask(name, texts, labels, metrics, file_label=label)


def _text_task(row: Mapping[str, Any]) -> TextTask:
    name, share, *flags = (row.get(key) for key in ("task_name", "mask_share", "whole_words", "line_by_line"))
    if type(share) is not float or not all(type(flag) is bool for flag in flags):
        found = f"mask_share is {share}, whole_words and line_by_line are {flags}"
        raise InputError(f"the row of {name!r} is damaged: {found}")
    if not isinstance(name, str) or not is_name(name):
        raise InputError(f"{name!r} cannot be the name of a text")
    return TextTask(name, mask_share=share, whole_words=flags[0] is True, line_by_line=flags[1] is True)


def _generated_task(row: Mapping[str, Any]) -> GeneratedTask:
    name, *fields = (row.get(key) for key in ("task_name", "source_field", "target_field"))
    prefix = row.get("source_prefix", "")
    if not all(isinstance(text, str) for text in (name, prefix, *fields)) or not is_name(str(name)):
        raise InputError(f"the row of {name!r} is damaged: its source and target are {fields}, after {prefix!r}")
    of_text = (metric for metric in OF_TEXT if f"dev_{metric}" in row)
    also = (*GeneratedTask.also, *of_text)
    return GeneratedTask(str(name), tuple(map(str, fields)), also=also, search=search_of(row), prefix=prefix)
