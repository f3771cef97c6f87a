"""What are classes called on a picture? By names for people, where a file has them."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from convnet.errors import DataError
from convnet.io import atomic


def class_names(classes: Sequence[str], file: Path | None) -> tuple[str, ...]:
    """The classes' names by a file with lines such as `n01440764 tench, Tinca tinca`; without one their own.

    A class that the file doesn't name keeps its own; control characters become "?".

    Raises: DataError when the file names none of them, or can't be read.
    """
    if file is None:
        return tuple(map(printable, classes))
    try:
        lines = atomic.read(file, atomic.TEXT).decode("utf-8").splitlines()
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not UTF-8: {error.reason} at byte {error.start:,}") from error
    pairs = (line.strip().partition(" ") for line in lines)
    names = {name: text.strip() for name, _, text in pairs if text.strip()}
    if not any(name in names for name in classes):
        raise DataError(f"{file} names none of the net's classes, such as {classes[0]!r}; a line is: CLASS its name")
    return tuple(printable(names.get(name, name)) for name in classes)


def first_names(names: Sequence[str]) -> tuple[str, ...]:
    """Of each list of synonyms the first, where no other class has the same.

    >>> first_names(["tench, Tinca tinca", "crane, bird", "crane, machine"])
    ('tench', 'crane, bird', 'crane, machine')
    """
    firsts = [name.split(",")[0].strip() for name in names]
    counts = Counter(firsts)
    return tuple(first if first and counts[first] == 1 else name for first, name in zip(firsts, names, strict=True))


def printable(text: str) -> str:
    r"""A name that can't do anything: each character that isn't to be seen is a question mark.

    >>> printable("re\x1b[31md \u202e"), printable("Käse, 乾酪")
    ('re?[31md ?', 'Käse, 乾酪')
    """
    return text if text.isprintable() else "".join(c if c.isprintable() else "?" for c in text)
