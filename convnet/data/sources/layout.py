"""Which folder is the split, which the class? Decided by where the pictures lie; where two readings fit, it stops.

train/CLASS/*                 splits above the classes, by any spelling (seg_train, dev, Final_Training)
CLASS/*                       classes alone; CLASS/train/* and CLASS/val/*: splits below them
images/CLASS/*, data/train/*  folders that only hold the others are passed through, also within a split
CLASS/images/*                a folder of no meaning in every class
a/airfield/*                  letters above the classes, as in Places365
"""

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field

from convnet.data.sources.class_level import class_level, is_plain, one_spelling
from convnet.data.sources.listing import (
    EMPTY,
    SPELLINGS,
    File,
    Parts,
    Source,
    failed,
    first_few,
    in_order,
    make_source,
    n_pictures,
    shown,
    skipped,
    words_of,
)
from convnet.data.sources.tree import NEUTRAL, UNLABELLED, Tree, is_picture, split_word
from convnet.errors import UsageError

CLUTTER = frozenset(("background_google", "257.clutter", "clutter"))  # classes of whatever is no class


@dataclass
class Layout:
    """The annotation of each picture, by its parts: (split, class); the pictures that are left out; the notes."""

    kind: str
    labels: dict[Parts, tuple[str, str]] = field(default_factory=dict)
    left_out: dict[Parts, str] = field(default_factory=dict)
    missing: dict[Parts, str] = field(default_factory=dict)  # pictures that a list names and nobody has
    notes: list[str] = field(default_factory=list)

    def leave_out(self, files: Iterable[File], reason: str, note: str = "") -> None:
        """Leaves pictures out, for a reason; a note says where they lie."""
        files = list(files)
        self.left_out.update((file.parts, reason) for file in files)
        if note and files:
            self.notes.append(f"left out: {n_pictures(len(files))} {note}")


def source_of(tree: Tree, layout: Layout) -> Source:
    """The source of a tree whose layout is understood.

    Raises: UsageError when names of classes differ in nothing that a person means.
    """
    spelled = one_spelling(tree.root, layout.labels.values())
    layout.notes += [f"{name!r} and {other!r} are taken for one class" for name, other in spelled.items()]
    classes = tuple(in_order({spelled.get(name, name) for _, name in layout.labels.values()}))
    labels = {name: label for label, name in enumerate(classes)}
    entries, left_out = [], [failed(parts, reason) for parts, reason in layout.missing.items()]
    for file in tree.files:
        if file.problem is not None:
            left_out.append(file)
        elif file.parts in layout.labels:
            split, name = layout.labels[file.parts]
            entries.append(file.entry(split, labels[spelled.get(name, name)]))
        else:
            left_out.append(skipped(file.parts, layout.left_out.get(file.parts, "not in a class folder")))
    return make_source(tree.root, layout.kind, classes, entries, left_out, layout.notes, tree.read)


def class_folders(tree: Tree, choice: str | None = None, kind: str = "class folders") -> Layout:
    """The layout of class folders. Raises: UsageError when there is none, or two readings."""
    layout = Layout(kind)
    top = _top(tree)
    splits = _splits(tree, top)
    bases = {folder: _base(tree, folder, part) for folder, part in splits.items()} or {top: top}
    _leave_out_beside(tree, top, splits, layout)
    classes = {base: _candidates(tree, base, splits.get(folder, ""), layout) for folder, base in bases.items()}
    _leave_out_copies(tree, classes, layout)
    none = not any(classes.values()) and (tree.pictures[()] or not tree.inside)
    if not splits and (none or [name.lower() in NEUTRAL for name in tree.live(top)] == [True]):
        raise UsageError(
            f"{shown(tree.root)}: neither class folders, nor a list of (name, class) beside the pictures, nor ILSVRC, "
            f"CIFAR or IDX files; make one folder for each class and put its pictures there{_unread(tree)}"
        )
    level = choice if choice in ("outer", "inner") else class_level(tree, classes)
    for folder, base in bases.items():
        for name in classes[base]:
            for file in tree.below((*base, name)):
                split, label = _split_and_class(file.parts[len(base) :], level)
                layout.labels.setdefault(file.parts, (split or splits.get(folder, "train"), _composed(label)))
    _note(tree, bases, classes, level, layout)
    return layout


def _split_and_class(parts: Parts, level: str) -> tuple[str | None, str]:
    """(split where it is below the class, class) of a picture, by its parts from the class on."""
    if level == "splits below":
        return SPELLINGS[parts[1].lower()], parts[0]
    if level == "letters":
        return None, "/".join(parts[:-1])
    return None, parts[0] if level == "outer" else parts[-2]


