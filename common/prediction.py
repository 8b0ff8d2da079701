"""Predict test sets with a trained model and write submission files for the leaderboard."""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from common import classification, data, generation, loading, metrics, own_data, own_task, pairs, runs, tasks
from common.checkpoints import load_tokenizer
from common.encoders import longest_input, n_outputs, shortest_input
from common.errors import Diverged, InputError, check, one_line_errors
from common.evaluation import evaluate, predict_logits
from common.fast import prepare
from common.fitting import positions_left
from common.methods import Method, names, package
from common.options import PredictOptions, TuneOptions, parse
from common.own_task import OwnTask, TextTask
from common.pair_tokens import Form, generated
from common.results import candidates, choice, find_run
from common.runtime import files, launching
from common.runtime.processes import destroy_group_at_end
from common.runtime.threads import share_cores
from common.submission import submission_lines, write_submission
from common.task_data import Task
from common.tasks import GlueTask
from common.text_metrics import bert_scorer, measure
from common.tokens import Layout

if TYPE_CHECKING:
    from accelerate import Accelerator


def predict(kind: type[Method]) -> None:
    """`python -m METHOD.test`: write the submission files of a run into its folder and print their paths."""
    method = package(kind)
    (options,) = parse(f"{method}.test", options=PredictOptions())
    with one_line_errors(options.debug):
        launching.start_cpu_processes()
        with destroy_group_at_end():
            paths = answer(method, options)
        for path in paths:
            print(path)


def answer(method: str, options: PredictOptions) -> list[Path]:
    """Predict the test sets of a run and write a file for each; return the paths on rank 0.

    Raises:
        InputError: no run, a run of another method, task or base model, unusable data, or outputs that are not finite.
    """
    folder = find_run(method, options)
    if not options.run and os.environ.get("RANK", "0") == "0":
        print(choice(candidates(method, options)))
    config = read_config(folder, method)
    files.require(folder / runs.CONFIG, config, data=str)
    if "max_new_tokens" in config:
        return _generate(folder, config, options)
    unused = [name for name in (*own_task.SEARCH, "bertscore") if getattr(options, name) is not None]
    check({f"{name} is given, and {folder} does not generate text: leave it out": True for name in unused})
    tests, examples = _read_tests(folder, config, options)
    if options.language is not None:  # a file of its own for each language
        language = files.read_json(Path(options.language) / runs.CONFIG).get("task_name")
        of = f"-{language}-{Path(options.language).name}."
        tests = [replace(test, submission=of.join(test.submission.rsplit(".", 1))) for test in tests]

    from accelerate import Accelerator
    from tqdm import tqdm

    share_cores()
    accelerator = Accelerator()
    predictor = load(folder, config, options.checkpoint, accelerator, options.language)
    total = sum(map(len, examples))
    lines, scores = [], []
    with tqdm(total=total, desc=f"{method} {config['task_name']} test", disable=not accelerator.is_main_process) as bar:
        for task, texts in zip(tests, examples, strict=True):
            outputs = predictor.outputs(texts, options.batch_size, bar.update)
            try:
                lines.append(submission_lines(task, outputs, texts.ids))
                scores += _scores(task, outputs, texts)
            except Diverged as error:
                raise InputError(f"{folder} cannot predict {task.name}: {error}; train it again") from error
    paths = []
    if accelerator.is_main_process:
        with files.confined_to(Path(options.run or options.output_dir)):
            paths = [write_submission(folder, *each) for each in zip(tests, lines, map(len, examples), strict=True)]
    for line in scores:
        accelerator.print(line)
    if (options.data or config["data"]) == "demo":
        accelerator.print("synthetic data: do not submit these files to the leaderboard")
    return paths


def _generate(folder: Path, config: dict[str, Any], options: PredictOptions) -> list[Path]:
    """Generate for the sources of a test set, and print the scores where it has references."""
    task: Any = own_task.of(config)
    search = own_task.search_of(vars(options), task.search)
    if options.task_name not in (None, task.name):
        raise InputError(f"{folder} was trained on {task.name}: it cannot predict {options.task_name}")
    references, split = pairs.read_test(options.data or config["data"], task.texts, task.name)
    if options.bertscore is not None:
        check({"bertscore is given, and there are no targets: leave it out": not all(references.values())})
        bert_scorer(options.bertscore)  # whether it is there, before texts are generated

    from accelerate import Accelerator
    from tqdm import tqdm

    share_cores()
    accelerator = Accelerator()
    model, used = loading.load_adapter(folder, options.checkpoint)
    tokenizer = load_tokenizer(options.checkpoint or config["base_checkpoint"])
    limit = positions_left(used, longest_input(model, tokenizer))
    if not 4 <= config["max_length"] <= limit:
        raise InputError(f"{folder} is damaged: max_length is {config['max_length']}, wanted 4 to {limit}")
    prepare(model, accelerator.device, config["frozen_dtype"])
    model = accelerator.unwrap_model(accelerator.prepare_model(model, evaluation_mode=True))
    with tqdm(
        total=len(references), desc=f"{used.name} {task.name} {split}", disable=not accelerator.is_main_process
    ) as bar:
        form = Form(tokenizer, config["max_length"], task.prefix)
        texts = generated(model, list(references), form, search, options.batch_size, accelerator, bar.update)
    if not accelerator.is_main_process:
        return []
    home = Path(options.run or options.output_dir)
    with files.confined_to(home):
        paths = generation.write(folder, split, texts, references)
    if all(references.values()):
        scores, signatures = measure(texts, list(references.values()), options.bertscore)
        shown = ", ".join(f"{name} {value:.4f}" for name, value in scores.items())
        print(f"{task.name}: {shown} on {len(texts):,} sources ({', '.join(signatures.values())})")
    return paths


