"""Which of the folders that hold a picture is its class? One reading is taken, two stop."""

import re
from collections.abc import Iterable
from pathlib import Path

from convnet.data.sources.listing import SPELLINGS, Parts, shown
from convnet.data.sources.tree import NEUTRAL, Tree, some
from convnet.errors import UsageError

FOLD = re.compile(r"(fold|cv|part)[ _-]?\d+", re.I)


def reading_of(tree: Tree, classes: dict[Parts, list[str]]) -> str:
    """How the folders below the splits are read. Raises: UsageError when a class or a sub-class could be meant."""
    folders = [(*base, name) for base, names in classes.items() for name in names]
    deep = [folder for folder in folders if not is_plain(tree, folder)]
    if folders and all(FOLD.fullmatch(folder[-1]) for folder in folders):
        raise UsageError(
            f"{shown(tree.where)} holds {some(f[-1] for f in folders)}: the parts of a cross-validation are no "
            "classes; move the pictures into train/CLASS/ and test/CLASS/ as one of its rounds wants them"
        )
    if deep and all(map(tree.live, folders)) and all(_has_splits(tree, folder) for folder in folders):
        return "splits below"
    if deep and all(map(tree.live, folders)) and all(_is_letter(tree, folder) for folder in folders):
        return "letters"
    unclear = [folder for folder in deep if not tree.direct[folder] or _has_split(tree, folder)]
    if unclear:
        outer, inner = unclear[0][-1], tree.live(unclear[0])[0]
        raise UsageError(
            f"{shown(tree.where)}: pictures lie in folders below what could be their class: is "
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


def _has_split(tree: Tree, folder: Parts) -> bool:
    return any(name.lower() in SPELLINGS for name in tree.live(folder))


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


def one_spelling(where: Path, placed: Iterable[tuple[str, str]]) -> dict[str, str]:
    """{name: the class it is taken for}, for names in other splits that differ in letters' case or blanks only.

    A disk that ignores case gives train/Cat and val/cat; training's spelling counts. placed: (split, class)s.
    Raises: UsageError when both names stand in one split, or differ in leading zeros.
    """
    spellings: dict[str, dict[str, set[str]]] = {}
    for split, name in set(placed):
        folded = " ".join(name.casefold().split())
        plain = str(int(folded)) if folded.isascii() and folded.isdecimal() else folded
        spellings.setdefault(plain, {}).setdefault(name, set()).add(split)
    taken = {}
    for names in spellings.values():
        first, *others = sorted(names, key=lambda name: ("train" not in names[name], name))
        for other in others:
            if names[first] & names[other] or first.strip().isdecimal():
                raise UsageError(
                    f"{shown(where)}: the classes {first!r} and {other!r} differ in letters' case, blanks or zeros "
                    "only; if they are one class, write its name in one way; if not, make the difference plain"
                )
            taken[other] = first
    return taken
