"""What do the lists of a folder say together, and which source is that?

Each file that a list names is an entry, failed or skipped; files that no list names are skipped. Where two lines speak
of one picture they must agree.
"""

import posixpath
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from convnet.data.sources.columns import Columns
from convnet.data.sources.labels import Line, classes_of, names_for
from convnet.data.sources.listing import NUMBER, Entry, Found, Source, finish, in_order, numbering, read_entry, shown
from convnet.data.sources.names import Names, split_folder
from convnet.data.sources.reading import one_spelling
from convnet.errors import UsageError

Problem = tuple[Literal["skipped", "failed"], str]


@dataclass(frozen=True, slots=True)
class Listed:
    """What one list says. part: the split that its name gives. lacks: why its classes are of no use, if they aren't."""

    path: Path
    part: str | None
    columns: Columns
    lines: list[Line]
    lacks: str | None = None


@dataclass(frozen=True, slots=True)
class Said:
    """What a list says of one picture, and which line says it first; `problem` is why its file can't be known."""

    path: Path
    line: Line
    part: str | None
    problem: str | None


def source_of(folder: Path, names: Names, listed: Sequence[Listed], notes: Iterable[str]) -> Source:
    """The source of what lists say of the pictures below a folder.

    Raises: UsageError when two lines contradict each other, or labels are no classes.
    """
    said, told = _said(folder, names, [one for one in listed if one.lacks is None])
    said, problems = _with_splits(folder, names, said, [one for one in listed if one.lacks is not None])
    said, told_of_folders = _by_folders(said, names)
    classes, label_of, told_of_labels = _classes(folder, listed, said)
    entries = []
    for key, one in said.items():
        file = names.files.get(key)
        problem = one.problem or (_problem(file) if file else None)
        if file is None or problem is not None:
            problems[key] = ("failed", problem or "")
        elif key not in problems:
            entries.append(Entry(key, one.part or "train", label_of[one.line.label], file.place, file.stamp))
    notes = [*notes, *told, *told_of_folders, *told_of_labels, *_remarks(listed)]
    kind = f"list{'s' if len(listed) > 1 else ''} {', '.join(name_of(one.path) for one in listed)}"
    return finish(folder, kind, classes, entries, _left_out(names, entries, problems, kind), notes, read_entry)


def _remarks(listed: Sequence[Listed]) -> list[str]:
    """What is to be said of the lists themselves."""
    notes = [f"{name_of(one.path)}: {note}" for one in listed for note in one.columns.notes]
    return notes + [f"{name_of(one.path)} {one.lacks}" for one in listed if one.lacks]


def _left_out(names: Names, entries: Iterable[Entry], problems: dict[str, Problem], kind: str) -> list[Found]:
    """Every file and every listed name that is no entry, with the reason."""
    used = {entry.key for entry in entries}
    article = kind.split(" ", 1)[0]
    reasons: dict[str, Problem] = {
        key: file.problem or ("skipped", f"not in the {article}")
        for key, file in names.files.items()
        if key not in used
    }
    return [Found(tuple(key.split("/")), None, "", reason) for key, reason in {**reasons, **problems}.items()]


def _said(folder: Path, names: Names, listed: Iterable[Listed]) -> tuple[dict[str, Said], list[str]]:
    """{key of the file, or the name where there is none: what is said of it}, and notes on names spelled otherwise."""
    said: dict[str, Said] = {}
    notes = []
    for one in listed:
        keys, problems = _files(folder, names, one)
        for line in one.lines:
            key = keys.get(line.name) or shown(posixpath.normpath(line.name))
            problem = None if line.name in keys else problems[line.name]
            new = Said(one.path, line, line.split or one.part, problem)
            _must_agree(key, said.setdefault(key, new), new)
        otherwise = [(name, key) for name, key in keys.items() if posixpath.normpath(name) != key]
        if otherwise:
            name, key = otherwise[0]
            count = f"{len(otherwise)} names are" if len(otherwise) > 1 else "1 name is"
            notes.append(f"{name_of(one.path)}: {count} not spelled as the files are: '{shown(name)}' is {key}")
    return said, notes


