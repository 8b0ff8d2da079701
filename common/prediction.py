"""A trained model -> its answers: logits for the training loop, submission files for the leaderboard."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from common import data, saving, tasks
from common.checkpoints import load_tokenizer
from common.encoders import longest_input, n_outputs
from common.errors import InputError, one_line_errors
from common.evaluation import predict_logits
from common.fast import prepare
from common.fitting import leave_room
from common.methods import Method, names
from common.options import PredictOptions, parse
from common.runs import RESULT, read_result
from common.runtime import files, launching
from common.runtime.processes import destroy_group_at_end
from common.tokens import tokenize

if TYPE_CHECKING:
    pass


def find_run(method: str, options: PredictOptions) -> Path:
    """The folder of the run to test: the one named, or the best one of the task.

    Scores on validation sets of different sizes cannot be compared: the runs on the largest one come first.

    Raises:
        InputError: no such run, or runs on different data or selected differently without a word which is meant.
    """
    if not options.run and not options.task_name:
        raise InputError("neither a task nor a run is named: give --task_name, or --run FOLDER")
    if options.run:
        if not (Path(options.run) / saving.CONFIG).is_file():
            raise InputError(f"{options.run} is no run folder: wanted one with {saving.CONFIG} in it")
        return Path(options.run)
    task = tasks.find(options.task_name or "")
    home = Path(options.output_dir) / method / (task.trained_as or task.name)
    runs = {path.parent: read_result(path.parent) for path in sorted(home.glob(f"*/{RESULT}"))}
    if options.data is not None:
        runs = {run: result for run, result in runs.items() if _same_data(str(result["data"]), options.data)}
    if options.checkpoint is not None:
        runs = {run: result for run, result in runs.items() if result["checkpoint"] == options.checkpoint}
    if options.select is not None:
        runs = {run: result for run, result in runs.items() if result.get("select", "dev") == options.select}
    if not runs:
        asked = {"data": options.data, "base": options.checkpoint, "select": options.select}
        wanted = "".join(f", {name} {value}" for name, value in asked.items() if value)
        raise InputError(
            f"no finished {method} run for {task.name}{wanted} under {home}: train one with {method}.tune, "
            "or name a folder with --run"
        )
    used = sorted({str(result["data"]) for result in runs.values()})
    if len(used) > 1:
        raise InputError(f"the runs under {home} were trained on different data ({', '.join(used)}): say which, --data")
    if len({result.get("select", "dev") for result in runs.values()}) > 1:
        raise InputError(f"the runs under {home} were selected on dev and on holdout: say which, --select")
    return max(runs, key=lambda run: (runs[run]["validation_examples"], runs[run]["best_score"]))


def _same_data(one: str, other: str) -> bool:
    named = ("hub", "demo")
    return one == other or (one not in named and other not in named and Path(one).resolve() == Path(other).resolve())


def submission_lines(task: tasks.GlueTask, outputs: np.ndarray) -> list[str]:
    """A file for the leaderboard: a header, then index and class string, or a score clipped to [0, 5].

    Args:
        outputs: (rows, outputs) logits.
    """
    texts = [task.targets.format(answer) for answer in task.targets.answers(outputs)]
    return ["index\tprediction", *(f"{index}\t{text}" for index, text in enumerate(texts))]


def write_submission(folder: Path, task: tasks.GlueTask, outputs: np.ndarray, n_rows: int) -> Path:
    """Write the leaderboard's file of a task; its rows are those of the test split, no more and no fewer."""
    lines = submission_lines(task, outputs)
    if len(lines) - 1 != n_rows:
        raise RuntimeError(f"{len(lines) - 1} predictions for the {n_rows} rows of {task.name}'s test split")
    path = folder / task.submission
    files.write_atomically(path, lambda part: part.write_text("\n".join(lines) + "\n", encoding="utf-8"))
    return path


def predict(kind: type[Method]) -> None:
    """`python -m METHOD.test`: write the submission files of a run into its folder."""
    method = kind.__module__.partition(".")[0]
    (options,) = parse(f"{method}.test", options=PredictOptions())
    with one_line_errors(options.debug):
        launching.start_cpu_processes()
        with destroy_group_at_end():
            paths = answer(method, options)
        for path in paths:
            print(path)


def answer(method: str, options: PredictOptions) -> list[Path]:
    """Predict the test sets of a run and write one file for each; the paths, on the main process.

    Raises:
        InputError: no run, a run of another method, task or base model, or unusable data.
    """
    folder = find_run(method, options)
    config = files.read_json(folder / saving.CONFIG)
    files.require(folder / saving.CONFIG, config, task_name=str, data=str, max_length=int, frozen_dtype=str)
    trained, held = config["task_name"], str(config.get("method"))
    if held != method:
        other = f"use {held}.test" if held in names() else f"there are the methods {', '.join(names())}"
        raise InputError(f"{folder} holds an adapter of {held}, not of {method}: {other}")
    tests = tasks.held_out(options.task_name or trained)
    if trained not in (tests[0].name, tests[0].trained_as):
        raise InputError(f"{folder} was trained on {trained}: it cannot answer {options.task_name}")
    source = options.data or config["data"]
    examples = [data.read(task, "test", source) for task in tests]

    from accelerate import Accelerator
    from tqdm import tqdm

    accelerator = Accelerator()
    model, used = saving.load_adapter(folder, options.checkpoint)
    tokenizer = load_tokenizer(options.checkpoint or config["base_checkpoint"])
    limit = leave_room(used, longest_input(model, tokenizer))
    if not 3 <= config["max_length"] <= limit or n_outputs(model) != tests[0].targets.n_outputs:
        found = f"max_length is {config['max_length']} and n_outputs {n_outputs(model)}"
        raise InputError(f"{folder} is damaged: {found}, wanted 3 to {limit} and {tests[0].targets.n_outputs}")
    prepared = prepare(model, accelerator.device, config["frozen_dtype"])
    model = accelerator.unwrap_model(accelerator.prepare_model(model, evaluation_mode=True))
    total = sum(map(len, examples))
    paths = []
    with tqdm(total=total, desc=f"{method} {trained} test", disable=not accelerator.is_main_process) as bar:
        for task, rows in zip(tests, examples, strict=True):
            tokens = tokenize(rows, tokenizer, config["max_length"]).laid_out(prepared.layout)
            outputs = predict_logits(model, tokens, options.batch_size, accelerator, bar.update)
            if accelerator.is_main_process:
                paths.append(write_submission(folder, task, outputs, len(rows)))
    if source == "demo":
        accelerator.print("synthetic data: nothing for the leaderboard")
    return paths
