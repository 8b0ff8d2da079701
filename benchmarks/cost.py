"""What training with each variant of the protocol costs against full fine-tuning: python -m benchmarks.cost

Each variant trains one epoch on the same examples in a new process, with the options of results/protocol.json and one
thread; the variants take turns, so that drift of the machine affects all. A ratio is the median over the turns of a
variant's value by that of full fine-tuning in the same turn. Leave the machine alone meanwhile. Where
results/protocol.jsonl has all seeds of a variant on this task, its row has the PSCP too, see `pscp`.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from common import tasks
from common.errors import InputError, check, one_line_errors
from common.results import provenance, read_result
from common.runs import read_rows
from common.study import protocol, rates

FULL = "fine-tuning"
ROWS = protocol.REPOSITORY / "results" / "protocol.jsonl"
TOKENS = 256
"""Length of the text whose forward pass is counted."""
MEASURED = {"seconds_per_epoch": "time", "peak_memory_mib": "memory", "stored_bytes": "bytes"}
"""Key of a row -> its ratio to full fine-tuning."""


def measure(variant: str, args: argparse.Namespace, home: str) -> dict[str, Any]:
    """Train one epoch in a new process."""
    known = protocol.read()
    middle, words = known.variants[variant]
    method, *own = words.split() + known.options.split()
    own += ["--task_name", args.task_name, "--checkpoint", args.checkpoint, "--data", args.data, "--lr", f"{middle}"]
    own += ["--n_epochs", "1", "--max_train_samples", str(args.rows), "--max_eval_samples", "16"]
    command = [sys.executable, "-m", f"{method}.tune", *own, "--output_dir", home, "--overwrite"]
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=one_thread)
    if done.returncode != 0:
        raise InputError(f"{variant} failed: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
    result = read_result(Path(done.stdout.strip().splitlines()[-1]))
    names = ("trainable_params_without_head", "stored_params", "device", "peak_memory_mib", "stored_bytes")
    return {name: result[name] for name in names} | {"seconds_per_epoch": result["train_seconds"]}


def inference_flops(variant: str, checkpoint: str) -> int:
    """FLOPs of the matrix products of a forward pass of `TOKENS` tokens, or half of what the encoder takes.

    What the variant adds is not merged.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from common.checkpoints import load_model
    from common.encoders import n_positions
    from common.methods import apply, find
    from common.options import TuneOptions, parse

    name, *words = protocol.read().variants[variant][1].split()
    kind = find(name)
    _, method = parse(f"{name}.tune", words, options=TuneOptions(lr=kind.default_lr), method=kind())
    model: Any = apply(method, load_model(checkpoint, 2)).eval().requires_grad_(False)
    model.set_attn_implementation("eager")  # fused kernels of a CPU are not counted
    ids = torch.zeros(1, min(TOKENS, n_positions(model) // 2), dtype=torch.long)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=ids, attention_mask=torch.ones_like(ids))
    return counter.get_total_flops()


def pscp(score: float, parameters: int, flops: int, memory: float) -> float:
    """PEFT Soft Cost Penalties: score * (1 + p / 5e8)^-1 * (1 + f / 1e13)^-1 * (1 + m / 94e9)^-1

    Source: PEFT-Bench (Belanec et al., 2025, arXiv 2511.21285), with the constants of its authors' code, which are for
    8 billion parameters and an H100 NVL: with an encoder of this size no cost weighs more than a tenth.

    Args:
        parameters: that are trained, without the head.
        flops: that the method adds to inference, for one text.
        memory: peak of training, in bytes.
    """
    return score / (1 + parameters / 5e8) / (1 + flops / 1e13) / (1 + memory / 94e9)


def scores(args: argparse.Namespace) -> dict[str, float]:
    """Variant -> mean score of its seeds on the development set, if the rows of the protocol have all of them."""
    known = protocol.read()
    if not ROWS.is_file() or args.data == "demo":
        return {}
    cells = [cell for name in known.parts for cell in protocol.cells(known, [name])]
    wanted = [cell for cell in cells if (cell.task, cell.checkpoint) == (args.task_name, args.checkpoint)]
    found = rates.find(wanted, read_rows(ROWS))
    return {each.cell.variant: statistics.mean(each.scores) for each in found if each.is_whole}


def compare(args: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each variant."""
    from tqdm import tqdm

    names = [FULL, *(name for name in args.variants if name != FULL)]
    flops = {name: inference_flops(name, args.checkpoint) for name in names}  # before, since bad input is found early
    turns: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as home, tqdm(total=args.turns * len(names), unit="run") as bar:
        for _ in range(args.turns):
            for name in names:
                bar.set_postfix_str(name)
                turns[name].append(measure(name, args, home))
                bar.update()
    rows, score = [], scores(args)
    for name, found in turns.items():
        row = {"variant": name, "turns": args.turns, "rows": args.rows, "task_name": args.task_name}
        row |= {"checkpoint": args.checkpoint, "data": args.data, **found[0]}
        for key, ratio in MEASURED.items():
            row[key] = round(statistics.median(each[key] for each in found), 2)
            row[ratio] = round(statistics.median(a[key] / b[key] for a, b in zip(found, turns[FULL], strict=True)), 4)
        row["extra_inference_flops"] = flops[name] - flops[FULL]
        if name in score:
            costs = row["trainable_params_without_head"], row["extra_inference_flops"], row["peak_memory_mib"] * 2**20
            row["pscp"] = round(pscp(score[name], *costs), 4)
        rows.append(row)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    written = protocol.read().written
    lines = [["method", "trained", "time", "memory", "stored", "inference, extra GFLOPs", "PSCP"], ["---"] * 7]
    for row in rows:
        cells = [written.get(row["variant"], row["variant"]), f"{row['trainable_params_without_head']:,}"]
        cells += [f"{row['time']:.2f}", f"{row['memory']:.2f}", f"{row['bytes']:.4f}"]
        cells += [f"{row['extra_inference_flops'] / 1e9:.2f}", f"{100 * row['pscp']:.1f}" if "pscp" in row else ""]
        lines.append(cells)
    return rates.markdown(lines)


def main() -> None:
    known = protocol.read()
    usual = next(part.variants for part in known.parts.values())
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", nargs="+", choices=list(known.variants), default=usual, metavar="VARIANT")
    parser.add_argument("--task_name", default="mrpc", choices=tasks.TRAINED)
    parser.add_argument("--checkpoint", default="minilm")
    parser.add_argument("--data", default="demo", help="hub, a folder with the official download, or demo")
    parser.add_argument("--rows", type=int, default=1024, help="training examples")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--out", type=Path, help="append the rows to this file of JSON lines")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    args = parser.parse_args()
    with one_line_errors(args.debug):
        check({f"--turns is {args.turns}: choose at least 1": args.turns < 1})
        rows = compare(args)
        print(table(rows))
        if args.out:
            with args.out.open("a") as file:
                for row in rows:
                    file.write(json.dumps(row | provenance()) + "\n")


if __name__ == "__main__":
    main()
