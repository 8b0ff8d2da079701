"""The jobs of the protocol (results/PROTOCOL.md): a learning rate for each variant and task, then more seeds with it.

Which ones is in results/protocol.json: variants (the middle of the rates, a method and its options), options of all
runs, factors of the rates, seeds, epochs of the tasks, and parts.
"""

import contextlib
import hashlib
import os
import re
import shlex
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from common import tasks
from common.errors import InputError, Interrupted, check
from common.methods import REPOSITORY, find
from common.options import TuneOptions, given, parse
from common.results import read_result
from common.runs import append_once, read_predictions, read_rows
from common.runtime import files, locks

TEXT, LIST = REPOSITORY / "results" / "PROTOCOL.md", REPOSITORY / "results" / "protocol.json"
UNKNOWN = 120.0
"""Seconds that a run is guessed to take while none is known."""
DIVERGED = re.compile(r"^error: diverged: (.*)$", re.MULTILINE)
"""The last line of a run whose outputs or gradients are not finite."""
START = 10.0
"""Seconds that a run takes before and after its training."""


@dataclass(frozen=True)
class Part:
    """Some variants on some tasks with one encoder."""

    checkpoint: str
    tasks: list[str]
    variants: list[str]
    block: str = "answer"
    """Name of the tables of its rows: answer is the comparison of methods."""
    only_named: bool = False
    """Whether it is left out where no parts are named, since it needs other data."""


@dataclass(frozen=True)
class Protocol:
    """What is run."""

    variants: dict[str, tuple[float, str]]
    """Name -> the middle of its learning rates, and a method and its options."""
    options: str
    """Options of all runs."""
    factors: list[float]
    """The learning rates over the middle one."""
    seeds: list[int]
    """The first is that of the runs with all rates, the others are for the best one."""
    epochs: dict[str, int]
    """Of each task."""
    parts: dict[str, Part]
    """In the order in which they are run."""
    reference: str = ""
    """The variant that all others are compared with."""
    alike: list[str] = field(default_factory=list)
    """Variants that are compared with one another, since they may be equally good."""
    peers: dict[str, str] = field(default_factory=dict)
    """Variants that are another library's, and which of ours each is compared with."""
    written: dict[str, str] = field(default_factory=dict)
    """The names of variants and tasks in tables, if they have other ones."""


def read() -> Protocol:
    """The protocol of the repository."""
    found = files.read_json(LIST)
    return Protocol(**found | {"parts": {name: Part(**part) for name, part in found["parts"].items()}})


@dataclass(frozen=True)
class Cell:
    """A variant on a task with an encoder."""

    checkpoint: str
    task: str
    variant: str
    words: tuple[str, ...]
    """The method, and the options of its runs but for seed, learning rate and where data and runs are."""
    rates: tuple[float, ...]
    seeds: tuple[int, ...]

    @property
    def name(self) -> str:
        return f"{self.checkpoint} {self.task} {self.variant}"

    other_data: str = ""
    """hub or demo, whose rows must not pass for those on the official files; empty = these."""

    @cached_property
    def digest(self) -> str:
        """What identifies the protocol in its rows: a digest of the page's rules and of the words of the runs."""
        rules = TEXT.read_text(encoding="utf-8").partition("\n| ")[0]
        facts = f"{rules}{self.words}{self.rates}{self.seeds}{self.other_data}"
        return hashlib.sha256(facts.encode()).hexdigest()[:12]


class Job(NamedTuple):
    """A run of a cell. With the first seed there is one for each rate, with the others one for the best rate: None."""

    cell: Cell
    seed: int
    rate: float | None

    @property
    def name(self) -> str:
        return f"{self.cell.name} seed {self.seed}, " + ("best lr" if self.rate is None else f"lr {self.rate:g}")


Identity = tuple[Any, ...]
"""Digest, variant, seed and learning rate of a row."""


def identity(row: Mapping[str, Any]) -> Identity:
    return tuple(row.get(name) for name in ("protocol", "variant", "seed", "lr"))


