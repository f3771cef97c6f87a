"""Is this a published data set whose labels or splits lie in files of its own?

set             recognised by                        labels and splits
Tiny ImageNet   val/val_annotations.txt              train/WNID/images; val by that file; test has none
CUB-200-2011    images.txt, image_class_labels.txt   classes.txt, train_test_split.txt
Food-101        meta/train.txt or .json              images/CLASS; meta/test.txt or .json
Pets            annotations/trainval.txt, test.txt   the name before the number: Abyssinian_100
Places365       places365_train_standard.txt         data_256/a/airfield; places365_val.txt: val_256
GTSRB           GT-00000.csv                         Final_Training/Images/00000; GT-final_test.csv: ClassId

Names are the folders' own; what a list names and nobody has fails by name, what no list names is left out.
"""

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator

from convnet.data.sources.layout import Layout
from convnet.data.sources.listing import Parts, first_few, shown
from convnet.data.sources.tree import Tree, is_picture
from convnet.errors import DataError, UsageError

Row = tuple[Parts, str, str]  # the parts of a picture, its split, its class
TRAIN_LIST, VAL_LIST = "places365_train_standard.txt", "places365_val.txt"
GT_TEST, GT_TRAIN = "GT-final_test.csv", (("Final_Training", "Images"), ("Training",))
VAL_FOLDERS = ("val_256", "val_large")


def published(tree: Tree) -> Layout | None:
    """The layout of a published data set, or None when it is none of these.

    Raises: UsageError when there are several, or other pictures beside it; DataError when its files contradict.
    """
    paths = {"/" + "/".join(file.parts) for file in tree.files if not is_picture(file)}
    sets = {(kind, root): rows for kind, marks, rows in reversed(SETS) for root in _roots(paths, marks)}
    if not sets:
        return None
    (kind, root), rows_of = next(iter(sets.items()))
    strange = sorted({file.parts[0] for file in tree.below(()) if file.parts[: len(root)] != root})
    if len(sets) > 1 or strange:
        beside = [f"{kind} in {'/'.join(root) or '.'}" for kind, root in list(sets)[1:]] + strange
        raise UsageError(
            f"{shown(tree.root)} holds {kind} in {'/'.join(root) or '.'!r}, and pictures beside it: "
            f"{first_few(beside)}; point at {shown(tree.root.joinpath(*root))} or at one of the others"
        )
    layout = Layout(kind)
    pictures = {file.parts for file in tree.below(root)}
    for parts, split, name in rows_of(tree, root):
        if layout.labels.setdefault(parts, (split, name)) != (split, name):
            raise _error(tree, f"{kind}'s files give {'/'.join(parts)!r} two classes or two splits")
        if parts not in pictures:
            layout.missing[parts] = f"in the lists of {kind}, but missing"
    others = [file for file in tree.below(root) if file.parts not in layout.labels]
    for folder in sorted({file.parts[: len(root) + 1] for file in others}):
        files = [file for file in others if file.parts[: len(folder)] == folder]
        note = f"in {'/'.join(folder)!r}, without labels in {kind}'s files"
        layout.leave_out(files, f"it has no label in {kind}'s files", note)
    return layout


def _roots(paths: set[str], marks: tuple[str, ...]) -> list[Parts]:
    """The folders that hold files with all of these paths, each with a slash before it."""
    roots = [path.removesuffix(f"/{marks[0]}") for path in paths if path.endswith(f"/{marks[0]}")]
    return [tuple(root.split("/")[1:]) for root in sorted(roots) if all(f"{root}/{mark}" in paths for mark in marks)]


def _lines(tree: Tree, *parts: str, fields: int = 1) -> list[list[str]]:
    """The fields of each line of a text, at least so many. Raises: DataError when it can't be read."""
    text = tree.text(*parts)
    rows = [line.split() for line in (text or "").splitlines() if line.strip() and not line.startswith("#")]
    if not rows or min(map(len, rows)) < fields:
        raise _error(tree, f"{'/'.join(parts)} is missing, empty or cut short; get it again")
    return rows


def _error(tree: Tree, text: str) -> DataError:
    return DataError(f"{shown(tree.root)}: {text}")


def _folders(tree: Tree, base: Parts, split: str) -> Iterator[Row]:
    """The pictures of class folders."""
    for name in tree.live(base):
        for file in tree.below((*base, name)):
            yield file.parts, split, name


def _tiny_imagenet(tree: Tree, root: Parts) -> Iterator[Row]:
    yield from _folders(tree, (*root, "train"), "train")
    known = tree.live((*root, "train"))
    for name, wnid, *_ in _lines(tree, *root, "val", "val_annotations.txt", fields=2):
        yield (*root, "val", "images", name), "val", _known(tree, wnid, known, "val_annotations.txt")


def _known(tree: Tree, name: str, classes: Iterable[str], path: str) -> str:
    """The class itself. Raises: DataError when there are no training pictures of it."""
    if name not in classes:
        raise _error(tree, f"{path} gives the class {name!r}, which has no training pictures")
    return name


