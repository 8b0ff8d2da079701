"""The training loop, the instrument of the comparison: the same for every method, to be read from top to bottom."""

import contextlib
import functools
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F

from common import metrics, saving, tasks
from common.checkpointing import Progress, Trained
from common.checkpoints import base_of, blank_model, load_model
from common.encoders import encoder, layers
from common.errors import InputError, Interrupted, Pruned, is_out_of_memory, one_line_errors
from common.evaluation import COLLAPSED, evaluate
from common.fast import prepare
from common.fitting import check_fit, fit_to_budget
from common.methods import Method, apply, count, count_without_head, table, trainable
from common.options import TuneOptions, parse
from common.runs import (
    CHECKPOINT,
    RESULT,
    clear,
    decisive,
    provenance,
    read_result,
    run_folder,
    summary,
    write_predictions,
)
from common.runtime import files, launching, locks, shards, trackers
from common.runtime.device import device_name, release_memory, reset_peak_memory, use_all_cores
from common.runtime.processes import broadcast_from_main, destroy_group_at_end
from common.runtime.stopping import Stop
from common.tokens import HOLDOUT, TaskData, Tokens, shares, shuffled

if TYPE_CHECKING:
    pass

LOG_EVERY = 10
"""Optimizer steps between two points of a curve: fetching a scalar makes the host wait for the device."""


AfterEpoch = Callable[[int, float], bool]
"""Epoch, counted from 1, and its validation score -> whether to end the run there."""


def tune(kind: type[Method]) -> None:
    """`python -m METHOD.tune`: train one configuration on one task; the last line printed is the run's folder."""
    name = kind.__module__.partition(".")[0]
    options, method = parse(f"{name}.tune", options=TuneOptions(lr=kind.default_lr), method=kind())
    with one_line_errors(options.debug):
        launching.start_cpu_processes()
        with destroy_group_at_end():
            folder, result = train(method, options)
        if os.environ.get("RANK", "0") == "0":
            print(summary(result))
            print(folder)


def train(
    method: Method,
    options: TuneOptions,
    material: TaskData | None = None,
    after_epoch: AfterEpoch = lambda epoch, score: False,
    place: str = "",
) -> tuple[Path, dict[str, Any]]:
    """Fine-tune an encoder on a GLUE task; the run's folder and its result (what result.json holds).

    A run that is finished already is not repeated unless `options.overwrite` says so, and an unfinished one goes on
    from its last checkpoint unless `options.resume` says no.

    Args:
        material: that of an earlier run, to be used again where it serves this one too.
        after_epoch: asked on the main process after every epoch; in vain after the last.
        place: of the run among others, for the progress bar.

    Raises:
        InputError: unusable options, data, checkpoint or folder, too little memory, or too many steps whose gradient
            is no number.
        Busy: another process works on the run.
        Interrupted: the run was asked to stop, by SIGTERM, SIGUSR1 or `options.time_limit`, and has saved where it is.
        Pruned: `after_epoch` has ended the run, which could go on from there.
    """
    task = tasks.find(options.task_name)
    if options.param_budget is not None:
        method = fit_to_budget(method, options.param_budget, blank_model(options.checkpoint, task.n_outputs))
    folder = run_folder(method, options)

    def is_finished() -> bool:
        return (folder / RESULT).is_file() and not options.overwrite

    if broadcast_from_main(is_finished):
        return folder, read_result(folder)
    files.refuse_links(Path(options.output_dir), folder)
    locks.refuse_busy(folder)

    # Data first: most bad input is there, and it is found in no time. Then what needs the shapes of the encoder alone.
    if material is None or not material.serves(options):
        material = TaskData(options)
    material.read()
    max_length = check_fit(method, options, blank_model(options.checkpoint, task.n_outputs), material.tokenizer)

    with locks.lock_folder(folder):
        if broadcast_from_main(is_finished):  # by another process, just now
            return folder, read_result(folder)
        try:
            return folder, _train(method, options, task, folder, material, max_length, after_epoch, place)
        except Exception as error:
            if not is_out_of_memory(error) or isinstance(error, InputError):
                raise
            kept = "the last checkpoint is kept" if (folder / CHECKPOINT).is_file() else "nothing was saved yet"
            reason = str(error).partition("\n")[0]
            raise InputError(
                f"out of memory in {folder} ({reason}): {kept}; choose a smaller batch_size with more "
                "gradient_accumulation_steps, a smaller eval_batch_size or max_length, or frozen_dtype bfloat16"
            ) from error


