"""A trained model -> its answers: logits for the training loop, submission files for the leaderboard."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from common import data, machine, metrics, saving, tasks
from common.checkpoints import load_tokenizer
from common.encoders import first_position, longest_input, n_outputs
from common.errors import InputError, one_line_errors
from common.methods import Method, leave_room, names
from common.options import PredictOptions, parse
from common.packing import Layout, take_packed
from common.precision import hold_frozen
from common.sharding import reshard

if TYPE_CHECKING:
    from accelerate import Accelerator


@torch.no_grad()
def logits(
    model: nn.Module,
    tokens: data.Tokens,
    batch_size: int,
    accelerator: "Accelerator",
    progress: Callable[[int], Any] = lambda rows: None,
) -> np.ndarray:
    """The model's outputs for every row, in row order, on every process: (rows, outputs).

    The batches are cut before they are dealt out to the processes, so that each row meets the same neighbours however
    many processes there are; every row is filled in by exactly one process and the sum over them puts it together.

    Args:
        model: without a wrapper for several processes, whose forward pass would wait for all of them.
        progress: called with the number of rows of each batch.
    """
    model.eval()
    every = torch.zeros(len(tokens), n_outputs(model), device=accelerator.device)
    # In the order of their lengths, which puts rows of similar lengths side by side.
    batches = tokens.lengths.argsort(stable=True).split(batch_size)
    for first in range(0, len(batches), accelerator.num_processes):
        dealt = batches[first : first + accelerator.num_processes]
        # One without a batch runs the last one too, for nothing: a sharded model's forward pass is that of all.
        rows = dealt[min(accelerator.process_index, len(dealt) - 1)]
        batch, _ = tokens.batch(rows, accelerator.device)
        outputs = model(**batch).logits.float()
        if accelerator.process_index < len(dealt):
            every[rows.to(every.device)] = outputs
        progress(sum(map(len, dealt)))
    reshard(model)
    return accelerator.reduce(every, reduction="sum").cpu().numpy()


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
    runs = {path.parent: saving.read_result(path.parent) for path in sorted(home.glob(f"*/{saving.RESULT}"))}
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


def submission_lines(task: tasks.Task, outputs: np.ndarray) -> list[str]:
    """A file for the leaderboard: a header, then index and class string, or a score clipped to [0, 5].

    Args:
        outputs: (rows, outputs) logits.
    """
    answers = metrics.predictions(task, outputs)
    if task.is_regression:
        texts = [f"{value:.3f}" for value in answers.clip(0, 5)]
    else:
        labels = task.file_labels or task.labels
        texts = [labels[index] for index in answers]
    return ["index\tprediction", *(f"{index}\t{text}" for index, text in enumerate(texts))]


def write_submission(folder: Path, task: tasks.Task, outputs: np.ndarray, n_rows: int) -> Path:
    """Write the leaderboard's file of a task; its rows are those of the test split, no more and no fewer."""
    lines = submission_lines(task, outputs)
    if len(lines) - 1 != n_rows:
        raise RuntimeError(f"{len(lines) - 1} predictions for the {n_rows} rows of {task.name}'s test split")
    path = folder / task.submission
    saving.write_atomically(path, lambda part: part.write_text("\n".join(lines) + "\n", encoding="utf-8"))
    return path


def predict(kind: type[Method]) -> None:
    """`python -m METHOD.test`: write the submission files of a run into its folder."""
    method = kind.__module__.partition(".")[0]
    (options,) = parse(f"{method}.test", options=PredictOptions())
    with one_line_errors(options.debug):
        machine.start_cpu_processes()
        with machine.leaving_in_order():
            paths = answer(method, options)
        for path in paths:
            print(path)


def answer(method: str, options: PredictOptions) -> list[Path]:
    """Predict the test sets of a run and write one file for each; the paths, on the main process.

    Raises:
        InputError: no run, a run of another method, task or base model, or unusable data.
    """
    folder = find_run(method, options)
    config = saving.read_json(folder / saving.CONFIG)
    saving.require(folder / saving.CONFIG, config, task_name=str, data=str, max_length=int, frozen_dtype=str)
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
    if not 3 <= config["max_length"] <= limit or n_outputs(model) != tests[0].n_outputs:
        found = f"max_length is {config['max_length']} and n_outputs {n_outputs(model)}"
        raise InputError(f"{folder} is damaged: {found}, wanted 3 to {limit} and {tests[0].n_outputs}")
    hold_frozen(model, config["frozen_dtype"], accelerator.device)
    model = take_packed(model)
    layout = Layout(first_position(model), rounded=accelerator.device.type == "cpu")
    model = accelerator.unwrap_model(accelerator.prepare_model(model, evaluation_mode=True))
    total = sum(map(len, examples))
    paths = []
    with tqdm(total=total, desc=f"{method} {trained} test", disable=not accelerator.is_main_process) as bar:
        for task, rows in zip(tests, examples, strict=True):
            tokens = data.tokenize(rows, tokenizer, config["max_length"]).laid_out(layout)
            outputs = logits(model, tokens, options.batch_size, accelerator, bar.update)
            if accelerator.is_main_process:
                paths.append(write_submission(folder, task, outputs, len(rows)))
    if source == "demo":
        accelerator.print("synthetic data: nothing for the leaderboard")
    return paths
