"""Dataclasses -> command line. Each field below defines one option, its default and its help text."""

import argparse
import contextlib
import importlib.util
import io
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, make_dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, NoReturn, get_type_hints

from common import metrics, own_task
from common.errors import InputError, all_at_once, check, check_types, one_line_errors
from common.own_task import LANGUAGES, PAIRS, Search
from common.runtime.files import one_spelling, read_json, read_yaml
from common.tasks import TESTED, TRAINED

TrainedTask = Literal[TRAINED]  # type: ignore[valid-type]  # computed from the table of tasks
TestedTask = Literal[TESTED]  # type: ignore[valid-type]
Pooling = Literal["pooler", "trained_pooler", "cls", "mean"]
Selection = Literal["dev", "holdout", "holdout_only"]
Metric = Literal[metrics.NAMES]  # type: ignore[valid-type]
MANY = 10**8
"""Larger counts are a mistake. Products of two of them still fit into 64 bits."""
MANY_SEEDS = 10**4


@dataclass(frozen=True)
class TuneOptions:
    """Options of the training loop, the same for every method."""

    command: ClassVar[str] = "tune"
    """The command that has these options: python -m METHOD.tune."""

    checkpoint: str = "bert-base-uncased"
    """Pretrained encoder: a hub name, a local folder, minilm (comes with the requirements) or mpnet (make mpnet)."""
    task_name: TrainedTask | str = "mrpc"
    """Task of GLUE or SuperGLUE; a name of your choice for your own data, otherwise that of their file or folder."""
    data: str = "hub"
    """hub (nyu-mll/glue, aps/super_glue), a folder with the official download, demo (synthetic), or your own file or
    folder."""
    text_fields: tuple[str, ...] = ()
    """Columns of the text or the two texts in your own data; default: text."""
    label_field: str | None = None
    """Column of the labels in your own data; must be given for them."""
    metric: tuple[Metric, ...] = ()
    """Metrics for your own data, whose mean selects the best epoch; default: accuracy and f1 (of two classes) or
    f1_macro, or for labels that are floats pearson and spearmanr."""
    lr: float | None = None
    """Peak learning rate of AdamW; None = the method's default."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Betas of AdamW."""
    eps: float = 1e-6
    """Epsilon of AdamW."""
    weight_decay: float = 0.01
    """Weight decay of trained matrices; vectors (biases, LayerNorms) have none."""
    batch_size: int = 32
    """Examples per process and forward pass."""
    eval_batch_size: int = 64
    """Examples per process and forward pass in evaluation."""
    gradient_accumulation_steps: int = 1
    """Forward passes per optimizer step."""
    warmup_ratio: float = 0.1
    """Fraction of the steps in which the learning rate rises linearly from 0."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """The learning rate after that: it falls to 0 linearly or along half a cosine, or stays."""
    n_epochs: int = 3
    """Passes over the training set."""
    max_grad_norm: float = 1.0
    """Maximal gradient norm, for clipping; 0 = no clipping."""
    padding: Literal["none", "batch"] = "none"
    """none: sequences of a batch are packed, so that no time is spent on padding; batch: pad to the longest one."""
    frozen_dtype: Literal["float32", "bfloat16", "auto"] = "auto"
    """Type of frozen weights; trained weights are float32. auto: bfloat16 on a GPU launched in bf16, else float32."""
    reference: bool = False
    """Run without the fast path, for checks: plain modules, padded batches, torch's dropout and matrix products."""
    pooling: Pooling | None = None
    """What the head reads. pooler: the first token through BERT's pretrained pooler; trained_pooler: the same, trained
    with the head; cls: the first token; mean: the mean of the text's tokens; None = the pooler, or without one cls, or
    what the config of a ModernBERT says."""
    on: str | None = None
    """Folder of a finished run, such as one on MNLI: begin with the values that it trained, if it has the same method,
    and else add the method on top of its model, which is frozen. The head is always new. None = the encoder alone."""
    stack: bool = False
    """Add the method on top of the frozen model of --on, also if that has the same method."""
    max_length: int | None = None
    """Maximal number of tokens of an input, cutting the longer text of a pair first; None = the encoder's maximum."""
    param_budget: int | None = None
    """Choose the largest size of the method (rank, bottleneck, length, ...) with at most this many trained parameters,
    not counting the head, to compare methods at one budget. At most half of the encoder's positions are taken."""
    select: Selection = "dev"
    """Selects the best epoch. dev: the development set; holdout: a fixed tenth of the training set, not trained on.
    The development set is then scored only once, at the end (dev_... in the result), so that it selects nothing.
    holdout_only: the same tenth, however few max_train_samples are trained on, and no development set is read."""
    seed: int = 42
    """Seed of the initial weights of head and method, of the batches and of dropout."""
    max_train_samples: int | None = None
    """Train on this many random examples, the same ones in every run; None = all."""
    max_eval_samples: int | None = None
    """Validate on this many random examples, the same ones in every run; None = all."""
    output_dir: str = "outputs"
    """Runs are saved in OUTPUT_DIR/METHOD/TASK/RUN."""
    report_to: tuple[str, ...] = ("tensorboard",)
    """csv (scalars.csv in the run folder), trackers that accelerate knows (tensorboard, wandb, mlflow, ...), all, or
    none."""
    resume: bool = True
    """Resume an unfinished run from its last checkpoint, with the same result; --no_resume restarts it."""
    checkpoint_every: int | None = None
    """Save a checkpoint every so many optimizer steps, besides the one after every epoch; None = only after epochs."""
    time_limit: float | None = None
    """Minutes after which the run saves a checkpoint and ends with exit code 75, as after SIGTERM or SIGUSR1."""
    max_bad_steps: int = 10
    """Steps with a non-finite gradient are skipped; after this many of them the run ends with an error."""
    overwrite: bool = False
    """Repeat a finished run."""
    debug: bool = False
    """Show the traceback of an error."""

    def __post_init__(self) -> None:
        check_types(self)
        _spell_paths(self)
        self.settle_data()
        at_least_one = ("batch_size", "eval_batch_size", "gradient_accumulation_steps", "n_epochs", "max_bad_steps")
        optional = ("max_length", "param_budget", "max_train_samples", "max_eval_samples", "checkpoint_every")
        counts = {name: getattr(self, name) for name in (*at_least_one, *optional)}
        check(
            {
                f"lr is {self.lr}: choose a number above 0": self.lr is not None and not 0 < self.lr < float("inf"),
                f"betas are {self.betas}: choose numbers from 0 to below 1": not all(0 <= b < 1 for b in self.betas),
                f"eps is {self.eps}: choose a number above 0": not 0 < self.eps < 1,
                f"weight_decay is {self.weight_decay}: choose at least 0": not 0 <= self.weight_decay < float("inf"),
                f"warmup_ratio is {self.warmup_ratio}: choose from 0 to 1": not 0 <= self.warmup_ratio <= 1,
                f"max_grad_norm is {self.max_grad_norm}: choose at least 0 (0 = no clipping)": (
                    not 0 <= self.max_grad_norm < float("inf")
                ),
                f"time_limit is {self.time_limit}: choose a number above 0": (
                    self.time_limit is not None and not self.time_limit > 0
                ),
                "stack is given without on: give the folder of a run with --on": self.stack and self.on is None,
                "reference and frozen_dtype bfloat16: leave one of them out": (
                    self.reference and self.frozen_dtype == "bfloat16"
                ),
                f"seed is {self.seed}: choose from 0 to 2**32 - 1": not 0 <= self.seed < 2**32,
            }
            | {f"{k} is {v}: choose at least 1": v is not None and v < 1 for k, v in counts.items()}
            | {f"{k} is {v}: choose at most {MANY:,}": v is not None and v > MANY for k, v in counts.items()}
        )

    def settle_data(self) -> None:
        """Check the options that describe the data, and set those of them that are left open."""
        _settle_own_data(self)

    def for_method(self, method: Any) -> "TuneOptions":
        """The same options with the learning rate of a method in place of None."""
        return self if self.lr is not None else replace(self, lr=method.default_lr)


