"""Hyperparameter search: python -m scripts.search METHOD --task_name mrpc --select holdout --trials 20

python -m scripts.search METHOD mlm, or generate, searches for METHOD.mlm or METHOD.generate.

It varies learning rate, epochs, batch size and the method's own space (SPACE in METHOD/experiment.py). The first trial
has the defaults, the next nine are spread evenly (a scrambled Halton sequence), and then Optuna's TPE learns from them.
Any option of METHOD.tune can be given and is then not searched. Start the same command once per device: all workers
share the trials, and the trial of a worker that is killed or stopped is resumed.

The objective is the score that selects the best epoch. With --select holdout, which is recommended, that is the score
on held-out training examples; otherwise the development score is optimised before it is reported.

One worker with one seed samples the same trials each time, interrupted or not. With several workers, the samples after
the tenth depend on the order in which trials finish.
"""

import sys

from common.errors import InputError, one_line_errors
from common.methods import find, names
from common.options import given, options_of, parse, read_config
from common.runtime import launching
from common.study.search import search
from common.study.space import SearchOptions


def main() -> None:
    """Read the command line and search; the last line of the output is the command of the best configuration."""
    words = sys.argv[1:]
    if words in (["-h"], ["--help"]):
        print(f"{__doc__}\npython -m scripts.search METHOD --help lists the options; METHOD: {', '.join(names())}")
        return
    with one_line_errors():
        if not words or words[0].startswith("-"):
            raise InputError(f"no method is named: begin with one of {', '.join(names())}")
        kind = find(words[0])
        options_kind, given_words = options_of(words[1:], words[0])
    options, settings, method = parse(
        f"scripts.search {kind.name}",
        given_words,
        options=options_kind(lr=kind.default_lr),
        search=SearchOptions(),
        method=kind(),
    )
    with one_line_errors(options.debug):
        launching.start_cpu_processes()
        search(method, options, settings, given(given_words) | set(read_config(given_words)))


if __name__ == "__main__":
    main()
