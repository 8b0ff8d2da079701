"""The training loop, the instrument of the comparison: the same for every method, to be read from top to bottom."""

import contextlib
import dataclasses
import functools
import hashlib
import json
import math
import os
import re
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn

from common import data, machine, metrics, precision, prediction, saving, tasks, trackers
from common.checkpoints import blank_model
from common.errors import DoesNotFit, InputError, one_line_errors
from common.methods import Method, apply, count, count_without_head, table, trainable, within
from common.options import TuneOptions, parse
from common.packing import Layout, take_packed
from common.reuse import reuse

if TYPE_CHECKING:
    from accelerate import Accelerator
    from evaluate import Metric

LOG_EVERY = 10
"""Optimizer steps between two points of a curve: fetching a scalar makes the host wait for the device."""


def tune(kind: type[Method]) -> None:
    """`python -m METHOD.tune`: train one configuration on one task; the last line printed is the run's folder."""
    name = kind.__module__.partition(".")[0]
    options, method = parse(f"{name}.tune", options=TuneOptions(lr=kind.default_lr), method=kind())
    with one_line_errors(options.debug):
        machine.start_cpu_processes()
        folder, result = train(method, options)
        if os.environ.get("RANK", "0") == "0":
            print(summary(result))
            print(folder)
        machine.close_processes()


