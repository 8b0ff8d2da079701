"""Print the commands of a sweep, one per line, for scripts/run.sh: python -m scripts.grid VERB METHOD [options]"""

import shlex

from common.errors import one_line_errors
from common.options import Arguments
from common.study.grid import commands


def main() -> None:
    parser = Arguments(__doc__)
    parser.add_argument("verb", choices=("tune", "test", "experiment"))
    parser.add_argument("method")
    for name in ("tasks", "checkpoints", "seeds"):
        parser.add_argument(f"--{name}", type=str.split, default=[], help="separated by spaces, in quotation marks")
    args, further = parser.parse_known_args()
    with one_line_errors():
        for words in commands(args.verb, args.method, args.tasks, args.checkpoints, args.seeds, further):
            print(shlex.join(words))


if __name__ == "__main__":
    main()
