"""Where a search is kept, in a journal file or a database, and which of its trials are at work."""

import contextlib
import json
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import filelock
import optuna
from optuna.trial import FrozenTrial

from common.errors import InputError
from common.runtime import locks

HEARTBEAT = 30.0
"""Seconds between two signs of life of a trial, where a database holds the study."""
GRACE = 120.0
"""Seconds without one after which it is taken up again."""
WARM_UP = 2
"""The first epoch after which a trial may be pruned."""
SAID = 3
"""Differences from a study of other options that are told."""
HEARTBEATS, FACTS = "beats", "facts"
"""Notes with a trial, its last sign of life, and with a study, all that decides its scores."""

Release = Callable[[], None]


class Locks:
    """Which trials of a journal are at work: those whose lock is held. It is the system's and ends with its holder."""

    def __init__(self, journal: Path, study_name: str):
        self.journal, self.study_name = journal, study_name

    def of(self, number: int) -> Path:
        """Path of the lock of a trial."""
        return self.journal.with_name(f".{self.journal.name}.{self.study_name}.{number}.lock")

    def claiming(self) -> contextlib.AbstractContextManager[None]:
        """Within it no other worker takes a trial."""
        return locks.lock_file(self.journal)

    def is_lost(self, trial: FrozenTrial) -> bool:
        """Whether nobody is at work on a trial that is not finished."""
        lock = filelock.FileLock(self.of(trial.number), timeout=0)
        try:
            with lock:
                return True
        except filelock.Timeout:
            return False

    def hold(self, trial: optuna.Trial) -> Release:
        """Let the others know that this process is at work on a trial, until the returned function is called."""
        lock = filelock.FileLock(self.of(trial.number))
        lock.acquire()

        def release() -> None:
            with contextlib.suppress(OSError):  # as in `saving.alone`
                self.of(trial.number).unlink()
            lock.release()

        return release


class Heartbeats:
    """Which trials of a database are at work: those that show a new sign of life within GRACE seconds.

    Each worker measures with its own clock, so that those of several machines need not agree.
    """

    def __init__(self) -> None:
        self.seen: dict[int, tuple[object, float]] = {}

    def claiming(self) -> contextlib.AbstractContextManager[None]:
        """A database gives no lock to hold; `claim` notices afterwards if two took the last trial."""
        return contextlib.nullcontext()

    def is_lost(self, trial: FrozenTrial) -> bool:
        """As that of `Locks`."""
        sign, now = trial.user_attrs.get(HEARTBEATS), time.monotonic()
        last, since = self.seen.get(trial.number, (None, now))
        if trial.number not in self.seen or last != sign:
            self.seen[trial.number] = sign, now
            return False
        return now - since > GRACE

    def hold(self, trial: optuna.Trial) -> Release:
        """As that of `Locks`."""
        ended = threading.Event()

        def beat(n: int) -> None:
            # A database that does not answer is met by the worker itself, sooner or later.
            with contextlib.suppress(optuna.exceptions.OptunaError):
                trial.set_user_attr(HEARTBEATS, f"{socket.gethostname()} {os.getpid()} {time.time()} {n}")

        def go_on() -> None:
            n = 0
            while not ended.wait(HEARTBEAT):
                n += 1
                beat(n)

        beat(0)  # at once, before another worker looks
        beats = threading.Thread(target=go_on, daemon=True)
        beats.start()

        def release() -> None:
            ended.set()
            beats.join()

        return release


class JournalLock:
    """Held by the one process that writes a journal; the system's, since Optuna's own outlive a killed holder.

    A last line that was cut off, by a full disk or a loss of power, is removed before another one is written.
    """

    def __init__(self, journal: Path):
        self.journal = journal
        self.lock = filelock.FileLock(journal.with_name(f".{journal.name}.write.lock"))

    def acquire(self) -> bool:
        """Wait for it."""
        self.lock.acquire()
        with self.journal.open("rb+") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 1))
            if file.read() not in (b"", b"\n"):
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)
        return True

    def release(self) -> None:
        """Let the next process write."""
        with contextlib.suppress(OSError):  # as in `saving.alone`
            Path(self.lock.lock_file).unlink()
        self.lock.release()


