"""What do the lists of a folder say together, and which source is that?

Each file that a list names is an entry, failed or skipped; files that no list names are skipped. Where two lines speak
of one picture they must agree.
"""

import posixpath
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from convnet.data.sources.class_level import one_spelling
from convnet.data.sources.columns import Columns
from convnet.data.sources.labels import Annotation, classes_of, names_for
from convnet.data.sources.listing import (
    NUMBER,
    File,
    Problem,
    Source,
    in_order,
    make_source,
    numbering,
    read_entry,
    shown,
)
from convnet.data.sources.names import FileIndex, split_folder
from convnet.errors import UsageError


@dataclass(frozen=True, slots=True)
class LabelList:
    """One list. split: that its name gives. lacks: why its classes are of no use, if they aren't."""

    path: Path
    split: str | None
    columns: Columns
    annotations: list[Annotation]
    lacks: str | None = None


Annotations = dict[str, Annotation]  # by the key of the file, or by the name where there is none


def source_of_lists(folder: Path, index: FileIndex, lists: Sequence[LabelList], notes: Iterable[str]) -> Source:
    """The source of what lists say of the pictures below a folder.

    Raises: UsageError when two lines contradict each other, or labels are no classes.
    """
    notes = list(notes)
    annotations, missing = _resolve(folder, index, [one for one in lists if one.lacks is None], notes)
    annotations, problems = _with_splits(folder, index, annotations, [one for one in lists if one.lacks is not None])
    annotations = _with_folders_as_splits(annotations, index, notes)
    classes, label_of = _classes(folder, lists, annotations, notes)
    entries = []
    for key, annotation in annotations.items():
        file = index.files.get(key)
        if key in missing or file is None:
            problems[key] = ("failed", missing.get(key, ""))
        elif file.problem and (file.problem[0] == "failed" or file.place is None):  # its extension doesn't matter
            problems[key] = ("failed", file.problem[1])
        elif key not in problems:
            entries.append(file.entry(annotation.split or "train", label_of[annotation.label]))
    notes += [f"{name_of(one.path)}: {note}" for one in lists for note in one.columns.notes]
    notes += [f"{name_of(one.path)} {one.lacks}" for one in lists if one.lacks]
    kind = "lists" if len(lists) > 1 else "list"
    reasons: dict[str, Problem] = {
        key: file.problem or ("skipped", f"not in the {kind}") for key, file in index.files.items()
    }
    for entry in entries:
        del reasons[entry.key]
    left_out = [File(tuple(key.split("/")), problem=problem) for key, problem in (reasons | problems).items()]
    kind = f"{kind} {', '.join(name_of(one.path) for one in lists)}"
    return make_source(folder, kind, classes, entries, left_out, notes, read_entry)


def _resolve(
    folder: Path, index: FileIndex, lists: Iterable[LabelList], notes: list[str]
) -> tuple[Annotations, dict[str, str]]:
    """The annotations of all lists, and {name: why it has no file}; notes on names spelled otherwise."""
    annotations: Annotations = {}
    missing: dict[str, str] = {}
    for one in lists:
        keys, problems = _files(folder, index, one)
        for annotation in one.annotations:
            key = keys.get(annotation.name) or shown(posixpath.normpath(annotation.name))
            if key not in annotations and annotation.name in problems:
                missing[key] = problems[annotation.name]
            _must_agree(key, annotations.setdefault(key, annotation), annotation)
        otherwise = [(name, key) for name, key in keys.items() if posixpath.normpath(name) != key]
        if otherwise:
            name, key = otherwise[0]
            count = f"{len(otherwise)} names are" if len(otherwise) > 1 else "1 name is"
            notes.append(f"{name_of(one.path)}: {count} not spelled as the files are: '{shown(name)}' is {key}")
    return annotations, missing


def _files(folder: Path, index: FileIndex, one: LabelList) -> tuple[dict[str, str], dict[str, str]]:
    """({name: key of its file}, {name: why it has none}) of a list."""
    beside = "" if one.path.parent == folder else f"{name_of(one.path.parent)}/"
    groups: dict[str | None, list[str]] = {}
    for annotation in one.annotations:
        groups.setdefault(annotation.split, []).append(annotation.name)
    keys: dict[str, str] = {}
    problems: dict[str, str] = {}
    for split, group in groups.items():
        resolved, unresolved = index.resolve(group, beside, split)
        keys |= resolved
        problems |= unresolved
    return keys, problems


def _must_agree(key: str, former: Annotation, new: Annotation) -> None:
    """Raises: UsageError when two lines on a picture differ."""
    if (former.label, former.split) == (new.label, new.split):
        return
    lists = f" of {name_of(former.path)}", f" of {name_of(new.path)}"
    of, of_new = lists if former.path != new.path else ("", "")
    raise UsageError(
        f"{shown(new.path)}: '{key}' is '{former.label}' in line {former.number}{of}, but '{new.label}' in line "
        f"{new.number}{of_new}; keep one of them"
        if former.label != new.label
        else f"{shown(new.path)}: '{key}' is in {former.split or 'no split'} (line {former.number}{of}) and in "
        f"{new.split or 'no split'} (line {new.number}{of_new}); keep one of them"
    )


def _with_splits(
    folder: Path, index: FileIndex, annotations: Annotations, lists: Sequence[LabelList]
) -> tuple[Annotations, dict[str, Problem]]:
    """The annotations with the splits that lists without classes give them, and what these lists leave out."""
    annotations, problems = dict(annotations), dict[str, Problem]()
    splits, _ = _resolve(folder, index, lists, [])
    for key, new in splits.items():
        if key not in annotations:
            if key in index.files:
                problems[key] = ("skipped", f"in {name_of(new.path)}, which has no classes")
        elif annotations[key].split is None:
            annotations[key] = replace(annotations[key], split=new.split)
        else:
            _must_agree(key, annotations[key], replace(new, label=annotations[key].label))
    if any(new.split == "train" for new in splits.values()):
        reason = f"in none of {', '.join(name_of(one.path) for one in lists)}"
        problems |= {key: ("skipped", reason) for key, one in annotations.items() if one.split is None}
    return annotations, problems


def _with_folders_as_splits(annotations: Annotations, index: FileIndex, notes: list[str]) -> Annotations:
    """The annotations with the splits of the folders that all pictures lie in, where no list gives any."""
    splits = {key: split_folder(key) for key in annotations if key in index.files}
    given = any(annotation.split is not None for annotation in annotations.values())
    if given or None in splits.values() or len(set(splits.values())) < 2:
        return annotations
    notes.append("the splits are those of the folders that the listed pictures lie in")
    return {key: replace(annotation, split=splits.get(key)) for key, annotation in annotations.items()}


def _classes(
    folder: Path, lists: Sequence[LabelList], annotations: Annotations, notes: list[str]
) -> tuple[tuple[str, ...], dict[str, int]]:
    """The classes in order, and {label: place among them}."""
    class_of, labels_notes = classes_of(annotations.values())
    notes += labels_notes
    classes = tuple(in_order(class_of.values()))
    one_spelling(folder, [("any", name) for name in classes])  # in one split: twins stop
    place = {name: n for n, name in enumerate(classes)}
    label_of = {label: place[name] for label, name in class_of.items()}
    if classes and all(map(NUMBER.fullmatch, classes)):
        names, names_notes = names_for(folder, classes, [one.path for one in lists])
        notes += names_notes
        if names:
            notes += numbering(classes)
            classes = tuple(names[number] for number in classes)
    return classes, label_of


def name_of(path: Path) -> str:
    """The last part of a path, for a person."""
    return shown(path.name)
