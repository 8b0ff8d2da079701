"""The training loop, the same for every method. Read `loop` first."""

import contextlib
import math
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from common import classification, loading, runs, saving
from common.checkpointing import Progress, TrainingState
from common.checkpoints import base_of
from common.earlier import Start, find_start
from common.encoders import encoder, layers
from common.errors import Diverged, InputError, Interrupted, Pruned, is_out_of_memory, one_line_errors
from common.evaluation import COLLAPSED, evaluate
from common.fast import prepare
from common.fitting import check_fit, fit_to_budget
from common.generation import Generation
from common.masked_lm import MaskedLanguageModelling
from common.methods import Method, count, count_by_kind, count_without_head, own_buffers, package, trainable
from common.metrics import mean_score
from common.options import GenerateOptions, MaskedLMOptions, TuneOptions, parse
from common.results import iso_time, provenance, read_result, summary
from common.runs import CHECKPOINT, RESULT, clean, clear, decisive, left_behind, run_folder, write_predictions
from common.runtime import environment, files, launching, locks, shards, trackers
from common.runtime.device import device_name, release_memory, reset_peak_memory
from common.runtime.processes import broadcast_from_main, destroy_group_at_end
from common.runtime.stopping import Stop
from common.runtime.threads import share_cores
from common.task_data import HOLDOUT, HOLDOUT_ONLY, TOKENS, Task, TaskData
from common.tokens import Tokens, by_length, padding_share, shares, shuffled

LOG_EVERY = 10
"""Optimizer steps between two logs: reading a scalar from a GPU makes the host wait for it."""
AfterEpoch = Callable[[int, float], bool]
"""(epoch, counted from 1; validation score) -> whether to end the run."""


def tune(kind: type[Method], options_of: type[TuneOptions] = TuneOptions) -> None:
    """`python -m METHOD.tune`: train one configuration on one task. The last line printed is the folder of the run.

    options_of: says what the task is; `python -m METHOD.mlm` and `python -m METHOD.generate` have options of their own.
    """
    program = f"{package(kind)}.{options_of.command}"
    options, method = parse(program, options=options_of(lr=kind.default_lr), method=kind())
    with one_line_errors(options.debug):
        launching.start_cpu_processes()
        with destroy_group_at_end():
            folder, result = train(method, options)
        if os.environ.get("RANK", "0") == "0":
            print(summary(result))
            print(folder)


def task_of(options: TuneOptions) -> Task:
    """The task that these options name or describe; its own files are read now."""
    if isinstance(options, GenerateOptions):
        return Generation(options)
    return MaskedLanguageModelling(options) if isinstance(options, MaskedLMOptions) else classification.of(options)