def read_config(folder: Path, method: str | None = None, verb: str = "test") -> dict[str, Any]:
    """What a run folder says of its run. Raises InputError if it is none, damaged, or of another method.

    verb: of the command that wants it.
    """
    if not (folder / runs.CONFIG).is_file():
        raise InputError(f"{folder} is not a run folder: wanted one with {runs.CONFIG} in it")
    config = files.read_json(folder / runs.CONFIG)
    files.require(folder / runs.CONFIG, config, task_name=str, max_length=int, frozen_dtype=str)
    found = str(config.get("method"))
    if method not in (None, found):
        action = f"use {found}.{verb}" if found in names() else f"known methods are {', '.join(names())}"
        raise InputError(f"{folder} holds an adapter of {found}, not of {method}: {action}")
    return config


@dataclass(frozen=True)
class Predictor:
    """A trained model that is ready to predict."""

    task: GlueTask
    model: Any
    tokenizer: Any
    max_length: int
    layout: Layout | None
    accelerator: Any

    def outputs(
        self, examples: data.Examples, batch_size: int, progress: Callable[[int], Any] = lambda n_examples: None
    ) -> np.ndarray:
        """Logits, see `predict_logits`."""
        tokens = classification.by_description(self.task).encode(examples, self.tokenizer, self.max_length)
        return predict_logits(self.model, tokens.with_layout(self.layout), batch_size, self.accelerator, progress)


def read_model(
    folder: Path, config: dict[str, Any], checkpoint: str | None, language: str | None = None
) -> tuple[GlueTask, Any, Method, Any]:
    """The task of a run, its model, its method and its tokenizer; config: from `read_config`.

    Raises:
        InputError: it cannot be loaded, or is damaged.
    """
    task = own_task.of(config)
    model, method = loading.load_adapter(folder, checkpoint, language)
    tokenizer = load_tokenizer(checkpoint or config["base_checkpoint"])
    shortest = shortest_input(tokenizer, task.n_texts)
    limit = positions_left(method, longest_input(model, tokenizer), shortest)
    if not shortest <= config["max_length"] <= limit or n_outputs(model) != task.n_outputs:
        sizes = f"max_length is {config['max_length']} and n_outputs {n_outputs(model)}"
        raise InputError(f"{folder} is damaged: {sizes}, wanted {shortest} to {limit} and {task.n_outputs}")
    return task, model, method, tokenizer


def load(
    folder: Path,
    config: dict[str, Any],
    checkpoint: str | None,
    accelerator: "Accelerator",
    language: str | None = None,
) -> Predictor:
    """The model of a run, prepared on the device of the accelerator. Raises InputError as `read_model`."""
    task, model, _, tokenizer = read_model(folder, config, checkpoint, language)
    prepared = prepare(model, accelerator.device, config["frozen_dtype"])
    model = accelerator.unwrap_model(accelerator.prepare_model(model, evaluation_mode=True))
    return Predictor(task, model, tokenizer, config["max_length"], prepared.layout, accelerator)


def score_run(folder: Path, task: Task, options: TuneOptions) -> dict[str, float]:
    """The scores of a run on the validation splits of its task, by name; `score` is the mean of the first one's.

    options: their data, checkpoint, max_eval_samples and eval_batch_size are used.

    Raises:
        InputError: no run, or unusable data.
    """
    from accelerate import Accelerator

    accelerator = Accelerator()
    used = load(folder, read_config(folder), options.checkpoint, accelerator)
    splits = {}
    for split in task.validations:
        if split == task.validations[0] or task.is_there(split, options.data):
            examples = task.read(split, options.data).sample(options.max_eval_samples)
            splits[split] = task.encode(examples, used.tokenizer, used.max_length, None).with_layout(used.layout)
    return evaluate(task, used.model, splits, options.eval_batch_size, accelerator)[0]


def _read_tests(
    folder: Path, config: dict[str, Any], options: PredictOptions
) -> tuple[list[GlueTask], list[data.Examples]]:
    """The test sets of a run and their examples: those of its task in the table, or one of one's own data."""
    task, source = own_task.of(config), options.data or config["data"]
    if isinstance(task, TextTask):
        raise InputError(f"{folder} is a run of masked language modelling: it has no test set, its score is all of it")
    wanted = options.task_name or task.name
    tests: list[GlueTask] = [task] if isinstance(task, OwnTask) else tasks.held_out(wanted)
    if task.name not in (wanted, tests[0].trained_as):
        raise InputError(f"{folder} was trained on {task.name}: it cannot predict {wanted}")
    if not isinstance(task, OwnTask):
        return tests, [data.read(each, "test", source) for each in tests]
    examples, name = own_data.read_test(task, source, whole=options.data is not None)
    return [replace(task, submission=f"predictions-{name}.tsv")], [examples]


def _scores(task: GlueTask, outputs: np.ndarray, examples: data.Examples) -> list[str]:
    """The metrics of a test set with labels, in one line; nothing without labels."""
    if examples.labels is None:
        return []
    values = metrics.measure(task, outputs, np.array(examples.labels))
    shown = ", ".join(f"{name} {value:.4f}" for name, value in values.items())
    return [f"{task.name}: {shown} on {len(examples):,} examples ({task.submission})"]
