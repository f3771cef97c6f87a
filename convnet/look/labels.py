"""What are classes called on a picture? By names for people, where a file has them."""

from collections.abc import Sequence
from pathlib import Path

from convnet.errors import DataError


def class_names(classes: Sequence[str], file: Path | None) -> tuple[str, ...]:
    """The classes' names by a file with lines such as `n01440764 tench, Tinca tinca`; without one as they are.

    A class that the file doesn't name keeps its own. Raises: DataError when it names none of them, or can't be read.
    """
    if file is None:
        return tuple(classes)
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not UTF-8: {error.reason} at byte {error.start:,}") from error
    pairs = (line.strip().partition(" ") for line in lines)
    names = {name: text.strip() for name, _, text in pairs if text.strip()}
    if not any(name in names for name in classes):
        raise DataError(f"{file} names none of the net's classes, such as {classes[0]!r}; a line is: CLASS its name")
    return tuple(names.get(name, name) for name in classes)