def train(method: Method, options: TuneOptions) -> tuple[Path, dict[str, Any]]:
    """Fine-tune an encoder on a GLUE task; the run's folder and its result (what result.json holds).

    A run that is finished already is not repeated unless `options.overwrite` says so.

    Raises:
        InputError: unusable options, data, checkpoint or folder, or a loss that is no number any more.
    """
    task = tasks.find(options.task_name)
    if options.param_budget is not None:
        method = within(method, options.param_budget, blank_model(options.checkpoint, task.n_outputs))
    folder = run_folder(method, options)
    if (folder / saving.RESULT).is_file() and not options.overwrite:
        return folder, saving.read_json(folder / saving.RESULT)

    # Data first: most bad input is there, and it is found in no time.
    train_rows = data.read(task, "train", options.data).draw(options.max_train_samples)
    splits = [s for s in task.validations if s == task.validations[0] or data.is_there(task, s, options.data)]
    validation_rows = {s: data.read(task, s, options.data).draw(options.max_eval_samples) for s in splits}

    from accelerate import Accelerator, DistributedDataParallelKwargs
    from accelerate.utils import ProjectConfiguration, set_seed
    from tqdm import tqdm

    from common.checkpoints import base_of, load_model, load_tokenizer
    from common.encoders import encoder, first_position, longest_input

    machine.use_all_cores()
    accelerator = Accelerator(
        log_with=trackers.chosen(options.report_to) or None,
        project_config=ProjectConfiguration(logging_dir=str(folder.parent)),
        # An encoder's buffers are constants: sending them round before every forward pass would be for nothing.
        kwargs_handlers=[
            DistributedDataParallelKwargs(broadcast_buffers=False, find_unused_parameters=method.skips_some())
        ],
    )
    device, process, n_processes = accelerator.device, accelerator.process_index, accelerator.num_processes

    # Seeded before the model, so that the head starts the same for every method, and again before the loop, since
    # each method draws another number of random values when it is injected.
    set_seed(options.seed)
    tokenizer = load_tokenizer(options.checkpoint)
    model = load_model(options.checkpoint, task.n_outputs)
    total_params = encoder(model).num_parameters()
    apply(method, model)
    frozen_dtype = precision.frozen_dtype(options.frozen_dtype, device, accelerator.mixed_precision)
    precision.hold_frozen(model, frozen_dtype, device)
    layout = None
    if options.padding == "none":
        take_packed(model)
        layout = Layout(first_position(model), rounded=frozen_dtype == "bfloat16")
    set_seed(options.seed, device_specific=True)  # the processes drop out other units of their rows

    limit = longest_input(model, tokenizer) - method.positions()
    if limit < 3:  # [CLS], a token, [SEP]
        raise DoesNotFit(f"{method.size} leaves room for {limit} tokens in {options.checkpoint}: choose a smaller one")
    max_length = options.max_length or limit
    if max_length > limit:
        raise InputError(f"max_length is {max_length}, but {options.checkpoint} takes at most {limit} tokens")
    cache = Path(options.output_dir) / "tokens"
    tokens = data.tokenize(train_rows, tokenizer, max_length, layout, cache)
    validation_tokens = {
        split: data.tokenize(rows, tokenizer, max_length, layout, cache) for split, rows in validation_rows.items()
    }

    train_seconds = 0.0
    if options.reuse_frozen:
        began = time.perf_counter()
        model.to(device)
        above = reuse(model, {"train": tokens, **validation_tokens}, options.eval_batch_size, device)
        tokens, validation_tokens = above.pop("train"), above
        train_seconds = time.perf_counter() - began

    # One rule for every method: matrices decay, vectors (biases, LayerNorms, scales) do not.
    parameters = list(trainable(model).values())
    optimizer: Any = torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": options.weight_decay},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ],
        lr=options.lr,
        betas=options.betas,
        eps=options.eps,
        fused=True,
    )
    wrapped, optimizer = accelerator.prepare(model, optimizer)
    model = accelerator.unwrap_model(wrapped)

    rows_per_step = options.batch_size * options.gradient_accumulation_steps * n_processes
    steps_per_epoch = math.ceil(len(tokens) / rows_per_step)
    n_steps = steps_per_epoch * options.n_epochs
    n_warmup = int(options.warmup_ratio * n_steps)

    trained = table(model)
    accelerator.print("trained parameters\n" + "\n".join(f"{kind:>14} {n:>12,}" for kind, n in trained.items()))
    if method.positions():
        accelerator.print(f"{method.positions()} positions are the method's own: inputs are cut to {max_length} tokens")
    settings = method.options() | dataclasses.asdict(options)
    if accelerator.is_main_process:
        new_folder(folder)
    accelerator.wait_for_everyone()
    trackers.start(accelerator, folder.name, settings)
    metric = metrics.load(task)
    evaluate_now = functools.partial(
        evaluate, task, model, validation_tokens, metric, options.eval_batch_size, accelerator
    )
    history: list[dict[str, float]] = []
    state_scores: dict[str, float] = {}  # of the states that the method wants scored, in the best epoch
    step, train_tokens = 0, 0
    machine.reset_peak_memory(device)
    bar = tqdm(total=n_steps, desc=f"{method.name} {task.name}", unit="step", disable=not accelerator.is_main_process)

    with bar:
        for epoch in range(options.n_epochs):
            wrapped.train()
            started = logged = time.perf_counter()
            recent, recent_steps = torch.zeros(2, device=device), 0  # sums of losses and of tokens since the last log
            for rows in data.shuffled(len(tokens), options.seed, epoch).split(rows_per_step):
                for group in optimizer.param_groups:
                    group["lr"] = options.lr * schedule(step, n_warmup, n_steps)

                micro_batches = data.shares(rows, options.batch_size, process, n_processes)
                for number, micro in enumerate(micro_batches, start=1):
                    # A process with no share in the last rows of an epoch runs one of them with weight 0, to keep step.
                    some = micro if len(micro) else rows[:1]
                    batch, labels = tokens.batch(some, device)
                    last = number == len(micro_batches)
                    with contextlib.nullcontext() if last else accelerator.no_sync(wrapped):
                        losses = losses_of(task, wrapped(**batch).logits, labels)
                        # The step's loss is the mean over its rows, and the processes' gradients are averaged.
                        loss = losses.sum() * (len(micro) > 0) * n_processes / len(rows)
                        accelerator.backward(loss)
                    recent[0] += loss.detach() / n_processes
                    recent[1] += tokens.lengths[micro].sum()
                norm = accelerator.clip_grad_norm_(parameters, options.max_grad_norm or float("inf"))
                optimizer.step()
                optimizer.zero_grad()
                step += 1
                recent_steps += 1
                bar.update()

                if step % LOG_EVERY == 0 or step % steps_per_epoch == 0:
                    loss_sum, token_sum = accelerator.reduce(recent, reduction="sum").tolist()
                    mean_loss, now = loss_sum / recent_steps, time.perf_counter()
                    if not math.isfinite(mean_loss):
                        raise InputError(f"the loss is {mean_loss} at step {step} of {n_steps}: choose a smaller lr")
                    scalars = {
                        "train/loss": mean_loss,
                        "train/lr": optimizer.param_groups[0]["lr"],
                        "train/grad_norm": float(norm),
                        "train/tokens_per_second": token_sum / (now - logged),
                    }
                    accelerator.log(scalars, step=step)
                    bar.set_postfix(loss=f"{mean_loss:.3f}", refresh=False)
                    train_tokens += round(token_sum)
                    logged, recent_steps = now, 0
                    recent.zero_()
            train_seconds += time.perf_counter() - started

            scores = evaluate_now()
            accelerator.log({f"validation/{name}": value for name, value in scores.items()}, step=epoch + 1)
            if accelerator.is_main_process:
                bar.write(f"epoch {epoch + 1}: " + ", ".join(f"{name} {value:.4f}" for name, value in scores.items()))
            if all(scores["score"] > earlier["score"] for earlier in history):
                state_scores = {
                    f"{state}_{name}": value for state in method.states(model) for name, value in evaluate_now().items()
                }
                facts = {"task_name": task.name, "data": options.data, "max_length": max_length, "seed": options.seed}
                facts |= {"frozen_dtype": frozen_dtype}
                if accelerator.is_main_process:
                    saving.save_adapter(folder, model, method, **facts)
            history.append(scores)

    best = max(range(len(history)), key=lambda epoch: history[epoch]["score"])
    dev = validation_tokens[splits[0]]
    unread = metrics.majority(task, tokens.labels.tolist(), len(dev))
    majority = metric.compute(predictions=unread, references=dev.labels.numpy())
    result = {
        "method": method.name,
        "run": folder.name,
        **{name: value for name, value in settings.items() if name not in _NOT_THE_RUN},
        **{f"best_{name}": value for name, value in history[best].items()},
        **{f"last_{name}": value for name, value in history[-1].items()},
        **{f"majority_{name}": value for name, value in majority.items()},
        "majority_score": metrics.score(majority),
        **state_scores,
        "best_epoch": best + 1,
        "max_length": max_length,
        "frozen_dtype": frozen_dtype,
        "train_examples": len(tokens),
        "validation_examples": len(dev),
        "trainable_params": count(trainable(model)),
        "trainable_params_without_head": count_without_head(model),
        **{f"trained_{kind}": n for kind, n in trained.items()},
        "total_params": total_params,
        "train_seconds": round(train_seconds, 3),
        "examples_per_second": round(len(tokens) * options.n_epochs / train_seconds, 2),
        "real_tokens_per_second": round(train_tokens / train_seconds, 1),
        "peak_memory_mib": round(machine.peak_memory(device) / 2**20, 1),
        "device": machine.device_name(device),
        "n_processes": n_processes,
        "mixed_precision": accelerator.mixed_precision,
        "base_sha256": base_of(model).sha256,
        "base_revision": base_of(model).revision,
        **saving.provenance(),
    }
    trackers.finish(accelerator, settings, history[best])
    if accelerator.is_main_process:
        result["stored_bytes"] = (folder / saving.ADAPTER).stat().st_size
        saving.write_json(folder / saving.RESULT, result)
    accelerator.wait_for_everyone()
    return folder, result


