"""The runs of a service by name, and dynamic batches: what concurrent requests want is computed together."""

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np
import torch

from common import classification, prediction
from common.errors import DoesNotFit, InputError
from common.inference import Texts, answers, examples_of, task_of
from common.prediction import Predictor
from common.runtime.threads import share_cores
from common.serving import SharedEncoder
from common.tasks import GlueTask

Answer = dict[str, Any]


@dataclass(frozen=True)
class Served:
    """A run that is served."""

    name: str
    folder: Path
    config: dict[str, Any]
    task: GlueTask
    tokenizer: Any
    home: SharedEncoder | Predictor
    """What computes its logits: an encoder that it shares, or its own model."""
    reason: str
    """Why it does not share an encoder; empty = it does."""

    def describe(self) -> dict[str, Any]:
        """What a client should know of it."""
        about = {"task": self.name, "run": self.folder.name, "method": self.config["method"]}
        about |= {"encoder": self.config["base_checkpoint"], "texts": self.task.texts, "labels": self.task.labels}
        return about | {"shares_encoder": not self.reason} | ({"reason": self.reason} if self.reason else {})


Wanted = tuple[int, Served, Texts]
"""The number of a request, its run, and one of its examples."""


class Taken(InputError):
    """Another run has this name."""


class Removed(InputError):
    """The run was removed while the request waited."""


class Service:
    """Runs by name, and the encoders that they share. Its methods may be called by any thread."""

    def __init__(self, checkpoint: str | None = None, batch_size: int = 64):
        """
        Args:
            checkpoint: the base model of all runs, if it has moved since training.
            batch_size: examples of a forward pass.
        """
        from accelerate import Accelerator

        self.checkpoint, self.batch_size, self.accelerator = checkpoint, batch_size, Accelerator()
        self.runs: dict[str, Served] = {}
        self._encoders: dict[Any, SharedEncoder] = {}
        self._loading, self._computing = threading.Lock(), threading.Lock()

    def add(self, folder: Path, name: str | None = None) -> Served:
        """Load a run; its name is that of its task by default.

        Raises:
            InputError: it cannot be used, or the name is taken.
        """
        with self._loading:
            config = prediction.read_config(folder)
            name = name or task_of(config, folder).name
            if name in self.runs:
                raise Taken(f"{name} is taken by {self.runs[name].folder}: give {folder} another name")
            task, model, _, tokenizer = prediction.read_model(folder, config, self.checkpoint)
            pools_all = model.pooling == "mean"
            key = model.base.sha256, pools_all, config["frozen_dtype"]
            home: SharedEncoder | Predictor
            if key not in self._encoders:
                checkpoint = self.checkpoint or config["base_checkpoint"]
                device = self.accelerator.device
                self._encoders[key] = SharedEncoder(checkpoint, pools_all, config["frozen_dtype"], device)
            home, reason = self._encoders[key], ""
            try:
                with self._computing:
                    home.add(name, model)
            except DoesNotFit as error:
                home, reason = prediction.load(folder, config, self.checkpoint, self.accelerator), str(error)
            self.runs[name] = Served(name, folder, config, task, tokenizer, home, reason)
            self._drop_unused()
            return self.runs[name]

    def remove(self, name: str) -> None:
        """Forget a run. Raises KeyError if there is none with this name."""
        with self._loading, self._computing:
            run = self.runs.pop(name)
            if isinstance(run.home, SharedEncoder):
                run.home.remove(name)
            self._drop_unused()

    def _drop_unused(self) -> None:
        self._encoders = {key: encoder for key, encoder in self._encoders.items() if encoder.runs}

    def predict(self, requests: Sequence[tuple[Served, Sequence[Texts]]]) -> list[list[Answer] | InputError]:
        """What each request gets: an answer for each of its examples, or why there is none."""
        found: list[list[Answer] | InputError] = [[] for _ in requests]
        with self._computing:
            homes: dict[int, list[Wanted]] = {}
            for number, (run, rows) in enumerate(requests):
                if self.runs.get(run.name) is not run:
                    found[number] = Removed(f"{run.name} has been removed")
                else:
                    homes.setdefault(id(run.home), []).extend((number, run, texts) for texts in rows)
            for wanted in homes.values():
                for begin in range(0, len(wanted), self.batch_size):
                    self._predict(wanted[begin : begin + self.batch_size], found)
        return found

    def _predict(self, wanted: list[Wanted], found: list[Any]) -> None:
        """One forward pass for examples of runs with one home."""
        by_run: dict[str, list[Wanted]] = {}
        for one in wanted:
            by_run.setdefault(one[1].name, []).append(one)
        runs = {name: each[0][1] for name, each in by_run.items()}
        examples = {name: examples_of(texts for _, _, texts in each) for name, each in by_run.items()}
        home = next(iter(runs.values())).home
        outputs: dict[str, np.ndarray] = {}
        if isinstance(home, Predictor):
            outputs = {name: home.outputs(each, self.batch_size) for name, each in examples.items()}
        else:
            batches = {}
            for name, each in examples.items():
                encode = classification.by_description(runs[name].task).encode
                tokens = encode(each, runs[name].tokenizer, runs[name].config["max_length"]).with_layout(home.layout)
                batches[name], _ = tokens.batch(torch.arange(len(each)), home.device)
            logits = home.logits(batches)
            outputs = {name: each.cpu().numpy().reshape(len(examples[name]), -1) for name, each in logits.items()}
        for name, own in by_run.items():
            try:
                answered: list[Any] = list(answers(runs[name].task, outputs[name], runs[name].folder))
            except InputError as error:
                answered = [error] * len(own)
            for (number, _, _), answer in zip(own, answered, strict=True):
                if isinstance(answer, InputError) or isinstance(found[number], InputError):
                    found[number] = answer if isinstance(answer, InputError) else found[number]
                else:
                    found[number].append(answer)


