"""The training loop, the instrument of the comparison: the same for every method. Read `loop` first."""

import contextlib
import functools
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from common import loading, runs, saving
from common.checkpointing import Progress, TrainingState
from common.checkpoints import base_of
from common.classification import TextClassification, find
from common.encoders import encoder, layers
from common.errors import InputError, Interrupted, Pruned, is_out_of_memory, one_line_errors
from common.evaluation import COLLAPSED, evaluate
from common.fast import Prepared, prepare
from common.fitting import check_fit, fit_to_budget
from common.methods import Method, apply, count, count_by_kind, count_without_head, trainable
from common.metrics import mean_score
from common.options import TuneOptions, parse
from common.results import provenance, read_result, summary
from common.runs import CHECKPOINT, RESULT, clear, decisive, run_folder, write_predictions
from common.runtime import files, launching, locks, shards, trackers
from common.runtime.device import device_name, release_memory, reset_peak_memory, use_all_cores
from common.runtime.processes import broadcast_from_main, destroy_group_at_end
from common.runtime.stopping import Stop
from common.task_data import HOLDOUT, TaskData
from common.tokens import Tokens, shares, shuffled

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
    task_data: TaskData | None = None,
    after_epoch: AfterEpoch = lambda epoch, score: False,
    label: str = "",
) -> tuple[Path, dict[str, Any]]:
    """Fine-tune an encoder on a task; the run's folder and its result (what result.json holds).

    A run that is finished already is not repeated unless `options.overwrite` says so, and an unfinished one resumes
    from its last checkpoint unless `options.resume` says no.

    Args:
        task_data: that of an earlier run, used again where it serves this one too.
        after_epoch: asked on the main process after every epoch; in vain after the last.
        label: of the run among others, for the progress bar.

    Raises:
        InputError: unusable options, data, checkpoint or folder, too little memory, or too many steps with a
            non-finite gradient.
        Busy: another process works on the run.
        Interrupted: the run received SIGTERM or SIGUSR1 or met `options.time_limit`, and has saved where it is.
        Pruned: `after_epoch` has ended the run, which could resume from there.
    """
    task = find(options.task_name)
    if options.param_budget is not None:
        method = fit_to_budget(method, options.param_budget, task.meta(options.checkpoint))
    folder = run_folder(method, options)

    def is_finished() -> bool:
        return (folder / RESULT).is_file() and not options.overwrite

    if broadcast_from_main(is_finished):
        return folder, read_result(folder)
    files.refuse_links(Path(options.output_dir), folder)
    locks.refuse_busy(folder)

    # Data first: most bad input is there, and it is found in no time. Then what needs the shapes of the encoder alone.
    if task_data is None or not task_data.serves(options):
        task_data = TaskData(task, options)
    task_data.read()
    max_length = check_fit(method, options, task.meta(options.checkpoint), task_data.tokenizer)

    with locks.lock_folder(folder):
        if broadcast_from_main(is_finished):  # by another process, just now
            return folder, read_result(folder)
        try:
            run = prepare_run(method, options, task, folder, task_data, max_length, label)
            loop(run, after_epoch)
            return folder, finish(run)
        except Exception as error:
            if not is_out_of_memory(error) or isinstance(error, InputError):
                raise
            kept = "the last checkpoint is kept" if (folder / CHECKPOINT).is_file() else "nothing was saved yet"
            reason = str(error).partition("\n")[0]
            raise InputError(
                f"out of memory in {folder} ({reason}): {kept}; choose a smaller batch_size with more "
                "gradient_accumulation_steps, a smaller eval_batch_size or max_length, or frozen_dtype bfloat16"
            ) from error


