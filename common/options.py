"""Dataclasses -> command line. Every option, its default and its help stand once, in the fields below."""

import contextlib
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, make_dataclass
from typing import Any, Literal, get_type_hints

from common.errors import InputError, all_at_once, check, one_line_errors
from common.tasks import TESTED, TRAINED

TrainedTask = Literal[TRAINED]  # type: ignore[valid-type]  # the table is the source
TestedTask = Literal[TESTED]  # type: ignore[valid-type]


@dataclass(frozen=True)
class TuneOptions:
    """Options of the training loop, the same for every method."""

    checkpoint: str = "bert-base-uncased"
    """Pretrained encoder: a hub name, a local folder, or minilm (comes with the requirements)."""
    task_name: TrainedTask = "mrpc"
    """GLUE task."""
    data: str = "hub"
    """hub (nyu-mll/glue), a folder with the official GLUE download, or demo (synthetic)."""
    lr: float = 5e-5
    """Peak learning rate of AdamW."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Betas of AdamW."""
    eps: float = 1e-6
    """Epsilon of AdamW."""
    weight_decay: float = 0.01
    """Decay of every trained matrix; vectors (biases, LayerNorms) have none."""
    batch_size: int = 32
    """Examples per process and forward pass."""
    eval_batch_size: int = 64
    """Examples per process and forward pass in evaluation."""
    gradient_accumulation_steps: int = 1
    """Forward passes per optimizer step."""
    warmup_ratio: float = 0.1
    """Share of the steps in which the learning rate rises from 0; then it falls to 0."""
    n_epochs: int = 3
    """Passes over the training set."""
    max_grad_norm: float = 1.0
    """Gradient norm to clip at; 0 = no clipping."""
    padding: Literal["none", "batch"] = "none"
    """none: sequences lie end to end, no work on padding; batch: padded to the longest of their batch, as usual."""
    frozen_dtype: Literal["float32", "bfloat16", "auto"] = "auto"
    """How frozen weights are held; trained ones are float32. auto: float32, or bfloat16 on a GPU launched in bf16."""
    reference: bool = False
    """Run without the fast path: plain modules, padded batches, torch's own dropout and products. For checks."""
    max_length: int | None = None
    """Tokens of an input, pairs cut longest first; None = as many as the encoder takes."""
    param_budget: int | None = None
    """Take the method's size (rank, bottleneck, length, ...) as large as this many trained parameters without the head
    allow, so that methods can be compared at one budget."""
    select: Literal["dev", "holdout"] = "dev"
    """What selects the best epoch: the development set; or a fixed tenth of the training set, which is not trained on
    then, so that the development set is looked at once, in the end, and its scores (dev_...) are no selection's."""
    seed: int = 42
    """Decides the head's initial weights, the method's, the batches and dropout."""
    max_train_samples: int | None = None
    """Train on so many rows only, drawn at random, the same ones in every run."""
    max_eval_samples: int | None = None
    """Validate on so many rows only, drawn the same way."""
    output_dir: str = "outputs"
    """Runs go to OUTPUT_DIR/METHOD/TASK/RUN."""
    report_to: tuple[str, ...] = ("tensorboard",)
    """Trackers known to accelerate (tensorboard, wandb, mlflow, ...), all, or none."""
    resume: bool = True
    """Go on with an unfinished run from its last checkpoint, to the same result; --no_resume begins it anew."""
    checkpoint_every: int | None = None
    """Optimizer steps between checkpoints to resume from; None = after every epoch only."""
    time_limit: float | None = None
    """Minutes after which the run saves where it is and ends with exit code 75, as after SIGTERM or SIGUSR1."""
    max_bad_steps: int = 10
    """Steps with a gradient that is no number are skipped; after so many of them the run ends."""
    overwrite: bool = False
    """Repeat a run that is finished already."""
    debug: bool = False
    """Show the traceback of an error."""

    def __post_init__(self) -> None:
        at_least_one = ("batch_size", "eval_batch_size", "gradient_accumulation_steps", "n_epochs", "max_bad_steps")
        optional = ("max_length", "param_budget", "max_train_samples", "max_eval_samples", "checkpoint_every")
        counts = {name: getattr(self, name) for name in (*at_least_one, *optional)}
        check(
            {
                f"lr is {self.lr}: choose a number above 0": not 0 < self.lr < float("inf"),
                f"betas are {self.betas}: choose numbers from 0 to below 1": not all(0 <= b < 1 for b in self.betas),
                f"eps is {self.eps}: choose a number above 0": not 0 < self.eps < 1,
                f"weight_decay is {self.weight_decay}: choose at least 0": not 0 <= self.weight_decay < float("inf"),
                f"warmup_ratio is {self.warmup_ratio}: choose from 0 to 1": not 0 <= self.warmup_ratio <= 1,
                f"max_grad_norm is {self.max_grad_norm}: choose at least 0": not self.max_grad_norm >= 0,
                f"time_limit is {self.time_limit}: choose a number above 0": (
                    self.time_limit is not None and not self.time_limit > 0
                ),
                "reference and frozen_dtype bfloat16: leave one of them out": (
                    self.reference and self.frozen_dtype == "bfloat16"
                ),
                f"seed is {self.seed}: choose from 0 to 2**32 - 1": not 0 <= self.seed < 2**32,
            }
            | {f"{k} is {v}: choose at least 1": v is not None and v < 1 for k, v in counts.items()}
        )


