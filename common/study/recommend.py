"""A recommendation: the method, size and learning rate for one's data, found within a given time."""

import contextlib
import copy
import dataclasses
import hashlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import optuna
from torch import nn

from common import classification, training
from common.errors import DoesNotFit, InputError, Interrupted, check, check_types
from common.fitting import apply_on_meta, check_fit
from common.methods import Method, count_without_head, find, names
from common.options import MANY, TuneOptions, canonical_text
from common.runs import decisive, short_name
from common.runtime import files, locks
from common.runtime.threads import NUMBER
from common.study.answer import report
from common.study.clock import Clock
from common.study.halving import EVALUATION, FINAL, KIND, Candidate, Halving, is_complete, score_of
from common.study.search import stoppable, storage_errors
from common.study.space import Range, Space, defaults, own_space
from common.study.trials import open_study
from common.task_data import HOLDOUT, TaskData

DECIDED = ("lr", "select", "param_budget", "time_limit", "on", "stack", "overwrite", "resume", "checkpoint_every")
"""Options of METHOD.tune that a recommendation decides or has no use for."""
FEWEST_HELD_OUT, MOST_HELD_OUT = 20, 1_000
"""Examples that are held out: with fewer a choice says little, and more would take the time of training."""
TRAINED_EXAMPLES, FEWEST_EPOCHS, MOST_EPOCHS = 20_000, 3, 9
"""A run to the end has as many epochs as see about so many examples, within these numbers of epochs."""
SHARE = 1 / 12
"""A run of the search to its last epoch takes at most about this share of the search's time on all cores."""
PROBE = 96
"""Examples on which the speed is measured."""
SMALLEST = 64
"""Training examples of the search are at least so many, or all."""
FEWEST_EVALUATED = 100
"""Of the held-out examples so many are used, or all, however few the search trains on; and more in their proportion."""
WORKER = "RECOMMEND_WORKER"
"""Variable of a worker process: its number, and the process that started it."""


@dataclass(frozen=True)
class RecommendOptions:
    """Options of a recommendation, beside those of its runs."""

    minutes: float = 10.0
    """Time for all of it. The same command again goes on with what is left, and with more minutes it goes on too."""
    methods: tuple[str, ...] = ()
    """Methods to try; default: all."""
    max_params: int | None = None
    """Most trained parameters, not counting the head."""
    max_mib: float | None = None
    """Most memory of a training run, in MiB: of the process on a CPU, allocated on a GPU."""
    workers: int | None = None
    """Processes that train at once, each with one thread; default: one for each core, and one on a GPU."""

    def __post_init__(self) -> None:
        check_types(self)
        for name in self.methods:
            find(name)
        check(
            {
                f"minutes is {self.minutes}: choose a number above 0": not 0 < self.minutes <= MANY,
                f"methods are {' '.join(self.methods)}: name each once": len(set(self.methods)) < len(self.methods),
                f"max_params is {self.max_params}: choose at least 1": self.max_params is not None
                and self.max_params < 1,
                f"max_mib is {self.max_mib}: choose a number above 0": self.max_mib is not None
                and not self.max_mib > 0,
                f"workers is {self.workers}: choose from 1 to 1,000": self.workers is not None
                and not 1 <= self.workers <= 1000,
            }
        )


