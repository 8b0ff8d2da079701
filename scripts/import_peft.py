"""Import an adapter that was trained with peft: python -m scripts.import_peft FOLDER [--task_name TASK] [--out RUN]

It is written as the folder of a run, which load_adapter, scripts.export and, with --task_name, METHOD.test --run read.
Read are LoRA, DoRA, LoHa, (IA)3 and LN tuning with a head for classification. peft need not be installed.
"""

from pathlib import Path

from common.errors import one_line_errors
from common.options import Arguments
from common.study.exporting import import_adapter
from common.tasks import TRAINED


def main() -> None:
    parser = Arguments(__doc__)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="with adapter_config.json and its tensors")
    parser.add_argument("--out", type=Path, metavar="RUN", help="a new folder (default: imports/FOLDER)")
    parser.add_argument("--checkpoint", help="base model (default: the one that the adapter names)")
    parser.add_argument("--task_name", choices=TRAINED, metavar="TASK", help="task that it was trained on")
    parser.add_argument("--data", default="hub", help="data of the task: hub, a folder, or demo (default: hub)")
    parser.add_argument("--max_length", type=int, help="tokens of an input in its training (default: the maximum)")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    args = parser.parse_args()
    with one_line_errors(args.debug):
        out = args.out or Path("imports") / args.folder.resolve().name
        method = import_adapter(args.folder, out, args.checkpoint, args.task_name, args.data, args.max_length)
        print(f"{out}: read as {method}")


if __name__ == "__main__":
    main()
