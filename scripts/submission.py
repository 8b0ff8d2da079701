"""Write the zip for the GLUE leaderboard: python -m scripts.submission METHOD [--out submission.zip]

The file of each task is that of the run with the best validation score; METHOD.test must have written it before. The
zip has no folders, as the leaderboard requires.
"""

import zipfile
from pathlib import Path
from typing import get_args

from common.errors import InputError, one_line_errors, plain
from common.methods import find
from common.options import Arguments, PredictOptions, Selection
from common.runtime import files
from common.submission import collect


def main() -> None:
    parser = Arguments(__doc__)
    parser.add_argument("method")
    parser.add_argument("--output_dir", default="outputs", help="output folder of tune")
    parser.add_argument("--data", help="data of the runs, if there are runs on different data")
    parser.add_argument("--checkpoint", help="encoder of the runs, if there are several")
    parser.add_argument("--select", choices=get_args(Selection), help="selection of the runs, if there are both")
    parser.add_argument("--out", type=Path, default=Path("submission.zip"))
    parser.add_argument("--partial", action="store_true", help="write the zip even if files are missing")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    args = parser.parse_args()
    with one_line_errors(args.debug):
        find(args.method)
        options = PredictOptions(
            output_dir=args.output_dir, data=args.data, checkpoint=args.checkpoint, select=args.select
        )
        texts, sources, missing = collect(args.method, options)
        for line in missing:
            print(plain(f"missing: {line}"))
        if missing and not args.partial:
            raise InputError(f"{len(missing)} of {len(missing) + len(texts)} files are missing: nothing was written")
        if not texts:
            raise InputError("all files are missing: nothing was written")

        def write(part: Path) -> None:
            with zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED) as archive:
                for name, text in texts.items():
                    archive.writestr(name, text)

        files.write_atomically(args.out, write)
        for name, source in sources.items():
            print(f"{name}: {source}")
        print(f"{args.out}: {', '.join(texts)}")


if __name__ == "__main__":
    main()