@dataclass(frozen=True)
class PredictOptions:
    """Options of prediction on a test set."""

    task_name: TestedTask | None = None
    """GLUE task; its run with the best validation score is taken. mnli = mnli-m, mnli-mm and ax."""
    run: str | None = None
    """Folder of the run to take instead."""
    checkpoint: str | None = None
    """Where the base model lies; None = where it lay in training."""
    data: str | None = None
    """hub, a folder, or demo; None = what the run was trained on."""
    select: Literal["dev", "holdout"] | None = None
    """What selected the runs to choose from."""
    batch_size: int = 64
    """Examples per process and forward pass."""
    output_dir: str = "outputs"
    """Where tune put its runs."""
    debug: bool = False
    """Show the traceback of an error."""

    def __post_init__(self) -> None:
        check({f"batch_size is {self.batch_size}: choose at least 1": self.batch_size < 1})


@dataclass(frozen=True)
class SweepOptions:
    """Options of an experiment, beside those of its runs."""

    n_seeds: int = 5
    """Runs of every configuration, with the seeds SEED, SEED + 1, ..."""
    sizes: tuple[str, ...] = ()
    """These sizes of the grid only, such as 1 8 64; none = all of it."""

    def __post_init__(self) -> None:
        check({f"n_seeds is {self.n_seeds}: choose at least 1": self.n_seeds < 1})


def parse(program: str, words: Sequence[str] | None = None, **defaults: Any) -> list[Any]:
    """Read the command line into dataclasses, all their options side by side, `--batch_size` or `--batch-size`.

    A bad command line ends the process with one line on stderr and exit code 2, as every bad input does.

    Args:
        program: name in the usage line.
        words: of the command line; None = those that this process was started with.
        defaults: heading in the help -> instance whose values are the defaults.
    """
    import tyro

    headings: list[Any] = [(name, type(value), field(default=value)) for name, value in defaults.items()]
    arguments = make_dataclass("arguments", headings)
    said = io.StringIO()
    with one_line_errors(), all_at_once():
        try:
            with contextlib.redirect_stderr(said):
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
                raise InputError(_unboxed(said.getvalue())) from stop
            raise
    return [getattr(parsed, name) for name in defaults]


def given(words: Sequence[str]) -> set[str]:
    """Names of the options that stand in a command line, whatever their values."""
    found = {word.partition("=")[0].removeprefix("--").replace("-", "_") for word in words if word.startswith("--")}
    return found | {name.removeprefix("no_") for name in found}


def non_default(values: Any, usual: Any) -> dict[str, Any]:
    """The options of a dataclass that are not those of another one of its kind."""
    return {name: value for name, value in vars(values).items() if value != getattr(usual, name)}


def command_line(values: Mapping[str, Any], *kinds: type) -> list[str]:
    """The words that `parse` reads options from; `kinds` are the dataclasses that declare them."""
    types = {name: hint for kind in kinds for name, hint in get_type_hints(kind).items()}
    words: list[str] = []
    for name, value in values.items():
        if types[name] is bool:  # one that may be None, too, has a value
            words.append(f"--{name}" if value else f"--no_{name}")
        elif isinstance(value, str) and value.startswith("-"):  # no option, though it looks like one
            words.append(f"--{name}={value}")
        else:
            words += [f"--{name}", *map(str, value if isinstance(value, list | tuple) else [value])]
    return words


def _unboxed(message: str) -> str:
    """tyro's message, drawn as a box of several lines (of ASCII, where the terminal has no more), as one line."""
    parts, text = [], ""
    for line in [*message.splitlines(), "-" * 9]:
        words = line.strip().strip("│|").strip()
        if re.fullmatch(r"[─╭╮╰╯+-]{6,}|[╭+][─-].*", words):  # an edge: what it ends is one thing
            parts.append(text)
            text = ""
        else:
            text += f" {words}"
    lines = [" ".join(part.split()) for part in parts if part.split()]
    if not message.lstrip().startswith("╭"):
        lines = lines[1:]  # the box's title, which is no edge here
    text = "; ".join(line for line in lines if "full helptext" not in line and "helptext:" not in line)
    return re.sub(r"^Error parsing \w+: ", "", text) + " (--help lists the options)"