def recommend(options: TuneOptions, settings: RecommendOptions, given: set[str]) -> None:
    """Search, train the best configurations on more examples, and print the answer.

    Args:
        given: names of the options that the user gave.

    Raises:
        InputError: unusable options, data or checkpoint; no method is left; or too little time for an answer.
        Interrupted: by a signal; the same command goes on.
    """
    check({f"--{name} is decided here: leave it out": name in given for name in DECIDED})
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise InputError("a recommendation starts its own processes: start it without accelerate launch")
    began, worker = time.time(), os.environ.get(WORKER, "0").partition(" ")[0]
    asked = dataclasses.replace(options, select="holdout")
    material = read_data(asked, given)
    candidates, refused = find_candidates(settings, material.options, material)
    name = name_of(settings, material, candidates)
    home = Path(options.output_dir) / "recommend" / name
    runs = dataclasses.replace(material.options, output_dir=str(home / "runs"))
    files.refuse_links(Path(options.output_dir), home)
    with files.confined_to(Path(options.output_dir)), contextlib.ExitStack() as stack:
        if worker == "0":
            stack.enter_context(locks.lock_folder(home))
        with _logged(home / f"worker-{worker}.log"):
            method, *_ = candidates
            first = {f"{method}.{option}": value for option, value in candidates[method].first.items()}
            place = str(home / "study.journal")
            study, keeper = open_study(place, name, {"study": name}, {KIND: method, **first}, False, ["maximize"])
        n_all, n_held_out = (len(material.rows[split]) for split in ("train", HOLDOUT))
        clock = Clock(home / "clock.json", settings.minutes, began if worker == "0" else None)
        workers, rows = settings.workers or _usual_workers(), home / "rows.jsonl"
        limits = settings.max_params, settings.max_mib
        data = TaskData(material.task, runs)
        this = Halving(study, keeper, runs, data, candidates, clock, 0, n_all, n_held_out, workers, rows, *limits)
        if worker != "0":
            _end_with_parent()
            work(plan(this))
            return
        report(launch(this, home), asked, home, refused)


def read_data(options: TuneOptions, given: set[str]) -> TaskData:
    """The data of the largest runs, with the options of all runs.

    Raises:
        InputError: they cannot be used, also the development set, or too few examples can be held out.
    """
    task = classification.of(options)
    TaskData(task, options).read()  # the development set too, so that its errors are not found at the end
    most = min(options.max_eval_samples or MOST_HELD_OUT, MOST_HELD_OUT)
    runs = dataclasses.replace(options, select="holdout_only", max_eval_samples=most, report_to=("none",))
    data = TaskData(task, runs)
    n_all, n_held_out = (len(data.rows[split]) for split in ("train", HOLDOUT))
    if n_held_out < FEWEST_HELD_OUT:
        raise InputError(
            f"{task.name}: {n_held_out} examples, a tenth of those for training, are too few to choose on: wanted at "
            f"least {FEWEST_HELD_OUT}, so give {10 * FEWEST_HELD_OUT} examples or more"
        )
    if "n_epochs" not in given:
        usual = min(MOST_EPOCHS, max(FEWEST_EPOCHS, round(TRAINED_EXAMPLES / n_all)))
        data.options = dataclasses.replace(runs, n_epochs=usual)
    return data


def name_of(settings: RecommendOptions, data: TaskData, candidates: Mapping[str, Candidate]) -> str:
    """The name of a study: task, encoder and a digest of all that decides its trials, but for the time."""
    facts = {"options": decisive(data.options), "max_params": settings.max_params, "max_mib": settings.max_mib}
    facts["searched"] = {name: {k: str(v) for k, v in each.space.items()} for name, each in candidates.items()}
    digest = hashlib.sha256(canonical_text(facts).encode()).hexdigest()[:8]
    return re.sub(r"[^\w.+-]", "_", f"{data.task.name}-{short_name(data.options.checkpoint)}-{digest}")


def find_candidates(
    settings: RecommendOptions, options: TuneOptions, data: TaskData
) -> tuple[dict[str, Candidate], dict[str, str]]:
    """Method -> what is tried of it, the one with the fewest trained parameters first; and those refused, with reasons.

    Raises:
        InputError: no method is left.
    """
    found: dict[str, tuple[int, Candidate]] = {}
    refused: dict[str, str] = {}
    meta = data.task.meta(options.checkpoint, options.pooling)
    for name in settings.methods or names():
        method: Method = find(name)()
        lr = float(method.default_lr)
        space: Space = {"lr": Range(lr / 10, 10 * lr, log=True), **own_space(name, options)}
        try:
            method, space = _limit_size(method, space, meta, settings.max_params)
            check_fit(method, options, copy.deepcopy(meta), data.tokenizer, data.n_texts)
        except DoesNotFit as error:
            refused[name] = str(error)
            continue
        first = defaults(method, dataclasses.replace(options, lr=lr), space)
        found[name] = _count(method, meta), Candidate(method, space, first)
    if not found:
        raise InputError(f"no method is left: {'; '.join(f'{name}: {why}' for name, why in refused.items())}")
    return {name: each for name, (_, each) in sorted(found.items(), key=lambda item: item[1][0])}, refused


