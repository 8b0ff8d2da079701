"""Experiment trackers: TensorBoard, or any other that accelerate supports."""

from typing import TYPE_CHECKING, Any

from common.errors import InputError

if TYPE_CHECKING:
    from accelerate import Accelerator


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


def start(accelerator: "Accelerator", run: str, settings: dict[str, Any]) -> None:
    """Start the trackers of a run and log its settings."""
    accelerator.init_trackers(run)
    for tracker in accelerator.trackers:
        if tracker.name != "tensorboard":  # `finish` logs its settings, together with the final scores
            tracker.store_init_configuration(settings)


def log(accelerator: "Accelerator", step: int, when: float, values: dict[str, float]) -> None:
    """Log values of a step to all trackers; to TensorBoard also `when`, their time in seconds since 1970."""
    accelerator.log(values, step=step, log_kwargs={"tensorboard": {"walltime": when}})


def finish(accelerator: "Accelerator", settings: dict[str, Any], scores: dict[str, float]) -> None:
    """Log the final scores, in TensorBoard as one row of the HParams table, and close the trackers."""
    final = {f"final/{name}": value for name, value in scores.items()}
    for tracker in accelerator.trackers:
        if tracker.name == "tensorboard" and accelerator.is_main_process:
            # accelerate's own method takes no scores and writes the row to a separate run.
            simple = {k: v if isinstance(v, int | float | str) else str(v) for k, v in settings.items()}
            tracker.writer.add_hparams(simple, final, run_name=".")
        elif tracker.name != "tensorboard":
            tracker.log(final)
        tracker.finish()
