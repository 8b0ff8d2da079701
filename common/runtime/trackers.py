"""Experiment trackers: TensorBoard, or any other that accelerate supports."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import InputError

if TYPE_CHECKING:
    from accelerate import Accelerator

PROJECT = "peft-glue"
"""The project, or experiment, of all runs; WANDB_PROJECT names another."""
_open: list[Any] = []
"""Trackers that are not closed yet."""


def resolve(report_to: tuple[str, ...]) -> list[str]:
    """Names of the trackers to use. Raises InputError for one that is unknown or not installed."""
    from accelerate.tracking import get_available_trackers

    installed = [str(tracker) for tracker in get_available_trackers()]
    if report_to == ("none",):
        return []
    if "all" in report_to:
        return installed
    for name in report_to:
        if name not in installed:
            raise InputError(f"report_to names {name!r}: installed are {', '.join(installed)}; or choose all, or none")
    return list(report_to)


def create(report_to: tuple[str, ...], folder: Path) -> list[Any]:
    """What `Accelerator(log_with=...)` takes: names, and for TensorBoard a tracker that writes into the run's folder.

    accelerate has one name for TensorBoard's folder, which is the run's, and for the other trackers' project.
    """
    from accelerate.tracking import TensorBoardTracker

    names = resolve(report_to)
    return [TensorBoardTracker(folder.name, folder.parent) if name == "tensorboard" else name for name in names]


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