@dataclass(frozen=True)
class MaskedLMOptions(TuneOptions):
    """Options of masked language modelling: those of the training loop that it has, and its own."""

    command: ClassVar[str] = "mlm"

    task_name: str = LANGUAGES[0]
    """Name of the text, otherwise that of its file or folder; of demo one of its two languages, english or hsilgne."""
    data: str = "demo"
    """A text file (.txt), a folder with text files, also below it, or demo (synthetic)."""
    # Constants, and so no options here.
    text_fields: ClassVar[tuple[str, ...]] = ()  # type: ignore[misc]
    label_field: ClassVar[None] = None  # type: ignore[misc]
    metric: ClassVar[tuple[str, ...]] = ()  # type: ignore[misc]
    pooling: ClassVar[None] = None  # type: ignore[misc]
    select: ClassVar[str] = "dev"  # type: ignore[misc]
    max_train_samples: ClassVar[None] = None  # type: ignore[misc]
    max_eval_samples: ClassVar[None] = None  # type: ignore[misc]
    max_length: int | None = None
    """Tokens of a block, with its special tokens; None = the encoder's maximum."""
    mask_share: float = 0.15
    """Share of the tokens of an example that are to be predicted, at least one: 80 % of them are masked, 10 % become a
    random token, 10 % stay as they are."""
    whole_words: bool = False
    """Choose words instead of tokens, until their tokens are the share or more."""
    line_by_line: bool = False
    """Make each line an example of its own, or several if it is too long; else lines are joined and cut into blocks."""

    def settle_data(self) -> None:
        """Name the text, and check the share."""
        is_named = self.data == "demo" or self.task_name != LANGUAGES[0]
        name, share = self.task_name if is_named else name_of(self.data), self.mask_share
        check(
            {
                f"data is {self.data}: give a text file (.txt) or a folder with text files": self.data == "hub",
                f"mask_share is {share}: choose a number above 0 and below 1": not 0 < share < 1,
                f"{name!r} cannot be the name of a text: choose another --task_name": not own_task.is_name(name),
                f"task_name is {name!r}: the languages of demo are {' and '.join(LANGUAGES)}": (
                    self.data == "demo" and name not in LANGUAGES
                ),
            }
        )
        object.__setattr__(self, "task_name", name)  # the dataclass is frozen for everybody else