def train(
    method: Method,
    options: TuneOptions,
    task_data: TaskData | None = None,
    after_epoch: AfterEpoch = lambda epoch, score: False,
    label: str = "",
) -> tuple[Path, dict[str, Any]]:
    """Fine-tune an encoder on a task; return the folder of the run and the contents of its result.json.

    A finished run is not repeated unless `options.overwrite`. An unfinished run resumes from its last checkpoint unless
    `options.resume` is False.

    Args:
        task_data: data of an earlier run, reused if it is the data of this run too.
        after_epoch: called on rank 0 after every epoch; the result of the last call is ignored.
        label: text for the progress bar.

    Raises:
        InputError: unusable options, data, checkpoint or folder, a finished run on what is now other data or another
            encoder, or too little memory.
        Diverged: outputs or scores are not finite, or too many steps have a non-finite gradient.
        Busy: another process is training this run.
        Interrupted: the run received SIGTERM, SIGUSR1 or Ctrl-C or reached `options.time_limit`, and was saved.
        Pruned: `after_epoch` ended the run, which can be resumed.
    """
    start, options = find_start(method, options.for_method(method))
    if task_data is None or not task_data.serves(options):
        task_data = TaskData(task_of(options), options)
    if options.param_budget is not None:
        method = fit_to_budget(method, options.param_budget, start.meta(task_data.task, options))
    start.check(method)
    folder = run_folder(method, options)

    if finished := finished_result(folder, options, task_data, start):
        clean_finished(folder)
        return folder, finished
    home = Path(options.output_dir)
    files.refuse_links(home, folder, folder / runs.RESUMABLE, home / TOKENS)  # early; again when they are written
    locks.refuse_busy(folder)

    # Data first, since most bad input is there and is found fast. Then the checks that need only the encoder's shapes.
    task_data.read()
    max_length = check_fit(method, options, start.meta(task_data.task, options), task_data.tokenizer, task_data.n_texts)

    with files.confined_to(home), locks.lock_folder(folder):
        if finished := finished_result(folder, options, task_data, start):  # another process finished it meanwhile
            return folder, finished
        try:
            run = prepare_run(method, options, folder, task_data, start, max_length, label)
            loop(run, after_epoch)
            return folder, finish(run)
        except Exception as error:
            if not is_out_of_memory(error) or isinstance(error, InputError):
                raise
            saved = "the last checkpoint is kept" if (folder / CHECKPOINT).is_file() else "nothing was saved yet"
            reason = str(error).partition("\n")[0]
            raise InputError(
                f"out of memory in {folder} ({reason}): {saved}; choose a smaller batch_size with more "
                "gradient_accumulation_steps, a smaller eval_batch_size or max_length, or frozen_dtype bfloat16"
            ) from error


def finished_result(folder: Path, options: TuneOptions, task_data: TaskData, start: Start) -> dict[str, Any] | None:
    """The result of a finished run that is not to be repeated, else None; says when it was finished.

    Raises:
        InputError: data, encoder or the earlier run has changed since, so that it is the result of another run.
    """
    if options.overwrite or not broadcast_from_main(lambda: runs.is_finished(folder)):
        return None
    result = read_result(folder)
    when = result.get("finished_at") or iso_time((folder / RESULT).stat().st_mtime)  # earlier results have no date
    names = {"data_sha256": f"data {options.data}", "checkpoint_digest": f"encoder {options.checkpoint}"}
    names["on_sha256"] = f"run {options.on}"
    found = task_data.digests | start.facts
    changed = [name for key, name in names.items() if result.get(key) not in (None, found.get(key))]
    if changed:
        raise InputError(
            f"{folder} was finished on {when}, and {' and '.join(changed)} changed since: repeat it with --overwrite, "
            "or keep its result and choose another output_dir"
        )
    if os.environ.get("RANK", "0") == "0":
        print(f"{folder}: finished on {when}; --overwrite repeats it")
    return result


