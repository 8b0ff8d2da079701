"""Bad input ends in one clear line and exit code 2; anything else is a defect of ours and keeps its traceback."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class InputError(ValueError):
    """Something the user gave cannot be used. The message says what was found, what was wanted and what to do."""


class DoesNotFit(InputError):
    """Options of a method that are right in themselves but not for this encoder, such as a rank above its width."""


@contextmanager
def one_line_errors(debug: bool = False) -> Iterator[None]:
    """Turn an InputError into one line on stderr and exit code 2 (130 after Ctrl-C); with `debug`, let it through.

    Under several processes, which all meet the same bad input, only the first one speaks.
    """
    try:
        yield
    except InputError as error:
        if debug:
            raise
        if os.environ.get("RANK", "0") == "0":
            print("error: " + " ".join(str(error).split()), file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        if debug:
            raise
        sys.exit(130)
