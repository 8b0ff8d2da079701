"""Latency and memory of prediction with each method against the plain encoder: python -m benchmarks.inference

One forward pass of packed examples at each batch size, with the head. All models are in one process and take turns, so
that drift of the machine affects all; a ratio is the median over the turns of a model's time by the plain encoder's in
the same turn. `merged` has the updates of linear layers merged into the weights. Memory is the peak of a process of its
own that loads the model and predicts once at the largest batch size.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import tasks
from common.errors import InputError, one_line_errors
from common.methods import names
from common.results import provenance

PLAIN = "plain"
"""The encoder with a head and nothing else: the baseline's model with all of it frozen but the head."""


def sides(methods: list[str]) -> list[str]:
    """The models to measure: the plain one, and each method unmerged and merged; not all can be merged."""
    return [PLAIN, *(side for name in methods for side in (name, f"{name}, merged"))]


def forward(side: str, args: argparse.Namespace) -> tuple[Callable[[int], Any], Any]:
    """A function of a batch size that computes one forward pass, and the device. Raises InputError: not mergeable."""
    import torch
    from accelerate import Accelerator

    from common import classification
    from common.checkpoints import load_model, load_tokenizer
    from common.fast import prepare
    from common.merging import merge
    from common.methods import apply, find, trainable
    from common.runtime.threads import share_cores

    share_cores()
    task, device = classification.find(args.task_name), Accelerator().device
    name, _, merged = side.partition(", ")
    torch.manual_seed(0)
    model: Any = load_model(args.checkpoint, task.glue.n_outputs).eval().requires_grad_(False)
    if side != PLAIN:
        apply(find(name)(), model)
        for parameter in trainable(model).values():  # random values, on which no time depends
            parameter.data += 0.01 * torch.randn_like(parameter)
        if merged:
            merge(model)
    layout = prepare(model, device).layout
    model.to(device)
    examples = task.read("validation", args.data).sample(max(args.batch_sizes))
    tokens = task.encode(examples, load_tokenizer(args.checkpoint), 128).with_layout(layout)
    batches = {n: tokens.batch(torch.arange(n), device)[0] for n in args.batch_sizes}

    @torch.no_grad()
    def compute(n: int) -> Any:
        return model(**batches[n]).logits.sum().item()  # which waits for a GPU

    return compute, device


def peak(side: str, args: argparse.Namespace) -> float:
    """MiB of a new process that predicts once."""
    words = ["--checkpoint", args.checkpoint, "--task_name", args.task_name, "--data", args.data, "--memory_of", side]
    command = [sys.executable, "-m", "benchmarks.inference", *words, "--batch_sizes", *map(str, args.batch_sizes)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise InputError(f"the process of {side} failed: {done.stderr.strip()[-500:]}")
    return float(done.stdout)


def compare(args: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each side: ratios to the plain encoder, and of that milliseconds and MiB."""
    models: dict[str, Callable[[int], Any]] = {}
    for side in sides(args.methods):
        try:
            models[side], _ = forward(side, args)
        except InputError as error:
            print(f"{side}: {error}", file=sys.stderr)
    times: dict[tuple[str, int], list[float]] = {(side, n): [] for side in models for n in args.batch_sizes}
    for turn in range(args.turns + 1):
        for (side, n), found in times.items():
            began = time.perf_counter()
            for _ in range(args.passes):
                models[side](n)
            if turn:  # the first one compiles kernels
                found.append((time.perf_counter() - began) / args.passes)
    found_sides = list(models)
    models.clear()
    memory = {side: peak(side, args) for side in found_sides}
    rows = []
    for side in found_sides:
        row: dict[str, Any] = {
            "side": side,
            "mib": round(memory[side]),
            "memory": round(memory[side] / memory[PLAIN], 3),
        }
        for n in args.batch_sizes:
            ratios = [a / b for a, b in zip(times[side, n], times[PLAIN, n], strict=True)]
            row |= {f"latency_{n}": round(statistics.median(ratios), 3)}
            row |= {f"milliseconds_{n}": round(1_000 * statistics.median(times[side, n]), 2)}
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", choices=names(), default=names())
    parser.add_argument("--checkpoint", default="minilm")
    parser.add_argument("--task_name", default="mrpc", choices=tasks.TRAINED)
    parser.add_argument("--data", default="demo", help="hub, a folder with the official download, or demo")
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--passes", type=int, default=10, help="forward passes of a measurement")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--out", type=Path, help="append the rows to this file of JSON lines")
    parser.add_argument("--memory_of", help=argparse.SUPPRESS)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    args = parser.parse_args()
    with one_line_errors(args.debug):
        if args.memory_of:
            from common.runtime.device import peak_memory

            compute, device = forward(args.memory_of, args)
            compute(max(args.batch_sizes))
            print(peak_memory(device) / 2**20)
            return
        for row in compare(args):
            print(json.dumps(row))
            if args.out:
                with args.out.open("a") as file:
                    file.write(json.dumps(row | {"checkpoint": args.checkpoint} | provenance()) + "\n")


if __name__ == "__main__":
    main()