def evaluate(
    task: tasks.Task,
    model: nn.Module,
    validations: dict[str, data.Tokens],
    metric: "Metric",
    batch_size: int,
    accelerator: "Accelerator",
) -> dict[str, float]:
    """Metrics on every validation split, and `score`, the mean of those on the first; the others' have a suffix."""
    scores: dict[str, float] = {}
    for number, (split, tokens) in enumerate(validations.items()):
        logits = prediction.logits(model, tokens, batch_size, accelerator)
        answers = metrics.predictions(task, logits)
        measured = metric.compute(predictions=answers, references=tokens.labels.numpy())
        suffix = "_" + split.removeprefix("validation_") if number > 0 else ""
        scores |= {name + suffix: value for name, value in measured.items()}
    return scores | {"score": metrics.score({name: scores[name] for name in task.metrics})}


def losses_of(task: tasks.Task, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """logits: (batch, outputs), labels: (batch,) -> (batch,) cross entropy, or squared error of a regression"""
    if task.is_regression:
        return F.mse_loss(logits[:, 0].float(), labels, reduction="none")
    return F.cross_entropy(logits.float(), labels, reduction="none")


def schedule(step: int, n_warmup: int, n_steps: int) -> float:
    """Share of the peak learning rate at a step: linear from 0 to 1 in the warm-up, then linear to 0."""
    if step < n_warmup:
        return step / n_warmup
    return (n_steps - step) / max(1, n_steps - n_warmup)


# Options that change where a run goes and what is said about it, not what it computes.
_NOT_THE_RUN = ("output_dir", "report_to", "overwrite", "debug")


def run_folder(method: Method, options: TuneOptions) -> Path:
    """Where a run lies: a name to read, and a digest of every option that can change its result.

    Example: OUTPUT_DIR/METHOD/mrpc/minilm-rank8-alpha8-dropout0-lr0.001-n_epochs3-seed42-3f2a9c1e
    """
    decisive = {k: v for k, v in dataclasses.asdict(options).items() if k not in _NOT_THE_RUN}
    if options.data not in ("hub", "demo"):
        decisive["data"] = str(Path(options.data).resolve())
    own = method.options()
    launched = {"WORLD_SIZE": "1", "ACCELERATE_MIXED_PRECISION": "no"}  # what accelerate launch decides
    everything = {"method": method.name} | decisive | own
    everything |= {name: os.environ.get(name, usual) for name, usual in launched.items()}
    # 8 and 8.0 are one value, whichever of them the command line or a grid wrote.
    text = json.dumps({k: float(v) if isinstance(v, int) else v for k, v in everything.items()}, sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    numbers = {k: v for k, v in own.items() if isinstance(v, int | float) and not isinstance(v, bool)}
    shown = numbers | {k: decisive[k] for k in ("lr", "n_epochs", "seed")}
    words = [Path(options.checkpoint).name, *(f"{k}{v:g}" for k, v in shown.items()), digest]
    name = re.sub(r"[^\w.+-]", "_", "-".join(words))
    return Path(options.output_dir) / method.name / options.task_name / name


def new_folder(folder: Path) -> None:
    """An empty run folder; what an unfinished or repeated run left there goes. Raises InputError if it cannot be."""
    try:
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir(parents=True)
    except OSError as error:
        raise InputError(f"cannot make the run folder {folder}: {error.strerror}") from error


def summary(result: dict[str, Any]) -> str:
    """A run in one line: its best scores beside what the majority class gives, what it trained and how fast."""
    task = tasks.find(result["task_name"])
    scores = ", ".join(
        f"{name} {result[f'best_{name}']:.4f} (majority class {result[f'majority_{name}']:.4f})"
        for name in task.metrics
    )
    return (
        f"{result['method']} on {task.name}{' (synthetic data)' if result['data'] == 'demo' else ''}: {scores}; "
        f"epoch {result['best_epoch']} of {result['n_epochs']}; "
        f"{result['trainable_params']:,} parameters trained, {result['trainable_params_without_head']:,} without the "
        f"head ({result['trainable_params_without_head'] / result['total_params']:.3%} of the encoder); "
        f"{result['examples_per_second']:.1f} examples/s"
    )