@dataclass(frozen=True)
class GenerateOptions(TuneOptions):
    """Options of generating text: those of the training loop that it has, and its own."""

    command: ClassVar[str] = "generate"

    checkpoint: str = "gpt2"
    """Pretrained model of kind gpt2, marian or t5: a hub name or a local folder."""
    task_name: str = PAIRS[0]
    """Name of the task, otherwise that of its file or folder; of demo events (tables) or translation."""
    data: str = "demo"
    """A folder with train, valid and test files, or one file, or demo (synthetic). A text file (.txt) has a pair a
    line, source||target; parallel files have the name of a column as their ending, as train.en and train.de; the other
    formats are those of one's own data."""
    # Constants, and so no options here.
    text_fields: ClassVar[tuple[str, ...]] = ()  # type: ignore[misc]
    label_field: ClassVar[None] = None  # type: ignore[misc]
    metric: ClassVar[tuple[str, ...]] = ()  # type: ignore[misc]
    pooling: ClassVar[None] = None  # type: ignore[misc]
    on: ClassVar[None] = None  # type: ignore[misc]
    stack: ClassVar[bool] = False  # type: ignore[misc]
    source_field: str = "source"
    """Column of the sources in CSV, TSV, JSON lines or Parquet, or ending of parallel files."""
    target_field: str = "target"
    """Column of the targets there, or ending."""
    source_prefix: str = ""
    """Text before every source and a space, such as "translate English to German:" for T5, or ">>deu<<" for OPUS-MT."""
    max_length: int | None = None
    """Maximal number of tokens of source and target together, with those between and after them; a pair that is longer
    loses the end of its longer text. Of a model with an encoder and a decoder, of source and target each. None = the
    model's maximum."""
    generate: Literal["end", "epoch", "never"] = "end"
    """When to generate for the sources of the validation set and score the texts: with the best epoch at the end, also
    after every epoch, which takes long, or never. The log-likelihood of the targets selects the best epoch."""
    bertscore: str | None = None
    """Score generated texts by BERTScore with this model, too: roberta-large or another that bert-score knows, minilm,
    or a local folder."""
    num_beams: int = Search.num_beams
    """Beams of beam search; 1 = greedy search."""
    max_new_tokens: int = Search.max_new_tokens
    """Maximal number of tokens of a generated text."""
    length_penalty: float = Search.length_penalty
    """Beam search divides a text's log-likelihood by its length to this power; above 0 it prefers longer texts."""
    no_repeat_ngram_size: int = Search.no_repeat_ngram_size
    """No n-gram of this size occurs twice in source and text together; 0 = any may."""

    def settle_data(self) -> None:
        """Name the task, and check the search."""
        is_named = self.data == "demo" or self.task_name != PAIRS[0]
        name, length, fields = self.task_name if is_named else name_of(self.data), self.max_length, self.source_field
        check(
            {
                f"data is {self.data}: give a folder with train.txt, a file, or demo": self.data == "hub",
                f"{name!r} cannot be the name of a task: choose another --task_name": not own_task.is_name(name),
                f"task_name is {name!r}: the tasks of demo are {' and '.join(PAIRS)}": (
                    self.data == "demo" and name not in PAIRS
                ),
                f"source_field and target_field are {fields}: name two columns": fields == self.target_field,
                f"max_length is {length}: choose at least 4, for source, target and the tokens after each": (
                    length is not None and 0 < length < 4
                ),
            }
        )
        own_task.search_of(vars(self))  # checks its options
        object.__setattr__(self, "task_name", name)  # the dataclass is frozen for everybody else


