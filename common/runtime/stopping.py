"""Stop a run by a signal or a time limit. The run then saves a checkpoint and ends with exit code 75."""

import signal
import threading
import time
from types import TracebackType
from typing import Any

import psutil
import torch

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
"""They ask a run to save and stop. Shells and schedulers send SIGTERM; SLURM sends SIGUSR1 before its time limit."""


class Stop:
    """Detects that a run should stop, at the same step on all its processes.

    Inside its `with` block, SIGTERM and SIGUSR1 are only recorded.
    """

    def __init__(self, time_limit: float | None, n_processes: int):
        """
        Args:
            time_limit: minutes from the start of the process; None = no limit.
            n_processes: number of processes of the run.
        """
        self.reasons = ["", *(number.name for number in STOP_SIGNALS), "the time limit"]
        self.found = 0  # index of a reason
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
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame: object) -> None:
        self.found = self.reasons.index(signal.Signals(number).name)

    def reason(self) -> str:
        """Why the run should stop, the same on all processes; empty = it should not stop."""
        if self.found == 0 and self.ends is not None and time.time() > self.ends:
            self.found = len(self.reasons) - 1
        if not self.several:
            return self.reasons[self.found]
        latest = torch.tensor(self.found)
        torch.distributed.all_reduce(latest, torch.distributed.ReduceOp.MAX, group=self.group)
        return self.reasons[int(latest)]
