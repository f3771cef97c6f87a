"""What did a search find? One page, self-contained: each picture with its neighbours, their names and distances."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

from convnet.data.preprocess import Preprocessing
from convnet.data.store import Store, is_store
from convnet.errors import ConvnetError
from convnet.evaluation.seen import Seen, from_files, from_store
from convnet.io import atomic
from convnet.io.strict_json import Json
from convnet.report import render
from convnet.report.findings import LARGE, SMALL, shot
from convnet.retrieval.search import Answer

Look = Callable[[str], Seen | str]  # the reason where there is no picture


def sheet(out: Path, title: str, note: str, answers: Sequence[Answer], preprocessing: Preprocessing) -> int:
    """Writes the page of what could be read; gives how many pictures it can't show: their names, and why, stand there.

    Raises: DiskError.
    """
    look, rows = pictures_by_name(preprocessing), list[Json]()
    for answer in (each for each in answers if each.failed is None):
        nearest = [
            _shot(look, each.name, SMALL, each.label or Path(each.name).name) | {"text": each.text}
            for each in answer.nearest
        ]
        rows.append({"query": _shot(look, answer.name, LARGE, Path(answer.name).name), "nearest": nearest})
    atomic.write_atomic(
        out, render("sheet.html", {"title": title, "note": note, "rows": rows}).encode(errors="replace")
    )
    return sum(not each["src"] for row in rows for each in (row["query"], *row["nearest"]))


def pictures_by_name(preprocessing: Preprocessing) -> Look:
    """What gives a picture by the name that an index has of it, a file's path or STORE/KEY; or why there is none."""

    @cache
    def keys(store: Path) -> dict[str, tuple[Store, str, int]]:
        opened = Store(store)
        return {key: (opened, name, i) for name in opened.splits for i, key in enumerate(opened.split(name).keys)}

    def look(name: str) -> Seen | str:
        path = Path(name)
        try:
            if path.is_file():
                return from_files([path], preprocessing)[0]
            for folder in path.parents:
                if is_store(folder) and (place := keys(folder).get(path.relative_to(folder).as_posix())):
                    store, split, i = place
                    return replace(from_store(store.split(split), [i], preprocessing)[0], name=name)
        except ConvnetError as error:
            return str(error)
        return "not found"

    return look


def _shot(look: Look, name: str, side: int, label: str) -> Json:
    picture = look(name)
    found = {"src": "", "key": name, "why": picture} if isinstance(picture, str) else shot(picture, side)
    return found | {"label": label}
