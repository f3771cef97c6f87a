"""Folders, lists and tars: every file found is an entry, skipped or failed; splits, odd names, links and damage."""

import io
import os
import random
import socket
import tarfile
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from convnet.data.decode import BadPicture
from convnet.data.sources import Source, open_source
from convnet.errors import ConvnetError, DataError, UsageError


def jpeg(shade: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (shade % 256, 9, 9)).save(buffer, "PNG")
    return buffer.getvalue()


def fill(root: Path, names: Iterable[str]) -> Path:
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(jpeg(number))
    return root


def summary(source: Source) -> dict[str, list[str]]:
    parts: dict[str, list[str]] = {}
    for entry in source.entries:
        parts.setdefault(entry.split, []).append(entry.key)
    return parts


def keys(source: Source) -> list[str]:
    return [entry.key for entry in source.entries]


def assert_whole(source: Source, n_seen: int) -> None:
    names = [*keys(source), *(key for key, _ in source.skipped), *(key for key, _ in source.failed)]
    assert len(names) == len(set(names)) == n_seen
    for name in names:
        name.encode("utf-8")
    order = {"train": 0, "val": 1, "test": 2}
    ranks = [(order[entry.split], entry.label, entry.key) for entry in source.entries]
    assert ranks == sorted(ranks)


@pytest.mark.parametrize(
    "names", [("train", "val", "test"), ("training", "validation", "testing"), ("Train", "valid", "Test")]
)
def test_folders_with_splits(tmp_path: Path, names: tuple[str, str, str]) -> None:
    files = [f"{part}/{label}/{n}.jpg" for part in names for label in ("dog", "cat") for n in range(3)]
    fill(tmp_path, [*files, f"{names[0]}/cat/deep/er/x.JPEG"])
    source = open_source(tmp_path)
    assert source.classes == ("cat", "dog")
    assert {part: len(found) for part, found in summary(source).items()} == {"train": 7, "val": 6, "test": 6}
    assert_whole(source, 19)
    entry = source.entries[0]
    assert entry.key == f"{names[0]}/cat/0.jpg"
    assert source.read(entry) == (tmp_path / entry.key).read_bytes()


def test_one_level_is_split_for_each_class_by_itself(tmp_path: Path) -> None:
    fill(tmp_path / "a", [f"cat/{n}.png" for n in range(25)] + ["dog/1.png", "dog/2.png", "one/1.png"])
    source = open_source(tmp_path / "a")
    val = summary(source)["val"]
    assert sum(key.startswith("cat/") for key in val) == round(0.1 * 25)
    assert sum(key.startswith("dog/") for key in val) == 1
    assert sum(key.startswith("one/") for key in val) == 0
    assert "split 10 % of each class into val with seed 0" in source.notes
    fill(tmp_path / "b", [f"cat/{n}.png" for n in range(25)] + ["ape/1.png"])
    assert summary(open_source(tmp_path / "b"))["val"] == [key for key in val if key.startswith("cat/")]
    assert summary(open_source(tmp_path / "a", seed=1))["val"] != val
    assert "val" not in summary(open_source(tmp_path / "a", split=0))
    with pytest.raises(UsageError, match=r"split 1 is not in 0 <= split < 1"):
        open_source(tmp_path / "a", split=1)


def test_half_and_half(tmp_path: Path) -> None:
    fill(tmp_path / "a", [f"{name}/{n}.png" for name in ("cat", "dog") for n in range(10)])
    source = open_source(tmp_path / "a", split=0.5, into="test")
    val = open_source(tmp_path / "a", split=0.5)
    assert {part: len(found) for part, found in summary(source).items()} == {"train": 10, "test": 10}
    assert summary(source)["test"] == summary(val)["val"]
    assert [entry.label for entry in source.entries] == [0] * 5 + [1] * 5 + [0] * 5 + [1] * 5
    assert "split 50 % of each class into test with seed 0" in source.notes
    with pytest.raises(UsageError, match="--as train: the divided part goes to val or to test"):
        open_source(tmp_path / "a", into="train")
    fill(tmp_path / "b", ["train/a/1.png", "train/a/2.png", "val/a/1.png"])
    with pytest.raises(UsageError, match=r"--as test: b has splits of its own \(train, val\)"):
        open_source(tmp_path / "b", into="test")