def answers_of(row: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The answers of a run on the development set, as a row of another file. Labels are not in it.

    Classes are one digit for each example, scores are rounded to three decimals.
    """
    task = tasks.find(row["task_name"])
    logits, _ = read_predictions(folder)[task.validations[0]]
    answers = task.targets.answers(logits)
    kept = "".join(map(str, answers)) if task.targets.has_classes else [round(float(x), 3) for x in answers]
    facts = {name: row[name] for name in ("run", "task_name", "protocol", "variant", "seed", "lr")}
    return facts | {"answers": kept}


def beside(rows: Path, name: str) -> Path:
    """A file that belongs to a file of rows: protocol-answers.jsonl is that of protocol.jsonl."""
    return rows.with_name(f"{rows.stem}-{name}")


def best_of(by_rate: Mapping[float, Mapping[str, Any]]) -> float:
    """The learning rate whose row has the best score on the held-out examples; of equal ones the lowest."""
    return max(by_rate, key=lambda rate: (by_rate[rate]["best_score"], -rate))


def cells(protocol: Protocol, parts: Sequence[str], changes: Sequence[str] = (), data: str = "") -> Iterator[Cell]:
    """All cells of some parts, in their order.

    Args:
        changes: options of all runs that win over those of the protocol.
        data: hub, demo or the folder of the official files.

    Raises:
        InputError: an unknown part, or a change of what the protocol varies.
    """
    chosen = {"lr": "the protocol", "seed": "the protocol", "task_name": "--tasks"}
    check(
        {f"--{name} is given, which {by} chooses: leave it out": name in given(changes) for name, by in chosen.items()}
    )
    other = data if data in ("hub", "demo") else ""
    seen = set()
    for name in parts:
        if name not in protocol.parts:
            raise InputError(f"unknown part {name!r}: choose from {', '.join(protocol.parts)}")
        part = protocol.parts[name]
        for task in part.tasks:
            for variant in part.variants:
                middle, own = protocol.variants[variant]
                words = [*own.split(), "--task_name", task, "--checkpoint", part.checkpoint]
                words += ["--n_epochs", str(protocol.epochs[task]), *protocol.options.split()]
                rates = tuple(float(f"{middle * factor:.2g}") for factor in protocol.factors)
                changed = (*_without(words, given(changes)), *changes)
                checkpoint = changed[changed.index("--checkpoint") + 1]
                cell = Cell(checkpoint, task, variant, changed, rates, tuple(protocol.seeds), other)
                if cell.name not in seen:  # with another --checkpoint, parts have the same cells
                    seen.add(cell.name)
                    yield cell


def _without(words: Sequence[str], names: set[str]) -> Iterator[str]:
    """A command line without some options."""
    kept = True
    for word in words:
        if word.startswith("--"):
            kept = word.removeprefix("--") not in names
        if kept:
            yield word


def jobs(cell: Cell) -> list[Job]:
    """The runs of a cell, in their order."""
    first, *others = cell.seeds
    return [*(Job(cell, first, rate) for rate in cell.rates), *(Job(cell, seed, None) for seed in others)]


def command(job: Job, rate: float | str, where: Sequence[str] = ()) -> list[str]:
    """The command of a run. where: words that say where data and runs are."""
    method, *words = job.cell.words
    return [sys.executable, "-m", f"{method}.tune", *words, "--lr", f"{rate}", "--seed", str(job.seed), *where]


def check_options(wanted: Sequence[Cell]) -> None:
    """End the process with one line on stderr if a method would not take its options."""
    for name, words in dict.fromkeys((cell.words[0], cell.words[1:]) for cell in wanted):
        kind = find(name)
        parse(f"{name}.tune", words, options=TuneOptions(lr=kind.default_lr), method=kind())


@dataclass
class Driver:
    """Runs jobs in processes of their own. Its state is the file of rows, so that any machine resumes from it."""

    home: Path
    """Folder of a log for each job."""
    rows: Path
    where: Sequence[str]
    finished: dict[Job, dict[str, Any]] = field(default_factory=dict)
    """The rows of jobs."""
    failed: dict[Job, str] = field(default_factory=dict)
    """Why a job has no row; it is tried again in the next launch."""
    diverged: set[Job] = field(default_factory=set)
    """Jobs that have no score and never will."""
    stopped: bool = False
    running: list["subprocess.Popen[str]"] = field(default_factory=list)
    lock: Any = field(default_factory=threading.Lock)

    def run(self, wanted: Sequence[Cell], workers: int) -> None:
        """Run all jobs that have no row. Raises Interrupted if it is stopped, InputError if some failed."""
        from tqdm import tqdm

        every = [job for cell in wanted for job in jobs(cell)]
        self.recall(every)
        waiting, taken = [job for job in every if job not in self.finished and job not in self.diverged], set[Job]()
        with tqdm(total=len(every), initial=len(every) - len(waiting), unit="run", dynamic_ncols=True) as bar:

            def work() -> None:
                while not self.stopped and (job := self._next(waiting, taken)) is not None:
                    bar.set_postfix_str(f"{job.name}, about {self.left(every, workers)} left")
                    self._attempt(job)
                    bar.update()

            with locks.lock_folder(self.home), ThreadPoolExecutor(workers) as pool:
                try:
                    working = [pool.submit(work) for _ in range(workers)]
                    while not all(each.done() for each in working):
                        time.sleep(0.2)
                        if any(each.done() and each.exception() for each in working):
                            self.stop()
                except (KeyboardInterrupt, Interrupted):
                    self.stop()
            for each in working:
                each.result()  # raises what ended a worker
        if self.stopped:
            raise Interrupted(f"stopped after {len(self.finished):,} runs: the same command resumes")
        if self.failed:
            job, why = next(iter(self.failed.items()))
            raise InputError(f"{len(self.failed)} of {len(every)} runs failed, such as {job.name}: {why}")

    @property
    def without_score(self) -> Path:
        """The file of the runs that diverged, beside that of the rows."""
        return beside(self.rows, "diverged.jsonl")

    @property
    def answers(self) -> Path:
        """The file of the answers of all runs on the development set, beside that of the rows."""
        return beside(self.rows, "answers.jsonl")

    def recall(self, every: Sequence[Job]) -> None:
        """Find the rows of jobs of earlier launches, here or on another machine."""
        answered = {identity(row) for row in (read_rows(self.answers) if self.answers.is_file() else [])}
        rows = read_rows(self.rows) if self.rows.is_file() else []
        known = {identity(row): row for row in rows if identity(row) in answered}  # others are made again
        diverged = {identity(row) for row in (read_rows(self.without_score) if self.without_score.is_file() else [])}
        for job in every:  # those of the first seed come first, and with them the best rate of a cell is known
            rate = job.rate or (self.best_rate(job.cell) if self._is_searched(job.cell) else None)
            key = job.cell.digest, job.cell.variant, job.seed, rate
            self.finished |= {job: known[key]} if key in known else {}
            self.diverged |= {job} if key in diverged else set()

    def _is_searched(self, cell: Cell) -> bool:
        """Whether the runs with all rates have a score or diverged, and one of them has a score."""
        ended = [job in self.finished or job in self.diverged for job in jobs(cell) if job.rate is not None]
        return all(ended) and any(job in self.finished for job in jobs(cell))

    def best_rate(self, cell: Cell) -> float:
        """`best_of` the rates of a cell that have a row."""
        return best_of({job.rate: self.finished[job] for job in jobs(cell) if job.rate and job in self.finished})

    def _next(self, waiting: list[Job], taken: set[Job]) -> Job | None:
        """The next job that nobody runs and whose learning rate is known; waits for those that tell it."""
        while not self.stopped:
            with self.lock:
                left = [job for job in waiting if job not in taken]
                ready = (job for job in left if job.rate is not None or self._is_searched(job.cell))
                if (job := next(ready, None)) is not None:
                    taken.add(job)
                    return job
                ended = self.finished.keys() | self.failed.keys() | self.diverged
                if all(each in ended for job in left for each in jobs(job.cell) if each.rate is not None):
                    return None  # the best rate of these cells stays unknown
            time.sleep(0.2)
        return None

    def _attempt(self, job: Job) -> None:
        """Run a job, and add its row, or note why there is none."""
        rate = job.rate or self.best_rate(job.cell)
        words = command(job, rate, self.where)
        log = self.home / "logs" / (re.sub(r"[^\w.+-]+", "-", job.name) + ".log")
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a", encoding="utf-8") as said:
            print(shlex.join(words), file=said, flush=True)
            pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
            one_thread = os.environ | {"OMP_NUM_THREADS": "1"}
            process = subprocess.Popen(words, **pipes, env=one_thread, start_new_session=True)
            with self.lock:
                self.running.append(process)
            if self.stopped:
                process.send_signal(signal.SIGTERM)
            out, errors = process.communicate()
            said.write(errors + out)
        with self.lock:
            self.running.remove(process)
            facts: dict[str, Any] = {"protocol": job.cell.digest, "variant": job.cell.variant}
            if process.returncode == 0 and out.strip():
                folder = Path(out.strip().splitlines()[-1])
                row = read_result(folder) | facts
                append_once(self.answers, answers_of(row, folder))  # first, so that no row is without
                append_once(self.rows, row)
                self.finished[job] = row
            elif (found := DIVERGED.search(errors)) is not None:
                facts |= {"run": f"{job.name} {job.cell.digest}", "seed": job.seed, "lr": rate, "reason": found[1]}
                append_once(self.without_score, facts)
                self.diverged.add(job)
            elif not self.stopped:
                self.failed[job] = f"exit code {process.returncode}, see {log}"

    def stop(self) -> None:
        """Send SIGTERM to all jobs that are running, which save and end."""
        with self.lock:
            self.stopped = True
            for process in self.running:
                with contextlib.suppress(ProcessLookupError):  # it has just ended
                    os.killpg(process.pid, signal.SIGTERM)

    def left(self, every: Sequence[Job], workers: int) -> str:
        """The time for what is left, from what such jobs took."""
        known: dict[tuple[str, ...], list[float]] = {}
        for job in every:
            if job in self.finished:
                for kind in _kinds(job):
                    known.setdefault(kind, []).append(self.finished[job]["train_seconds"] + START)
        seconds = 0.0
        for job in every:
            if job not in self.finished and job not in self.failed and job not in self.diverged:
                seconds += statistics.mean(next((known[kind] for kind in _kinds(job) if kind in known), [UNKNOWN]))
        minutes = round(seconds / workers / 60)
        return f"{minutes // 60}:{minutes % 60:02} h"


def _kinds(job: Job) -> list[tuple[str, ...]]:
    """The kinds of jobs that a job is like, the most alike first."""
    cell = job.cell
    return [(cell.checkpoint, cell.task, cell.variant), (cell.checkpoint, cell.task), (cell.checkpoint,)]
