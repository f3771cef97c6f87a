"""Class balance: are these classes fit to train on? One rule for check, prepare and train; the classes by name."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from convnet.data.sources.listing import SPLITS
from convnet.errors import DataError

FEW = 10  # training pictures: a class with fewer is named
IMBALANCE = 10  # the largest class has so many times the pictures of the smallest: named
ALL = 20  # up to so many classes are all shown
FIRST = 5  # ... of more, so many and the last

Numbers = Mapping[str, Sequence[int]]  # pictures of each class, for each split


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: an error makes the store unusable or the results wrong, a warning may be meant so."""

    severity: Literal["error", "warning"]
    kind: str  # a word for programs: "damaged", "unreadable", "leak", ...
    text: str
    keys: tuple[str, ...] = ()  # the pictures concerned


def class_problems(classes: Sequence[str], numbers: Numbers) -> Iterator[Problem]:
    """Classes that are alone, missing in a split, too small, or much larger than others.

    An error here stops prepare and train, and is check's exit code.
    """
    train = numbers.get("train", [0] * len(classes))
    filled = [name for label, name in enumerate(classes) if any(row[label] for row in numbers.values())]
    if len(filled) == 1 and len(classes) == 1:
        text = (
            f"all pictures are of one class, {filled[0]!r}: there is nothing to tell apart; point at the folder that "
            "holds a folder for each class, or at a list of (name, class)"
        )
        yield Problem("error", "one class", text, (filled[0],))
    for label, name in enumerate(classes):
        yield from _of_class(label, name, train, numbers)
    least_and_most = [n for n in train if n]
    if least_and_most and max(least_and_most) >= IMBALANCE * min(least_and_most):
        least, most = (classes[list(train).index(n)] for n in (min(least_and_most), max(least_and_most)))
        text = f"class {most!r} has {max(least_and_most):,} training pictures, class {least!r} {min(least_and_most):,}"
        yield Problem("warning", "imbalance", text, (least, most))


def _of_class(label: int, name: str, train: Sequence[int], numbers: Numbers) -> Iterator[Problem]:
    for split in SPLITS[1:]:
        n = numbers[split][label] if split in numbers else 0
        if n and not train[label]:
            text = f"class {name!r} is in {split}, but not in train"
            yield Problem("error", "mismatch", text, (name,))
        elif split in numbers and any(numbers[split]) and train[label] and not n:
            yield Problem("warning", "mismatch", f"class {name!r} is in train, but not in {split}", (name,))
    if not any(row[label] for row in numbers.values()):
        yield Problem("error", "empty", f"class {name!r} has no picture that can be used", (name,))
    elif 0 < train[label] < FEW:
        text = f"class {name!r} has {train[label]} training pictures; a net needs {FEW} or more"
        yield Problem("warning", "few", text, (name,))


def refuse_unfit(what: str, classes: Sequence[str], numbers: Numbers, why: str = "") -> None:
    """Raises: DataError with the first error of `class_problems`, how many more there are, and `why`."""
    errors = [problem.text for problem in class_problems(classes, numbers) if problem.severity == "error"]
    if errors:
        more = f" (and {len(errors) - 1:,} more; convnet check tells all)" if len(errors) > 1 else ""
        raise DataError(f"{what}: {errors[0]}{more}{why}")


def count(n_classes: int, pictures: Iterable[tuple[str, int]]) -> dict[str, list[int]]:
    """Pictures of each class, for each split, from (split, label) of each."""
    numbers = {split: [0] * n_classes for split in SPLITS}
    for split, label in pictures:
        numbers[split][label] += 1
    return numbers


def classes_line(classes: Sequence[str], numbers: Numbers) -> str:
    """The classes by name with their pictures in each split: all up to 20, else the first few and the last."""
    splits = [split for split in SPLITS if any(numbers.get(split, ()))]
    texts = [f"{name!r} {'/'.join(str(numbers[s][label]) for s in splits)}" for label, name in enumerate(classes)]
    if len(texts) > ALL:
        texts = [*texts[:FIRST], f"... {len(texts) - FIRST - 1:,} more ...", texts[-1]]
    return f"{len(classes):,} classes, with pictures in {'/'.join(splits)}: {', '.join(texts)}"
