"""Run the reliability tests, all or some parts: python -m torture [PART ...] [--seed N]"""

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from torture import disk, kills, ranks, workers

REPOSITORY = Path(__file__).resolve().parent.parent


def files(home: Path, chance: random.Random) -> str:
    """Test the properties of tests/test_properties.py on 10^5 cases, and run atheris if it is installed."""
    count = home / "cases"
    command = [sys.executable, "-m", "pytest", "-q", "tests/test_properties.py", "--hypothesis-profile", "torture"]
    command += [f"--hypothesis-seed={chance.randrange(2**32)}", f"--basetemp={home / 'pytest'}"]
    environment = os.environ | {"COUNT_CASES": str(count)}
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout[-3000:]
    command = [sys.executable, "-m", "torture.guided", str(home / "guided"), f"-seed={chance.randrange(2**31)}"]
    guided = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert guided.returncode == 0, guided.stdout[-3000:] + guided.stderr[-3000:]
    found = f"{int(count.read_text()):,} broken files and command lines, {guided.stdout.strip().splitlines()[-1]}"
    return f"{found}: no traceback, no hang, no file written outside the folder"


PARTS = {
    "kills": lambda home, chance: kills.torture(home, chance, 200),
    "workers": lambda home, chance: workers.torture(home, chance, 8, 100),
    "disk": lambda home, chance: disk.torture(home, chance, 20),
    "ranks": lambda home, chance: ranks.torture(home, chance, 4),
    "files": files,
}


def main() -> None:
    """Run the parts one after the other; print a line for each and a summary."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"some of {', '.join(PARTS)}; none = all")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    args = parser.parse_args()
    for part in args.parts:
        if part not in PARTS:
            parser.error(f"no part {part!r}: there are {', '.join(PARTS)}")
    print(f"seed {args.seed}", flush=True)
    began, found = time.monotonic(), []
    for part in args.parts or PARTS:
        with tempfile.TemporaryDirectory() as home:
            found.append(PARTS[part](Path(home), random.Random(f"{args.seed} {part}")))
        print(f"{part}: {found[-1]} ({time.monotonic() - began:.0f} s)", flush=True)
    print(f"torture passed: seed {args.seed}; {'; '.join(found)}; {(time.monotonic() - began) / 60:.0f} minutes")


if __name__ == "__main__":
    main()