def options_of(words: Sequence[str], method: str) -> tuple[type[TuneOptions], Sequence[str]]:
    """The options of the command that the first word names, mlm or generate, else of tune; and the other words.

    Raises:
        InputError: the method does not have this command.
    """
    kinds = {kind.command: kind for kind in (MaskedLMOptions, GenerateOptions)}
    kind = kinds.get(words[0]) if words else None
    if kind is None:
        return TuneOptions, words
    if importlib.util.find_spec(f"{method}.{kind.command}") is None:
        raise InputError(f"there is no {method}.{kind.command}: see its README for what it can train")
    return kind, words[1:]


@dataclass(frozen=True)
class PredictOptions:
    """Options of prediction on a test set."""

    task_name: TestedTask | str | None = None
    """Task of GLUE or SuperGLUE, or name of the task of your own data; uses its run with the best validation score.
    mnli = mnli-m, mnli-mm and ax."""
    run: str | None = None
    """Folder of the run to use instead."""
    checkpoint: str | None = None
    """Base model: a hub name, a local folder, minilm or mpnet; None = as in training."""
    data: str | None = None
    """hub, a folder, or demo, or your own file or folder; None = as in training."""
    language: str | None = None
    """Folder of a run of masked language modelling, whose adapter takes the place of the one that this run was trained
    on (MAD-X)."""
    select: Selection | None = None
    """Choose among the runs with this value of --select only."""
    batch_size: int = 64
    """Examples per process and forward pass."""
    bertscore: str | None = None
    """Of a run that generates text: score by BERTScore with this model, too."""
    num_beams: int | None = None
    """Of a run that generates text: beams of the search; None = as in training, here and below."""
    max_new_tokens: int | None = None
    """Maximal number of tokens of a generated text."""
    length_penalty: float | None = None
    """Power of the length by which beam search divides the log-likelihood of a text."""
    no_repeat_ngram_size: int | None = None
    """No n-gram of this size occurs twice in source and text together; 0 = any may."""
    output_dir: str = "outputs"
    """The output_dir of the runs."""
    debug: bool = False
    """Show the traceback of an error."""

    def __post_init__(self) -> None:
        check_types(self)
        _spell_paths(self)
        wanted = f"choose from 1 to {MANY:,}"
        check({f"batch_size is {self.batch_size}: {wanted}": not 1 <= self.batch_size <= MANY})
        own_task.search_of(vars(self))  # checks its options


