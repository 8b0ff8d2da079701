"""Experiment trackers: TensorBoard, a CSV file, or any other that accelerate supports."""

import csv
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import InputError

if TYPE_CHECKING:
    from accelerate import Accelerator

PROJECT = "peft-glue"
"""The project, or experiment, of all runs; WANDB_PROJECT names another."""
CSV, SCALARS = "csv", "scalars.csv"
"""Name of the tracker that writes this file into the run's folder."""
_open: list[Any] = []
"""Trackers that are not closed yet."""


def resolve(report_to: tuple[str, ...]) -> list[str]:
    """Names of the trackers to use. Raises InputError for one that is unknown or not installed."""
    from accelerate.tracking import get_available_trackers

    installed = [*map(str, get_available_trackers()), CSV]
    if report_to == ("none",):
        return []
    if "all" in report_to:
        return installed
    for name in report_to:
        if name not in installed:
            raise InputError(f"report_to names {name!r}: installed are {', '.join(installed)}; or choose all, or none")
    return list(report_to)


def create(report_to: tuple[str, ...], folder: Path) -> list[Any]:
    """What `Accelerator(log_with=...)` takes: names, and trackers that write into the run's folder.

    accelerate has one name for TensorBoard's folder, which is the run's, and for the other trackers' project.
    """
    from accelerate.tracking import TensorBoardTracker

    made = {"tensorboard": lambda: TensorBoardTracker(folder.name, folder.parent), CSV: lambda: _csv(folder / SCALARS)}
    return [made[name]() if name in made else name for name in resolve(report_to)]


def _csv(path: Path) -> Any:
    """A tracker that writes a file with a line for each value: step, name, value. A resumed run writes it anew."""
    from accelerate.tracking import GeneralTracker, on_main_process

    class Csv(GeneralTracker):
        name, requires_logging_directory, main_process_only = CSV, False, True

        def __init__(self) -> None:
            super().__init__(_blank=True)

        @on_main_process  # type: ignore[untyped-decorator]
        def start(self) -> None:
            # Not through a link, which could lead out of the folder.
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_NOFOLLOW", 0)
            self.file = os.fdopen(os.open(path, flags, 0o666), "w", newline="", encoding="utf-8", buffering=1)
            csv.writer(self.file).writerow(("step", "name", "value"))

        def store_init_configuration(self, values: dict[str, Any]) -> None:
            """They are in the result."""

        @on_main_process  # type: ignore[untyped-decorator]
        def log(self, values: dict[str, Any], step: int | None = None, **_words: Any) -> None:
            csv.writer(self.file).writerows((step, name, value) for name, value in values.items())

        @on_main_process  # type: ignore[untyped-decorator]
        def finish(self) -> None:
            self.file.close()

    return Csv()


def start(accelerator: "Accelerator", run: str, settings: dict[str, Any]) -> None:
    """Start the trackers of a run, all in one project, and log its settings."""
    while _open:  # of a run in this process that ended early
        _open.pop().finish()
    names = {"wandb": {"name": run}, "trackio": {"name": run}, "mlflow": {"run_name": run}}
    accelerator.init_trackers(os.environ.get("WANDB_PROJECT") or PROJECT, init_kwargs=names)
    _open.extend(accelerator.trackers)
    for tracker in accelerator.trackers:
        if tracker.name == "wandb":
            tracker.tracker.define_metric("validation/*", step_metric="epoch")
        if tracker.name != "tensorboard":  # `finish` logs its settings, together with the final scores
            tracker.store_init_configuration(settings)


def log(accelerator: "Accelerator", step: int, when: float, values: dict[str, float]) -> None:
    """Log values of an optimizer step to all trackers; to TensorBoard also `when`, their time in seconds since 1970.

    Values with an "epoch" among them have the epoch as their axis in TensorBoard. Elsewhere a step must not be smaller
    than the one before, so that they keep their step, and the epoch is a value that can be chosen as the axis.
    """
    for tracker in accelerator.trackers:
        if tracker.name == "tensorboard":
            shown = {name: value for name, value in values.items() if name != "epoch"}
            tracker.log(shown, step=int(values.get("epoch", step)), walltime=when)
        else:
            tracker.log(values, step=step)


def finish(accelerator: "Accelerator", step: int, settings: dict[str, Any], scores: dict[str, float]) -> None:
    """Log the final scores, in TensorBoard as one row of the HParams table, and close the trackers."""
    final = {f"final/{name}": value for name, value in scores.items()}
    for tracker in accelerator.trackers:
        if tracker.name == "tensorboard":
            # accelerate's own method takes no scores and writes the row to a separate run.
            simple = {k: v if isinstance(v, int | float | str) else str(v) for k, v in settings.items()}
            tracker.writer.add_hparams(simple, final, run_name=".")
        else:
            tracker.log(final, step=step)
        tracker.finish()
    _open.clear()
