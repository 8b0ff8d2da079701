"""Speed of one run alone and of several at once on this machine: python -m benchmarks.several --out FILE

Each run is a process of its own, as in terminals side by side. `alone_unbounded` is one run whose threads spin as long
as libgomp lets them by default; the others wait as runs do here, or as OMP_NUM_THREADS, OMP_WAIT_POLICY and
GOMP_SPINCOUNT in the environment say. The kinds of measurement take turns; numbers are medians over the turns.
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
from common.errors import one_line_errors
from common.methods import names
from common.results import provenance, read_result

UNBOUNDED = {"GOMP_SPINCOUNT": "300000"}
"""libgomp's own default."""
KNOWN = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")


def total_rate(n: int, args: argparse.Namespace, **env: str) -> tuple[float, str]:
    """Examples per second of n runs at once, all together, and their device."""
    words = ["--checkpoint", args.checkpoint, "--task_name", args.task_name, "--data", args.data, "--report_to", "none"]
    words += ["--n_epochs", str(args.n_epochs), "--max_train_samples", str(args.rows), "--max_eval_samples", "32"]
    with tempfile.TemporaryDirectory() as home:
        started = [
            subprocess.Popen(
                [sys.executable, "-m", f"{args.method}.tune", *words, "--output_dir", f"{home}/{number}"],
                env=os.environ | env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )
            for number in range(n)
        ]  # fmt: skip
        said = [process.communicate() for process in started]
        for process, (_, error) in zip(started, said, strict=True):
            if process.returncode != 0:
                sys.exit(f"a run failed:\n{error}")
        results = [read_result(Path(out.strip().splitlines()[-1])) for out, _ in said]
    return sum(result["examples_per_second"] for result in results), results[0]["device"]


def compare(args: argparse.Namespace) -> dict[str, Any]:
    """One row: total rates, and their ratios to one run alone whose threads spin without a bound."""
    rates: dict[str, list[float]] = {}
    device = ""
    for turn in range(args.turns):
        kinds = {"alone_unbounded": (1, UNBOUNDED), "alone": (1, {})} | {f"{n}_at_once": (n, {}) for n in args.at_once}
        for kind, (n, env) in kinds.items():
            rate, on = total_rate(n, args, **env)
            rates.setdefault(kind, []).append(rate)
            device = on if kind == "alone" else device
            print(f"turn {turn + 1} {kind}: {rate:.1f} examples/s on {on}", file=sys.stderr, flush=True)
    row: dict[str, Any] = {name: getattr(args, name) for name in ("task_name", "method", "checkpoint", "data", "rows")}
    row |= {"n_epochs": args.n_epochs, "turns": args.turns, "device": device}
    row |= {name: os.environ.get(name) for name in KNOWN}  # common has set a spin count, if the user did not
    row |= {f"{kind}_examples_per_second": round(statistics.median(found), 1) for kind, found in rates.items()}
    for kind, found in rates.items():
        if kind != "alone_unbounded":
            ratios = [rate / alone for rate, alone in zip(found, rates["alone_unbounded"], strict=True)]
            row[f"ratio_{kind}"] = round(statistics.median(ratios), 3)
            row[f"ratio_{kind}_range"] = [round(min(ratios), 3), round(max(ratios), 3)]
    return row | provenance()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task_name", default="mrpc", choices=tasks.AVERAGED)
    parser.add_argument("--method", default="lora", choices=names())
    parser.add_argument("--checkpoint", default="minilm")
    parser.add_argument("--data", default="demo", help="hub, a folder with the official GLUE download, or demo")
    parser.add_argument("--rows", type=int, default=1024, help="training examples of a run")
    parser.add_argument("--n_epochs", type=int, default=3)
    parser.add_argument("--at_once", type=int, nargs="+", default=[2, 4], help="numbers of runs at once")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--out", type=Path, help="append the row to this file of JSON lines")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    args = parser.parse_args()
    with one_line_errors(args.debug):
        row = compare(args)
        print(json.dumps(row, indent=2))
        if args.out:
            with args.out.open("a") as file:
                file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
