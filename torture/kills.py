"""Runs of every method are killed at random times and launched again until they finish."""

import random
from collections import Counter
from functools import partial
from pathlib import Path

from common.errors import INTERRUPTED
from common.experiments import ROWS, run_all
from common.runs import read_rows
from torture import runs


def torture(home: Path, chance: random.Random, n_kills: int) -> str:
    """Run the test until n_kills kills and describe the result. Raises AssertionError if an outcome differs."""
    checkpoint, log = runs.tiny_checkpoint(home), home / "kills.log"
    wholes = [
        runs.run_whole(method, runs.settings(checkpoint, home / f"whole{number}"), log)
        for number, method in enumerate(runs.METHODS)
    ]
    killed: Counter[str] = Counter()
    n_runs = n_resumed = 0
    while killed.total() < n_kills or n_runs < len(runs.METHODS):
        number = n_runs % len(runs.METHODS)
        method, (whole, seconds) = runs.METHODS[number], wholes[number]
        options = runs.settings(checkpoint, home / f"killed{n_runs}")
        out = Path(options.output_dir)
        seeds = range(options.seed, options.seed + 1)
        work = partial(run_all, [method], options, seeds)
        while True:
            process = runs.start(work, log)
            name = runs.kill_at_random(process, 2 * seconds, out, chance) if killed.total() < n_kills else None
            code = runs.finish(process)
            runs.check_readable(out)
            if name is not None and code != 0:
                assert code in (-9, -15, INTERRUPTED), (code, log.read_text()[-2000:])
                killed[name] += 1
                continue
            assert code == 0, log.read_text()[-2000:]
            break
        (path,) = out.rglob(ROWS)
        assert len(read_rows(path)) == 1, path
        (result,) = out.rglob("result.json")
        found = runs.outcome(result.parent)
        for part, value in whole.items():
            assert found[part] == value, f"{method} differs in {part}: {result.parent}"
        n_runs += 1
        n_resumed += read_rows(path)[0]["n_resumed"]
    signals = ", ".join(f"{count} {name}" for name, count in sorted(killed.items()))
    done = f"{killed.total()} kills ({signals}) in {n_runs} runs of {len(wholes)} methods"
    return f"{done}, {n_resumed} times resumed from a checkpoint: all bits as without a kill"
