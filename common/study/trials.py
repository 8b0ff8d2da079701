"""Storage of a search, a journal file or a database, and which of its trials are running."""

import contextlib
import hashlib
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
"""Seconds between two heartbeats of a trial, if the study is in a database."""
GRACE = 120.0
"""Seconds without a heartbeat after which a trial is resumed by another worker."""
WARM_UP = 2
"""The first epoch after which a trial may be pruned."""
SAID = 3
"""Number of differing options in the error message about a study of other options."""
HEARTBEATS, FACTS = "beats", "facts"
"""User attributes: the last heartbeat of a trial, and all that decides the scores of a study."""

Release = Callable[[], None]


class Locks:
    """File locks that mark the running trials of a journal; the system releases a lock when its holder ends."""

    def __init__(self, journal: Path, study_name: str):
        self.journal, self.study_name = journal, study_name

    def of(self, number: int) -> Path:
        """Path of the lock file of a trial."""
        # A digest, since both names together can be longer than the name of a file may be.
        digest = hashlib.sha256(f"{self.journal.name}/{self.study_name}".encode()).hexdigest()[:16]
        return self.journal.with_name(f".search-{digest}.{number}.lock")

    def claiming(self) -> contextlib.AbstractContextManager[None]:
        """A context in which no other worker can claim a trial."""
        return locks.lock_file(self.journal)

    def is_lost(self, trial: FrozenTrial) -> bool:
        """Whether no process is running a trial that is not finished."""
        lock = filelock.FileLock(self.of(trial.number), timeout=0)
        try:
            with lock:
                return True
        except filelock.Timeout:
            return False

    def hold(self, trial: optuna.Trial) -> Release:
        """Mark a trial as running in this process, until the returned function is called."""
        lock = filelock.FileLock(self.of(trial.number))
        lock.acquire()

        def release() -> None:
            with contextlib.suppress(OSError):  # as in `lock_folder`
                self.of(trial.number).unlink()
            lock.release()

        return release


class Heartbeats:
    """Heartbeats that mark the running trials of a database: a trial without one for GRACE seconds is lost.

    Each worker measures the time with its own clock, so that clocks of several machines need not agree.
    """

    def __init__(self) -> None:
        self.seen: dict[int, tuple[object, float]] = {}

    def claiming(self) -> contextlib.AbstractContextManager[None]:
        """No lock, since a database gives none; `Search.claim` checks whether two workers claimed the last trial."""
        return contextlib.nullcontext()

    def is_lost(self, trial: FrozenTrial) -> bool:
        beat, now = trial.user_attrs.get(HEARTBEATS), time.monotonic()
        last, since = self.seen.get(trial.number, (None, now))
        if trial.number not in self.seen or last != beat:
            self.seen[trial.number] = beat, now
            return False
        return now - since > GRACE

    def hold(self, trial: optuna.Trial) -> Release:
        ended = threading.Event()

        def beat(n: int) -> None:
            # The worker itself will see the error of a database that does not answer.
            with contextlib.suppress(optuna.exceptions.OptunaError):
                trial.set_user_attr(HEARTBEATS, f"{socket.gethostname()} {os.getpid()} {time.time()} {n}")

        def beat_until_ended() -> None:
            n = 0
            while not ended.wait(HEARTBEAT):
                n += 1
                beat(n)

        beat(0)  # at once, before another worker checks
        beats = threading.Thread(target=beat_until_ended, daemon=True)
        beats.start()

        def release() -> None:
            ended.set()
            beats.join()

        return release


class JournalLock:
    """Lock for writing a journal. It is the system's, since Optuna's own locks outlive a killed holder.

    A last line that was cut off, by a full disk or a power failure, is removed before another one is written.
    """

    def __init__(self, journal: Path):
        self.journal = journal
        self.lock = filelock.FileLock(journal.with_name(f".{journal.name}.write.lock"))

    def acquire(self) -> bool:
        self.lock.acquire()
        with self.journal.open("rb+") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 1))
            if file.read() not in (b"", b"\n"):
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)
        return True

    def release(self) -> None:
        with contextlib.suppress(OSError):  # as in `lock_folder`
            Path(self.lock.lock_file).unlink()
        self.lock.release()


