"""Search for good options of a method: python -m scripts.search METHOD --task_name mrpc --select holdout --trials 20

Tried are learning rate, epochs, batch size and the method's own space (SPACE in METHOD/experiment.py), by Optuna's TPE.
An option that is given is not searched; every option of METHOD.tune can be. Start the same command as often as there
are devices: all workers share the trials, and what one of them leaves, killed or stopped, is taken up again.

What is searched is the score that selects the best epoch. --select holdout, which is recommended, makes that the score
of held-out rows of the training set: the development set's would have been optimised before it is reported.

One worker with one seed draws the same trials each time, interrupted or not. With several the order in which they
finish decides what is drawn next.
"""

import sys

from common.errors import InputError, one_line_errors
from common.methods import find, names
from common.options import TuneOptions, given, parse
from common.runtime import launching
from common.study.search import search
from common.study.space import SearchOptions


def main() -> None:
    """Read the command line and search; the last line printed is the command of the best configuration."""
    words = sys.argv[1:]
    if words in (["-h"], ["--help"]):
        print(f"{__doc__}\npython -m scripts.search METHOD --help lists the options; METHOD: {', '.join(names())}")
        return
    with one_line_errors():
        if not words or words[0].startswith("-"):
            raise InputError(f"no method is named: begin with one of {', '.join(names())}")
        kind = find(words[0])
    options, settings, method = parse(
        f"scripts.search {words[0]}",
        words[1:],
        options=TuneOptions(lr=kind.default_lr),
        search=SearchOptions(),
        method=kind(),
    )
    with one_line_errors(options.debug):
        launching.start_cpu_processes()
        search(method, options, settings, given(words))


if __name__ == "__main__":
    main()
