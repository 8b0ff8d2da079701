"""Look inside runs: python -m scripts.inspect RUN [RUN ...] --text "the plot is anything but dull ."

Writes figures and one HTML page: how much each parameter changed, and where; singular values of the changes; what is
added to the hidden states; gates; attention, with a prefix or prompt marked; and what each token contributes to the
answer, for several runs beside each other.
"""

from pathlib import Path

from common.errors import InputError, one_line_errors
from common.options import Arguments


def main() -> None:
    parser = Arguments(__doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a finished run")
    parser.add_argument(
        "--text", nargs="+", action="append", metavar="TEXT", help="one text, or the two of a pair; may be repeated"
    )
    parser.add_argument("--checkpoint", help="base model, if it has moved since training")
    parser.add_argument("--out", type=Path, default=Path("inspect"), metavar="FOLDER", help="(default: inspect)")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    args = parser.parse_args()
    with one_line_errors(args.debug):
        from tqdm import tqdm

        from common.study.heatmaps import write
        from common.study.inspection import inspect

        if not args.text:
            raise InputError("no text is given: give one with --text, or the two of a pair")
        found = []
        with tqdm(total=len(args.runs), desc="inspect", unit="run", leave=False, disable=None) as bar:
            for run in args.runs:
                found.append(inspect(run, args.text, args.checkpoint))
                bar.update()
        print(write(found, args.out))


if __name__ == "__main__":
    main()
