"""Keep results of runs as JSON lines and print them as a table: python -m scripts.collect RUN [RUN ...] --out FILE"""

import argparse
import csv
import io
import json
from pathlib import Path
from typing import Any

from common import tasks
from common.errors import one_line_errors
from common.runs import append_once, read_result, read_rows
from common.runtime import files
from common.study import aggregation


def table(rows: list[dict[str, Any]]) -> str:
    """One Markdown line per run: the method with its options that are no defaults, its training, scores and cost."""
    lines = [
        "| method | task | training | seed | scores (majority class) | trained without head | examples/s | MiB |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in sorted(rows, key=lambda row: (row["task_name"], row["method"], row["frozen_dtype"], row["seed"])):
        scores = ", ".join(
            f"{name} {row[f'best_{name}']:.4f} ({row[f'majority_{name}']:.4f})"
            for name in tasks.find(row["task_name"]).metrics
        )
        settings = f"lr {row['lr']:g}, {row['n_epochs']} epochs of batches of {row['batch_size']}"
        settings += ", frozen in bfloat16" if row["frozen_dtype"] == "bfloat16" else ""
        settings += ", padded" if row["padding"] == "batch" else ""
        method = aggregation.describe(row)[1]
        lines.append(
            f"| {method} | {row['task_name']} | {settings} | {row['seed']} | {scores} "
            f"| {row['trainable_params_without_head']:,} | {row['examples_per_second']:.0f} "
            f"| {'n/a' if row.get('peak_memory_mib') is None else round(row['peak_memory_mib'])} |"
        )
    return "\n".join(lines)


def as_csv(rows: list[dict[str, Any]]) -> str:
    """A header of all the keys, then one line per row; lists and objects are JSON, and what a row lacks is empty."""
    out = io.StringIO()
    writer = csv.DictWriter(out, list(dict.fromkeys(key for row in rows for key in row)))
    writer.writeheader()
    for row in rows:
        writer.writerow({k: json.dumps(v) if isinstance(v, list | dict) else v for k, v in row.items()})
    return out.getvalue()


def main() -> None:
    """Read the command line, append the rows that are not there yet and print the table of all of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN", help="run folder, as printed by tune")
    parser.add_argument("--out", type=Path, required=True, help="file of JSON lines to append to")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write the rows, every key a column, to this file too")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    args = parser.parse_args()
    with one_line_errors(args.debug):
        for run in args.runs:
            append_once(args.out, read_result(run))
        rows = read_rows(args.out)
        if args.csv:
            text = as_csv(rows)
            files.write_atomically(args.csv, lambda part: part.write_text(text, encoding="utf-8", newline=""))
        print(table(rows))


if __name__ == "__main__":
    main()
