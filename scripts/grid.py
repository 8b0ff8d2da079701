"""Print the commands of a sweep, one per line, for scripts/run.sh: python -m scripts.grid VERB METHOD [options]"""

import shlex
import sys

from common.errors import one_line_errors
from common.options import Arguments
from common.study.grid import commands, plan


def main() -> None:
    parser = Arguments(__doc__)
    parser.add_argument("verb", choices=("tune", "test", "experiment"))
    parser.add_argument("method")
    for name in ("tasks", "checkpoints", "seeds"):
        parser.add_argument(
            f"--{name}", nargs="+", default=[], help="all of these; every other option goes to the runs"
        )
    parser.add_argument("--plan", action="store_true", help="say first, on stderr, how many runs there are")
    args, further = parser.parse_known_args()
    with one_line_errors():
        names, seeds = (" ".join(words).split() for words in (args.tasks, args.seeds))  # also "cola rte", as one word
        lines = list(commands(args.verb, args.method, names, args.checkpoints, seeds, further))
        if args.plan:
            print(plan(args.verb, lines), file=sys.stderr)
        for words in lines:
            print(shlex.join(words))


if __name__ == "__main__":
    main()