def _count(method: Method, meta: nn.Module) -> int:
    return count_without_head(apply_on_meta(method.kept(), copy.deepcopy(meta)))


def _limit_size(method: Method, space: Space, meta: nn.Module, limit: int | None) -> tuple[Method, Space]:
    """The method and its space with sizes that fit the encoder and the limit of parameters. Raises DoesNotFit."""
    size = method.size
    searched = space.get(size) if size else None

    def refuse(sized: Method) -> None:
        if limit is not None and (n := _count(sized, meta)) > limit:
            raise DoesNotFit(f"trains at least {n:,} parameters, and max_params is {limit:,}")

    if not isinstance(searched, Range):
        refuse(method)
        return method, space

    def fits(value: int) -> bool:
        try:
            refuse(method.of_size(value))
            apply_on_meta(method.of_size(value), copy.deepcopy(meta))
        except DoesNotFit:
            return False
        return True

    low, high = int(searched.low), int(searched.high)
    if not fits(low):
        refuse(method.of_size(low))
        apply_on_meta(method.of_size(low), copy.deepcopy(meta))
    if not fits(high):
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if fits(middle) else (low, middle)
        high = low
    usual = getattr(method, str(size))
    method = method if usual <= high else method.of_size(high)
    return method, {**space, str(size): dataclasses.replace(searched, high=high)}


def launch(this: Halving, home: Path) -> Halving:
    """Work in this process and the further workers until the time for training is over; what they searched."""
    first_line = f"{this.clock.total / 60:g} minutes, {this.clock.used() / 60:.1f} of them used"
    plural = "es" if this.workers > 1 else ""
    print(f"{first_line}; {this.workers} process{plural}; study, logs and runs in {home}", flush=True)
    children: list[subprocess.Popen[bytes]] = []
    watch = Watch(this)
    with watch, storage_errors():
        try:
            with _logged(home / "worker-0.log"), _one_thread(this.workers):
                this = plan(this)
                watch.this = this
                children += [_start(number, home) for number in range(1, this.workers)]
                work(this)
                for child in children:
                    child.wait()
                work(this)  # a run whose worker was killed
        except (Interrupted, KeyboardInterrupt) as stop:
            used = f"{this.clock.used() / 60:.1f} of {this.clock.total / 60:g} minutes are used"
            raise Interrupted(f"stopped and saved, {used}: the same command goes on with what is left") from stop
        finally:
            _stop(children)
    for number, child in enumerate(children, start=1):
        if child.returncode != 0:
            print(f"worker {number} ended with code {child.returncode}, see {home / f'worker-{number}.log'}")
    return this


def plan(this: Halving) -> Halving:
    """Decide on how many examples to search, from the speed of training on a few, unless that was done before."""
    known = this.study.user_attrs
    if "n_search" not in known:
        method = next(iter(this.candidates.values())).method
        few = dataclasses.replace(this.options, max_train_samples=min(PROBE, this.n_all), n_epochs=1, lr=None)
        with stoppable():
            _, result = training.train(method, few, this.data(few))
        speed = result["train_examples"] / result["train_seconds"]
        time_of_one = SHARE * this.workers * max(0.0, this.clock.end_of_search - this.clock.used())
        n = int(time_of_one * speed / this.options.n_epochs - this.equivalent(0))
        if n < this.n_held_out:  # then half of the time is for training, and half for evaluation
            n = int(time_of_one * speed / this.options.n_epochs / 2)
        n = min(this.n_all, max(SMALLEST, n))
        held_out = min(this.n_held_out, max(FEWEST_EVALUATED, int(n / EVALUATION)))
        this.study.set_user_attr("n_held_out", held_out)
        this.study.set_user_attr("n_search", n)
        known = this.study.user_attrs
    options = dataclasses.replace(this.options, max_eval_samples=known["n_held_out"])
    sizes = {"n_search": known["n_search"], "n_held_out": known["n_held_out"]}
    return dataclasses.replace(this, options=options, known={}, **sizes)


