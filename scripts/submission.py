"""The zip for the GLUE leaderboard: python -m scripts.submission METHOD [--output_dir outputs] [--out submission.zip]

Each task's file is that of the run with the best recorded validation score; METHOD.test has to have written it.
"""

import argparse
import zipfile
from pathlib import Path

from common.errors import InputError, one_line_errors
from common.methods import find
from common.options import PredictOptions
from common.submission import collect


def main() -> None:
    """Read the command line and write the zip, flat, as the leaderboard wants it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("method")
    parser.add_argument("--output_dir", default="outputs", help="where tune put its runs")
    parser.add_argument("--data", help="of the runs, where there are some on different data")
    parser.add_argument("--checkpoint", help="of the runs, where there are some of different encoders")
    parser.add_argument("--select", choices=("dev", "holdout"), help="of the runs, where there are some of both")
    parser.add_argument("--out", type=Path, default=Path("submission.zip"))
    parser.add_argument("--partial", action="store_true", help="write what is there, though the leaderboard wants all")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    args = parser.parse_args()
    with one_line_errors(args.debug):
        find(args.method)
        options = PredictOptions(
            output_dir=args.output_dir, data=args.data, checkpoint=args.checkpoint, select=args.select
        )
        files, missing = collect(args.method, options)
        for line in missing:
            print(f"missing: {line}")
        if missing and not args.partial:
            raise InputError(f"{len(missing)} of {len(missing) + len(files)} files are missing: nothing was written")

        def write(part: Path) -> None:
            with zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED) as archive:
                for name, text in files.items():
                    archive.writestr(name, text)

        files.write_atomically(args.out, write)
        print(f"{args.out}: {', '.join(files)}")


if __name__ == "__main__":
    main()