def loop(run: "Run", after_epoch: AfterEpoch) -> None:
    """Train from the current step to the last one. Raises what `train` raises."""
    method, options, accelerator, progress = run.method, run.options, run.accelerator, run.progress
    device, n_processes, peak_lr = accelerator.device, accelerator.num_processes, run.optimizer.defaults["lr"]
    with run.progress_bar() as run.bar, Stop(options.time_limit, n_processes) as run.stop:
        for epoch in range(len(progress.history), options.n_epochs):
            run.wrapped_model.train()
            run.tokens = run.tokens.of_epoch(options.seed, epoch)
            run.clock = time.perf_counter()
            for indices in run.steps_left(epoch):  # (examples,) of one optimizer step, on all processes
                for group in run.optimizer.param_groups:
                    group["lr"] = peak_lr * schedule(progress.step, run.n_warmup, run.n_steps, options.schedule)

                step_loss = torch.zeros((), device=device)
                for micro_batch, is_last in run.micro_batches(indices):
                    # In the last step of an epoch a process may have no example. It then runs one with weight 0.
                    batch, labels = run.tokens.batch(micro_batch if len(micro_batch) else indices[:1], device)
                    # The step's loss is the mean over its targets on all processes. Processes average their gradients,
                    # hence the factor n_processes, and synchronize them in the last backward pass only.
                    with contextlib.nullcontext() if is_last else accelerator.no_sync(run.wrapped_model):
                        weight = (len(micro_batch) > 0) * n_processes
                        loss = run.task.loss(run.wrapped_model, batch, labels) * weight / run.tokens.n_targets(indices)
                        if is_last:
                            loss = loss + method.penalty(run.model)
                        accelerator.backward(loss)
                    step_loss += loss.detach() / n_processes
                    run.recent[1] += run.tokens.lengths[micro_batch].sum()

                method.on_step(run.model, progress.step / run.n_steps)
                max_norm = options.max_grad_norm or float("inf")
                grad_norm = shards.unshard(accelerator.clip_grad_norm_(run.parameters, max_norm))
                bad = ~grad_norm.isfinite()
                if accelerator.scaler is None:  # else the scaler checks for non-finite gradients
                    run.optimizer.found_inf = bad.float()  # makes AdamW skip a bad step, without waiting for the device
                run.wrapped_optimizer.step()
                run.wrapped_optimizer.zero_grad()
                run.after_step(step_loss, grad_norm, bad)
            run.after_training_epoch(epoch, after_epoch)


