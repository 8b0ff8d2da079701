"""Locks: one run per folder, one writer per file. The operating system releases them when their holder ends."""

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import filelock

from common.errors import Busy, InputError
from common.runtime import files
from common.runtime.processes import broadcast_from_main

LOCK = ".lock"


@contextlib.contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Lock a run folder. A missing folder is created, and removed again at the end if it is empty.

    The operating system releases the lock when its holder ends, for whatever reason. With several processes, rank 0
    holds the lock for all.

    Raises:
        Busy: another run holds the lock.
        InputError: the folder cannot be created or written.
    """
    lock = filelock.FileLock(folder / LOCK)

    def acquire() -> None:
        try:
            files.refuse_outside(folder)
            folder.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=0)
            (folder / LOCK).write_text(f"{socket.gethostname()} {os.getpid()}\n", encoding="utf-8")
        except filelock.Timeout:
            raise _busy(folder) from None
        except OSError as error:
            raise InputError(f"cannot write the run folder {folder}: {error.strerror or error}") from error

    broadcast_from_main(acquire)
    try:
        yield
    finally:
        if os.environ.get("RANK", "0") == "0":
            with contextlib.suppress(OSError):  # a process that waits on the deleted file retries with a new one
                (folder / LOCK).unlink()
                folder.rmdir()
            lock.release()


@contextlib.contextmanager
def lock_file(path: Path) -> Iterator[None]:
    """Wait for the lock of a file and hold it, so that only this process changes the file.

    What killed writers of the file left beside it is removed.
    """
    files.refuse_outside(path.parent)
    lock = filelock.FileLock(path.with_name(f".{path.name}.lock"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error
    try:
        for part in files.parts_of(path):
            with contextlib.suppress(OSError):
                part.unlink()
        yield
    finally:
        with contextlib.suppress(OSError):  # as in `lock_folder`
            Path(lock.lock_file).unlink()
        lock.release()


def refuse_busy(folder: Path) -> None:
    """Raise Busy if a run holds the lock of a folder now: an early check, since only `lock_folder` can be sure."""

    def is_busy() -> bool:
        if not (folder / LOCK).is_file():
            return False
        try:
            with filelock.FileLock(folder / LOCK, timeout=0):
                return False
        except filelock.Timeout:
            return True

    if broadcast_from_main(is_busy):
        raise _busy(folder)


def _busy(folder: Path) -> Busy:
    try:
        host, process = (folder / LOCK).read_text(encoding="utf-8").split()
        holder = f"process {process} on {host}"
    except (OSError, ValueError):
        holder = "another process"
    return Busy(f"{folder} is being trained by {holder}: wait for it, or choose another output_dir")
