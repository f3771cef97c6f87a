"""Which of the folders above a picture is its class? Where two could be, it stops."""

import re
from collections.abc import Iterable
from pathlib import Path

from convnet.data.sources.listing import SPELLINGS, Parts, first_few, shown
from convnet.data.sources.tree import NEUTRAL, Tree
from convnet.errors import UsageError

FOLD = re.compile(r"(fold|cv|part)[ _-]?\d+", re.I)


def class_level(tree: Tree, classes: dict[Parts, list[str]]) -> str:
    """The level of the class below the splits: outer, splits below (it), letters (above it).

    Raises: UsageError when a class or a sub-class could be meant.
    """
    folders = [(*base, name) for base, names in classes.items() for name in names]
    if folders and all(FOLD.fullmatch(folder[-1]) for folder in folders):
        raise UsageError(
            f"{shown(tree.root)} holds {first_few(f[-1] for f in folders)}: the parts of a cross-validation are no "
            "classes; move the pictures into train/CLASS/ and test/CLASS/ as one of its rounds wants them"
        )
    deep = [folder for folder in folders if not is_plain(tree, folder)]
    if deep and all(map(tree.live, folders)):
        if all(_has_splits(tree, folder) for folder in folders):
            return "splits below"
        if all(_is_letter(tree, folder) for folder in folders):
            return "letters"
    unclear = [
        folder
        for folder in deep
        if not tree.direct[folder] or any(name.lower() in SPELLINGS for name in tree.live(folder))
    ]
    if unclear:
        outer, inner = unclear[0][-1], tree.live(unclear[0])[0]
        raise UsageError(
            f"{shown(tree.root)}: pictures lie in folders below what could be their class: is "
            f"{'/'.join((*unclear[0], inner))!r} of class {outer!r} or of class {inner!r}? --layout outer takes the "
            "outer folder's name, --layout inner that of the folder that holds the picture"
        )
    return "outer"


def is_plain(tree: Tree, folder: Parts) -> bool:
    """Whether all pictures of a class lie in its folder itself, or in one of no meaning in it."""
    live = tree.live(folder)
    if not live:
        return True
    neutral = live[0].lower() in NEUTRAL or live[0] == folder[-1]
    return len(live) == 1 and not tree.direct[folder] and neutral and is_plain(tree, (*folder, live[0]))


def _has_splits(tree: Tree, folder: Parts) -> bool:
    """CLASS/train/*, CLASS/val/*: all folders of a class are splits, and there is nothing else."""
    live = tree.live(folder)
    return not tree.direct[folder] and all(
        name.lower() in SPELLINGS and not tree.live((*folder, name)) for name in live
    )


def _is_letter(tree: Tree, folder: Parts) -> bool:
    """Places365's a/airfield, a/apartment_building/outdoor."""
    letter = folder[-1].lower()
    return len(letter) == 1 and all(name.lower().startswith(letter) for name in tree.live(folder))


def one_spelling(root: Path, labels: Iterable[tuple[str, str]]) -> dict[str, str]:
    """{name: the class that it means}, for names in other splits that differ in letters' case or blanks only.

    A disk that ignores case gives train/Cat and val/cat; training's spelling counts. labels: (split, class)s.
    Raises: UsageError when both names stand in one split, or differ in leading zeros.
    """
    spellings: dict[str, dict[str, set[str]]] = {}
    for split, name in set(labels):
        folded = " ".join(name.casefold().split())
        plain = str(int(folded)) if folded.isascii() and folded.isdecimal() else folded
        spellings.setdefault(plain, {}).setdefault(name, set()).add(split)
    same = {}
    for names in spellings.values():
        first, *others = sorted(names, key=lambda name: ("train" not in names[name], name))
        for other in others:
            if names[first] & names[other] or first.strip().isdecimal():
                raise UsageError(
                    f"{shown(root)}: the classes {first!r} and {other!r} differ in letters' case, blanks or zeros "
                    "only; if they are one class, write its name in one way; if not, make the difference plain"
                )
            same[other] = first
    return same