class Run:
    """The state of one run, and what happens around its training steps."""

    def __init__(
        self,
        method: Method,
        options: TuneOptions,
        folder: Path,
        task_data: TaskData,
        start: Start,
        max_length: int,
        label: str,
    ):
        from accelerate.utils import set_seed

        self.method, self.options, self.folder, self.task = method, options, folder, task_data.task
        self.max_length, self.label, self.start = max_length, label, start
        self.digests = task_data.digests | start.facts
        self.n_beside = share_cores()
        release_memory()
        self.accelerator = accelerator = make_accelerator(method, options, folder)
        # Seed before loading the model, so that the head starts the same for every method, and again before training,
        # since the number of random values that is used until then depends on the method.
        set_seed(options.seed)
        model: Any = self.task.load(options.checkpoint, options.pooling)
        self.total_params = encoder(model).num_parameters()  # without the method
        start.apply(method, model)
        choices = options.frozen_dtype, accelerator.mixed_precision, options.padding, options.reference
        self.prepared = prepare(model, accelerator.device, *choices)

        self.splits = task_data.tokens(max_length, self.prepared.layout)  # those that select the best epoch
        self.tokens = self.splits.pop("train")
        self.dev_splits: dict[str, Tokens] = {}  # the development set, if it does not select but is scored at the end
        if HOLDOUT in self.splits:  # with holdout_only there is no development set
            self.dev_splits, self.splits = self.splits, {HOLDOUT: self.splits.pop(HOLDOUT)}
        self.optimizer: Any = make_optimizer(model, options)
        with shards.shard_by_layer(accelerator, model, layers(model), method.uses_all()):
            self.wrapped_model, self.wrapped_optimizer = accelerator.prepare(model, self.optimizer)
        self.model: nn.Module = accelerator.unwrap_model(self.wrapped_model)
        self.parameters = list(trainable(self.model).values())
        if accelerator.num_processes > 1:
            self.settle_buckets()
        set_seed((options.seed + accelerator.process_index) % 2**32)  # each process has its own dropout masks

        n_processes = accelerator.num_processes
        self.examples_per_step = options.batch_size * options.gradient_accumulation_steps * n_processes
        self.steps_per_epoch = math.ceil(len(self.tokens) / self.examples_per_step)
        self.n_steps = self.steps_per_epoch * options.n_epochs
        self.n_warmup = int(options.warmup_ratio * self.n_steps)
        self.progress, self.clock = Progress(), 0.0  # clock: time of the last update of progress.train_seconds
        self.recent = torch.zeros(3, device=accelerator.device)  # sums since the last log: loss, tokens, bad steps
        self.bar: Any = None
        self.stop: Any = None
        facts = {"base_sha256": base_of(self.model).sha256, "train_examples": len(self.tokens)}
        facts |= {"n_steps": self.n_steps, "n_processes": n_processes} | self.digests
        lengths = self.n_steps, self.steps_per_epoch
        self.state = TrainingState(
            self.model, self.optimizer, self.recent, accelerator, facts, *lengths, self.task.metrics
        )

    def settle_buckets(self) -> None:
        """Run a backward pass, whose gradients are dropped, so that the first step sums like all later ones.

        DistributedDataParallel arranges its buckets anew after the first backward pass of a launch. On three or more
        processes the place of a gradient in its bucket decides in which order the processes' values are added, so that
        the first step after a resume would round differently.
        """
        before = {name: buffer.clone() for name, buffer in own_buffers(self.model).items()}
        batch, labels = self.tokens.batch(torch.tensor([0]), self.accelerator.device)
        self.wrapped_model.train()
        (self.task.loss(self.wrapped_model, batch, labels) + self.method.penalty(self.model)).backward()
        self.wrapped_optimizer.zero_grad()
        loading.copy_into(self.model, before)

    @property
    def settings(self) -> dict[str, Any]:
        """All options that can change the result, by name."""
        return {"method": self.method.name} | self.method.options() | decisive(self.options)

    def progress_bar(self) -> Any:
        from tqdm import tqdm

        title, hidden = f"{self.method.name} {self.task.name}{self.label}", not self.accelerator.is_main_process
        return tqdm(total=self.n_steps, initial=self.progress.step, desc=title, unit="step", disable=hidden)

    def steps_left(self, epoch: int) -> Iterator[torch.Tensor]:
        """The indices of the examples of each remaining optimizer step of an epoch."""
        steps = shuffled(len(self.tokens), self.options.seed, epoch).split(self.examples_per_step)
        yield from steps[self.progress.step - epoch * self.steps_per_epoch :]

    def micro_batches(self, indices: torch.Tensor) -> Iterator[tuple[torch.Tensor, bool]]:
        """This process's micro-batches of a step, and whether each is the last."""
        rank, n_processes = self.accelerator.process_index, self.accelerator.num_processes
        parts = shares(indices, self.options.batch_size, rank, n_processes)
        if self.prepared.by_length:
            parts = [each for part in parts for each in by_length(part, self.tokens.lengths, self.options.batch_size)]
        yield from ((part, number == len(parts)) for number, part in enumerate(parts, start=1))

    def after_step(self, step_loss: torch.Tensor, grad_norm: torch.Tensor, bad: torch.Tensor) -> None:
        """Count and log a step; save a checkpoint and stop if it is time to."""
        progress, options = self.progress, self.options
        self.recent[0] += step_loss.where(~bad, 0.0)
        self.recent[2] += bad
        progress.step += 1
        progress.recent_steps += 1
        self.bar.update()
        if progress.step % LOG_EVERY == 0 or progress.step % self.steps_per_epoch == 0:
            self.log_training(float(grad_norm))
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

    def log_training(self, grad_norm: float) -> None:
        """Log the means since the last log. Raises Diverged after too many bad steps, or if no step was good."""
        progress = self.progress
        loss_sum, token_sum, n_bad = self.accelerator.reduce(self.recent, reduction="sum").tolist()
        n_bad = round(n_bad / self.accelerator.num_processes)
        now = progress.train_seconds + time.perf_counter() - self.clock
        scalars = {
            "train/lr": self.optimizer.param_groups[0]["lr"],
            "train/grad_norm": grad_norm,
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
        if progress.bad_steps >= min(self.options.max_bad_steps, self.n_steps):
            raise Diverged(
                f"the gradient was not finite in {progress.bad_steps} steps of the first {progress.step} of "
                f"{self.n_steps} ({self.folder}): choose a smaller lr; weights and checkpoint are of good steps only"
            )

    def log(self, step: int, values: dict[str, float]) -> None:
        """Send values to the trackers, and keep them in the checkpoint."""
        self.progress.scalars.append((step, time.time(), values))
        trackers.log(self.accelerator, *self.progress.scalars[-1])

    def after_training_epoch(self, epoch: int, after_epoch: AfterEpoch) -> None:
        """Evaluate, save the adapter if it is the best so far, save a checkpoint. Raises Pruned if the run must end."""
        progress = self.progress
        is_final = self.method.on_epoch(self.model, (epoch + 1) / self.options.n_epochs)
        scores, outputs = self.evaluate(self.splits)
        values = {f"validation/{name}": value for name, value in scores.items()}
        self.log(progress.step, values | {"epoch": epoch + 1})
        if self.accelerator.is_main_process:
            shown = ", ".join(f"{name} {value:.4f}" for name, value in scores.items() if name != COLLAPSED)
            where = "" if self.options.select == "dev" else " on held-out examples"
            self.bar.write(f"epoch {epoch + 1}{where}: {shown}")
        best = progress.best_epoch
        if is_final and (not best or scores["score"] > progress.history[best - 1]["score"]):
            progress.best_epoch = epoch + 1
            progress.variant_scores = {
                f"{variant}_{name}": value
                for variant in self.method.variants(self.model)
                for name, value in self.evaluate(self.splits)[0].items()
            }
            self.save_best(outputs)
        progress.history.append(scores)
        self.state.save(self.folder, progress)
        end = broadcast_from_main(lambda: after_epoch(epoch + 1, scores["score"]))
        if end and epoch + 1 < self.options.n_epochs:
            raise Pruned(f"ended after epoch {epoch + 1} of {self.options.n_epochs}, which is saved in {self.folder}")

    def evaluate(self, splits: dict[str, Tokens]) -> tuple[dict[str, float], dict[str, Any]]:
        """Scores of the current model, and its outputs by split. Raises Diverged if they are not finite."""
        try:
            return evaluate(self.task, self.model, splits, self.options.eval_batch_size, self.accelerator)
        except Diverged as error:
            when = f"after step {self.progress.step} of {self.n_steps} ({self.folder})"
            kept = "the adapter of the best epoch is kept" if self.progress.best_epoch else "nothing was saved"
            raise Diverged(f"{error} {when}: choose a smaller lr; {kept}") from None

    def save_best(self, outputs: dict[str, Any]) -> None:
        """Write the adapter and, if the development set selects, the predictions on it."""
        facts = {"task_name": self.task.name, "data": self.options.data, "max_length": self.max_length}
        facts |= {"seed": self.options.seed, "frozen_dtype": self.prepared.frozen_dtype}
        facts |= self.task.facts | self.start.facts
        saving.save_adapter(self.folder, self.model, self.method, self.accelerator.is_main_process, **facts)
        if self.accelerator.is_main_process and not self.dev_splits:
            write_predictions(self.folder, outputs, {split: self.splits[split].labels for split in outputs})


def make_accelerator(method: Method, options: TuneOptions, folder: Path) -> Any:
    """An Accelerator with the settings of `accelerate launch`. Raises InputError for those that cannot be used."""
    environment.check_environment()
    from accelerate import Accelerator, DistributedDataParallelKwargs
    from accelerate.utils import GradientAccumulationPlugin, ProjectConfiguration

    # The buffers of an encoder are constant, so that broadcasting them before every forward pass is useless.
    settings = {"broadcast_buffers": False, "find_unused_parameters": not method.uses_all()}
    return Accelerator(
        log_with=trackers.create(options.report_to, folder) or None,
        project_config=ProjectConfiguration(logging_dir=str(folder.parent)),
        # Else a variable of accelerate's would divide the gradients, which the loop accumulates itself.
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        kwargs_handlers=[DistributedDataParallelKwargs(**settings)],
    )


def make_optimizer(model: nn.Module, options: TuneOptions) -> torch.optim.AdamW:
    """AdamW with one rule for every method: weight decay on matrices, none on vectors (biases, LayerNorms, scales)."""
    parameters = list(trainable(model).values())
    groups: Any = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": options.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    lr: Any = options.lr
    return torch.optim.AdamW(groups, lr=lr, betas=options.betas, eps=options.eps, fused=True)


def prepare_run(
    method: Method, options: TuneOptions, folder: Path, task_data: TaskData, start: Start, max_length: int, label: str
) -> Run:
    """Set up a run: print what it is, resume from a checkpoint or else empty the folder, open the trackers."""
    run = Run(method, options, folder, task_data, start, max_length, label)
    accelerator = run.accelerator
    accelerator.print(opening(run))
    if run.n_beside >= accelerator.num_processes:
        accelerator.print(
            f"{torch.get_num_threads()} threads, since other runs use the same cores: OMP_NUM_THREADS sets the number"
        )
    unfinished = (folder / CHECKPOINT).is_file() and not (folder / RESULT).is_file()
    resumed = broadcast_from_main(lambda: options.resume and unfinished)
    if resumed:
        run.progress = run.state.load(folder)
        accelerator.print(f"resuming at step {run.progress.step} of {run.n_steps}, from the checkpoint in {folder}")
    n_threads, before = torch.get_num_threads(), run.progress.threads[-1:]
    if before != [n_threads]:
        run.progress.threads.append(n_threads)
        if before:
            accelerator.print(
                f"number of threads: {n_threads}, before {before[0]}: the last bits of the result may differ"
            )
    if accelerator.is_main_process:
        clean(folder)
        clear(folder, "events.out.*" if resumed else "*")
        if not resumed:
            start.save_below(folder)
    accelerator.wait_for_everyone()
    trackers.start(accelerator, folder.name, run.settings)
    for point in run.progress.scalars:  # logged again, so that the curves have no gaps and no duplicates after a kill
        trackers.log(accelerator, *point)
    reset_peak_memory(accelerator.device)
    return run


def clean_finished(folder: Path) -> None:
    """Remove what a killed process left in the folder of a finished run, unless it is locked or cannot be written."""
    if broadcast_from_main(lambda: bool(left_behind(folder))):
        with contextlib.suppress(InputError), locks.lock_folder(folder):
            broadcast_from_main(lambda: clean(folder))


def opening(run: Run) -> str:
    """What is trained on what, in five lines, or six with an earlier run."""
    accelerator, options, tokens, own = run.accelerator, run.options, run.tokens, run.method.positions()
    n = accelerator.num_processes
    device = f"{device_name(accelerator.device)}{f', {n} processes' if n > 1 else ''}"
    rows = ", ".join(f"{len(some):,} {split}" for split, some in (run.splits | run.dev_splits).items())
    share = f"{padding_share(tokens, options.batch_size, options.seed, run.prepared.by_length):.0%}"
    padding = f"packed, which saves {share} of a padded batch" if tokens.layout else f"padded, {share} of a batch"
    unit = "an example" if tokens.n_sequences == 1 else "each choice"
    kinds = ", ".join(f"{kind} {size:,}" for kind, size in count_by_kind(run.model).items() if size)
    return "\n".join(
        [
            f"device   {device}; mixed precision {accelerator.mixed_precision}, frozen {run.prepared.frozen_dtype}",
            f"examples {len(tokens):,} train, {rows}",
            f"tokens   {int(tokens.lengths.sum()):,} in an epoch, at most {run.max_length} in {unit}"
            f"{f' ({own} more positions are those of {run.method.name})' if own else ''}; {padding}",
            f"run      {run.folder}",
            f"trained  {count(trainable(run.model)):,} parameters: {kinds}",
            *([f"begins   {run.start}"] if run.start.facts else []),
        ]
    )


def finish(run: Run) -> dict[str, Any]:
    """Score the best epoch as far as that is done at the end alone; write and return the result."""

    def best_model() -> nn.Module:
        loading.restore(run.folder, run.model, run.method)
        return run.model

    dev_scores = None
    if run.dev_splits:  # the development set, which did not select that epoch
        best_model()
        dev_scores, outputs = run.evaluate(run.dev_splits)
        if run.accelerator.is_main_process:
            write_predictions(run.folder, outputs, {split: run.dev_splits[split].labels for split in outputs})
    result = result_of(run, dev_scores)
    splits, batch_size = run.dev_splits or run.splits, run.options.eval_batch_size
    result |= run.task.finish(best_model, splits, batch_size, run.accelerator, run.folder)
    sizes = {name: result[name] for name in ("trainable_params_without_head", "trainable_params")}
    final = dev_scores or run.progress.history[result["best_epoch"] - 1]
    trackers.finish(run.accelerator, run.n_steps, run.settings | sizes, final)
    if run.accelerator.is_main_process:
        result["stored_bytes"] = (run.folder / runs.ADAPTER).stat().st_size
        files.write_json(run.folder / RESULT, result)
        (run.folder / CHECKPOINT).unlink()
    run.accelerator.wait_for_everyone()
    return broadcast_from_main(lambda: read_result(run.folder))  # as later readers see it: JSON has no tuples


def result_of(run: Run, dev_scores: dict[str, float] | None) -> dict[str, Any]:
    """The contents of result.json, except `stored_bytes`.

    dev_scores: of the best epoch on the development set; None if these are the scores that selected it.
    """
    progress, accelerator, model, base = run.progress, run.accelerator, run.model, base_of(run.model)
    history, seconds = progress.history, progress.train_seconds
    best = history[progress.best_epoch - 1]
    validation = next(iter(run.splits.values()))
    majority = run.task.floor(run.tokens, validation)
    on_dev = {} if run.options.select == HOLDOUT_ONLY else dev_facts(run, dev_scores or best, majority)
    return {
        "method": run.method.name,
        "run": run.folder.name,
        **run.settings,
        **run.task.facts,
        **{f"best_{name}": value for name, value in best.items()},
        **{f"last_{name}": value for name, value in history[-1].items()},
        **{f"majority_{name}": value for name, value in majority.items()},
        "majority_score": mean_score(majority[name] for name in run.task.metrics),
        **on_dev,
        **progress.variant_scores,
        "best_epoch": progress.best_epoch,
        "bad_steps": progress.bad_steps,
        "n_resumed": progress.n_resumed,
        "threads": progress.threads,
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
        "environment": environment.recorded(),
        "base_sha256": base.sha256,
        "base_revision": base.revision,
        **run.digests,
        "finished_at": iso_time(time.time()),
        "host": socket.gethostname(),
        "history": history,
        **provenance(),
    }


def dev_facts(run: Run, scores: dict[str, float], majority: dict[str, float]) -> dict[str, float]:
    """The scores on the development set and those of a constant answer there, for result.json.

    majority: of the examples that select the best epoch.
    """
    if run.dev_splits:
        majority = run.task.floor(run.tokens, next(iter(run.dev_splits.values())))
    found = {f"dev_{name}": value for name, value in scores.items()}
    found |= {f"dev_majority_{name}": value for name, value in majority.items()}
    return found | {"dev_majority_score": mean_score(majority[name] for name in run.task.metrics)}


def schedule(step: int, n_warmup: int, n_steps: int, shape: str = "linear") -> float:
    """Factor on the peak learning rate: linear from 0 to 1 during warm-up, then of a shape, see `TuneOptions`."""
    if step < n_warmup:
        return step / n_warmup
    left = (n_steps - step) / max(1, n_steps - n_warmup)
    return {"linear": left, "cosine": (1 - math.cos(math.pi * left)) / 2, "constant": 1.0}[shape]