Keeper = Locks | Heartbeats


def open_study(
    place: str, name: str, facts: dict[str, Any], first: dict[str, Any], prune: bool, directions: list[Any]
) -> tuple[optuna.Study, Keeper]:
    """A study, which is made where it is not there, and what tells which of its trials are at work.

    Args:
        place: path of a journal, or URL of a database.
        name: of the study in it.
        facts: all that decides the scores, as JSON has it, which the study must share if it is there.
        first: parameters of the first trial of a new study.
        prune: whether a trial below the median of the others should end.
        directions: "maximize" or "minimize" for each objective.

    Raises:
        InputError: it cannot be opened or written, is damaged, or is of other facts.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    shown = re.sub(r"://[^@/]*@", "://...@", place)  # without a password
    is_file = "://" not in place
    keeper: Keeper = Locks(Path(place).resolve(), name) if is_file else Heartbeats()
    if is_file:
        check_journal(Path(place))
    with keeper.claiming(), _storage_named(shown):
        storage = _journal(Path(place).resolve()) if is_file else _database(place)
        pruner: Any = optuna.pruners.MedianPruner(n_warmup_steps=WARM_UP) if prune else optuna.pruners.NopPruner()
        try:
            study = optuna.load_study(study_name=name, storage=storage, pruner=pruner)
        except KeyError:
            try:
                study = optuna.create_study(study_name=name, storage=storage, pruner=pruner, directions=directions)
                study.enqueue_trial(first)
            except optuna.exceptions.DuplicatedStudyError:  # another worker of a database, just now
                study = optuna.load_study(study_name=name, storage=storage, pruner=pruner)
        if FACTS not in study.user_attrs:
            study.set_user_attr(FACTS, facts)
        found = study.user_attrs[FACTS]
    changed = [key for key in {**found, **facts} if found.get(key) != facts.get(key)]
    if changed:
        told = "; ".join(f"{key} was {found.get(key)} and is {facts.get(key)}" for key in changed[:SAID])
        told += f"; and {len(changed) - SAID} more" if len(changed) > SAID else ""
        raise InputError(
            f"the study {name} in {shown} is another one ({told}): put back what it was, or choose another study_name"
        )
    print(f"study {name} in {shown}")
    return study, keeper


def check_journal(journal: Path) -> None:
    """Raise InputError if a file is no journal of studies; a last line that was cut off is no damage."""
    try:
        lines = journal.read_bytes().splitlines(keepends=True)
    except FileNotFoundError:
        return
    except OSError as error:
        raise InputError(f"cannot read the journal {journal}: {error.strerror}") from error
    for number, line in enumerate(lines, start=1):
        try:
            entry = json.loads(line)
        except ValueError:
            entry = None
        if not (isinstance(entry, dict) and "op_code" in entry) and (line.endswith(b"\n") or len(lines) == 1):
            raise InputError(
                f"{journal}, line {number} is damaged, or this is no journal of a study: remove that line if it is "
                "the last one, or put back a copy, or move the file away to begin anew"
            )


def _journal(path: Path) -> Any:
    from optuna.storages.journal import JournalFileBackend, JournalStorage

    path.parent.mkdir(parents=True, exist_ok=True)
    return JournalStorage(JournalFileBackend(str(path), lock_obj=JournalLock(path)))  # type: ignore[arg-type]


def _database(url: str) -> Any:
    import sqlalchemy

    # SQLite gives up after 5 seconds of waiting for another writer.
    arguments = {"connect_args": {"timeout": 60}} if url.startswith("sqlite") else {}
    attempts = 10
    while True:
        try:
            return optuna.storages.RDBStorage(url, engine_kwargs=arguments)
        except sqlalchemy.exc.DatabaseError:  # also where two workers make the tables of a new one
            attempts -= 1
            if attempts == 0:
                raise
            time.sleep(0.1)


@contextlib.contextmanager
def _storage_named(place: str) -> Iterator[None]:
    """Every library below Optuna has errors of its own for a storage that cannot be used: they become one line."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error.__cause__ or error}".partition("\n")[0]
        raise InputError(
            f"cannot open the study in {place} ({reason}): "
            "give a journal of a search, or a database that can be reached"
        ) from error
