"""A disk fills up while a run saves: earlier files must still load, and the run must resume once there is space."""

import os
import random
import re
import resource
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from common.errors import INPUT_ERROR
from common.runs import CHECKPOINT
from common.training import train
from lora.method import Lora
from torture import runs

SIZE = 1 << 20


@contextmanager
def small_disk(folder: Path) -> Iterator[bool]:
    """Mount a file system of 1 MiB at a folder; yields False without the permission to mount."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(folder)]
    mounted = os.geteuid() == 0 and subprocess.run(mount, capture_output=True).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", str(folder)], check=True)


def torture(home: Path, chance: random.Random, n_times: int) -> str:
    """Run the test and describe the result. Raises AssertionError if a saved file is lost or a run ends otherwise."""
    checkpoint, log = runs.tiny_checkpoint(home), home / "disk.log"
    whole, _ = runs.run_whole(Lora(), runs.settings(checkpoint, home / "whole"), log)
    n_full, n_kept, kinds = 0, 0, set()
    for number in range(n_times):
        out = home / f"disk{number}"
        with small_disk(out) as mounted:
            train_on = partial(train, Lora(), runs.settings(checkpoint, out))
            code = runs.finish(runs.start(partial(fill_up, out, chance.randrange(200_000), mounted, train_on), log))
            last_line = log.read_text().strip().splitlines()[-1]
            assert code in (0, INPUT_ERROR), log.read_text()[-2000:]
            if code:
                n_full += 1
                n_kept += bool(list(out.rglob(CHECKPOINT)))
                assert re.match(r"error: .*(No space left|File too large)", last_line), last_line
            runs.check_readable(out)
            assert not list(out.rglob("*.part"))
            (out / "full").unlink(missing_ok=True)
            assert runs.finish(runs.start(train_on, log)) == 0, log.read_text()[-2000:]
            (result,) = out.rglob("result.json")
            assert runs.outcome(result.parent) == whole
            kinds.add("a full disk" if mounted else "a file size limit")
    done = f"{n_full} of {n_times} runs stopped at {' and '.join(kinds)}, {n_kept} of them with a checkpoint"
    return f"{done}: reported in one line, and all resumed to the same bits"


def fill_up(out: Path, room: int, mounted: bool, work: Callable[[], object]) -> None:
    """Call `work` with `room` bytes left on the disk or, if none is mounted, with that limit on the size of files."""
    if mounted:
        state = os.statvfs(out)
        (out / "full").write_bytes(b"x" * max(0, state.f_bavail * state.f_frsize - room))
    else:
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
    work()
