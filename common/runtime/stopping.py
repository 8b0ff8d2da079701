"""Asking a run to stop: by a signal or by the clock. The run then saves where it is and ends with exit code 75."""

import signal
import threading
import time
from types import TracebackType
from typing import Any

import psutil
import torch

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
"""What asks a run to save and stop: a shell's or a scheduler's polite end, and SLURM's warning before its limit."""


class Stop:
    """Notices that a run should end, and has all its processes notice it at the same step.

    While it is entered, SIGTERM and SIGUSR1 do no more than leave their name here.
    """

    def __init__(self, time_limit: float | None, n_processes: int):
        """
        Args:
            time_limit: minutes since the process began; None = no limit.
            n_processes: of the run.
        """
        self.reasons = ["", *(number.name for number in STOP_SIGNALS), "the time limit"]
        self.found = 0  # index of a reason
        self.ends = None if time_limit is None else psutil.Process().create_time() + 60 * time_limit
        self.group: Any = None
        self.several = n_processes > 1
        if self.several and torch.distributed.get_backend() != "gloo":
            # A group of the hosts' own: asking a GPU would wait for all the work that it has been given.
            self.group = torch.distributed.new_group(backend="gloo")

    def __enter__(self) -> "Stop":
        self.before: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():  # no other may set handlers
            self.before = {number: signal.signal(number, self._note) for number in STOP_SIGNALS}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame: object) -> None:
        self.found = self.reasons.index(signal.Signals(number).name)

    def reason(self) -> str:
        """Why the run should end, the same on all processes; empty = it should not."""
        if self.found == 0 and self.ends is not None and time.time() > self.ends:
            self.found = len(self.reasons) - 1
        if not self.several:
            return self.reasons[self.found]
        told = torch.tensor(self.found)
        torch.distributed.all_reduce(told, torch.distributed.ReduceOp.MAX, group=self.group)
        return self.reasons[int(told)]