class Busy(Exception):
    """Too many examples wait."""


class Batcher:
    """A thread that computes what is wanted at about the same time together."""

    def __init__(self, service: Service, wait: float, most_waiting: int = 4_096):
        """
        Args:
            wait: seconds from the first request of a batch in which others may join it.
            most_waiting: examples above which requests are refused.
        """
        self.service, self.wait, self.most_waiting = service, wait, most_waiting
        self.queue: SimpleQueue[tuple[Served, Sequence[Texts], Future[list[Answer]]] | None] = SimpleQueue()
        self.waiting, self._counting = 0, threading.Lock()
        self.thread = threading.Thread(target=self._work, daemon=True)
        self.thread.start()

    def submit(self, run: Served, rows: Sequence[Texts]) -> "Future[list[Answer]]":
        """The answers, later. Raises Busy."""
        with self._counting:
            if self.waiting + len(rows) > self.most_waiting and self.waiting:
                raise Busy(f"{self.waiting:,} examples wait: try again later")
            self.waiting += len(rows)
        future: Future[list[Answer]] = Future()
        self.queue.put((run, rows, future))
        return future

    def stop(self) -> None:
        """Compute what waits, and end."""
        self.queue.put(None)
        self.thread.join()

    def _work(self) -> None:
        share_cores()  # a number of threads is that of the thread that sets it
        for batch in iter(lambda: list(self._next()), []):
            wanted = [each for each in batch if each[2].set_running_or_notify_cancel()]
            try:
                found: list[Any] = list(self.service.predict([(run, rows) for run, rows, _ in wanted]))
            except Exception as error:  # a bug, or no memory: those who wait are told, and the next batch is computed
                found = [error] * len(wanted)
            with self._counting:
                self.waiting -= sum(len(rows) for _, rows, _ in batch)
            for (_, _, future), answer in zip(wanted, found, strict=True):
                if isinstance(answer, Exception):
                    future.set_exception(answer)
                else:
                    future.set_result(answer)

    def _next(self) -> Iterator[Any]:
        """The requests of the next batch; none at the end."""
        n, until = 0, 0.0
        while n < self.service.batch_size:
            try:
                wanted = self.queue.get(timeout=max(0.0, until - time.monotonic()) if n else None)
            except Empty:
                return
            if wanted is None:
                self.queue.put(None)  # for the next call, after this batch
                return
            until = until or time.monotonic() + self.wait
            n += len(wanted[1])
            yield wanted
