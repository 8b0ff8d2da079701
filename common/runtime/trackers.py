"""Experiment trackers: TensorBoard, or any other that accelerate knows."""

from typing import TYPE_CHECKING, Any

from common.errors import InputError

if TYPE_CHECKING:
    from accelerate import Accelerator


def resolve(report_to: tuple[str, ...]) -> list[str]:
    """The trackers to log with. Raises InputError for one that is unknown or not installed."""
    from accelerate.tracking import get_available_trackers

    installed = [str(tracker) for tracker in get_available_trackers()]
    if report_to == ("none",):
        return []
    if "all" in report_to:
        return installed
    for name in report_to:
        if name not in installed:
            raise InputError(f"report_to names {name!r}: installed are {', '.join(installed)}; or say all, or none")
    return list(report_to)


def start(accelerator: "Accelerator", run: str, settings: dict[str, Any]) -> None:
    """Open the trackers for a run and tell them its settings."""
    accelerator.init_trackers(run)
    for tracker in accelerator.trackers:
        if tracker.name != "tensorboard":  # its settings go with the final scores, see below
            tracker.store_init_configuration(settings)


def log(accelerator: "Accelerator", step: int, when: float, values: dict[str, float]) -> None:
    """Tell all trackers some values of a step; TensorBoard also the time of day, in seconds, that they are of."""
    accelerator.log(values, step=step, log_kwargs={"tensorboard": {"walltime": when}})


def finish(accelerator: "Accelerator", settings: dict[str, Any], scores: dict[str, float]) -> None:
    """Log the final scores and close the trackers; in TensorBoard as one row of the HParams table."""
    final = {f"final/{name}": value for name, value in scores.items()}
    for tracker in accelerator.trackers:
        if tracker.name == "tensorboard" and accelerator.is_main_process:
            # accelerate's own way knows no scores and puts the row into a run of its own.
            simple = {k: v if isinstance(v, int | float | str) else str(v) for k, v in settings.items()}
            tracker.writer.add_hparams(simple, final, run_name=".")
        elif tracker.name != "tensorboard":
            tracker.log(final)
        tracker.finish()
