"""Coverage-guided fuzzing of the file readers with atheris: python -m torture.guided FOLDER [libFuzzer's options]

Without atheris, only a line is printed; the hypothesis tests of the same readers always run.
"""

import contextlib
import importlib.util
import io
import os
import sys
from pathlib import Path
from typing import Any

N_RUNS = 30_000


def main() -> None:
    """Fuzz the readers of TSV, JSON and safetensors; any exception but InputError ends the process with an error."""
    if importlib.util.find_spec("atheris") is None:
        print("atheris is not installed")
        return
    import atheris

    with atheris.instrument_imports(include=["common"]):
        from common import data, loading, runs, tasks
        from common.errors import InputError
        from common.runs import read_rows
        from common.runtime import files

    home = Path(sys.argv[1])
    for folder in ("RTE", "STS-B", "CoLA"):
        (home / folder).mkdir(parents=True)
    tables = {name: home / tasks.find(name).splits["train"].file for name in ("rte", "stsb", "cola")}
    adapter, rows = home / runs.CONFIG, home / "rows.jsonl"

    def feed(content: bytes) -> None:
        kind, content = content[:1], content[1:]
        with contextlib.suppress(InputError), contextlib.redirect_stderr(io.StringIO()):
            if kind < b"\x60":
                name = ("rte", "stsb", "cola")[kind[0] % 3 if kind else 0]
                tables[name].write_bytes(content)
                data.read(tasks.find(name), "train", str(home))
            elif kind < b"\xa0":
                adapter.write_bytes(content)
                config: Any = files.read_json(adapter)
                loading.read_method(home, config)
            elif kind < b"\xd0":
                rows.write_bytes(content)
                read_rows(rows)
            else:
                (home / runs.ADAPTER).write_bytes(content)
                files.read_tensors(home / runs.ADAPTER)

    seeds = home / "seeds"
    seeds.mkdir()
    for number, text in enumerate(
        (
            "\x00index\tsentence1\tsentence2\tlabel\n0\ta\tb\tentailment\n1\tc\td\tnot_entailment\n",
            '\x70{"method": "prefix", "options": {"prefix_length": 8, "hidden_dim": 0}}',
            '\x7f{"run": "a", "best_score": 0.5}\n',
        )
    ):
        (seeds / str(number)).write_text(text, encoding="latin-1")
    atheris.Setup(
        [sys.argv[0], f"-runs={N_RUNS}", "-timeout=10", "-rss_limit_mb=4096", *sys.argv[2:], str(seeds)], feed
    )
    sys.stdout.flush()
    if os.fork() == 0:
        atheris.Fuzz()  # ends the process
    _, status = os.wait()
    if status:
        sys.exit(os.waitstatus_to_exitcode(status) or 1)
    print(f"{N_RUNS:,} more inputs guided by atheris")


if __name__ == "__main__":
    main()
