"""The method, size and learning rate for your data: python -m scripts.recommend --data my.csv --label_field label

Within --minutes it searches methods, sizes and learning rates together on held-out training examples, trains the best
configurations on more examples, and prints the command to run, what is cheaper, what cannot be told apart from it, and
what was not tried. Ctrl-C saves; the same command goes on with the time that is left. See docs/recommend.md.
"""

import sys

from common.errors import one_line_errors
from common.options import TuneOptions, given, parse, read_config
from common.study.recommend import RecommendOptions, recommend


def main() -> None:
    """Read the command line and recommend; the last line of the output is the command to run."""
    words = sys.argv[1:]
    if words in (["-h"], ["--help"]):
        print(__doc__)
    options, settings = parse("scripts.recommend", words, options=TuneOptions(), recommend=RecommendOptions())
    with one_line_errors(options.debug):
        recommend(options, settings, given(words) | set(read_config(words)))


if __name__ == "__main__":
    main()
