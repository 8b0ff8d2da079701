"""Stop a run by a signal or a time limit. The run then saves a checkpoint and ends with exit code 75."""

import contextlib
import os
import signal
import threading
import time
from types import TracebackType
from typing import Any

import psutil
import torch

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
"""They ask a run to save and stop. Shells and schedulers send SIGTERM; SLURM sends SIGUSR1 before its time limit."""
REPEAT = 1.0
"""Seconds in which a second SIGINT is the same Ctrl-C: a terminal sends it to all processes, launchers pass it on."""


class Stop:
    """Detects that a run should stop, at the same step on all its processes.

    Inside its `with` block, SIGTERM, SIGUSR1 and the first Ctrl-C are only recorded. The second Ctrl-C raises
    KeyboardInterrupt.
    """

    def __init__(self, time_limit: float | None, n_processes: int):
        """
        Args:
            time_limit: minutes from the start of the process; None = no limit.
            n_processes: number of processes of the run.
        """
        self.reasons = ["", "Ctrl-C", *(number.name for number in STOP_SIGNALS), "the time limit"]
        self.found = 0  # index of a reason
        self.first_interrupt: float | None = None  # time of the first Ctrl-C
        self.ends = None if time_limit is None else psutil.Process().create_time() + 60 * time_limit
        self.group: Any = None
        self.several = n_processes > 1
        if self.several and torch.distributed.get_backend() != "gloo":
            # A group on the hosts: a collective on a GPU would wait for all the work that is queued there.
            self.group = torch.distributed.new_group(backend="gloo")

    def __enter__(self) -> "Stop":
        self.before: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():  # only the main thread may set handlers
            self.before = {number: signal.signal(number, self._note) for number in STOP_SIGNALS}
            if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else ignored, as behind `&`
                self.before[signal.SIGINT] = signal.signal(signal.SIGINT, self._note_interrupt)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame: object) -> None:
        self.found = self.reasons.index(signal.Signals(number).name)

    def _note_interrupt(self, _number: int, _frame: object) -> None:
        now = time.monotonic()
        if self.first_interrupt is None:
            self.first_interrupt, self.found = now, self.reasons.index("Ctrl-C")
            if os.environ.get("RANK", "0") == "0":
                with contextlib.suppress(OSError):  # os.write, since print may not be interrupted by itself
                    os.write(2, b"\nCtrl-C: the run ends after this step and saves it; Ctrl-C once more ends it now\n")
        elif now - self.first_interrupt > REPEAT:
            raise KeyboardInterrupt

    def reason(self) -> str:
        """Why the run should stop, the same on all processes; empty = it should not stop."""
        if self.found == 0 and self.ends is not None and time.time() > self.ends:
            self.found = len(self.reasons) - 1
        if not self.several:
            return self.reasons[self.found]
        latest = torch.tensor(self.found)
        torch.distributed.all_reduce(latest, torch.distributed.ReduceOp.MAX, group=self.group)
        return self.reasons[int(latest)]
