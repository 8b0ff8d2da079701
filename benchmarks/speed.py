"""Compare speed, memory and stored bytes of our methods with peft + transformers' Trainer: make bench

Each measurement is a new process, and the sides take turns (A B A B ...): drift of the machine affects both, and peak
memory is that of one run. Model, task, batch size, examples and precision are the same; Trainer keeps its defaults. The
output are ratios: medians over the pairs.
"""

import argparse
import copy
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import combinations
from pathlib import Path
from typing import Any

from common import tasks
from common.errors import InputError, one_line_errors
from common.methods import names
from common.results import provenance

OURS: dict[str, dict[str, Any]] = {
    "ours": {},
    "ours_bf16": {"frozen_dtype": "bfloat16"},
    "padded": {"padding": "batch"},
    "reference": {"reference": True},
}
"""Sides with our training loop -> their options."""
SIDES = (*OURS, "peft", "peft_bf16")


def ours(args: argparse.Namespace, side: str, folder: str) -> dict[str, float]:
    """Measure a run of our training loop."""
    import torch

    from baseline.method import Baseline
    from common.methods import find
    from common.options import TuneOptions
    from common.training import train

    if torch.cuda.is_available() and side == "ours_bf16":
        os.environ["ACCELERATE_MIXED_PRECISION"] = "bf16"  # as `accelerate launch --mixed_precision bf16` does
    method = Baseline(top_k=args.top_k) if args.method == "top_k" else find(args.method)()
    options = TuneOptions(
        checkpoint=args.checkpoint,
        data=args.data,
        task_name=args.task_name,
        batch_size=args.batch_size,
        n_epochs=args.n_epochs,
        max_train_samples=args.rows,
        max_eval_samples=args.batch_size,
        output_dir=folder,
        report_to=("none",),
        **OURS[side],
    )
    _, result = train(method, options)
    keys = ("examples_per_second", "real_tokens_per_second", "peak_memory_mib", "stored_bytes")
    return {key: result[key] for key in keys}


def theirs(args: argparse.Namespace, side: str, folder: str) -> dict[str, float]:
    """Measure a run on the same examples with peft and Trainer, with Trainer's defaults."""
    import torch
    import transformers
    from peft import LoraConfig, PrefixTuningConfig, PromptTuningConfig, get_peft_model
    from transformers import DataCollatorWithPadding, Trainer, TrainingArguments

    from common import data
    from common.checkpoints import load_model, load_tokenizer
    from common.runtime.device import peak_memory, reset_peak_memory
    from common.runtime.threads import share_cores

    transformers.utils.logging.disable_progress_bar()
    share_cores()
    task = tasks.find(args.task_name)
    tokenizer = load_tokenizer(args.checkpoint)
    model = load_model(args.checkpoint, task.targets.n_outputs)
    configs = {  # our defaults
        "lora": LoraConfig(r=8, lora_alpha=8, target_modules=["query", "value"], task_type="SEQ_CLS"),
        "prefix": PrefixTuningConfig(num_virtual_tokens=20, task_type="SEQ_CLS"),
        "prompt": PromptTuningConfig(num_virtual_tokens=20, task_type="SEQ_CLS"),
    }
    if args.method not in (*configs, "baseline"):
        raise InputError(f"peft has no {args.method}: choose {', '.join(configs)} or baseline, or only sides of ours")
    if args.method in configs:
        model = get_peft_model(model, configs[args.method])
    rows = data.read(task, "train", args.data).sample(args.rows)
    encoded = tokenizer(*rows.texts, truncation=True, max_length=512)
    dataset = [{n: encoded[n][i] for n in encoded} | {"labels": rows.labels[i]} for i in range(len(rows))]  # type: ignore[index]
    settings = TrainingArguments(
        output_dir=folder,
        per_device_train_batch_size=args.batch_size,
        num_train_epochs=args.n_epochs,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        bf16=side == "peft_bf16",
        use_cpu=not torch.cuda.is_available(),
    )
    trainer = Trainer(
        model=model, args=settings, train_dataset=dataset, data_collator=DataCollatorWithPadding(tokenizer)
    )
    device = settings.device
    reset_peak_memory(device)
    began = time.perf_counter()
    trainer.train()
    if device.type == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - began
    model.save_pretrained(folder)
    n_tokens = sum(len(ids) for ids in encoded["input_ids"])
    return {
        "examples_per_second": len(rows) * args.n_epochs / seconds,
        "real_tokens_per_second": n_tokens * args.n_epochs / seconds,
        "peak_memory_mib": peak_memory(device) / 2**20,
        "stored_bytes": sum(path.stat().st_size for path in Path(folder).glob("*.safetensors")),
    }


def matrix_peak(dtype: str) -> float:
    """Peak FLOP/s of the machine: a matrix product of the encoder's feed-forward layer at a good size, best of many.

    The faster of torch's own product and, on a CPU, oneDNN's with a prepacked weight.
    """
    import torch

    from common.fast.linear import use_fast_linear
    from common.runtime.threads import share_cores

    share_cores()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokens, inner, outer = (8192, 4096, 4096) if device == "cuda" else (2048, 384, 1536)
    plain = torch.nn.Linear(inner, outer, bias=False, dtype=getattr(torch, dtype), device=device).requires_grad_(False)
    prepacked = copy.deepcopy(plain)
    use_fast_linear(prepacked)
    x = torch.randn(tokens, inner, dtype=getattr(torch, dtype), device=device)
    best = math.inf
    for _ in range(50):
        for multiply in (plain, prepacked):
            began = time.perf_counter()
            multiply(x)
            if device == "cuda":
                torch.cuda.synchronize()
            best = min(best, time.perf_counter() - began)
    return 2 * tokens * inner * outer / best