def test_train_alone_is_split_too_and_test_is_left_alone(tmp_path: Path) -> None:
    fill(tmp_path, [f"train/cat/{n}.png" for n in range(20)])
    assert len(summary(open_source(tmp_path))["val"]) == 2
    fill(tmp_path, ["test/cat/1.png"])
    assert set(summary(open_source(tmp_path))) == {"train", "test"}


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    fill(tmp_path, ["train/1.jpg", "car/1.jpg", "test/1.jpg"])
    assert open_source(tmp_path).classes == ("car", "test", "train")


def test_a_folder_that_only_holds_another_is_passed_through(tmp_path: Path) -> None:
    fill(tmp_path, ["photos/train/a/1.png", "photos/val/a/1.png"])
    source = open_source(tmp_path)
    assert keys(source) == ["photos/train/a/1.png", "photos/val/a/1.png"]
    assert source.name == tmp_path.name.replace("[", "-").replace("]", "").strip("-")


def test_what_is_not_a_picture_is_skipped_with_its_reason(tmp_path: Path) -> None:
    fill(
        tmp_path, ["train/a/1.png", "train/a/noext", "val/b/1.png", "train/a/.hidden.png", "lost.png", "train/lost.png"]
    )
    (tmp_path / "train/a/notes.txt").write_text("hello")
    (tmp_path / "train/a/.DS_Store").write_text("")
    (tmp_path / "train/c").mkdir()
    (tmp_path / "extra").mkdir()
    (tmp_path / "extra/2.png").write_bytes(jpeg())
    source = open_source(tmp_path)
    assert source.classes == ("a", "b")
    assert keys(source) == ["train/a/1.png", "train/a/noext", "val/b/1.png"]
    assert dict(source.skipped) == {
        "train/a/.hidden.png": "hidden",
        "train/a/.DS_Store": "hidden",
        "train/a/notes.txt": "not a picture",
        "lost.png": "not in a class folder",
        "train/lost.png": "not in a class folder",
        "extra/2.png": "not in a class folder",
    }
    assert source.notes == (
        "left out: 1 picture in 'extra', without labels",
        "left out: 1 picture beside the class folders: 'lost.png'",
        "left out: 1 picture beside the class folders: 'train/lost.png'",
        "folder 'c' holds no pictures: it is no class",
        "1 of 2 classes have no pictures in train: b",
        "1 of 2 classes have no pictures in val: a",
    )
    assert_whole(source, 9)