def _files(folder: Path, names: Names, one: Listed) -> tuple[dict[str, str], dict[str, str]]:
    """({name: key of its file}, {name: why it has none}) of a list."""
    beside = "" if one.path.parent == folder else f"{name_of(one.path.parent)}/"
    groups: dict[str | None, list[str]] = {}
    for line in one.lines:
        groups.setdefault(line.split or one.part, []).append(line.name)
    keys: dict[str, str] = {}
    problems: dict[str, str] = {}
    for part, group in groups.items():
        some, none = names.resolve(group, beside, part)
        keys |= some
        problems |= none
    return keys, problems


def _must_agree(key: str, former: Said, new: Said) -> None:
    """Raises: UsageError when two lines on a picture differ."""
    if (former.line.label, former.part) == (new.line.label, new.part):
        return
    lists = f" of {name_of(former.path)}", f" of {name_of(new.path)}"
    of, of_new = lists if former.path != new.path else ("", "")
    line, other = former.line, new.line
    raise UsageError(
        f"{shown(new.path)}: '{key}' is '{line.label}' in line {line.number}{of}, but '{other.label}' in line "
        f"{other.number}{of_new}; keep one of them"
        if line.label != other.label
        else f"{shown(new.path)}: '{key}' is in {former.part or 'no split'} (line {line.number}{of}) and in "
        f"{new.part or 'no split'} (line {other.number}{of_new}); keep one of them"
    )


def _with_splits(
    folder: Path, names: Names, said: dict[str, Said], lists: Sequence[Listed]
) -> tuple[dict[str, Said], dict[str, Problem]]:
    """The pictures with the splits that lists without classes give them, and what these lists leave out."""
    said, problems = dict(said), dict[str, Problem]()
    split: dict[str, Said] = {}
    for one in lists:
        for key, new in _said(folder, names, [replace(one, lines=[replace(line, label="") for line in one.lines])])[
            0
        ].items():
            _must_agree(key, split.setdefault(key, new), new)
    for key, new in split.items():
        if key not in said:
            if key in names.files:
                problems[key] = ("skipped", f"in {name_of(new.path)}, which has no classes")
        elif said[key].part is None:
            said[key] = replace(said[key], part=new.part)
        else:
            _must_agree(key, said[key], replace(new, line=replace(new.line, label=said[key].line.label)))
    if any(new.part == "train" for new in split.values()):
        texts = ", ".join(name_of(one.path) for one in lists)
        problems |= {key: ("skipped", f"in none of {texts}") for key, one in said.items() if one.part is None}
    return said, problems


def _by_folders(said: dict[str, Said], names: Names) -> tuple[dict[str, Said], list[str]]:
    """The pictures with the splits of the folders that all of them lie in, where no list gives any."""
    parts = {key: split_folder(key) for key in said if key in names.files}
    if None in parts.values() or len(set(parts.values())) < 2 or any(one.part is not None for one in said.values()):
        return said, []
    by_folder = {key: replace(one, part=parts.get(key)) for key, one in said.items()}
    return by_folder, ["the splits are those of the folders that the listed pictures lie in"]


def _classes(
    folder: Path, listed: Sequence[Listed], said: dict[str, Said]
) -> tuple[tuple[str, ...], dict[str, int], list[str]]:
    """The classes in order, {label: place among them}, and what is to be said of them."""
    name_of_label, notes = classes_of((one.path, one.line) for one in said.values())
    classes = tuple(in_order(name_of_label.values()))
    place = {name: n for n, name in enumerate(classes)}
    one_spelling(folder, [("any", name) for name in classes])  # in one split: twins stop
    label_of = {label: place[name] for label, name in name_of_label.items()}
    if classes and all(map(NUMBER.fullmatch, classes)):
        named, told = names_for(folder, classes, [one.path for one in listed])
        notes += told
        if named:
            notes += numbering(classes)
            classes = tuple(named[number] for number in classes)
    return classes, label_of, notes


def _problem(file: Found) -> str | None:
    """Why a listed file can't be used; what its extension is doesn't matter."""
    if file.problem is None or (file.problem[0] == "skipped" and file.place is not None):
        return None
    return file.problem[1]


def name_of(path: Path) -> str:
    """The last part of a path, for a person."""
    return shown(path.name)