def flops_per_token(checkpoint: str, mean_square_length: float, mean_length: float) -> float:
    """Minimum FLOPs of LoRA's forward and backward pass, per real token.

    Counted: the linear layers and the two attention products, forward and, for the gradients of their inputs, backward.
    Exceptions: no gradients of query, key and value in the lowest layer, since nothing below it is trained; only keys
    and values in the top layer, since only its output at [CLS] is used.
    Not counted: embeddings, LayerNorms, activations, LoRA's own small products, the head.
    """
    from common.checkpoints import load_model
    from common.encoders import encoder, layers

    model = load_model(checkpoint, 2)
    weights = sum(p.numel() for n, p in layers(model)[:-1].named_parameters() if p.ndim == 2)
    hidden, n_layers = encoder(model).config.hidden_size, len(layers(model))
    linear = 2 * (weights + 2 * hidden * hidden) * 2 - 2 * 3 * hidden * hidden
    attention = (n_layers - 1) * (2 * 2 * hidden) * (1 + 2) * mean_square_length / mean_length
    return linear + attention


def device() -> str:
    """Name of the device of the measurements."""
    import torch

    from common.runtime.device import device_name
    from common.runtime.threads import share_cores

    share_cores()
    return device_name(torch.device("cuda" if torch.cuda.is_available() else "cpu"))


def padding_factor(args: argparse.Namespace) -> tuple[float, float, float]:
    """Tokens of random padded batches divided by real tokens; mean length and mean squared length."""
    from common import data
    from common.checkpoints import load_tokenizer
    from common.tokens import shuffled, tokenize

    task = tasks.find(args.task_name)
    examples = data.read(task, "train", args.data).sample(args.rows)
    lengths = tokenize(examples, load_tokenizer(args.checkpoint), 512).lengths.float()
    batches = lengths[shuffled(len(lengths), 42, 0)].split(args.batch_size)
    padded = sum(float(batch.max()) * len(batch) for batch in batches)
    return padded / float(lengths.sum()), float(lengths.mean()), float(lengths.square().mean())


def measure(side: str, words: list[str]) -> dict[str, float]:
    """Measure one side in a new process."""
    command = [sys.executable, "-m", "benchmarks.speed", "--side", side, *words]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{side} failed:\n{done.stderr}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def compare(args: argparse.Namespace, words: list[str]) -> dict[str, Any]:
    """Run the sides in turn; medians of each side, and ratios of each side to every side named after it."""
    print(f"measuring on {device()}", file=sys.stderr, flush=True)
    runs: dict[str, list[dict[str, float]]] = {side: [] for side in args.sides}
    for pair in range(args.pairs):
        for side in args.sides:
            runs[side].append(measure(side, words))
            speed = runs[side][-1]["examples_per_second"]
            print(f"pair {pair + 1} {side}: {speed:.1f} examples/s", file=sys.stderr, flush=True)
    factor, length, square = padding_factor(args)
    row: dict[str, Any] = {"task_name": args.task_name, "method": args.method, "padding_factor": round(factor, 2)}
    row |= {"rows": args.rows, "batch_size": args.batch_size, "pairs": args.pairs, "checkpoint": args.checkpoint}
    row["n_epochs"] = args.n_epochs
    row["device"] = device()
    for side, measured in runs.items():
        for key in measured[0]:
            row[f"{side}_{key}"] = round(statistics.median(run[key] for run in measured), 1)
    for one, other in combinations(args.sides, 2):
        pairs = list(zip(runs[one], runs[other], strict=True))
        for key, name in (("examples_per_second", "speed"), ("peak_memory_mib", "memory"), ("stored_bytes", "bytes")):
            ratios = [a[key] / b[key] for a, b in pairs]
            row[f"{name}_{one}_over_{other}"] = round(statistics.median(ratios), 3)
            row[f"{name}_{one}_over_{other}_range"] = [round(min(ratios), 3), round(max(ratios), 3)]
    for side, dtype in (("ours", "float32"), ("ours_bf16", "bfloat16")):
        if args.method == "lora" and side in runs:
            done = row[f"{side}_real_tokens_per_second"] * flops_per_token(args.checkpoint, square, length)
            peak = matrix_peak(dtype)
            row |= {f"matrix_peak_{dtype}_gflops": round(peak / 1e9), f"{side}_share_of_peak": round(done / peak, 3)}
    return row | provenance()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task_name", default="rte", choices=tasks.AVERAGED)
    parser.add_argument("--method", default="lora", choices=("top_k", *names()), help="baseline = full fine-tuning")
    parser.add_argument("--top_k", type=int, default=2)
    parser.add_argument("--checkpoint", default="minilm")
    parser.add_argument("--data", default="demo", help="hub, a folder with the official GLUE download, or demo")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--rows", type=int, default=512, help="training examples of one measurement")
    parser.add_argument("--n_epochs", type=int, default=1)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument(
        "--sides", nargs="+", default=["ours", "peft"], choices=SIDES, help="each is divided by all after it"
    )
    parser.add_argument("--out", type=Path, help="append the row to this file of JSON lines")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    args = parser.parse_args()
    with one_line_errors(args.debug):
        if args.side:
            with tempfile.TemporaryDirectory() as folder:
                print(json.dumps((ours if args.side in OURS else theirs)(args, args.side, folder)))
            return
        settings = ("task_name", "method", "top_k", "checkpoint", "data", "batch_size", "rows", "n_epochs")
        row = compare(args, [word for name in settings for word in (f"--{name}", str(getattr(args, name)))])
        print(json.dumps(row, indent=2))
        if args.out:
            with args.out.open("a") as file:
                file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