def loop(run: "Run", after_epoch: AfterEpoch) -> None:
    """Train from where the run is to its end. Raises what `train` does."""
    method, options, accelerator, progress = run.method, run.options, run.accelerator, run.progress
    with run.progress_bar() as run.bar, Stop(options.time_limit, accelerator.num_processes) as run.stop:
        for epoch in range(len(progress.history), options.n_epochs):
            run.wrapped.train()
            run.clock = time.perf_counter()
            for rows in run.steps_left(epoch):
                for group in run.optimizer.param_groups:
                    group["lr"] = options.lr * schedule(progress.step, run.n_warmup, run.n_steps)

                step_loss = torch.zeros((), device=accelerator.device)
                for share, is_last in run.micro_batches(rows):
                    # A process with no share in the last rows of an epoch runs one of them with weight 0.
                    batch, labels = run.tokens.batch(share if len(share) else rows[:1], accelerator.device)
                    with contextlib.nullcontext() if is_last else accelerator.no_sync(run.wrapped):
                        # The step's loss is a mean over its targets, and the processes' gradients are averaged.
                        weight = (len(share) > 0) * accelerator.num_processes
                        loss = run.task.loss(run.wrapped, batch, labels) * weight / run.tokens.n_targets(rows)
                        if is_last:
                            loss = loss + method.penalty(run.model)
                        accelerator.backward(loss)
                    step_loss += loss.detach() / accelerator.num_processes
                    run.recent[1] += run.tokens.lengths[share].sum()

                method.on_step(run.model, progress.step / run.n_steps)
                limit = options.max_grad_norm or float("inf")
                norm = shards.unshard(accelerator.clip_grad_norm_(run.parameters, limit))
                bad = ~norm.isfinite()
                if accelerator.scaler is None:  # else it looks for infinities itself
                    run.optimizer.found_inf = bad.float()  # AdamW then changes nothing, without asking the host
                run.accelerated.step()
                run.accelerated.zero_grad()
                run.after_step(step_loss, norm, bad)
            run.after_training_epoch(epoch, after_epoch)