@dataclass(frozen=True)
class TextOptions:
    """Options of prediction for any texts."""

    run: str = ""
    """Folder of the run."""
    text: tuple[str, ...] = ()
    """Texts to predict; those of a pair follow each other."""
    input: str | None = None
    """File of texts: .txt (a text a line), .csv, .tsv, .jsonl or .parquet; - = standard input."""
    input_format: Literal["txt", "csv", "tsv", "jsonl"] | None = None
    """Format of the input; None = as the file's name says, txt for standard input."""
    output: str | None = None
    """File to write; None = standard output."""
    output_format: Literal["jsonl", "csv"] | None = None
    """Format of the output; None = as the file's name says, otherwise jsonl."""
    top: int | None = None
    """Give the probabilities of this many of the most probable classes only."""
    checkpoint: str | None = None
    """Base model: a hub name, a local folder, minilm or mpnet; None = as in training."""
    batch_size: int = 64
    """Examples of a forward pass."""
    debug: bool = False
    """Show the traceback of an error."""

    def __post_init__(self) -> None:
        check_types(self)
        _spell_paths(self)
        n, wanted = self.top, f"choose from 1 to {MANY:,}"
        check(
            {
                f"batch_size is {self.batch_size}: {wanted}": not 1 <= self.batch_size <= MANY,
                f"top is {n}: choose at least 1": n is not None and n < 1,
            }
        )


def spelled(values: Mapping[str, Any]) -> dict[str, str]:
    """The paths among these options, or of a result, in one spelling, so that a folder is one however it was typed."""
    names = {
        "checkpoint": ("minilm", "mpnet"),
        "data": ("hub", "demo"),
        "output_dir": None,
        "run": None,
        "on": (),
        "language": (),
    }
    return {
        option: os.path.expanduser(values[option]) if others is None else one_spelling(values[option], *others)
        for option, others in names.items()
        if values.get(option) is not None
    }


def _spell_paths(options: Any) -> None:
    for option, path in spelled(vars(options)).items():
        object.__setattr__(options, option, path)  # the dataclass is frozen for everybody else


def name_of(data: str) -> str:
    """The name of a file without its suffix, or of a folder, as that of a task."""
    path = Path(os.path.abspath(data))
    return re.sub(r"[^\w.+-]", "_", path.stem if path.is_file() else path.name)[:100]


def _settle_own_data(options: TuneOptions) -> None:
    """Check the options of one's own data, and set those of them that are left open."""
    fields, label, metric, name = options.text_fields, options.label_field, options.metric, options.task_name
    if label is None:
        unknown = f"unknown task {name!r}: choose one of {', '.join(TRAINED)}, or name the columns of your own data"
        check(
            {f"{unknown} with --label_field": name not in TRAINED}
            | {
                f"{option} is given without label_field: both are for your own data": bool(value)
                for option, value in {"text_fields": fields, "metric": metric}.items()
            }
            | {
                f"data {options.data} is a file: name its columns with --text_fields and --label_field": (
                    os.path.isfile(options.data)
                )
            }
        )
        return
    fields = fields or ("text",)
    if name == TuneOptions.task_name:
        name = name_of(options.data)
    check(
        {
            f"data is {options.data}: label_field is for your own file or folder": options.data in ("hub", "demo"),
            f"text_fields are {' '.join(fields)}: name one or two different columns, and not the label's": (
                len({*fields, label}) != len(fields) + 1 or len(fields) > 2
            ),
            f"metric is {' '.join(metric)}: name each once": len(set(metric)) < len(metric),
            f"metric is {' '.join(metric)}: {' and '.join(metrics.OF_SCORES)} are for scores, the others for classes": (
                0 < len(set(metric) & set(metrics.OF_SCORES)) < len(set(metric))
            ),
            f"{name!r} cannot be the name of your own task: choose another --task_name": not own_task.is_name(name),
        }
    )
    object.__setattr__(options, "text_fields", fields)  # the dataclass is frozen for everybody else
    object.__setattr__(options, "task_name", name)