def _composed(name: str) -> str:
    """The name with each accent and its letter as one character (NFC): the two forms look the same."""
    return unicodedata.normalize("NFC", name)


# the way down to the classes


def _top(tree: Tree) -> Parts:
    """The folder to begin in: `imagenette2/` where everything lies in it."""
    top: Parts = ()
    while True:
        live = tree.live(top)
        if len(live) != 1 or tree.direct[top] > tree.pictures[(*top, *live)] or split_word(live[0]) in SPELLINGS:
            return top
        down = (*top, live[0])
        if not tree.live(down):
            return top
        empty = [name for name in tree.inside[top] if not any(tree.all_below((*top, name)))]
        if empty and not set(live) & NEUTRAL:
            raise UsageError(
                f"{shown(tree.root)}: only {live[0]!r} holds pictures, in folders below it, and {first_few(empty)} is "
                f"empty: either {live[0]!r} is the one class, or the folders in it are the classes; remove the empty "
                f"folders, or point at {shown(tree.root.joinpath(*down))}"
            )
        top = down


def _splits(tree: Tree, top: Parts) -> dict[Parts, str]:
    """Which folders are splits: {path: train, val or test}, or nothing when the class folders stand alone."""
    names = tree.inside.get(top, [])
    live = tree.live(top)
    strict = {name: SPELLINGS[name.lower()] for name in names if name.lower() in SPELLINGS}
    loose = {name: part for name in live if (part := split_word(name)) is not None}
    splits = {}
    if any(part == "train" and tree.live((*top, name)) for name, part in strict.items()):
        splits = strict
    elif any(part == "train" and tree.live((*top, name)) for name, part in loose.items()) and all(
        name in loose or _speaks_of_no_labels(name) for name in live
    ):
        splits = loose
    elif live and len(loose) == len(live):
        raise UsageError(_no_train(tree, top, loose))
    for part in sorted(set(splits.values())):
        both = sorted(name for name in splits if splits[name] == part)
        if len(both) > 1:
            raise UsageError(
                f"{shown(tree.root)}: {' and '.join(both)} are both spellings of '{part}'; keep one of them"
            )
    return {(*top, name): part for name, part in splits.items()}


def _speaks_of_no_labels(name: str) -> bool:
    return not UNLABELLED.isdisjoint(words_of(name))


def _no_train(tree: Tree, top: Parts, loose: dict[str, str]) -> str:
    """What is wrong with folders that are splits, but have no training pictures in class folders."""
    flat = sorted(name for name, part in loose.items() if part == "train")
    holds = f"{shown(tree.root)} holds {', '.join(sorted(loose))}"
    if not flat:
        return f"{holds} but no train/ with class folders; put the training pictures into train/CLASS/"
    example = next(iter(tree.below((*top, flat[0])))).parts[-1]
    return (
        f"{holds} but no class folders in {flat[0]}/, and labels are not read from names ({example!r}); put the "
        f"pictures into {flat[0]}/CLASS/, or put a list of (name, class) beside them{_unread(tree)}"
    )


def _base(tree: Tree, folder: Parts, part: str) -> Parts:
    """The folder of a split that holds the classes: seg_train/seg_train, Final_Training/Images."""
    while len(live := tree.live(folder)) == 1 and not tree.direct[folder]:
        name = live[0]
        if name.lower() not in NEUTRAL and name != folder[-1] and SPELLINGS.get(name.lower()) != part:
            break
        folder = (*folder, name)
    return folder


# what lies beside


def _leave_out_beside(tree: Tree, top: Parts, splits: dict[Parts, str], layout: Layout) -> None:
    """Leaves out the pictures beside the splits. Raises: UsageError when they have class folders too."""
    for name in tree.live(top) if splits else []:
        folder = (*top, name)
        if folder in splits:
            continue
        if tree.live(folder) and not _speaks_of_no_labels(name):
            if not _is_copy(tree, folder, top):
                raise UsageError(
                    f"{shown(tree.root)}: beside {', '.join(sorted(split[-1] for split in splits))} lies {name!r}, "
                    "which holds folders with pictures too; move it away, or name it train, val or test"
                )
            layout.leave_out(tree.below(folder), "a second copy", f"in {name!r}, a second copy of the set")
        else:
            layout.leave_out(tree.below(folder), "not in a class folder", f"in {name!r}, without labels")
    _leave_out_loose([file for file in tree.files if is_picture(file) and len(file.parts) <= len(top) + 1], layout)