def work(this: Halving) -> None:
    """Run trials until the time for training is over, or no run fits into what is left.

    Raises:
        Interrupted: by a signal.
    """
    with stoppable(), storage_errors():
        while this.clock.used() < this.clock.end_of_training and (claimed := this.claim()) is not None:
            trial, release = claimed
            try:
                this.attempt(trial)
            except Interrupted:
                if this.clock.used() < this.end_of(trial):
                    raise
            finally:
                release()


class Watch:
    """Saves the clock and shows a progress bar, in a thread, while this process trains."""

    def __init__(self, this: Halving):
        self.this, self.done = this, threading.Event()
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.out = sys.stderr

    def __enter__(self) -> "Watch":
        self.this.clock.save()
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.done.set()
        self.thread.join()
        self.this.clock.save()

    def run(self) -> None:
        from tqdm import tqdm

        total = round(self.this.clock.total)
        pause = 1.0 if self.out.isatty() else 30.0
        form = "{desc}: {percentage:3.0f}%|{bar}| {postfix}"
        shown = -pause
        with tqdm(total=total, desc="recommend", bar_format=form, file=self.out, mininterval=0) as bar:
            while not self.done.wait(1.0):
                self.this.clock.save()
                if (used := self.this.clock.used()) - shown >= pause:
                    shown, bar.n = used, min(total, round(used))
                    with contextlib.suppress(optuna.exceptions.OptunaError):
                        bar.set_postfix_str(self.line())

    def line(self) -> str:
        left = max(0, round(self.this.clock.total - self.this.clock.used()))
        every = self.this.counted()
        tried = [trial for trial in every if trial.intermediate_values and FINAL not in trial.user_attrs]
        finals = [trial for trial in every if FINAL in trial.user_attrs]
        complete = [trial for trial in finals if is_complete(trial)]
        parts = [f"{left // 60}:{left % 60:02} left", f"{len(tried)} trials"]
        parts += [f"{len(complete)} of {len(finals)} finalists"] if finals else []
        best = max(complete or tried, key=score_of, default=None)
        parts += [f"best {score_of(best):.4f} ({best.params[KIND]})"] if best else []
        return ", ".join(parts)


def _usual_workers() -> int:
    import torch

    if torch.cuda.is_available():
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def _one_thread(workers: int) -> Iterator[None]:
    """One thread for each of several processes, unless the user chose the number: cores are shared by running more."""
    if workers > 1 and not any(name in os.environ for name in NUMBER):
        import torch

        os.environ[NUMBER[0]] = "1"
        torch.set_num_threads(1)
    yield


@contextlib.contextmanager
def _logged(path: Path) -> Iterator[None]:
    """Append what is printed to a file: the lines and bars of all runs would hide the one progress bar."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        path.open("a", buffering=1, encoding="utf-8") as log,
        contextlib.redirect_stdout(log),
        contextlib.redirect_stderr(log),
    ):
        yield


def _start(number: int, home: Path) -> "subprocess.Popen[bytes]":
    """Start a worker: the same command, with a variable that says so."""
    with (home / f"worker-{number}.log").open("ab") as log:
        variables = os.environ | {WORKER: f"{number} {os.getpid()}"}
        return subprocess.Popen([sys.executable, *sys.orig_argv[1:]], env=variables, stdout=log, stderr=log)


def _stop(children: list["subprocess.Popen[bytes]"]) -> None:
    """Ask the workers that are left to save their runs, and wait for them."""
    for child in children:
        if child.poll() is None:
            child.send_signal(signal.SIGTERM)
    for child in children:
        try:
            child.wait(60)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def _end_with_parent() -> None:
    """Save and stop when the process that started this worker has ended."""
    parent = int(os.environ[WORKER].split()[1])

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()