@dataclass(frozen=True)
class SweepOptions:
    """Options of an experiment, besides those of its runs."""

    n_seeds: int = 5
    """Number of runs of each configuration, with the seeds SEED, SEED + 1, ..."""
    sizes: tuple[str, ...] = ()
    """Train only these sizes of the grid, such as 1 8 64; default: all."""

    def __post_init__(self) -> None:
        check_types(self)
        wanted = f"choose from 1 to {MANY_SEEDS:,}"
        check({f"n_seeds is {self.n_seeds}: {wanted}": not 1 <= self.n_seeds <= MANY_SEEDS})


@dataclass(frozen=True)
class ConfigOptions:
    """Where options are read from, besides the command line."""

    config: str | None = None
    """JSON or YAML file of options by name, such as those that scripts.search and scripts.replay write; the command
    line wins over it."""


def read_config(words: Sequence[str]) -> dict[str, Any]:
    """The options in the file that `--config` of a command line names; empty without it.

    Raises:
        InputError: it is missing or damaged.
    """
    for place, word in enumerate(words):
        name, equals, path = word.partition("=")
        if name == "--config" and (equals or place + 1 < len(words)):
            file = Path(os.path.expanduser(path if equals else words[place + 1]))
            return read_yaml(file) if file.suffix in (".yaml", ".yml") else read_json(file)
    return {}