def _candidates(tree: Tree, base: Parts, part: str, layout: Layout) -> list[str]:
    """The folders in the classes' place. Raises: UsageError when a split that needs classes has none."""
    live = tree.live(base)
    twins = [name for name in live if _composed(name) != name and _composed(name) in live]
    if twins:
        raise UsageError(
            f"{shown(tree.root)}: {'/'.join(base) or '.'!r} holds two folders {first_few(twins)}, whose names differ "
            "in how their accents are written only; merge them, or make the difference plain"
        )
    loose = [file for file in tree.below(base) if len(file.parts) == len(base) + 1] if tree.direct[base] else []
    if not part or not loose:
        if live and len(loose) > tree.pictures[base] - len(loose):
            raise UsageError(
                f"{shown(tree.root)}: most pictures ({len(loose):,} of {tree.pictures[base]:,}) lie outside the "
                f"folders {first_few(live)}; put each into its class's folder, or a list of (name, class) beside them"
            )
        return live
    place = "/".join(base)
    if live and len(loose) <= tree.pictures[base] - len(loose):
        _leave_out_loose(loose, layout)
    elif part == "test" and not live:
        layout.leave_out(loose, "it has no label", f"in {place!r}, without labels")
    else:
        raise UsageError(
            f"{shown(tree.root)}: {n_pictures(len(loose))} in {place!r} lie in no class folder, so their classes are "
            f"not known; put them into {place}/CLASS/ or a list (name, class) beside them, or move them{_unread(tree)}"
        )
    return live


def _leave_out_loose(files: list[File], layout: Layout) -> None:
    names = first_few(file.key for file in files)
    layout.leave_out(files, "not in a class folder", f"beside the class folders: {names}")


def _leave_out_copies(tree: Tree, classes: dict[Parts, list[str]], layout: Layout) -> None:
    """A folder in a class's place that holds the classes again is left out. Raises: UsageError when it is no copy."""
    for base, names in classes.items():
        for name in list(names):
            again = set(tree.live((*base, name))) & (set(names) - {name})
            if not again:
                continue
            if tree.direct[(*base, name)] or not _is_copy(tree, (*base, name), base):
                raise UsageError(
                    f"{shown(tree.root)}: {'/'.join((*base, name))!r} holds folders named as the classes beside "
                    f"it ({first_few(sorted(again))}), but other pictures; keep one of the two, or merge them"
                )
            layout.leave_out(tree.below((*base, name)), "a second copy", f"in {name!r}, a second copy of the set")
            names.remove(name)


def _is_copy(tree: Tree, folder: Parts, of: Parts) -> bool:
    """Whether each picture below a folder lies in `of` too: the same path below it and the same length."""
    lengths = {file.parts: file.stamp.split(":")[0] for file in tree.below(of)}
    inner = (*folder, folder[-1])
    return all(
        lengths.get((*of, *file.parts[len(inner if file.parts[: len(inner)] == inner else folder) :]))
        == file.stamp.split(":")[0]
        for file in tree.below(folder)
    )


def _note(tree: Tree, bases: dict[Parts, Parts], classes: dict[Parts, list[str]], level: str, layout: Layout) -> None:
    """Notes on what a person may not expect."""
    inside = {name for base in bases.values() for name in tree.inside.get(base, [])}
    empty = sorted(inside - {name for base in bases.values() for name in tree.live(base)})
    layout.notes += [f"folder {name!r} {EMPTY}" for name in empty]
    layout.notes += [f"split '{'/'.join(folder)}' holds no pictures" for folder in bases if not tree.pictures[folder]]
    folders = [(*base, name) for base, names in classes.items() for name in names]
    deep = [folder for folder in folders if level == "outer" and not is_plain(tree, folder)]
    if deep:
        n = sum(tree.pictures[folder] - tree.direct[folder] for folder in deep)
        layout.notes.append(f"{n_pictures(n)} lie in folders below their class's: {first_few(map('/'.join, deep))}")
    if level == "splits below":
        layout.notes.append("the splits are the folders within each class")
    clutter = sorted({name for names in classes.values() for name in names if name.lower() in CLUTTER})
    if clutter:
        layout.notes.append(
            f"{first_few(clutter)} is a class of pictures that belong to none; remove the folder to train without"
        )
    lists = [file.parts[-1] for file in tree.files if re.search(r"(list|split|setid).*\.mat$", file.parts[-1], re.I)]
    if lists:
        layout.notes.append(f"the published split lies in {first_few(lists)}; .mat files are not read: it was not used")


def _unread(tree: Tree) -> str:
    """Names the files in which labels may lie that nothing here reads."""
    endings = (".mat", ".json", ".xml", ".parquet", ".xlsx", ".npy", ".npz")
    names = [file.key for file in tree.files if file.key.lower().endswith(endings)]
    return f"; labels in files such as {first_few(names[:2])} are not read: turn them into a list" if names else ""
