"""Change the code by one line at a time, and see whether a test fails: python tests/mutants.py [FILE ...].

tests/mutants.txt holds the changes:

    @ common/training.py | tests/test_loop.py -k formulas
    - the text of one line
    + the text in its place
    ! why no test can see this change; only where none can

A change is found by the text of its line, which must occur exactly once in its file. Each is made in a copy of the
repository, and pytest runs the tests named above it. Generators of mutants, such as mutmut, make thousands here, each
of which takes seconds, since the tests train.
"""

import argparse
import ast
import math
import os
import queue
import shlex
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from forks import FORKS

REPOSITORY = Path(__file__).resolve().parent.parent
TABLE = Path(__file__).with_suffix(".txt")
NOT_COPIED = shutil.ignore_patterns(".git", ".venv*", ".*_cache", "__pycache__", "outputs", "site", "*.part")
TIMEOUT = 300
"""Seconds until a test run counts as failed: a change may make a loop endless."""
MOST_SURVIVORS = 0.05


class Stale(Exception):
    """A mutant or its tests do not fit the code."""


@dataclass(frozen=True)
class Mutant:
    """One line of a file, and what replaces it."""

    file: str
    tests: tuple[str, ...]
    """Arguments of pytest."""
    line: str
    new: str
    harmless: str = ""
    """Why no test can see it; empty = a test must."""

    def __str__(self) -> str:
        return f"{self.file}: {self.line}  ->  {self.new or '(nothing)'}"

    def mutated(self, text: str) -> str:
        """The contents of its file with the change. Raises Stale."""
        lines = text.split("\n")
        places = [number for number, line in enumerate(lines) if line.strip() == self.line]
        if len(places) != 1:
            raise Stale(f"{self}: the line occurs {len(places)} times, wanted once")
        (at,) = places
        lines[at] = lines[at][: len(lines[at]) - len(lines[at].lstrip())] + self.new
        changed = "\n".join(lines)
        try:
            ast.parse(changed)
        except SyntaxError as error:
            raise Stale(f"{self}: {error}") from error
        return changed


def read(table: str) -> list[Mutant]:
    """The mutants of a table. Raises Stale for a line that belongs to none."""
    found: list[Mutant] = []
    file, tests, line = "", (), ""
    for number, row in enumerate(table.splitlines(), start=1):
        mark, text = row[:1], row[1:].strip()
        if mark == "@":
            file, _, words = (part.strip() for part in text.partition("|"))
            tests = tuple(shlex.split(words))
        elif mark == "-":
            line = text
        elif mark == "+" and line:
            found.append(Mutant(file, tests, line, text))
            line = ""
        elif mark == "!" and found:
            found[-1] = replace(found[-1], harmless=text)
        elif row and mark != "#":
            raise Stale(f"{TABLE.name}, line {number}: {row!r} begins with none of @ - + ! #")
    return found


def _run_pytest(root: Path, words: list[str], report: Path) -> None:
    """Run pytest in a folder; write its output to a file, and its exit code to one beside it.

    The code of the process would not do: where several threads start processes, one can read it and others not.
    """
    os.setsid()
    os.chdir(root)
    sys.path[:] = [path for path in sys.path if Path(path) not in (REPOSITORY, REPOSITORY / "tests")]
    with report.open("wb") as output:
        for stream in (1, 2):
            os.dup2(output.fileno(), stream)
    report.with_suffix(".code").write_text(str(int(pytest.main(words))))


def is_seen(root: Path, tests: tuple[str, ...]) -> bool:
    """Whether one of the tests fails in a copy of the repository. Raises Stale if there is no such test."""
    report, code = root.parent / "report", root.parent / "report.code"
    code.unlink(missing_ok=True)
    words = ["-x", "-q", "-p", "no:cacheprovider", f"--basetemp={root.parent}/temp", *tests]
    running = FORKS.Process(target=_run_pytest, args=(root, words, report))
    running.start()
    try:
        running.join(TIMEOUT)
        if running.is_alive():
            return True
    finally:
        if running.pid and running.is_alive():
            os.killpg(running.pid, signal.SIGKILL)
            running.join()
    ended = int(code.read_text()) if code.is_file() else 1  # else it crashed
    if ended > 2:  # 1: a test failed, 2: a file could not be imported
        raise Stale(f"pytest {shlex.join(tests)} ended with {ended}:\n{report.read_text()}")
    return ended != 0


@contextmanager
def copies(n: int) -> Iterator["queue.Queue[Path]"]:
    """n copies of the repository, for as many test runs at once."""
    with tempfile.TemporaryDirectory(prefix="mutants-") as home:
        free: queue.Queue[Path] = queue.Queue()
        for number in range(n):
            root = Path(home) / str(number) / "repository"
            shutil.copytree(REPOSITORY, root, ignore=NOT_COPIED)
            free.put(root)
        yield free


def run(mutants: list[Mutant], n_workers: int) -> tuple[list[Mutant], list[str]]:
    """The mutants that no test sees, and what does not fit the code; prints one line for each test run."""
    survivors: list[Mutant] = []
    stale: list[str] = []
    with copies(n_workers) as free, ThreadPoolExecutor(n_workers) as pool:

        def attempt(job: tuple[int, Mutant | tuple[str, ...]]) -> None:
            number, mutant = job
            root, began = free.get(), time.monotonic()
            tests = mutant.tests if isinstance(mutant, Mutant) else mutant
            try:
                if isinstance(mutant, Mutant):
                    path = root / mutant.file
                    before = path.read_text(encoding="utf-8")
                    path.write_text(mutant.mutated(before), encoding="utf-8")
                    try:
                        seen = is_seen(root, tests)
                    finally:
                        path.write_text(before, encoding="utf-8")
                    if not seen:
                        survivors.append(mutant)
                    said = f"{number:3}/{len(mutants)} {'seen    ' if seen else 'SURVIVES'} {mutant}"
                else:
                    if is_seen(root, tests):
                        raise Stale(f"pytest {shlex.join(tests)} fails without a change")
                    said = f"    passes without a change: {shlex.join(tests)}"
                print(f"{said}  ({time.monotonic() - began:.0f} s)", flush=True)
            except (Stale, OSError) as error:
                stale.append(str(error))
                print(f"{number:3}/{len(mutants)} STALE    {error}", flush=True)
            finally:
                free.put(root)

        selections = list(dict.fromkeys(mutant.tests for mutant in mutants))
        list(pool.map(attempt, ((0, tests) for tests in selections)))
        list(pool.map(attempt, enumerate(mutants, start=1)))
    return survivors, stale


def main() -> None:
    """Run the mutants whose file contains one of the words; exit code 1 if too many survive or one does not fit."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("files", nargs="*", help="parts of the names of the files to change; default: all files")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="test runs at once")
    chosen = parser.parse_args()
    mutants = read(TABLE.read_text(encoding="utf-8"))
    mutants = [m for m in mutants if not chosen.files or any(part in m.file for part in chosen.files)]
    os.environ |= {"PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    began = time.monotonic()
    survivors, stale = run(mutants, chosen.workers)
    print(f"\n{len(mutants)} mutants, {len(survivors)} survive, {time.monotonic() - began:.0f} s")
    for mutant in survivors:
        print(f"survives: {mutant}\n          {mutant.harmless or 'NO TEST SEES IT'}")
    for text in stale:
        print(f"stale: {text}")
    allowed = math.floor(MOST_SURVIVORS * len(mutants)) if not chosen.files else len(mutants)
    sys.exit(bool(stale) or len(survivors) > allowed or not all(mutant.harmless for mutant in survivors))


if __name__ == "__main__":
    main()
