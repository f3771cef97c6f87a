"""What went wrong, for whom: one tree of errors, each with the exit code of the command.

code  class         meaning
1     ConvnetError  anything else
2     UsageError    a wrong argument, recipe or configuration
3     DataError     bad data: a picture under --strict, a damaged store or checkpoint
4     Diverged      the loss became NaN or infinite
5     DiskError     the disk is full or cannot be written
130   Interrupted   stopped by a signal, with everything saved
"""

from collections.abc import Iterable
from difflib import get_close_matches
from typing import TypeVar

T = TypeVar("T")


class ConvnetError(Exception):
    """The base of every error that convnet raises on purpose; its text is one line for a person."""

    exit_code = 1


class UsageError(ConvnetError):
    """A wrong argument, recipe or configuration."""

    exit_code = 2


class DataError(ConvnetError):
    """Bad data: a picture, store or checkpoint that cannot be used as it is."""

    exit_code = 3


class Diverged(ConvnetError):  # noqa: N818 - the state of the run, not of the program
    """The loss became NaN or infinite."""

    exit_code = 4


class DiskError(ConvnetError):
    """A file could not be written: disk full, quota, input/output error, no permission."""

    exit_code = 5


class Unreachable(ConvnetError):  # noqa: N818
    """Of several processes one doesn't answer."""


class Interrupted(ConvnetError):  # noqa: N818
    """Stopped by a signal; what was done is saved."""

    exit_code = 130


def check_type(name: str, value: T, kind: type | tuple[type, ...], rule: str) -> T:
    """The value itself. Raises: UsageError when it is of another type than `kind`."""
    if isinstance(value, kind) and not isinstance(value, bool):
        return value
    raise UsageError(f"{name} is {value!r}, a {type(value).__name__}; it must be {rule}")


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """The text for an unknown name: what it is, the nearest known name, all known names.

    >>> unknown("net", "lenet", ["alexnet", "lenet5"])
    "unknown net 'lenet': did you mean 'lenet5'? Known: alexnet, lenet5"
    """
    names = sorted(known)
    near = get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"did you mean '{near[0]}'? " if near else ""
    return f"unknown {kind} '{name}': {hint}Known: {', '.join(names)}"
