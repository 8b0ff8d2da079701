"""The jobs of the protocol (results/PROTOCOL.md): searches, then runs with the found settings and several seeds."""

import hashlib
import json
import os
import shlex
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.errors import InputError, Interrupted
from common.methods import REPOSITORY
from common.results import read_result
from common.runs import append_once
from common.runtime import files, locks

TEXT = REPOSITORY / "results" / "PROTOCOL.md"
VARIANTS: dict[str, str] = {
    "fine-tuning": "baseline",
    "lora": "lora --rank 8 --alpha 8 --dropout 0",
    "adapters": "adapters --bottleneck_size 64 --placement houlsby",
    "bitfit": "bitfit --terms all",
    "prefix": "prefix --prefix_length 20",
    "prompt": "prompt --prompt_length 20 --init vocabulary",
    "ia3": "ia3",
    "lntuning": "lntuning",
    "dora": "dora --rank 8 --alpha 8 --dropout 0",
    "loha": "loha --rank 8 --alpha 8",
    "pfeiffer": "adapters --bottleneck_size 64 --placement pfeiffer",
    "parallel": "adapters --bottleneck_size 64 --placement parallel",
    "hybrid": "hybrid --parts lora adapters:placement=pfeiffer prefix --layers all",
    "diffpruning": "diffpruning --sparsity_penalty 1.25e-7",
    "head": "baseline --top_k 0",
    "top-2": "baseline --top_k 2",
    "random": "baseline --random_params 73728",
}
"""Name -> method and its options. Those that scripts.search would vary are given, so that they are not searched."""
MAIN = ("fine-tuning", "lora", "adapters", "bitfit", "prefix", "prompt")
SEARCHED = "--n_epochs_range 3 6 --batch_sizes 16 32 --select holdout --report_to none"
"""Beside the learning rate, over two decades."""
UNKNOWN = 600.0
"""Seconds that a job is guessed to take while none is known."""


@dataclass(frozen=True)
class Part:
    """Some variants on some tasks with one encoder."""

    checkpoint: str
    tasks: tuple[str, ...]
    variants: tuple[str, ...]
    trials: int
    seeds: tuple[int, ...] = (42, 43, 44)


PARTS = {
    "a": Part("minilm", ("mrpc", "rte", "cola", "stsb"), tuple(VARIANTS), 6),
    "b": Part("mpnet", ("mrpc", "rte"), ("fine-tuning", "lora", "adapters", "bitfit", "ia3", "lntuning"), 2),
    "c": Part("minilm", ("sst2",), MAIN, 4),
    "d": Part("mpnet", ("cola",), ("fine-tuning", "lora", "adapters", "bitfit", "ia3", "lntuning"), 2),
    "e": Part("minilm", ("wnli",), ("lora",), 2),
}
"""Parts in the order in which they are run."""


@dataclass(frozen=True)
class Job:
    """A search of a variant on a task, or with a seed a run with what it found."""

    part: str
    checkpoint: str
    task: str
    variant: str
    trials: int
    seed: int | None = None

    @property
    def name(self) -> str:
        what = f"search of {self.trials}" if self.seed is None else f"seed {self.seed}"
        return f"{self.checkpoint} {self.task} {self.variant} {what}"

    @property
    def search(self) -> "Job":
        """The search that a run needs."""
        return Job(self.part, self.checkpoint, self.task, self.variant, self.trials)

    def command(self, shared: Sequence[str], found: str = "") -> list[str]:
        """Its command. found: the last line of the search, the command of its best trial."""
        if self.seed is not None:
            seed = [] if self.seed == 42 else ["--seed", str(self.seed)]  # 42 is the default and not in the line
            return [sys.executable, *shlex.split(found)[1:], *seed]
        method, *own = VARIANTS[self.variant].split()
        frozen = [] if method == "baseline" and "--random_params" not in own else ["--frozen_dtype", "bfloat16"]
        words = [method, "--task_name", self.task, "--checkpoint", self.checkpoint, "--trials", str(self.trials)]
        return [sys.executable, "-m", "scripts.search", *words, *own, *SEARCHED.split(), *frozen, *shared]


def jobs(parts: Sequence[str]) -> Iterator[Job]:
    """All jobs of some parts, in their order: each search is followed by its runs."""
    for name in parts:
        if name not in PARTS:
            raise InputError(f"unknown part {name!r}: choose from {', '.join(PARTS)}")
        part = PARTS[name]
        for task in part.tasks:
            for variant in part.variants:
                search = Job(name, part.checkpoint, task, variant, part.trials)
                yield search
                yield from (Job(name, part.checkpoint, task, variant, part.trials, seed) for seed in part.seeds)


def digest(shared: Sequence[str]) -> str:
    """What identifies the protocol in a row: a digest of its text and of these jobs; or what is not as it says."""
    facts = json.dumps([TEXT.read_text(encoding="utf-8"), VARIANTS, SEARCHED, repr(PARTS)])
    changed = f" changed by {shlex.join(shared)}" if shared else ""
    return hashlib.sha256(facts.encode()).hexdigest()[:12] + changed


@dataclass
class Driver:
    """Runs jobs in processes of their own, keeps what they said, and goes on where an earlier launch stopped."""

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
                    bar.set_postfix_str(f"{job.name}, about {self.left(waiting, workers)} left")
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
        log = self.home / "logs" / f"{job.name.replace(' ', '-')}.log"
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
        """Let all that runs save and end."""
        with self.lock:
            self.stopped = True
            for process in self.running:
                os.killpg(process.pid, signal.SIGTERM)

    def left(self, waiting: list[Job], workers: int) -> str:
        """The time for what is left, from what such jobs took."""
        known: dict[tuple[Any, ...], list[float]] = {}
        for job in jobs(list(PARTS)):
            if job.name in self.finished:
                for kind in _kinds(job):
                    known.setdefault(kind, []).append(self.finished[job.name]["seconds"])
        seconds = 0.0
        for job in waiting:
            if job.name not in self.finished:
                like = next((known[kind] for kind in _kinds(job) if kind in known), [UNKNOWN])
                seconds += statistics.mean(like)
        minutes = round(seconds / workers / 60)
        return f"{minutes // 60}:{minutes % 60:02} h"


def _kinds(job: Job) -> list[tuple[Any, ...]]:
    """The kinds of jobs that a job is like, the most alike first."""
    is_search = job.seed is None
    return [(is_search, job.checkpoint, job.task), (is_search, job.checkpoint), (is_search,)]
