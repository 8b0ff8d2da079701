"""What stops a run ends in one clear line and an exit code; anything else is a defect of ours with its traceback."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

INPUT_ERROR = 2
"""Exit code where something that the user gave cannot be used."""
INTERRUPTED = 75
"""Exit code of a run that was asked to stop, has saved where it is and will go on from there (EX_TEMPFAIL)."""


class InputError(ValueError):
    """Something the user gave cannot be used. The message says what was found, what was wanted and what to do."""


class DoesNotFit(InputError):
    """Options of a method that are right in themselves but not for this encoder, such as a rank above its width."""


class Busy(InputError):
    """Another process is at work on the run folder."""


class Interrupted(Exception):
    """The run was asked to stop and has saved where it is."""


class Pruned(Exception):
    """The run was found not worth going on with, and has saved where it is."""


_noted: ContextVar[list[str] | None] = ContextVar("noted", default=None)


def check(problems: dict[str, bool]) -> None:
    """Raise one InputError for all the problems that are there; within `all_at_once`, only note them.

    Args:
        problems: what to say -> whether it is so.
    """
    found = [text for text, there in problems.items() if there]
    noted = _noted.get()
    if noted is not None:
        noted += [text for text in found if text not in noted]
    elif found:
        raise InputError("; ".join(found))


@contextmanager
def all_at_once() -> Iterator[None]:
    """Collect what every `check` inside finds and raise one InputError for all of it at the end."""
    token = _noted.set([])
    try:
        yield
        found = _noted.get()
    finally:
        _noted.reset(token)
    if found:
        raise InputError("; ".join(found))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory is used up, in the words of Python, of a GPU or of torch on a CPU."""
    named = any(kind.__name__ in ("MemoryError", "OutOfMemoryError") for kind in type(error).__mro__)
    return named or "can't allocate memory" in str(error)


@contextmanager
def one_line_errors(debug: bool = False) -> Iterator[None]:
    """Turn what a user can mend into one line on stderr and exit code 2; with `debug`, let it through.

    That is an InputError, or a file system or a memory that fails. An interrupted run says so and ends with code 75,
    Ctrl-C with 130. Under several processes, which all meet the same, only the first one speaks.
    """
    try:
        yield
    except Interrupted as stop:
        _say(str(stop))
        sys.exit(INTERRUPTED)
    except KeyboardInterrupt:
        if debug:
            raise
        sys.exit(130)
    except BrokenPipeError:  # whoever reads our output has read enough, as head does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except Exception as error:
        if debug:
            raise
        if isinstance(error, InputError):
            _say(f"error: {error}")
        elif isinstance(error, OSError) and error.strerror:
            _say(f"error: {error.strerror}" + (f": {error.filename}" if error.filename else ""))
        elif is_out_of_memory(error):
            _say(f"error: out of memory ({error}): free some, or choose smaller options")
        else:
            raise
        sys.exit(INPUT_ERROR)


def _say(text: str) -> None:
    if os.environ.get("RANK", "0") == "0":
        print(" ".join(text.split()), file=sys.stderr)
