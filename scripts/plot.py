"""Draw the learning curves of runs to one PNG: python -m scripts.plot RUN [RUN ...] [--out FILE]"""

import argparse
from pathlib import Path

from common import saving
from common.errors import InputError, one_line_errors

Curve = tuple[list[int], list[float]]


def read_curves(run: Path) -> dict[str, Curve]:
    """Tag -> steps and values of every TensorBoard scalar in a run folder. Raises InputError if there is none."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run), size_guidance={"scalars": 0})
    events.Reload()
    curves = {}
    for tag in events.Tags()["scalars"]:
        points = events.Scalars(tag)
        curves[tag] = ([point.step for point in points], [point.value for point in points])
    if "train/loss" not in curves:
        raise InputError(f"{run} holds no TensorBoard curves: wanted a run folder made with --report_to tensorboard")
    return curves


def draw(runs: list[Path], out: Path) -> None:
    """Training loss by step and validation score by epoch, with the majority class as a dashed line."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for number, run in enumerate(runs):
        curves, result = read_curves(run), saving.read_result(run)
        synthetic = " (synthetic data)" if result["data"] == "demo" else ""
        label = f"{result['method']}, {result['task_name']}{synthetic}, seed {result['seed']}"
        style = {"color": f"C{number}", "label": label}
        left.plot(*curves["train/loss"], **style)
        right.plot(*curves["validation/score"], marker="o", **style)
        right.axhline(result["majority_score"], linestyle="--", color=f"C{number}", alpha=0.6)
        right.annotate("majority class", (1, result["majority_score"]), va="bottom", fontsize=8, color=f"C{number}")
    left.set(xlabel="optimizer step", ylabel="training loss")
    right.set(xlabel="epoch", ylabel="validation score")
    right.xaxis.get_major_locator().set_params(integer=True)
    left.legend(fontsize=8)
    saving.write_atomically(out, lambda part: figure.savefig(part, dpi=150, format="png"))
    plt.close(figure)


def main() -> None:
    """Read the command line and draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folder, as printed by tune")
    parser.add_argument("--out", type=Path, help="PNG to write (default: learning_curve.png in the first run folder)")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    args = parser.parse_args()
    with one_line_errors(args.debug):
        out = args.out or args.runs[0] / "learning_curve.png"
        draw(args.runs, out)
        print(out)


if __name__ == "__main__":
    main()