def test_links_loops_and_things_that_are_no_files(tmp_path: Path) -> None:
    root = fill(tmp_path / "set", ["train/a/1.png", "train/b/4.png"])
    fill(tmp_path, ["else/2.png", "else/sub/3.png"])
    a = root / "train/a"
    (a / "link.png").symlink_to(tmp_path / "else/2.png")
    (a / "folder").symlink_to(tmp_path / "else")
    (a / "twice").symlink_to(tmp_path / "else")
    (a / "up").symlink_to(root / "train")
    (a / "self").symlink_to(a)
    (a / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (a / "loop.png").symlink_to(a / "loop.png")
    os.mkfifo(a / "fifo.png")
    os.mkfifo(a / "pipe")
    with socket.socket(socket.AF_UNIX) as plug:
        former = os.getcwd()
        os.chdir(a)
        try:
            plug.bind("socket.jpg")
        finally:
            os.chdir(former)
    (root / "val").mkdir()
    source = open_source(root)
    got = [key for key in keys(source) if "/a/" in key]
    assert got == ["train/a/1.png", "train/a/folder/2.png", "train/a/folder/sub/3.png", "train/a/link.png"]
    failed = dict(source.failed)
    assert failed["train/a/up"] == failed["train/a/self"] == failed["train/a/loop.png"] == "symlink loop"
    assert failed["train/a/gone.png"] == "dangling link"
    assert failed["train/a/fifo.png"] == "not a regular file but a fifo"
    assert failed["train/a/socket.jpg"] == "not a regular file but a socket"
    assert dict(source.skipped)["train/a/pipe"] == "not a regular file but a fifo"
    assert dict(source.skipped)["train/a/twice"] == "a link to a folder that is listed already"


def test_folders_that_link_to_each_other_end(tmp_path: Path) -> None:
    names = [f"d{n}" for n in range(7)]
    fill(tmp_path, ["other/1.png", "cls/0.png", *(f"cls/{name}/{name}.png" for name in names)])
    for name in names:
        for other in names:
            (tmp_path / "cls" / name / f"to-{other}").symlink_to(tmp_path / "cls" / other)
    source = open_source(tmp_path)
    assert len(source.entries) == 9


def test_odd_names(tmp_path: Path) -> None:
    names = ["new\nline.png", "quote\"'.png", "<b>.png", "\x1b[31m.png", "ünï.png", "a b.PNG", "=cmd().png"]
    fill(tmp_path, [f"klasse é/{name}" for name in names])
    (tmp_path / "klasse é" / os.fsdecode(b"\xff.png")).write_bytes(jpeg(99))
    (tmp_path / "klasse é" / "\\xff.png").write_bytes(jpeg(98))
    source = open_source(tmp_path, split=0)
    assert_whole(source, 9)
    assert {"klasse é/\\xff.png", "klasse é/\\xff.png~2"} <= set(keys(source))
    assert sorted(source.read(entry) for entry in source.entries) == sorted(map(jpeg, [*range(7), 98, 99]))


@pytest.mark.parametrize(
    ("names", "text"),
    [
        ([], "neither class folders, nor a list"),
        (["1.png"], "neither class folders, nor a list"),
        (["val/a/1.png", "test/a/1.png"], "but no train/"),
        (["train/a/1.png", "val/a/1.png", "valid/a/1.png"], "val and valid are both spellings"),
        (["a/x.txt"], "no pictures to train on"),
    ],
)
def test_folders_that_are_no_source(tmp_path: Path, names: list[str], text: str) -> None:
    fill(tmp_path, names)
    for path in tmp_path.rglob("*.txt"):
        path.write_text("text")
    with pytest.raises(UsageError, match=text):
        open_source(tmp_path)


def test_things_that_are_no_source(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file or folder"):
        open_source(tmp_path / "nothing")
    (tmp_path / "store.json").write_text("{}")
    with pytest.raises(UsageError, match="is already a store"):
        open_source(tmp_path)
    (tmp_path / "x.png").write_bytes(jpeg())
    with pytest.raises(UsageError, match=r"is one picture \(PNG\)"):
        open_source(tmp_path / "x.png")
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(UsageError, match="is a fifo"):
        open_source(tmp_path / "fifo")


def test_pictures_that_vanish_or_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, [f"a/{n}.png" for n in range(4)])
    source = open_source(tmp_path, split=0)
    (tmp_path / "a/0.png").unlink()
    (tmp_path / "a/1.png").write_bytes(b"another")
    (tmp_path / "a/2.png").unlink()
    os.mkfifo(tmp_path / "a/2.png")
    for number, text in enumerate(("vanished", "changed while it was read", "not a regular file but a fifo")):
        with pytest.raises(BadPicture, match=text):
            source.read(source.entries[number])

    def refuse(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("os.open", refuse)
    with pytest.raises(BadPicture, match="no permission"):
        source.read(source.entries[3])


@pytest.mark.parametrize("lines", ["1.png,cat\n2.png,hot dog\n", "name,class\n1.png,cat\n2.png,hot dog\n"])
@pytest.mark.parametrize("separator", [",", "\t", ";", " "])
def test_lists(tmp_path: Path, lines: str, separator: str) -> None:
    fill(tmp_path, ["1.png", "2.png", "3.png"])
    (tmp_path / "labels.csv").write_text(lines.replace(",", separator))
    for where in (tmp_path, tmp_path / "labels.csv"):
        source = open_source(where, split=0)
        assert source.classes == ("cat", "hot dog")
        assert [(entry.key, entry.label) for entry in source.entries] == [("1.png", 0), ("2.png", 1)]
        assert dict(source.skipped) == {"3.png": "not in the list", "labels.csv": "not a picture"}


def test_a_list_with_splits_and_its_problems(tmp_path: Path) -> None:
    fill(tmp_path, ["in/1.png", "in/2.png", "3.dat", "secret.png"])
    fill(tmp_path.parent, ["outside.png"])
    rows = ["image;split;label", "./in/1.png;training;b", "in/2.png;valid;a", "3.dat;train;a", "gone.png;test;a"]
    rows += ["../outside.png;train;a", "/etc/passwd;train;a", "in/1.png;train;b"]
    (tmp_path / "list.txt").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(rows).encode())
    source = open_source(tmp_path)
    assert summary(source) == {"train": ["3.dat", "in/1.png"], "val": ["in/2.png"]}
    assert dict(source.failed) == {
        "gone.png": "in the list, but missing",
        "../outside.png": "its name leaves the folder; not read",
        "/etc/passwd": "its name leaves the folder; not read",
    }
    assert dict(source.skipped) == {"secret.png": "not in the list", "list.txt": "not a picture"}
    (tmp_path / "two.csv").write_text("in/1.png,b\n")
    with pytest.raises(UsageError, match="several lists"):
        open_source(tmp_path)


def test_other_text_beside_a_list_or_class_folders(tmp_path: Path) -> None:
    fill(tmp_path, ["1.png", "2.png", "cat/1.png"])
    (tmp_path / "README.txt").write_text("labels.csv holds the labels\n1.png is a cat\nsome more\nand more\n")
    (tmp_path / "labels.csv").write_text("1.png,cat\n2.png,dog\ncat/1.png,cat\n")
    assert open_source(tmp_path).kind == "list labels.csv"
    (tmp_path / "labels.csv").write_text("1.png,cat\n2.png,dog\ncat/1.png\n")
    with pytest.raises(UsageError, match="line 3: a name and a class are needed"):
        open_source(tmp_path)
    (tmp_path / "labels.csv").unlink()
    with pytest.raises(UsageError, match=r"most pictures \(2 of 3\) lie outside the folders 'cat'"):
        open_source(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1.png,a\n1.png,b\n", "'1.png' is 'a' in line 1, but 'b' in line 2"),
        ("1.png,a,train\n1.png,a,val\n", r"in train \(line 1\) and in val"),
        ("1.png,\n", "line 1: a name and a class are needed"),
        ("name,class,split\n1.png,a,later\n", "the split 'later' must be train, val or test"),
        ("\n\n", "is empty"),
    ],
)
def test_lists_that_are_refused(tmp_path: Path, text: str, message: str) -> None:
    fill(tmp_path, ["1.png"])
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(UsageError, match=message):
        open_source(tmp_path / "list.csv")


