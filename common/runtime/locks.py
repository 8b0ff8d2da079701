"""Locks: one run in a folder, one writer of a file. The operating system ends them with their holder."""

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import filelock

from common.errors import Busy, InputError
from common.runtime.processes import broadcast_from_main

LOCK = ".lock"


@contextlib.contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Be the only run in a folder, which is made where it is missing and goes again where nothing was put into it.

    The lock is the operating system's and ends with its holder, however that ends. With several processes the main one
    holds it for all.

    Raises:
        Busy: another run is at work there.
        InputError: the folder cannot be made or written.
    """
    main, lock, got = os.environ.get("RANK", "0") == "0", filelock.FileLock(folder / LOCK), True
    if main:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=0)
            (folder / LOCK).write_text(f"{socket.gethostname()} {os.getpid()}\n", encoding="utf-8")
        except filelock.Timeout:
            got = False
        except OSError as error:
            raise InputError(f"cannot write the run folder {folder}: {error.strerror or error}") from error
    if not broadcast_from_main(lambda: got):
        raise _busy(folder)
    try:
        yield
    finally:
        if main:
            with contextlib.suppress(OSError):  # others that wait for the lock find it without a name and begin anew
                (folder / LOCK).unlink()
                folder.rmdir()
            lock.release()


@contextlib.contextmanager
def lock_file(path: Path) -> Iterator[None]:
    """Be the only process that changes a file, once those before are done."""
    lock = filelock.FileLock(path.with_name(f".{path.name}.lock"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # as in `alone`
            Path(lock.lock_file).unlink()
        lock.release()


def refuse_busy(folder: Path) -> None:
    """Raise Busy if a run is at work in a folder now; to know it early, since only `alone` can be sure."""

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
