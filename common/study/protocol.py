"""The jobs of the protocol (results/PROTOCOL.md): searches, then runs with the found settings and several seeds.

Which ones is in results/protocol.json: variants (a method and its options), options of all searches, seeds, and parts.
"""

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
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from common.errors import InputError, Interrupted
from common.methods import REPOSITORY
from common.results import read_result
from common.runs import append_once
from common.runtime import files, locks

TEXT, LIST = REPOSITORY / "results" / "PROTOCOL.md", REPOSITORY / "results" / "protocol.json"
UNKNOWN = 600.0
"""Seconds that a job is guessed to take while none is known."""


@dataclass(frozen=True)
class Part:
    """Some variants on some tasks with one encoder."""

    checkpoint: str
    tasks: list[str]
    variants: list[str]
    trials: int


@dataclass(frozen=True)
class Protocol:
    """What is run."""

    variants: dict[str, str]
    """Name -> method and its options. Those that scripts.search would vary are given, so that they are not searched."""
    searched: str
    """Options of all searches, which vary the learning rate over two decades, too."""
    seeds: list[int]
    parts: dict[str, Part]
    """In the order in which they are run."""


def read() -> Protocol:
    """The protocol of the repository."""
    found = files.read_json(LIST)
    return Protocol(**found | {"parts": {name: Part(**part) for name, part in found["parts"].items()}})


@dataclass(frozen=True)
class Job:
    """A search of a variant on a task, or with a seed a run with what it found."""

    part: str
    checkpoint: str
    task: str
    variant: str
    search_words: tuple[str, ...]
    """Those of the search, but for where data and runs are."""
    seed: int | None = None

    @property
    def name(self) -> str:
        what = "search" if self.seed is None else f"seed {self.seed}"
        return f"{self.part}: {self.checkpoint} {self.task} {self.variant} {what}"

    @property
    def search(self) -> "Job":
        """The search that a run needs."""
        return replace(self, seed=None)

    def command(self, shared: Sequence[str], found: str = "") -> list[str]:
        """Its command. found: the last line of the search, the command of its best trial."""
        if self.seed is None:
            return [sys.executable, "-m", "scripts.search", *self.search_words, *shared]
        seed = [] if self.seed == 42 else ["--seed", str(self.seed)]  # 42 is the default and not in the line
        return [sys.executable, *shlex.split(found)[1:], *seed]


def jobs(protocol: Protocol, parts: Sequence[str]) -> Iterator[Job]:
    """All jobs of some parts, in their order: each search is followed by its runs. Raises InputError."""
    for name in parts:
        if name not in protocol.parts:
            raise InputError(f"unknown part {name!r}: choose from {', '.join(protocol.parts)}")
        part = protocol.parts[name]
        for task in part.tasks:
            for variant in part.variants:
                method, *own = protocol.variants[variant].split()
                words = [method, "--task_name", task, "--checkpoint", part.checkpoint, "--trials", str(part.trials)]
                search = Job(name, part.checkpoint, task, variant, (*words, *own, *protocol.searched.split()))
                yield search
                yield from (replace(search, seed=seed) for seed in protocol.seeds)


def digest(changes: Sequence[str]) -> str:
    """What identifies the protocol in a row: a digest of its text and its list, and the words that change it."""
    changed = f" changed by {shlex.join(changes)}" if changes else ""
    return hashlib.sha256(TEXT.read_bytes() + LIST.read_bytes()).hexdigest()[:12] + changed


