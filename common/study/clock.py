"""A budget of time that several launches of one command and all their workers share."""

import time
from pathlib import Path

from common.runtime import files

SEARCH = 0.55
"""Share of the time in which new configurations are tried; the rest is for training the best of them in full."""
REPORT, LONGEST_REPORT = 0.1, 15.0
"""Share of the time that is kept for the answer itself, and the most seconds it is, but for a twentieth of the time."""


class Clock:
    """Seconds of a budget that are used. They are in a file, so that the same command goes on with what is left."""

    def __init__(self, path: Path, minutes: float, began: float | None):
        """
        Args:
            began: when this launch began, in seconds since 1970; None = in a worker, whose launch wrote the file.
        """
        self.path, self.total = path, 60 * minutes
        stored = files.read_json(path) if path.is_file() else {"used": 0.0, "at": time.time()}
        files.require(path, stored, used=float, at=float)
        self.before = float(stored["used"])
        self.began = float(stored["at"]) if began is None else began

    def used(self) -> float:
        """Seconds that all launches have used."""
        return self.before + time.time() - self.began

    def save(self) -> None:
        """Write what is used to the file."""
        files.write_json(self.path, {"used": self.used(), "at": time.time()})

    @property
    def end_of_search(self) -> float:
        return SEARCH * self.total

    @property
    def end_of_training(self) -> float:
        return self.total - max(self.total / 20, min(LONGEST_REPORT, REPORT * self.total))

    def is_searching(self) -> bool:
        return self.used() < self.end_of_search

    def left(self) -> float:
        """Seconds that are left for the training of this part: new configurations, or the best of them in full."""
        return (self.end_of_search if self.is_searching() else self.end_of_training) - self.used()