@dataclass
class Run:
    """What one run's loop works on."""

    method: Method
    options: TuneOptions
    task: TextClassification
    folder: Path
    max_length: int
    prepared: Prepared
    label: str
    total_params: int
    """Of the untouched encoder."""
    accelerator: Any
    model: nn.Module
    wrapped: nn.Module
    """The model, wrapped for several processes where there are some."""
    optimizer: Any
    accelerated: Any
    """The optimizer, as accelerate wraps it."""
    tokens: Tokens
    """The training rows."""
    splits: dict[str, Tokens]
    """Those that select the best epoch."""
    untouched: dict[str, Tokens]
    """The development set, where it selects nothing."""
    progress: Progress = field(default_factory=Progress)
    clock: float = 0.0
    """When train_seconds was last counted."""
    bar: Any = None
    stop: Any = None

    def __post_init__(self) -> None:
        options, n_processes = self.options, self.accelerator.num_processes
        self.rows_per_step = options.batch_size * options.gradient_accumulation_steps * n_processes
        self.steps_per_epoch = math.ceil(len(self.tokens) / self.rows_per_step)
        self.n_steps = self.steps_per_epoch * options.n_epochs
        self.n_warmup = int(options.warmup_ratio * self.n_steps)
        self.parameters = list(trainable(self.model).values())
        self.recent = torch.zeros(3, device=self.accelerator.device)  # sums of losses, tokens, bad steps since a log
        facts = {"base_sha256": base_of(self.model).sha256, "train_examples": len(self.tokens)}
        facts |= {"n_steps": self.n_steps, "n_processes": n_processes}
        self.state = TrainingState(self.model, self.optimizer, self.recent, self.accelerator, facts)

    @property
    def settings(self) -> dict[str, Any]:
        """All options that can change the result."""
        return {"method": self.method.name} | self.method.options() | decisive(self.options)

    def progress_bar(self) -> Any:
        from tqdm import tqdm

        done, title = self.progress.step, f"{self.method.name} {self.task.name}{self.label}"
        hidden = not self.accelerator.is_main_process
        return tqdm(total=self.n_steps, initial=done, desc=title, unit="step", disable=hidden)

    def steps_left(self, epoch: int) -> Iterator[torch.Tensor]:
        """The rows of each optimizer step of an epoch that is not done yet."""
        steps = shuffled(len(self.tokens), self.options.seed, epoch).split(self.rows_per_step)
        yield from steps[self.progress.step - epoch * self.steps_per_epoch :]

    def micro_batches(self, rows: torch.Tensor) -> Iterator[tuple[torch.Tensor, bool]]:
        """This process's share of a step in parts, and whether each is the last."""
        process, n_processes = self.accelerator.process_index, self.accelerator.num_processes
        parts = shares(rows, self.options.batch_size, process, n_processes)
        yield from ((part, number == len(parts)) for number, part in enumerate(parts, start=1))

    def after_step(self, step_loss: torch.Tensor, norm: torch.Tensor, bad: torch.Tensor) -> None:
        """Count and log a step; save a checkpoint or stop where it is time to."""
        progress, options = self.progress, self.options
        self.recent[0] += step_loss.where(~bad, 0.0)
        self.recent[2] += bad
        progress.step += 1
        progress.recent_steps += 1
        self.bar.update()
        if progress.step % LOG_EVERY == 0 or progress.step % self.steps_per_epoch == 0:
            self.log_training(float(norm))
        now = time.perf_counter()
        progress.train_seconds, self.clock = progress.train_seconds + now - self.clock, now
        reason = self.stop.reason()
        if reason or (options.checkpoint_every and progress.step % options.checkpoint_every == 0):
            self.state.save(self.folder, progress)
            self.clock = time.perf_counter()
        if reason:
            raise Interrupted(
                f"stopped by {reason} after step {progress.step} of {self.n_steps}, which is saved in {self.folder}: "
                "the same command resumes there"
            )

    def log_training(self, norm: float) -> None:
        """Log what was summed since the last log. Raises InputError after too many bad steps."""
        progress, limit = self.progress, self.options.max_bad_steps
        loss_sum, token_sum, n_bad = self.accelerator.reduce(self.recent, reduction="sum").tolist()
        n_bad = round(n_bad / self.accelerator.num_processes)
        now = progress.train_seconds + time.perf_counter() - self.clock
        scalars = {
            "train/lr": self.optimizer.param_groups[0]["lr"],
            "train/grad_norm": norm,
            "train/tokens_per_second": token_sum / (now - progress.logged_at),
        }
        if n_bad < progress.recent_steps:
            scalars["train/loss"] = loss_sum / (progress.recent_steps - n_bad)
            self.bar.set_postfix(loss=f"{scalars['train/loss']:.3f}", refresh=False)
        self.log(progress.step, scalars)
        progress.bad_steps += n_bad
        progress.train_tokens += round(token_sum)
        progress.logged_at, progress.recent_steps = now, 0
        self.recent.zero_()
        if progress.bad_steps >= limit:
            raise InputError(
                f"the gradient was not finite in {progress.bad_steps} steps of the first {progress.step} of "
                f"{self.n_steps} ({self.folder}): choose a smaller lr; weights and checkpoint are of good steps only"
            )

    def log(self, step: int, values: dict[str, float]) -> None:
        """Send values to the trackers, and keep them for a run that resumes this one."""
        self.progress.scalars.append((step, time.time(), values))
        trackers.log(self.accelerator, *self.progress.scalars[-1])

    def after_training_epoch(self, epoch: int, after_epoch: AfterEpoch) -> None:
        """Evaluate, keep the adapter of the best epoch, save a checkpoint. Raises Pruned where the run should end."""
        progress = self.progress
        scores, outputs = self.evaluate(self.splits)
        self.log(epoch + 1, {f"validation/{name}": value for name, value in scores.items()})
        if self.accelerator.is_main_process:
            shown = ", ".join(f"{name} {value:.4f}" for name, value in scores.items() if name != COLLAPSED)
            self.bar.write(f"epoch {epoch + 1}: {shown}")
        if all(scores["score"] > earlier["score"] for earlier in progress.history):
            progress.variant_scores = {
                f"{variant}_{name}": value
                for variant in self.method.variants(self.model)
                for name, value in self.evaluate(self.splits)[0].items()
            }
            self.save_best(outputs)
        progress.history.append(scores)
        self.state.save(self.folder, progress)
        is_to_end = functools.partial(after_epoch, epoch + 1, scores["score"])
        if broadcast_from_main(is_to_end) and epoch + 1 < self.options.n_epochs:
            raise Pruned(f"ended after epoch {epoch + 1} of {self.options.n_epochs}, which is saved in {self.folder}")

    def evaluate(self, splits: dict[str, Tokens]) -> tuple[dict[str, float], dict[str, Any]]:
        """Scores of the model as it is, and its outputs by split."""
        return evaluate(self.task, self.model, splits, self.options.eval_batch_size, self.accelerator)

    def save_best(self, outputs: dict[str, Any]) -> None:
        """Write the adapter and, where the development set selects, what it answers there."""
        about = {"task_name": self.task.name, "data": self.options.data, "max_length": self.max_length}
        about |= {"seed": self.options.seed, "frozen_dtype": self.prepared.frozen_dtype}
        saving.save_adapter(self.folder, self.model, self.method, self.accelerator.is_main_process, **about)
        if self.accelerator.is_main_process and not self.untouched:
            write_predictions(self.folder, outputs, {split: self.splits[split].labels for split in outputs})


