"""Export a trained run for other libraries: python -m scripts.export RUN --to peft|adapterhub|merged [--out FOLDER]

peft: an adapter for peft's PeftModel.from_pretrained. adapterhub: an adapter and a head for AdapterHub's library.
merged: a plain model of transformers, with the method folded into its weights, for pipeline("text-classification").
Each gets a model card, README.md.
"""

from pathlib import Path

from common.errors import one_line_errors
from common.options import Arguments
from common.study.exporting import FORMATS, check_repo, export, push


def main() -> None:
    parser = Arguments(__doc__)
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of the run")
    parser.add_argument("--to", choices=tuple(FORMATS), required=True)
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="a new folder (default: exports/RUN-FORMAT)")
    parser.add_argument("--checkpoint", help="base model, if it has moved since training")
    parser.add_argument("--push_to_hub", metavar="USER/NAME", help="upload the folder to this repository on the hub")
    parser.add_argument("--private", action="store_true", help="make that repository a private one")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    args = parser.parse_args()
    with one_line_errors(args.debug):
        if args.push_to_hub:
            check_repo(args.push_to_hub)
        out = args.out or Path("exports") / f"{args.run.resolve().name}-{args.to}"
        if note := export(args.run, args.to, out, args.checkpoint, args.push_to_hub):
            print(f"note: {note}")
        print(out)
        if args.push_to_hub:
            print(push(out, args.push_to_hub, args.private))


if __name__ == "__main__":
    main()
