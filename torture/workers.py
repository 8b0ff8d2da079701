"""Several processes run one experiment of many runs; some of them are killed and started again."""

import os
import random
import signal
import time
from pathlib import Path

from common.errors import INTERRUPTED
from common.experiments import ROWS, run_all
from common.runs import read_rows
from lora.method import Lora
from torture import runs


def torture(home: Path, chance: random.Random, n_workers: int, n_runs: int) -> str:
    """Run the test and describe the result. Raises AssertionError if a row is lost, duplicated or different."""
    checkpoint, log = runs.tiny_checkpoint(home), home / "workers.log"
    grid = [Lora(rank=rank) for rank in range(1, n_runs // 5 + 1)]

    def sweep(out: Path) -> None:
        options = runs.settings(checkpoint, out, n_epochs=2, report_to=("none",))
        run_all(grid, options, range(5))

    began = time.monotonic()
    assert runs.finish(runs.start(lambda: sweep(home / "one"), log)) == 0, log.read_text()[-2000:]
    seconds = time.monotonic() - began
    several = home / "several"
    workers = [runs.start(lambda: sweep(several), log) for _ in range(n_workers)]
    n_kills, next_kill = 0, time.monotonic()
    until = time.monotonic() + runs.LIMIT + 10 * seconds
    try:
        while any(workers):
            assert time.monotonic() < until, "the workers do not finish"
            for index, worker in enumerate(workers):
                code = runs.ended(worker) if worker else None
                if code is None:
                    continue
                assert code in (0, -9, -15, INTERRUPTED), log.read_text()[-2000:]
                workers[index] = runs.start(lambda: sweep(several), log) if code else 0
            alive = [worker for worker in workers if worker]
            if alive and time.monotonic() > next_kill:
                os.kill(chance.choice(alive), chance.choice((signal.SIGKILL, signal.SIGTERM)))
                n_kills += 1
                next_kill = time.monotonic() + chance.expovariate(30 / seconds)
            time.sleep(0.01)
    finally:
        for worker in filter(None, workers):
            os.kill(worker, signal.SIGKILL)
    rows = read_rows(next(several.rglob(ROWS)))
    wanted = {row["run"]: row for row in read_rows(next((home / "one").rglob(ROWS)))}
    assert sorted(row["run"] for row in rows) == sorted(wanted), "rows are lost or duplicated"
    assert len(rows) == n_runs
    for row in rows:
        assert {k: v for k, v in row.items() if k not in runs.TIMES} == {
            k: v for k, v in wanted[row["run"]].items() if k not in runs.TIMES
        }
    one, other = (
        {path.relative_to(out): path.read_bytes() for path in out.rglob("adapter.safetensors")}
        for out in (home / "one", several)
    )
    assert one == other, "weights differ"
    return f"{n_workers} workers, {n_kills} kills: {len(rows)} rows of {n_runs} runs, all bits as with one worker"