def prepare_run(
    method: Method,
    options: TuneOptions,
    task: TextClassification,
    folder: Path,
    task_data: TaskData,
    max_length: int,
    label: str,
) -> Run:
    """Everything up to the first step: model, method, data, optimizer, what was done before, trackers."""
    from accelerate.utils import set_seed

    use_all_cores()
    release_memory()
    accelerator = make_accelerator(method, options, folder)
    # Seeded before the model, so that the head starts the same for every method, and again before the loop, since
    # each method draws another number of random values when it is injected.
    set_seed(options.seed)
    model: Any = task.load(options.checkpoint)
    total_params = encoder(model).num_parameters()
    apply(method, model)
    choices = options.frozen_dtype, accelerator.mixed_precision, options.padding, options.reference
    prepared = prepare(model, accelerator.device, *choices)
    set_seed(options.seed, device_specific=True)  # the processes drop out other units of their rows

    splits, untouched = task_data.tokens(max_length, prepared.layout), {}
    tokens = splits.pop("train")
    if HOLDOUT in splits:
        untouched, splits = splits, {HOLDOUT: splits.pop(HOLDOUT)}
    optimizer = make_optimizer(model, options)
    shards.shard_by_layer(accelerator, layers(model)[0], method.uses_all())
    wrapped, accelerated = accelerator.prepare(model, optimizer)
    model = accelerator.unwrap_model(wrapped)
    run = Run(
        method, options, task, folder, max_length, prepared, label, total_params, accelerator,
        model, wrapped, optimizer, accelerated, tokens, splits, untouched,
    )  # fmt: skip
    begin(run)
    return run


def make_accelerator(method: Method, options: TuneOptions, folder: Path) -> Any:
    """accelerate's, as `accelerate launch` has asked for it."""
    from accelerate import Accelerator, DistributedDataParallelKwargs
    from accelerate.utils import ProjectConfiguration

    # An encoder's buffers are constants: sending them to all before every forward pass would be for nothing.
    settings = {"broadcast_buffers": False, "find_unused_parameters": not method.uses_all()}
    return Accelerator(
        log_with=trackers.resolve(options.report_to) or None,
        project_config=ProjectConfiguration(logging_dir=str(folder.parent)),
        kwargs_handlers=[DistributedDataParallelKwargs(**settings)],
    )


def make_optimizer(model: nn.Module, options: TuneOptions) -> torch.optim.AdamW:
    """AdamW with one rule for every method: matrices decay, vectors (biases, LayerNorms, scales) do not."""
    parameters = list(trainable(model).values())
    groups: Any = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": options.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=options.lr, betas=options.betas, eps=options.eps, fused=True)


