"""Errors that end a run with one line and an exit code. Any other exception is a bug and shows its traceback."""

import contextlib
import dataclasses
import os
import signal
import sys
import typing
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

INPUT_ERROR = 2
"""Exit code for unusable input."""
INTERRUPTED = 75
"""Exit code of a run that stopped on request, saved a checkpoint and can be resumed (EX_TEMPFAIL)."""


LONGEST = 2_000
"""Characters of an error line above which its middle is left out."""


class InputError(ValueError):
    """Input of the user cannot be used. The message says what was found, what was wanted and what to do."""


class DoesNotFit(InputError):
    """Options of a method are valid, but not for this encoder, such as a rank above its hidden size."""


class Diverged(InputError):
    """The model left the finite numbers: its outputs, its score or too many of its gradients are NaN or infinite."""


class Busy(InputError):
    """Another process is training in the run folder."""


class Interrupted(Exception):
    """The run stopped on request and saved a checkpoint."""


class Pruned(Exception):
    """The run was ended after an epoch with a low score and saved a checkpoint."""


_noted: ContextVar[list[str] | None] = ContextVar("noted", default=None)


def check(problems: dict[str, bool]) -> None:
    """Raise one InputError with all problems found; inside `all_at_once`, only collect them.

    Args:
        problems: message -> whether there is this problem.
    """
    found = [text for text, is_there in problems.items() if is_there]
    noted = _noted.get()
    if noted is not None:
        noted += [text for text in found if text not in noted]
    elif found:
        raise InputError("; ".join(found))


def fits_type(value: Any, wanted: Any) -> bool:
    """Whether a value has a type, as the type checker sees it, but no bool is taken for a number."""
    import typeguard

    with contextlib.suppress(typeguard.TypeCheckError):
        typeguard.check_type(value, wanted, collection_check_strategy=typeguard.CollectionCheckStrategy.ALL_ITEMS)
        return not isinstance(value, bool) or bool in (wanted, *typing.get_args(wanted))
    return False


def check_types(options: Any) -> None:
    """Raise InputError if a field of a dataclass has another type than declared; a list for a tuple becomes one.

    A bool is not accepted as a number.
    """
    hints = typing.get_type_hints(type(options))
    for name, wanted in {field.name: hints[field.name] for field in dataclasses.fields(options)}.items():
        if isinstance(value := getattr(options, name), list):
            value = tuple(value)
            object.__setattr__(options, name, value)  # frozen for everybody else
        if fits_type(value, wanted):
            continue
        text = wanted.__name__ if isinstance(wanted, type) else str(wanted).replace("typing.", "")
        raise InputError(f"{name} is {value!r}: wanted {text}")


@contextmanager
def all_at_once() -> Iterator[None]:
    """Collect the problems that each `check` inside finds, and raise one InputError for all of them at the end."""
    token = _noted.set([])
    try:
        yield
        found = _noted.get()
    finally:
        _noted.reset(token)
    if found:
        raise InputError("; ".join(found))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out: of Python, of a GPU, or of torch on a CPU."""
    named = any(kind.__name__ in ("MemoryError", "OutOfMemoryError") for kind in type(error).__mro__)
    return named or "can't allocate memory" in str(error)


@contextmanager
def one_line_errors(debug: bool = False) -> Iterator[None]:
    """Turn errors that the user can fix into one line on stderr and exit code 2; with `debug`, raise them.

    These are InputError, file system errors and out of memory. An interrupted run that was saved ends with code 75,
    Ctrl-C without a checkpoint with 130.
    With several processes only rank 0 prints, since all have the same error.
    """
    try:
        yield
    except Interrupted as stop:
        _print_line(str(stop))
        sys.exit(INTERRUPTED)
    except KeyboardInterrupt:
        if debug:
            raise
        sys.exit(130)
    except BrokenPipeError:  # the reader of our output has closed it, like `head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except Exception as error:
        if debug:
            raise
        if isinstance(error, InputError):
            _print_line(f"error: {'diverged: ' * isinstance(error, Diverged)}{error}")
        elif isinstance(error, OSError) and error.strerror:
            _print_line(f"error: {error.strerror}" + (f": {error.filename}" if error.filename else ""))
        elif is_out_of_memory(error):
            _print_line(f"error: out of memory ({error}): free some memory, or choose smaller options")
        else:
            raise
        sys.exit(INPUT_ERROR)


def plain(text: str) -> str:
    """Text on one line, without characters that cannot be printed or that control a terminal."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _print_line(text: str) -> None:
    if os.environ.get("RANK", "0") == "0":
        line = plain(text)
        # A bad value can be a whole file. What was found stands at the beginning, what to do at the end.
        print(line if len(line) <= LONGEST else f"{line[: LONGEST // 2]} ... {line[-LONGEST // 2 :]}", file=sys.stderr)