def _configured(program: str, words: Sequence[str], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The instances with the values of a config file. Raises InputError for another method's, or wrong values."""
    values = read_config(words)
    method = values.pop("method", None)
    if method not in (None, *re.split(r"[. ]", program)):
        raise InputError(f"the config is of {method}, wanted one for {program}")
    known = {name for value in defaults.values() for name in vars(value)}
    check({f"the config has {name!r}, which is no option of {program}": name not in known for name in values})
    return {
        heading: replace(value, **{name: values[name] for name in vars(value) if name in values})
        for heading, value in defaults.items()
    }


def parse(program: str, words: Sequence[str] | None = None, **defaults: Any) -> list[Any]:
    """Read the command line into dataclasses whose options are not nested; `--batch_size` or `--batch-size`.

    `--config FILE` gives options other defaults.

    A bad command line ends the process with one line on stderr and exit code 2, like all bad input.

    Args:
        program: name in the usage line.
        words: the arguments; None = those of this process.
        defaults: heading in the help -> instance with the default values.
    """
    import tyro

    message = io.StringIO()
    words = sys.argv[1:] if words is None else words
    with one_line_errors():
        configured = _configured(program, words, defaults) | {"config": ConfigOptions()}
        headings: list[Any] = [(name, type(value), field(default=value)) for name, value in configured.items()]
        arguments = make_dataclass("arguments", headings)
        with all_at_once():
            check_repeated(words)
            try:
                with contextlib.redirect_stderr(message), _unwrapped(words):
                    parsed: Any = tyro.cli(
                        arguments,
                        prog=program,
                        args=words,
                        description="",
                        use_underscores=True,
                        config=(tyro.conf.OmitArgPrefixes,),
                    )
            except SystemExit as stop:
                if stop.code not in (0, None):
                    raise InputError(_to_one_line(message.getvalue())) from stop
                raise
        for value in (getattr(parsed, name) for name in defaults):
            check({f"{k} is {v}: choose a number below 2**63": _is_beyond(v) for k, v in vars(value).items()})
    return [getattr(parsed, name) for name in defaults]


@contextlib.contextmanager
def _unwrapped(words: Sequence[str]) -> Iterator[None]:
    """Keep tyro from wrapping errors at the width of the terminal, which puts spaces into long words; not so help."""
    before = os.environ.get("COLUMNS")
    if not {"-h", "--help"} & set(words):
        os.environ["COLUMNS"] = str(MANY)
    try:
        yield
    finally:
        os.environ.pop("COLUMNS", None)
        os.environ.update({} if before is None else {"COLUMNS": before})


def _is_beyond(value: Any) -> bool:
    """Whether a value is an integer, or holds one, that no tensor's size can be."""
    values = value if isinstance(value, tuple) else (value,)
    return any(isinstance(each, int) and not -(2**63) <= each < 2**63 for each in values)


class Arguments(argparse.ArgumentParser):
    """The parser of scripts without a method: like `parse`, it reports a bad command line in one line."""

    def __init__(self, description: str | None):
        formatter = argparse.RawDescriptionHelpFormatter
        super().__init__(description=description, formatter_class=formatter, allow_abbrev=False)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        with one_line_errors():
            check_repeated(sys.argv[1:] if args is None else args)
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        with one_line_errors():
            raise InputError(f"{message} (--help lists the options)")


def _named(words: Sequence[str]) -> list[str]:
    """Names of the options in a command line, in order; a value that begins with -- is given as --option=value."""
    names = (word.partition("=")[0].removeprefix("--") for word in words if re.match("--.", word))
    return [name.replace("-", "_") for name in names]


def check_repeated(words: Sequence[str]) -> None:
    """Raise InputError if an option is given twice, since one of its values would be ignored."""
    counts = Counter(_named(words))
    for name in [name for name in counts if f"no_{name}" in counts]:
        counts[name] += counts.pop(f"no_{name}")
    check({f"--{name} is given {n} times: give it once": n > 1 for name, n in counts.items()})


def given(words: Sequence[str]) -> set[str]:
    """Names of the options in a command line."""
    found = set(_named(words))
    return found | {name.removeprefix("no_") for name in found}


def non_default(values: Any, usual: Any) -> dict[str, Any]:
    """The options whose values differ from those of another instance, `usual`."""
    return {name: value for name, value in vars(values).items() if value != getattr(usual, name)}


def canonical(value: Any) -> Any:
    """An option, or a mapping of options, in one form for all that compares, groups or hashes them.

    Numbers are floats and sequences are lists, so that 8 and 8.0, or a tuple and what JSON makes of it, are the same.
    """
    if isinstance(value, Mapping):
        return {name: canonical(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [canonical(each) for each in value]
    # Through its digits, since `float` refuses a number beyond its range, which a damaged row may hold.
    return float(f"{value:d}") if isinstance(value, int) else value


def canonical_text(value: Any) -> str:
    """`canonical` as JSON, the same for any order of names."""
    return json.dumps(canonical(value), sort_keys=True)


def command_line(values: Mapping[str, Any], *kinds: type) -> list[str]:
    """The arguments from which `parse` reads these values; `kinds` are the dataclasses that declare the options."""
    types = {name: hint for kind in kinds for name, hint in get_type_hints(kind).items()}
    words: list[str] = []
    for name, value in values.items():
        if types[name] is bool:  # `bool | None` is given with a value instead
            words.append(f"--{name}" if value else f"--no_{name}")
        elif isinstance(value, str) and value.startswith("-"):  # else it would be read as an option
            words.append(f"--{name}={value}")
        else:
            words += [f"--{name}", *map(str, value if isinstance(value, list | tuple) else [value])]
    return words


def _to_one_line(message: str) -> str:
    """tyro's error message, which is a box of several lines (drawn in ASCII on some terminals), as one line."""
    parts, text = [], ""
    for line in [*message.splitlines(), "-" * 9]:
        words = line.strip().strip("│|").strip()
        if re.fullmatch(r"[─╭╮╰╯+-]{6,}|[╭+][─-].*", words):  # a horizontal line of the box ends a part
            parts.append(text)
            text = ""
        else:
            text += f" {words}"
    lines = [" ".join(part.split()) for part in parts if part.split()]
    if not message.lstrip().startswith("╭"):
        lines = lines[1:]  # drop the title of the box, which is a part of its own in ASCII
    text = "; ".join(line for line in lines if "full helptext" not in line and "helptext:" not in line)
    return re.sub(r"^Error parsing \w+: ", "", text) + " (--help lists the options)"