def begin(run: Run) -> None:
    """Say what is trained, resume where there is a checkpoint, else empty the folder; open the trackers."""
    accelerator, folder = run.accelerator, run.folder
    kinds = "\n".join(f"{kind:>14} {n:>12,}" for kind, n in count_by_kind(run.model).items())
    accelerator.print(f"trained parameters\n{kinds}")
    own = run.method.positions()
    if own:
        accelerator.print(f"{own} positions are the method's own: inputs are cut to {run.max_length} tokens")
    unfinished = (folder / CHECKPOINT).is_file() and not (folder / RESULT).is_file()
    resumed = broadcast_from_main(lambda: run.options.resume and unfinished)
    if resumed:
        run.progress = run.state.load(folder)
        accelerator.print(f"resuming at step {run.progress.step} of {run.n_steps}, from the checkpoint in {folder}")
    if accelerator.is_main_process:
        clear(folder, "events.out.*" if resumed else "*")
    accelerator.wait_for_everyone()
    trackers.start(accelerator, folder.name, run.settings)
    for point in run.progress.scalars:  # what a kill cut off is logged again, so the curves have no gap and no double
        trackers.log(accelerator, *point)
    reset_peak_memory(accelerator.device)


def finish(run: Run) -> dict[str, Any]:
    """Score the best epoch on the development set where that selected nothing; write and return the result."""
    dev_scores: dict[str, float] = {}
    if run.untouched:
        loading.restore(run.folder, run.model)
        dev_scores, outputs = run.evaluate(run.untouched)
        if run.accelerator.is_main_process:
            write_predictions(run.folder, outputs, {split: run.untouched[split].labels for split in outputs})
    result = result_of(run, dev_scores)
    sizes = {name: result[name] for name in ("trainable_params_without_head", "trainable_params")}
    trackers.finish(run.accelerator, run.settings | sizes, run.progress.history[result["best_epoch"] - 1])
    if run.accelerator.is_main_process:
        result["stored_bytes"] = (run.folder / runs.ADAPTER).stat().st_size
        files.write_json(run.folder / RESULT, result)
        (run.folder / CHECKPOINT).unlink()
    run.accelerator.wait_for_everyone()
    return result


def result_of(run: Run, dev_scores: dict[str, float]) -> dict[str, Any]:
    """What result.json holds, but for `stored_bytes`."""
    progress, accelerator, model, base = run.progress, run.accelerator, run.model, base_of(run.model)
    history, seconds = progress.history, progress.train_seconds
    best = max(range(len(history)), key=lambda epoch: history[epoch]["score"])
    validation = next(iter(run.splits.values()))
    majority = run.task.floor(run.tokens, validation)
    return {
        "method": run.method.name,
        "run": run.folder.name,
        **run.settings,
        **{f"best_{name}": value for name, value in history[best].items()},
        **{f"last_{name}": value for name, value in history[-1].items()},
        **{f"majority_{name}": value for name, value in majority.items()},
        "majority_score": mean_score(majority.values()),
        **{f"dev_{name}": value for name, value in dev_scores.items()},
        **progress.variant_scores,
        "best_epoch": best + 1,
        "bad_steps": progress.bad_steps,
        "n_resumed": progress.n_resumed,
        "max_length": run.max_length,
        "frozen_dtype": run.prepared.frozen_dtype,
        "train_examples": len(run.tokens),
        "validation_examples": len(validation),
        "trainable_params": count(trainable(model)),
        "trainable_params_without_head": count_without_head(model),
        "stored_params": count(run.method.stored(model)[1]),
        **{f"trained_{kind}": n for kind, n in count_by_kind(model).items()},
        "total_params": run.total_params,
        "train_seconds": round(seconds, 3),
        "examples_per_second": round(len(run.tokens) * run.options.n_epochs / seconds, 2),
        "real_tokens_per_second": round(progress.train_tokens / seconds, 1),
        "peak_memory_mib": round(progress.peak_memory / 2**20, 1),
        "device": device_name(accelerator.device),
        "n_processes": accelerator.num_processes,
        "mixed_precision": accelerator.mixed_precision,
        "base_sha256": base.sha256,
        "base_revision": base.revision,
        **provenance(),
    }


def schedule(step: int, n_warmup: int, n_steps: int) -> float:
    """Share of the peak learning rate at a step: linear from 0 to 1 in the warm-up, then linear to 0."""
    if step < n_warmup:
        return step / n_warmup
    return (n_steps - step) / max(1, n_steps - n_warmup)
