"""The search space, and the configuration of a trial."""

import dataclasses
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from torch import nn

from common import training
from common.checkpoints import meta_model
from common.earlier import find_start
from common.encoders import layers
from common.errors import check, check_types
from common.fitting import fit_to_budget
from common.methods import Method
from common.options import MANY, TuneOptions

if TYPE_CHECKING:
    import optuna


@dataclass(frozen=True)
class Range:
    """A range of numbers to search, with both ends; integers if the ends are integers."""

    low: float
    high: float
    log: bool = False
    """Whether to sample log-uniformly."""


@dataclass(frozen=True)
class Same:
    """An option that is not searched, but set to the value of another option of its method."""

    option: str


@dataclass(frozen=True)
class Computed:
    """An option that is computed from the values of others, which need not be options themselves."""

    of: Callable[[Mapping[str, Any]], Any]
    """Values that are searched, by name -> value of the option. Raises InputError for values that belong to none."""

    def __str__(self) -> str:
        return f"computed by {self.of.__module__}.{self.of.__qualname__}"


Space = Mapping[str, Range | Same | Computed | tuple[Any, ...]]
"""Option, or a variable of `Computed` -> its range or, as a tuple, its values."""


@dataclass(frozen=True)
class SearchOptions:
    """Options of a search, beside those of its runs."""

    trials: int = 20
    """Trials of the study over all workers and launches; complete, pruned and failed ones count."""
    lr_range: tuple[float, float] | None = None
    """Learning rates to search, log-uniformly; None = from a tenth of the method's default to ten times it."""
    n_epochs_range: tuple[int, int] = (3, 10)
    """Numbers of epochs to search."""
    batch_sizes: tuple[int, ...] = (8, 16, 32)
    """Batch sizes to search."""
    pruner: Literal["median", "none"] = "median"
    """median: end a trial whose best score so far is below the median of the others at the same epoch."""
    pareto: bool = False
    """Search for high scores and few trained parameters, without pruning, and print the Pareto front."""
    storage: str | None = None
    """Storage of the study: a journal file, or the URL of a database (sqlite:///FILE, postgresql://...) for machines
    without a shared file system; None = a journal in OUTPUT_DIR/METHOD/TASK."""
    study_name: str | None = None
    """Name of the study; None = a name made from all options that can change a score."""

    def __post_init__(self) -> None:
        check_types(self)
        (slow, fast), (few, many) = self.lr_range or (1, 1), self.n_epochs_range
        sizes = self.batch_sizes
        check(
            {
                f"trials is {self.trials}: choose from 1 to {MANY:,}": not 1 <= self.trials <= MANY,
                f"lr_range is {slow} {fast}: choose two numbers above 0, the smaller one first": (
                    not 0 < slow <= fast < float("inf")
                ),
                f"n_epochs_range is {few} {many}: choose two numbers from 1, the smaller one first": (
                    not 1 <= few <= many <= MANY
                ),
                f"batch_sizes are {' '.join(map(str, sizes))}: name at least one, each once and from 1 to {MANY:,}": (
                    not sizes or min(sizes) < 1 or max(sizes) > MANY or len(set(sizes)) < len(sizes)
                ),
                "study_name is empty: name it, or leave it out": self.study_name == "",
                "storage is empty: name a journal file or a database, or leave it out": self.storage == "",
            }
        )


def own_space(name: str, options: TuneOptions) -> Space:
    """The search space of a method's own options: SPACE in METHOD/experiment.py; empty if there is none.

    It may be a function of the number of layers of the encoder.
    """
    space = getattr(importlib.import_module(f"{name}.experiment"), "SPACE", {})
    return space(len(layers(_shapes(options)))) if callable(space) else space


def _shapes(options: TuneOptions) -> nn.Module:
    """The model on the meta device; its head, if it has one, is for two classes."""
    if type(options) is TuneOptions:
        return meta_model(options.checkpoint, 2, options.pooling)
    return training.task_of(options).meta(options.checkpoint, options.pooling)


def space_of(method: Method, options: TuneOptions, search: SearchOptions, given: set[str]) -> Space:
    """The search space: learning rate, epochs, batch size and the method's own space, without the given options.

    With a parameter budget, the method's size is not searched either, since the budget decides it. A method that begins
    with the values of an earlier run has the options of that run.
    """
    default_lr = type(method).default_lr
    lr_range = search.lr_range or (default_lr / 10, default_lr * 10)
    loop = {"lr": Range(*lr_range, log=True), "n_epochs": Range(*search.n_epochs_range)}
    own: Space = own_space(method.name, options) if options.on is None or options.stack else {}
    every: Space = {**loop, "batch_size": search.batch_sizes, **own}
    decided = given | ({str(method.size)} if options.param_budget is not None else set())
    return {name: what for name, what in every.items() if name not in decided}


def suggest_all(trial: "optuna.Trial", space: Space, prefix: str = "") -> None:
    """Sample the values of a space and store them with the trial, under their names after a prefix."""
    for name, what in space.items():
        if isinstance(what, tuple):
            trial.suggest_categorical(prefix + name, [_label(value) for value in what])
        elif isinstance(what, Range) and _is_integer(what):
            trial.suggest_int(prefix + name, int(what.low), int(what.high), log=what.log)
        elif isinstance(what, Range):
            trial.suggest_float(prefix + name, what.low, what.high, log=what.log)


def configuration(
    method: Method, options: TuneOptions, space: Space, params: Mapping[str, Any]
) -> tuple[Method, TuneOptions]:
    """The method and options of a trial; `params` are the values from `suggest_all`.

    Raises:
        InputError: the method does not accept the values, or its smallest size exceeds the budget.
    """
    values: dict[str, Any] = {}
    for name, what in space.items():
        if isinstance(what, tuple):
            values[name] = what[[_label(value) for value in what].index(params[name])]
        elif isinstance(what, Range):  # three digits are precise enough, and short to type
            values[name] = params[name] if _is_integer(what) else float(f"{params[name]:.3g}")
    values |= {name: what.of(values) for name, what in space.items() if isinstance(what, Computed)}
    method = dataclasses.replace(method, **{name: value for name, value in values.items() if name in vars(method)})
    options = dataclasses.replace(options, **{name: value for name, value in values.items() if name in vars(options)})
    if options.param_budget is not None:
        shapes = find_start(method, options)[0].put_below(_shapes(options), options)
        method = fit_to_budget(method, options.param_budget, shapes)
    for name, what in space.items():
        if isinstance(what, Same):
            followed = getattr(method, what.option)
            method = dataclasses.replace(method, **{name: type(getattr(method, name))(followed)})
    return method, options


def _is_integer(what: Range) -> bool:
    return isinstance(what.low, int) and isinstance(what.high, int)


def _label(value: Any) -> Any:
    """A value as it is stored in a study, which supports no tuples."""
    return " ".join(map(str, value)) if isinstance(value, tuple) else value


def defaults(method: Method, options: TuneOptions, space: Space) -> dict[str, Any]:
    """The default values that are in the space, as parameters of a trial."""
    found = {}
    known = vars(options) | vars(method)
    for name, what in space.items():
        if name not in known:  # a variable of `Computed`
            continue
        value = known[name]
        if isinstance(what, Range) and what.low <= value <= what.high:
            found[name] = value
        elif isinstance(what, tuple) and value in what:
            found[name] = _label(value)
    return found