def _train(
    method: Method,
    options: TuneOptions,
    task: tasks.Task,
    folder: Path,
    material: TaskData,
    max_length: int,
    after_epoch: AfterEpoch,
    place: str,
) -> dict[str, Any]:
    """The loop itself."""
    from accelerate import Accelerator, DistributedDataParallelKwargs
    from accelerate.utils import ProjectConfiguration, set_seed
    from tqdm import tqdm

    use_all_cores()
    release_memory()
    accelerator = Accelerator(
        log_with=trackers.chosen(options.report_to) or None,
        project_config=ProjectConfiguration(logging_dir=str(folder.parent)),
        # An encoder's buffers are constants: sending them round before every forward pass would be for nothing.
        kwargs_handlers=[
            DistributedDataParallelKwargs(broadcast_buffers=False, find_unused_parameters=not method.uses_all())
        ],
    )
    device, process, n_processes = accelerator.device, accelerator.process_index, accelerator.num_processes

    # Seeded before the model, so that the head starts the same for every method, and again before the loop, since
    # each method draws another number of random values when it is injected.
    set_seed(options.seed)
    model = load_model(options.checkpoint, task.n_outputs)
    base = base_of(model)
    total_params = encoder(model).num_parameters()
    apply(method, model)
    prepared = prepare(
        model, device, options.frozen_dtype, accelerator.mixed_precision, options.padding, options.reference
    )
    set_seed(options.seed, device_specific=True)  # the processes drop out other units of their rows

    splits = material.tokens(max_length, prepared.layout)
    tokens = splits.pop("train")
    untouched = {}  # the development set, where it selects nothing
    if HOLDOUT in splits:
        untouched, splits = splits, {HOLDOUT: splits.pop(HOLDOUT)}

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
    shards.shard_by_layer(accelerator, layers(model)[0], method.uses_all())
    wrapped, accelerated = accelerator.prepare(model, optimizer)
    model = accelerator.unwrap_model(wrapped)
    parameters = list(trainable(model).values())  # where they are sharded, others than before

    rows_per_step = options.batch_size * options.gradient_accumulation_steps * n_processes
    steps_per_epoch = math.ceil(len(tokens) / rows_per_step)
    n_steps = steps_per_epoch * options.n_epochs
    n_warmup = int(options.warmup_ratio * n_steps)

    trained = table(model)
    accelerator.print("trained parameters\n" + "\n".join(f"{kind:>14} {n:>12,}" for kind, n in trained.items()))
    if method.positions():
        accelerator.print(f"{method.positions()} positions are the method's own: inputs are cut to {max_length} tokens")
    settings = {"method": method.name} | method.options() | decisive(options)
    metric = metrics.load(task)

    def evaluate_on(splits: dict[str, Tokens]) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        return evaluate(task, model, splits, metric, options.eval_batch_size, accelerator)

    recent = torch.zeros(3, device=device)  # sums of losses, of tokens and of bad steps since the last log
    facts = {"base_sha256": base.sha256, "train_examples": len(tokens), "n_steps": n_steps, "n_processes": n_processes}
    state = Trained(model, optimizer, recent, accelerator, facts)
    progress = Progress()
    unfinished = (folder / CHECKPOINT).is_file() and not (folder / RESULT).is_file()
    resumed = broadcast_from_main(lambda: options.resume and unfinished)
    if resumed:
        progress = state.load(folder)
        accelerator.print(f"going on at step {progress.step} of {n_steps}, from the checkpoint in {folder}")
    if accelerator.is_main_process:
        clear(folder, "events.out.*" if resumed else "*")
    accelerator.wait_for_everyone()
    trackers.start(accelerator, folder.name, settings)
    for point in progress.scalars:  # what a kill cut off is logged again, so the curves have no gap and no double
        trackers.log(accelerator, *point)

    def log(step: int, values: dict[str, float]) -> None:
        progress.scalars.append((step, time.time(), values))
        trackers.log(accelerator, *progress.scalars[-1])

    reset_peak_memory(device)
    bar = tqdm(
        total=n_steps,
        initial=progress.step,
        desc=f"{method.name} {task.name}{place}",
        unit="step",
        disable=not accelerator.is_main_process,
    )
    with bar, Stop(options.time_limit, n_processes) as stop:
        for epoch in range(len(progress.history), options.n_epochs):
            wrapped.train()
            began = time.perf_counter()
            steps = shuffled(len(tokens), options.seed, epoch).split(rows_per_step)
            for step_rows in steps[progress.step - epoch * steps_per_epoch :]:
                for group in optimizer.param_groups:
                    group["lr"] = options.lr * schedule(progress.step, n_warmup, n_steps)

                step_loss = torch.zeros((), device=device)
                micro_batches = shares(step_rows, options.batch_size, process, n_processes)
                for number, micro in enumerate(micro_batches, start=1):
                    # A process with no share in the last rows of an epoch runs one of them with weight 0, to keep step.
                    some = micro if len(micro) else step_rows[:1]
                    batch, labels = tokens.batch(some, device)
                    last = number == len(micro_batches)
                    with contextlib.nullcontext() if last else accelerator.no_sync(wrapped):
                        losses = losses_of(task, wrapped(**batch).logits, labels)
                        # The step's loss is the mean over its rows, and the processes' gradients are averaged.
                        loss = losses.sum() * (len(micro) > 0) * n_processes / len(step_rows)
                        accelerator.backward(loss)
                    step_loss += loss.detach() / n_processes
                    recent[1] += tokens.lengths[micro].sum()
                norm = shards.unshard(accelerator.clip_grad_norm_(parameters, options.max_grad_norm or float("inf")))
                bad = ~norm.isfinite()
                if accelerator.scaler is None:  # else it looks for infinities itself
                    optimizer.found_inf = bad.float()  # AdamW then leaves everything as it is, without asking the host
                accelerated.step()
                accelerated.zero_grad()
                recent[0] += step_loss.where(~bad, 0.0)
                recent[2] += bad
                progress.step += 1
                progress.recent_steps += 1
                bar.update()

                if progress.step % LOG_EVERY == 0 or progress.step % steps_per_epoch == 0:
                    loss_sum, token_sum, n_bad = accelerator.reduce(recent, reduction="sum").tolist()
                    n_bad = round(n_bad / n_processes)
                    now = progress.train_seconds + time.perf_counter() - began
                    scalars = {
                        "train/lr": optimizer.param_groups[0]["lr"],
                        "train/grad_norm": float(norm),
                        "train/tokens_per_second": token_sum / (now - progress.logged_at),
                    }
                    if n_bad < progress.recent_steps:
                        scalars["train/loss"] = loss_sum / (progress.recent_steps - n_bad)
                        bar.set_postfix(loss=f"{scalars['train/loss']:.3f}", refresh=False)
                    log(progress.step, scalars)
                    progress.bad_steps += n_bad
                    progress.train_tokens += round(token_sum)
                    progress.logged_at, progress.recent_steps = now, 0
                    recent.zero_()
                    if progress.bad_steps >= options.max_bad_steps:
                        raise InputError(
                            f"the gradient was no number in {progress.bad_steps} steps of the first {progress.step} of "
                            f"{n_steps} ({folder}): choose a smaller lr; weights and checkpoint are of good steps only"
                        )

                now = time.perf_counter()
                progress.train_seconds, began = progress.train_seconds + now - began, now
                reason = stop.asked()
                if reason or (options.checkpoint_every and progress.step % options.checkpoint_every == 0):
                    state.save(folder, progress)
                    began = time.perf_counter()
                if reason:
                    raise Interrupted(
                        f"stopped by {reason} after step {progress.step} of {n_steps}, which is saved in {folder}: "
                        "the same command goes on from there"
                    )

            scores, outputs = evaluate_on(splits)
            log(epoch + 1, {f"validation/{name}": value for name, value in scores.items()})
            if accelerator.is_main_process:
                shown = {name: value for name, value in scores.items() if name != COLLAPSED}
                bar.write(f"epoch {epoch + 1}: " + ", ".join(f"{name} {value:.4f}" for name, value in shown.items()))
            if all(scores["score"] > earlier["score"] for earlier in progress.history):
                progress.state_scores = {
                    f"{state_name}_{name}": value
                    for state_name in method.variants(model)
                    for name, value in evaluate_on(splits)[0].items()
                }
                about = {"task_name": task.name, "data": options.data, "max_length": max_length, "seed": options.seed}
                about |= {"frozen_dtype": prepared.frozen_dtype}
                saving.save_adapter(folder, model, method, accelerator.is_main_process, **about)
                if accelerator.is_main_process and not untouched:
                    write_predictions(folder, outputs, {split: splits[split].labels for split in outputs})
            progress.history.append(scores)
            state.save(folder, progress)
            ask = functools.partial(after_epoch, epoch + 1, scores["score"])
            if broadcast_from_main(ask) and epoch + 1 < options.n_epochs:
                raise Pruned(f"ended after epoch {epoch + 1} of {options.n_epochs}, which is saved in {folder}")

    history = progress.history
    best = max(range(len(history)), key=lambda epoch: history[epoch]["score"])
    validation = next(iter(splits.values()))
    unread = metrics.majority(task, tokens.labels.tolist(), len(validation))
    majority = metric.compute(predictions=unread, references=validation.labels.numpy())
    dev_scores: dict[str, float] = {}
    if untouched:
        stored = folder / saving.RESUMABLE / saving.ADAPTER
        best_tensors, _ = files.read_tensors(stored if stored.is_file() else folder / saving.ADAPTER)
        saving.copy_into(model, best_tensors)
        dev_scores, outputs = evaluate_on(untouched)
        if accelerator.is_main_process:
            write_predictions(folder, outputs, {split: untouched[split].labels for split in outputs})
    seconds = progress.train_seconds
    result = {
        "method": method.name,
        "run": folder.name,
        **settings,
        **{f"best_{name}": value for name, value in history[best].items()},
        **{f"last_{name}": value for name, value in history[-1].items()},
        **{f"majority_{name}": value for name, value in majority.items()},
        "majority_score": metrics.score(majority),
        **{f"dev_{name}": value for name, value in dev_scores.items()},
        **progress.state_scores,
        "best_epoch": best + 1,
        "bad_steps": progress.bad_steps,
        "n_resumed": progress.n_resumed,
        "max_length": max_length,
        "frozen_dtype": prepared.frozen_dtype,
        "train_examples": len(tokens),
        "validation_examples": len(validation),
        "trainable_params": count(trainable(model)),
        "trainable_params_without_head": count_without_head(model),
        **{f"trained_{kind}": n for kind, n in trained.items()},
        "total_params": total_params,
        "train_seconds": round(seconds, 3),
        "examples_per_second": round(len(tokens) * options.n_epochs / seconds, 2),
        "real_tokens_per_second": round(progress.train_tokens / seconds, 1),
        "peak_memory_mib": round(progress.peak_memory / 2**20, 1),
        "device": device_name(device),
        "n_processes": n_processes,
        "mixed_precision": accelerator.mixed_precision,
        "base_sha256": base.sha256,
        "base_revision": base.revision,
        **provenance(),
    }
    sizes = {name: result[name] for name in ("trainable_params_without_head", "trainable_params")}
    trackers.finish(accelerator, settings | sizes, history[best])
    if accelerator.is_main_process:
        result["stored_bytes"] = (folder / saving.ADAPTER).stat().st_size
        files.write_json(folder / RESULT, result)
        (folder / CHECKPOINT).unlink()
    accelerator.wait_for_everyone()
    return result


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