def _name(tree: Tree, path: str, line: str, number: str, name: str, names: dict[str, str]) -> str:
    """The name of the class with a number. Raises: DataError when another line gives the number another name."""
    if names.setdefault(number, name) != name:
        raise _error(tree, f"{path} gives {line!r} class {number}, that of {names[number]!r}")
    return name


def _cub(tree: Tree, root: Parts) -> Iterator[Row]:
    classes = {number: name for number, name, *_ in _lines(tree, *root, "classes.txt", fields=2)}
    labels = {number: label for number, label, *_ in _lines(tree, *root, "image_class_labels.txt", fields=2)}
    train = {number: flag for number, flag, *_ in _lines(tree, *root, "train_test_split.txt", fields=2)}
    for number, path, *_ in _lines(tree, *root, "images.txt", fields=2):
        name = classes.get(labels.get(number, ""))
        if name is None or train.get(number) not in ("0", "1") or path.split("/")[0] != name:
            raise _error(
                tree,
                f"images.txt has {path!r} as number {number}, but the class {name!r} and {train.get(number)!r} as its "
                "part of train; the four lists do not fit each other",
            )
        yield (*root, "images", *path.split("/")), "train" if train[number] == "1" else "test", name


def _food(tree: Tree, root: Parts) -> Iterator[Row]:
    for split in ("train", "test"):
        text = tree.text(*root, "meta", f"{split}.json")
        try:
            listed: dict[str, list[str]] = json.loads(text) if text else {}
            names = [name for group in listed.values() for name in group]
        except (ValueError, AttributeError, TypeError, RecursionError):
            names = []
        for path in names or [row[0] for row in _lines(tree, *root, "meta", f"{split}.txt")]:
            yield (*root, "images", *f"{path}.jpg".split("/")), split, path.split("/")[0]


def _pets(tree: Tree, root: Parts) -> Iterator[Row]:
    name_of: dict[str, str] = {}
    for path, split in (("trainval.txt", "train"), ("test.txt", "test")):
        for stem, number, *_ in _lines(tree, *root, "annotations", path, fields=2):
            name = _name(tree, path, stem, number, stem.rpartition("_")[0], name_of)
            yield (*root, "images", f"{stem}.jpg"), split, name


def _places(tree: Tree, root: Parts) -> Iterator[Row]:
    data, val = (_one(tree, root, names) for names in (("data_256_standard", "data_256", "data_large"), VAL_FOLDERS))
    name_of: dict[str, str] = {}
    for path, number, *_ in _lines(tree, *root, TRAIN_LIST, fields=2):
        parts = path.strip("/").split("/")
        yield (*data, *parts), "train", _name(tree, TRAIN_LIST, path, number, "/".join(parts[:-1]), name_of)
    for path, number, *_ in _lines(tree, *root, VAL_LIST, fields=2) if tree.pictures[val] else []:
        yield (*val, path), "val", name_of[_known(tree, number, name_of, VAL_LIST)]


def _one(tree: Tree, root: Parts, names: tuple[str, ...]) -> Parts:
    """The first of these folders that has pictures."""
    return next(((*root, name) for name in names if tree.pictures[(*root, name)]), (*root, names[0]))


def _gtsrb(tree: Tree, root: Parts) -> Iterator[Row]:
    train = next(base for base in ((*root, *path) for path in GT_TRAIN) if tree.live(base))
    yield from _folders(tree, train, "train")
    number_of = {int(name): name for name in tree.live(train) if name.isdecimal()}
    table = next((file.parts for file in tree.files if file.parts[-1] == GT_TEST), None)
    tests = sorted({file.parts[:-1] for file in tree.below((*root, "Final_Test"))})
    for row in _rows(tree, table) if table and tests else []:
        name, number = row.get("Filename"), row.get("ClassId", "")
        if not name or not number.isdecimal() or int(number) not in number_of:
            raise _error(tree, f"{GT_TEST} gives {name!r} the class {number!r}, which training lacks")
        yield (*tests[0], name), "test", number_of[int(number)]


def _rows(tree: Tree, parts: Parts) -> Iterable[dict[str, str]]:
    try:
        return list(csv.DictReader(io.StringIO(tree.text(*parts) or "", newline=""), delimiter=";", restval=""))
    except csv.Error as error:
        raise _error(tree, f"{'/'.join(parts)} can't be read ({error}); get it again") from error


SETS: tuple[tuple[str, tuple[str, ...], Callable[[Tree, Parts], Iterable[Row]]], ...] = (
    ("Tiny ImageNet", ("val/val_annotations.txt",), _tiny_imagenet),
    ("CUB-200-2011", ("image_class_labels.txt", "images.txt"), _cub),
    ("Food-101", ("meta/train.txt", "meta/test.txt"), _food),
    ("Food-101", ("meta/train.json", "meta/test.json"), _food),
    ("Oxford-IIIT Pets", ("annotations/trainval.txt", "annotations/test.txt"), _pets),
    ("Places365", (TRAIN_LIST, VAL_LIST), _places),
    *(("GTSRB", (f"{'/'.join(path)}/00000/GT-00000.csv",), _gtsrb) for path in GT_TRAIN),
)
