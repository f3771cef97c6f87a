"""The check of a folder against faults that were put there; the check of a store against files that are missing."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from convnet.cli.resolve import plan_run
from convnet.data.check import LINES, Report, check_folder, check_store
from convnet.data.fitness import FEW, Problem
from convnet.data.prepare import prepare
from convnet.data.sources import open_source
from convnet.data.store import header_bytes, read_header
from convnet.errors import DataError, UsageError
from convnet.progress import Silent
from pictures import encoded, photo, write_photos


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_photos(tmp_path / "in", {"train/a": FEW, "train/b": FEW, "val/a": 3, "val/b": 3})


def problems(folder: Path, **options: int) -> list[Problem]:
    return check_folder(open_source(folder), **options).problems


def test_a_good_folder_has_no_problems(folder: Path) -> None:
    report = check_folder(open_source(folder), workers=2)
    assert (report.ok, report.problems) == (True, [])
    assert report.counts == {
        "seen": 26,
        "good": 26,
        "skipped": 0,
        "unreadable": 0,
        "classes": 2,
        "smallest_side": 12,
        "per_class": {"train": [10, 10], "val": [3, 3]},
    }
    assert report.lines() == [
        "in (class folders): seen 26, good 26, skipped 0, unreadable 0, classes 2, smallest side 12",
        "2 classes, with pictures in train/val: 'a' 10/3, 'b' 10/3",
        "nothing wrong",
    ]


def test_unreadable_pictures_are_all_named(folder: Path) -> None:
    (folder / "train/a/x.jpg").write_bytes(b"")
    (folder / "val/b/y.png").write_bytes(b"<html>")
    (folder / "val/b/z.png").symlink_to("nowhere")
    found = [problem for problem in problems(folder) if problem.kind == "unreadable"]
    assert [(problem.severity, problem.keys, problem.text) for problem in found] == [
        ("error", ("train/a/x.jpg",), "'train/a/x.jpg': empty file"),
        ("error", ("val/b/y.png",), "'val/b/y.png': not a picture: begins with '<html'"),
        ("error", ("val/b/z.png",), "'val/b/z.png': dangling link"),
    ]


def test_odd_pictures_are_named_as_warnings(folder: Path) -> None:
    frames = [photo(70), photo(71)]
    data = encoded(frames[0], "PNG", save_all=True, append_images=[Image.fromarray(frames[1])])
    (folder / "train/a/moving.png").write_bytes(data)
    assert problems(folder) == [
        Problem("warning", "odd", "'train/a/moving.png': first frame of 2", ("train/a/moving.png",))
    ]


def test_classes_that_are_small_missing_or_empty(folder: Path) -> None:
    write_photos(folder, {"train/few": FEW - 1, "val/only_val": 1, "train/empty": 0}, first=100)
    write_photos(folder, {"train/many": 10 * (FEW - 1)}, first=200)
    found = {(problem.severity, problem.kind, problem.text) for problem in problems(folder)}
    assert found == {
        ("warning", "few", "class 'few' has 9 training pictures; a net needs 10 or more"),
        ("warning", "mismatch", "class 'few' is in train, but not in val"),
        ("warning", "mismatch", "class 'many' is in train, but not in val"),
        ("error", "mismatch", "class 'only_val' is in val, but not in train"),
        ("warning", "empty", "folder 'empty' holds no pictures: it is no class"),
        ("warning", "imbalance", "class 'many' has 90 training pictures, class 'few' 9"),
    }


def test_duplicates_within_a_split_across_splits_and_under_two_labels(folder: Path) -> None:
    shutil.copy(folder / "train/a/0000.png", folder / "train/a/again.png")
    shutil.copy(folder / "train/a/0002.png", folder / "val/a/leaked.png")
    shutil.copy(folder / "train/b/0001.jpeg", folder / "train/a/wrong.jpeg")
    shutil.copy(folder / "train/b/0001.jpeg", folder / "val/b/too.jpeg")
    found = problems(folder)
    assert [(problem.severity, problem.kind) for problem in found] == [
        ("error", "labels"),
        ("error", "leak"),
        ("warning", "duplicate"),
    ]
    assert found[0].keys == ("train/a/wrong.jpeg", "train/b/0001.jpeg", "val/b/too.jpeg")
    assert found[0].text.startswith("the same file under the labels 'a', 'b': 'train/a/wrong.jpeg', ")
    assert found[1].text == "the same file in train and val: 'train/a/0002.png', 'val/a/leaked.png'"
    assert found[2].text == "the same file 2 times in train: 'train/a/0000.png', 'train/a/again.png'"


def test_the_same_pixels_in_another_format_are_found(folder: Path) -> None:
    (folder / "val/a/copy.bmp").write_bytes(encoded(photo(0), "BMP"))
    assert [problem.text for problem in problems(folder)] == [
        "the same pixels in different files in train and val: 'train/a/0000.png', 'val/a/copy.bmp'"
    ]


def test_pictures_of_equal_bytes_and_other_shapes_differ(folder: Path) -> None:
    pixels = photo(300, 8, 6)
    (folder / "train/a/wide.png").write_bytes(encoded(pixels, "PNG"))
    (folder / "train/a/tall.png").write_bytes(encoded(pixels.reshape(8, 6, 3), "PNG"))
    assert problems(folder) == []


def test_workers_do_not_change_the_report(folder: Path) -> None:
    (folder / "train/a/x.jpg").write_bytes(b"")
    source = open_source(folder)
    assert check_folder(source, workers=1).to_dict() == check_folder(source, workers=4).to_dict()


def test_sources_of_arrays_are_checked_too() -> None:
    report = check_folder(open_source("digits"), workers=2)
    assert report.ok
    assert report.counts["seen"] == report.counts["good"] == 1797


def test_progress_reaches_the_end(folder: Path) -> None:
    seen: list[int] = []

    class Told(Silent):
        def start(self, what: str, total: int, done: int = 0) -> None:
            seen.append(-total)

        def update(self, done: int, **values: str) -> None:
            seen.append(done)

    source = open_source(folder)
    check_folder(source, Told(), 1)
    assert seen == [-26, 26]
    prepare(source, folder.parent / "s", size=8)
    check_store(folder.parent / "s", Told())
    assert seen == [-26, 26, -26, 26]


def test_long_lists_are_cut_for_people_only() -> None:
    found = [Problem("error", "unreadable", f"{n}", (f"{n}",)) for n in range(LINES + 7)]
    report = Report("in", {"seen": 3000}, [*found, Problem("warning", "few", "last")])
    lines = report.lines()
    assert lines[0] == "in: seen 3,000"
    assert lines[LINES + 1 :] == [
        "... and 7 more of this kind; --json lists all",
        "warning: last",
        f"{LINES + 7} errors, 1 warnings",
    ]
    assert len(json.loads(json.dumps(report.to_dict()))["problems"]) == LINES + 8


# a store


@pytest.fixture
def store(folder: Path) -> Iterator[Path]:
    prepare(open_source(folder), folder.parent / "s", size=8)
    return folder.parent / "s"


def test_a_good_store(store: Path) -> None:
    report = check_store(store)
    assert report.ok
    assert report.counts == {"pictures": 26, "classes": 2, "files": 9}
    assert report.lines() == [f"store {store}: pictures 26, classes 2, files 9", "nothing wrong"]


def test_what_is_missing_and_what_does_not_belong(store: Path) -> None:
    (store / "mean.npy").unlink()
    (store / "val.index.npy").unlink()
    (store / "train-00000.tar").unlink()
    (store / "train-00007.tar").write_bytes(b"")
    (store / "sub").mkdir()
    (store / "sub/store.json").write_bytes(b"")
    report = check_store(store)
    texts = {(problem.severity, problem.kind, problem.text.replace(f"{store}/", "")) for problem in report.problems}
    again = "; prepare the store again"
    assert texts == {
        ("warning", "extra", "sub/store.json does not belong to the store"),
        ("warning", "extra", "train-00007.tar does not belong to the store"),
        ("error", "missing", f"mean.npy cannot be read: No such file or directory{again}"),
        ("error", "missing", f"val.index.npy cannot be read: No such file or directory{again}"),
        ("error", "missing", f"train-00000.tar cannot be read: No such file or directory{again}"),
        ("error", "index", f"val.index.npy is of no use: the pictures of val were not checked{again}"),
    }
    lost = next(problem for problem in report.problems if "train-00000" in problem.text)
    assert len(lost.keys) == 20


def test_training_refuses_a_store_of_one_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for place in ("prepare", "preparation.commit"):
        monkeypatch.setattr(f"convnet.data.{place}.refuse_unfit", lambda *_: None)
    prepare(open_source(write_photos(tmp_path / "in", {"train/a": 2})), tmp_path / "s", size=8)
    with pytest.raises(DataError, match="all pictures are of one class, 'a'"):
        plan_run(str(tmp_path / "s"), None, None, [], Silent())


def test_a_damaged_key_list_does_not_hide_damaged_pictures(store: Path) -> None:
    (store / "train.keys.jsonl").write_bytes(b'"\xff')
    data = bytearray((store / "train-00000.tar").read_bytes())
    data[600] ^= 1
    (store / "train-00000.tar").write_bytes(data)
    text = "\n".join(check_store(store).lines())
    assert "train.keys.jsonl is damaged" in text
    assert "train-00000.tar is damaged at train picture 'train picture 0'" in text


def test_a_swap_of_two_records_is_damage(store: Path) -> None:
    data = (store / "train-00000.tar").read_bytes()
    length = (len(data) - 1024) // 20
    (store / "train-00000.tar").write_bytes(data[length : 2 * length] + data[:length] + data[2 * length :])
    assert [problem.kind for problem in check_store(store).problems] == ["damaged"] * 2


def test_a_header_without_its_fields(store: Path) -> None:
    header = read_header(store)
    for name in ("files", "splits", "classes"):
        for value in (None, 3, {"train": 1}):
            (store / "store.json").write_bytes(header_bytes({**header, name: value}))
            report = check_store(store)
            assert not report.ok, (name, value)


def test_no_store(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not a store"):
        check_store(tmp_path)