def tar_of(path: Path, root: Path, kind: str = "w", style: int = tarfile.GNU_FORMAT) -> Path:
    with tarfile.open(path, kind, format=style) as tar:
        tar.add(root, "set")
    return path


@pytest.mark.parametrize("style", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_a_tar_equals_its_folder(tmp_path: Path, style: int) -> None:
    long = "x" * (90 if style == tarfile.USTAR_FORMAT else 200)
    fill(tmp_path / "set", ["train/a/1.png", f"train/b/{long}.png", "train/b/é.png", "val/a/1.png", "train/a/.x"])
    source = open_source(tar_of(tmp_path / "My set.tar", tmp_path / "set", style=style))
    folder = open_source(tmp_path / "set")
    assert source.name == "My-set"
    assert source.classes == folder.classes
    assert [f"set/{key}" for key in keys(folder)] == keys(source)
    for entry, other in zip(source.entries, folder.entries, strict=True):
        assert source.read(entry) == folder.read(other)
    assert source.skipped == (("set/train/a/.x", "hidden"),)


@pytest.mark.parametrize("kind", ["gz", "bz2", "xz"])
def test_a_compressed_tar_is_unpacked_anew_over_a_copy_that_was_left(tmp_path: Path, kind: str) -> None:
    fill(tmp_path / "set", ["train/a/1.png", "val/a/1.png"])
    path = tar_of(tmp_path / f"set.tar.{kind}", tmp_path / "set", f"w:{kind}")
    with pytest.raises(UsageError, match="unpack it first"):
        open_source(path)
    source = open_source(path, work=tmp_path / "work")
    assert source.read(source.entries[0]) == jpeg(0)
    copy, time = tmp_path / "work/source.tar", path.stat().st_mtime_ns
    right = copy.read_bytes()
    copy.write_bytes(right.replace(jpeg(0), jpeg(0)[::-1]))  # damage that no sum of the tar covers
    os.utime(copy, ns=(time, time))
    assert open_source(path, work=tmp_path / "work").entries == source.entries
    assert copy.read_bytes() == right
    assert copy.stat().st_mtime_ns == time
    assert [file.name for file in copy.parent.iterdir()] == [copy.name]
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(DataError, match="damaged or cut short"):
        open_source(path, work=tmp_path / "other")
    assert not (tmp_path / "other/source.tar").exists()


def test_a_tar_that_is_a_bomb(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "b.tar.xz", "w:xz") as tar:
        info = tarfile.TarInfo("a/1.png")
        info.size = 80 << 20
        tar.addfile(info, io.BytesIO(bytes(80 << 20)))
    with pytest.raises(DataError, match="decompression bomb"):
        open_source(tmp_path / "b.tar.xz", work=tmp_path / "work")


def test_wicked_members_are_named_and_never_followed(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "w.tar", "w") as tar:

        def add(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> None:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, link
            info.size = len(jpeg()) if kind == tarfile.REGTYPE else 0
            tar.addfile(info, io.BytesIO(jpeg()) if info.size else None)

        for name in ("a/1.png", "a/2.png", "../../evil.png", "/etc/evil.png", "a/1.png", "a/../../x.png", "b/1.png"):
            add(name)
        add("a/link.png", tarfile.SYMTYPE, "/etc/passwd")
        add("a/hard.png", tarfile.LNKTYPE, "a/1.png")
        add("a/device.png", tarfile.CHRTYPE)
        add("a/fifo.png", tarfile.FIFOTYPE)
    source = open_source(tmp_path / "w.tar", split=0)
    assert keys(source) == ["a/1.png", "a/2.png", "b/1.png"]
    assert_whole(source, 11)
    failed = dict(source.failed)
    assert failed["a/1.png (number 2)"] == "duplicate name in the tar"
    assert "leaves the tar" in failed["../../evil.png"]
    assert "absolute name" in failed["etc/evil.png"]
    assert "a link in a tar; not followed" in failed["a/link.png"]
    assert set(os.listdir(tmp_path)) == {"w.tar"}


def test_a_tar_cut_short_anywhere_and_mutated_tars(tmp_path: Path) -> None:
    fill(tmp_path / "set", ["train/a/1.png", "val/a/1.png", "train/b/" + "y" * 150 + ".png"])
    for style in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        data = tar_of(tmp_path / "t.tar", tmp_path / "set", style=style).read_bytes()
        end = len(data.rstrip(b"\0"))
        for length in range(512, end, 211):
            (tmp_path / "t.tar").write_bytes(data[:length])
            with pytest.raises(DataError, match="cut short"):
                open_source(tmp_path / "t.tar")
        choice = random.Random(0)
        for _ in range(300):
            copy = bytearray(data)
            block = choice.randrange(end // 512) * 512
            for _ in range(3):
                copy[block + choice.choice((choice.randrange(512), 124 + choice.randrange(12), 156))] = (
                    choice.randrange(256)
                )
            if choice.random() < 0.7:  # with a checksum that fits, the parser behind it is reached
                copy[block + 148 : block + 156] = b" " * 8
                copy[block + 148 : block + 156] = b"%06o\0 " % sum(copy[block : block + 512])
            (tmp_path / "t.tar").write_bytes(copy)
            with suppress(ConvnetError):
                source = open_source(tmp_path / "t.tar")
                for entry in source.entries:
                    source.read(entry)


def test_digits_are_scikit_learns() -> None:
    from sklearn.datasets import load_digits

    source, loaded = open_source("digits"), load_digits()
    parts = {part: len(found) for part, found in summary(source).items()}
    assert sum(parts.values()) == 1797
    assert source.natural_size == 8
    for entry in source.entries:
        pixels = source.read(entry)
        row = int(entry.key.split("/")[1])
        assert entry.label == loaded.target[row]
        assert pixels.shape == (8, 8, 3)
        assert np.array_equal(pixels[:, :, 1], np.rint(loaded.images[row] * 255 / 16))
    for label in range(10):
        n = [sum(e.label == label and e.split == part for e in source.entries) for part in ("test", "val")]
        assert n == [round(0.2 * (loaded.target == label).sum()), round(0.1 * (loaded.target == label).sum())]
    assert source.entries == open_source("digits", split=0.5, seed=3).entries


@pytest.mark.data
def test_imagenette() -> None:
    root = os.environ.get("CONVNET_DATA")
    if not root:
        pytest.skip("CONVNET_DATA is not set")
    source = open_source(Path(root) / "imagenette")
    assert len(source.classes) == 10
    assert {part: len(found) for part, found in summary(source).items()} == {"train": 4000, "val": 1000}
    assert source.skipped == source.failed == ()