@dataclass
class Driver:
    """Runs jobs in processes of their own and keeps their last lines; a later launch resumes the rest."""

    home: Path
    """Its folder: what is finished, and a log for each job."""
    rows: Path
    where: Sequence[str]
    """Words of all searches that say where data and runs are."""
    changes: Sequence[str] = ()
    """Words of all searches that change the protocol."""
    finished: dict[str, dict[str, Any]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    stopped: bool = False
    running: list["subprocess.Popen[str]"] = field(default_factory=list)
    lock: Any = field(default_factory=threading.Lock)

    @property
    def path(self) -> Path:
        return self.home / "finished.json"

    def run(self, wanted: list[Job], workers: int) -> None:
        """Run all jobs that are not finished. Raises Interrupted if it is stopped, InputError if some failed."""
        from tqdm import tqdm

        if self.path.is_file():
            self.finished = files.read_json(self.path)
        waiting = [job for job in wanted if job.name not in self.finished]
        taken: set[str] = set()
        with tqdm(total=len(wanted), initial=len(wanted) - len(waiting), unit="job", dynamic_ncols=True) as bar:

            def work() -> None:
                while not self.stopped and (job := self._next(waiting, taken)) is not None:
                    bar.set_postfix_str(f"{job.name}, about {self.left(wanted, workers)} left")
                    self._attempt(job)
                    bar.update()

            with locks.lock_folder(self.home), ThreadPoolExecutor(workers) as pool:
                try:
                    working = [pool.submit(work) for _ in range(workers)]
                    while not all(each.done() for each in working):
                        time.sleep(0.2)
                    for each in working:
                        each.result()
                except (KeyboardInterrupt, Interrupted):
                    self.stop()
        if self.stopped:
            raise Interrupted(f"stopped after {len(self.finished):,} jobs: the same command goes on")
        if self.failed:
            name, why = next(iter(self.failed.items()))
            raise InputError(f"{len(self.failed)} of {len(wanted)} jobs failed, such as {name}: {why}")

    def _next(self, waiting: list[Job], taken: set[str]) -> Job | None:
        """The next job that nobody runs and whose search is finished; waits for a search that is running."""
        while not self.stopped:
            with self.lock:
                left = [job for job in waiting if job.name not in taken]
                ready = (job for job in left if job.seed is None or job.search.name in self.finished)
                if (job := next(ready, None)) is not None:
                    taken.add(job.name)
                    return job
                if all(job.search.name in self.failed for job in left):
                    return None
            time.sleep(0.2)
        return None

    def _attempt(self, job: Job) -> None:
        """Run a job, and note that it is finished or has failed."""
        found = self.finished.get(job.search.name, {}).get("said", "")
        words, began = job.command([*self.where, *self.changes], found), time.monotonic()
        log = self.home / "logs" / (re.sub(r"[^\w.+-]+", "-", job.name) + ".log")
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a", encoding="utf-8") as said:
            print(shlex.join(words), file=said, flush=True)
            process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=said, text=True, start_new_session=True)
            with self.lock:
                self.running.append(process)
            if self.stopped:
                process.send_signal(signal.SIGTERM)
            out, _ = process.communicate()
            said.write(out)
        with self.lock:
            self.running.remove(process)
            if process.returncode != 0 or not out.strip():
                if not self.stopped:
                    self.failed[job.name] = f"exit code {process.returncode}, see {log}"
                return
            seconds, last = round(time.monotonic() - began, 1), out.strip().splitlines()[-1]
            self.finished[job.name] = {"said": last, "seconds": seconds}
            if job.seed is not None:
                facts = {"protocol": digest(self.changes), "part": job.part, "variant": job.variant}
                append_once(self.rows, read_result(Path(last)) | facts)
            files.write_json(self.path, self.finished)

    def stop(self) -> None:
        """Send SIGTERM to all jobs that are running, which save and end."""
        with self.lock:
            self.stopped = True
            for process in self.running:
                os.killpg(process.pid, signal.SIGTERM)

    def left(self, wanted: Sequence[Job], workers: int) -> str:
        """The time for what is left, from what such jobs took."""
        known: dict[tuple[Any, ...], list[float]] = {}
        for job in wanted:
            if job.name in self.finished:
                for kind in _kinds(job):
                    known.setdefault(kind, []).append(self.finished[job.name]["seconds"])
        seconds = 0.0
        for job in wanted:
            if job.name not in self.finished:
                like = next((known[kind] for kind in _kinds(job) if kind in known), [UNKNOWN])
                seconds += statistics.mean(like)
        minutes = round(seconds / workers / 60)
        return f"{minutes // 60}:{minutes % 60:02} h"


def _kinds(job: Job) -> list[tuple[Any, ...]]:
    """The kinds of jobs that a job is like, the most alike first."""
    is_search = job.seed is None
    return [(is_search, job.checkpoint, job.task), (is_search, job.checkpoint), (is_search,)]