Keeper = Locks | Heartbeats


def open_study(
    place: str, name: str, facts: dict[str, Any], first: dict[str, Any], prune: bool, directions: list[Any]
) -> tuple[optuna.Study, Keeper]:
    """Open a study, or create it, with the locks or heartbeats of its running trials.

    Args:
        place: path of a journal, or URL of a database.
        name: of the study in it.
        facts: all that decides the scores, as JSON values; an existing study must have the same.
        first: parameters of the first trial of a new study.
        prune: whether to prune trials below the median of the others.
        directions: "maximize" or "minimize" for each objective.

    Raises:
        InputError: the study cannot be opened or written, is damaged, or has other facts.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    shown = re.sub(r"://[^@/]*@", "://...@", place)  # without a password
    is_file = "://" not in place
    keeper: Keeper = Locks(Path(os.path.realpath(place)), name) if is_file else Heartbeats()
    if is_file:
        check_journal(Path(place))
    with keeper.claiming(), _storage_named(shown):
        storage = _journal(Path(os.path.realpath(place))) if is_file else _database(place)
        pruner: Any = optuna.pruners.MedianPruner(n_warmup_steps=WARM_UP) if prune else optuna.pruners.NopPruner()
        try:
            study = optuna.load_study(study_name=name, storage=storage, pruner=pruner)
        except KeyError:
            try:
                study = optuna.create_study(study_name=name, storage=storage, pruner=pruner, directions=directions)
                study.enqueue_trial(first)
            except optuna.exceptions.DuplicatedStudyError:  # another worker has just created it
                study = optuna.load_study(study_name=name, storage=storage, pruner=pruner)
        if FACTS not in study.user_attrs:
            study.set_user_attr(FACTS, facts)
        found = study.user_attrs[FACTS]
    changed = [key for key in {**found, **facts} if found.get(key) != facts.get(key)]
    if changed:
        changes = "; ".join(f"{key} was {found.get(key)} and is {facts.get(key)}" for key in changed[:SAID])
        changes += f"; and {len(changed) - SAID} more" if len(changed) > SAID else ""
        raise InputError(
            f"the study {name} in {shown} has other settings ({changes}): restore them, or choose another study_name"
        )
    print(f"study {name} in {shown}")
    return study, keeper


def check_journal(journal: Path) -> None:
    """Raise InputError if a file is not a journal of studies; a last line that was cut off is accepted."""
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
                f"{journal}, line {number} is damaged, or this is not the journal of a study: remove that line if it "
                "is the last one, restore a copy, or move the file away to start again"
            )


def _journal(path: Path) -> Any:
    from optuna.storages.journal import JournalFileBackend, JournalStorage

    path.parent.mkdir(parents=True, exist_ok=True)
    return JournalStorage(JournalFileBackend(str(path), lock_obj=JournalLock(path)))  # type: ignore[arg-type]


def _database(url: str) -> Any:
    import sqlalchemy

    # By default, SQLite waits 5 seconds for another writer.
    arguments = {"connect_args": {"timeout": 60}} if url.startswith("sqlite") else {}
    attempts = 10
    while True:
        try:
            return optuna.storages.RDBStorage(url, engine_kwargs=arguments)
        except sqlalchemy.exc.DatabaseError:  # also if two workers create the tables of a new database
            attempts -= 1
            if attempts == 0:
                raise
            time.sleep(0.1)


@contextlib.contextmanager
def _storage_named(place: str) -> Iterator[None]:
    """Report any error of an unusable storage, of which each library has its own kinds, as one InputError."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error.__cause__ or error}".partition("\n")[0]
        raise InputError(
            f"cannot open the study in {place} ({reason}): "
            "give the journal of a search, or a database that can be reached"
        ) from error
