"""Archives as they are: zips, WebDataset shards, CIFAR's archives, tars of class tars; and hostile ones."""

import gzip
import io
import json
import os
import struct
import tarfile
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from test_sources_sets import NAMES, labels, picture, pictures, tar_bytes, write_cifar10

from convnet.data.decode import BadPicture
from convnet.data.sources import Source, open_source
from convnet.data.store import Store
from convnet.errors import DataError, UsageError


def label_of(source: Source) -> dict[str, tuple[str, str]]:
    """{key: (split, class)} of all entries."""
    return {entry.key: (entry.split, source.classes[entry.label]) for entry in source.entries}


def zip_of(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as file:
        for name, data in members.items():
            file.writestr(name, data)
    return path


CLASSES = {
    "train/cat/1.jpg": picture(1), "train/cat/2.jpg": picture(2), "train/dog/1.jpg": picture(3),
    "val/cat/1.jpg": picture(4), "val/dog/1.jpg": picture(5),
}  # fmt: skip


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("above", ["", "My photos/"])
def test_a_zip_of_class_folders(tmp_path: Path, method: int, above: str) -> None:
    members = {f"{above}{name}": data for name, data in CLASSES.items()}
    path = zip_of(tmp_path / "photos.zip", {**members, f"{above}__MACOSX/._1.jpg": b"x"}, method)
    source = open_source(path)
    assert (source.name, source.kind, source.classes) == ("photos", "zip of class folders", ("cat", "dog"))
    right = {f"{above}{name}": tuple(name.split("/")[:2]) for name in CLASSES}
    assert label_of(source) == right
    with ThreadPoolExecutor(8) as pool:
        read = list(pool.map(source.read, list(source.entries) * 40))
    assert read == [members[entry.key] for entry in source.entries] * 40
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(BadPicture, match="changed while it was read"):
        source.read(source.entries[0])


def streamed(members: dict[str, bytes]) -> bytes:
    """A zip written to a pipe: sizes come in data descriptors, behind the data."""

    class Pipe(io.RawIOBase):
        def __init__(self) -> None:
            self.data = bytearray()

        def writable(self) -> bool:
            return True

        def write(self, data: bytes) -> int:
            self.data += data
            return len(data)

    pipe = Pipe()
    with zipfile.ZipFile(pipe, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in members.items():
            with file.open(name, "w", force_zip64=True) as member:
                member.write(data)
    return bytes(pipe.data)


def test_zips_with_descriptors_zip64_and_bytes_before_them(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    path.write_bytes(streamed(CLASSES))
    source = open_source(path)
    assert [source.read(entry) for entry in source.entries] == [CLASSES[entry.key] for entry in source.entries]


def test_names_in_a_zip(tmp_path: Path) -> None:
    """UTF-8 by its flag, UTF-8 without it (macOS, Info-ZIP), code page 437, and Windows' backslashes."""
    for written, flag, system, right in (
        ("b/é".encode(), 1 << 11, 3, "b/é"),
        ("b/é".encode(), 0, 3, "b/é"),
        ("b/é".encode("cp437"), 0, 0, "b/é"),
        (b"b\\y", 0, 0, "b/y"),
    ):
        plain = b"b/" + b"Q" * (len(written) - 2)
        members = {"a/1.png": picture(1), f"{plain.decode()}.png": picture(2)}
        data = bytearray(zip_of(tmp_path / "n.zip", members).read_bytes().replace(plain, written))
        at = data.rindex(b"PK\1\2")
        data[at + 5], data[at + 8 : at + 10] = system, struct.pack("<H", flag)
        local = data.index(b"PK\3\4", 4)
        data[local + 6 : local + 8] = struct.pack("<H", flag)
        (tmp_path / "n.zip").write_bytes(data)
        source = open_source(tmp_path / "n.zip", split=0)
        assert [entry.key for entry in source.entries] == ["a/1.png", f"{right}.png"]
        assert source.read(source.entries[1]) == picture(2)


def test_wicked_members_of_a_zip_are_named_and_nothing_is_written(tmp_path: Path) -> None:
    path = tmp_path / "w.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name in ("a/1.png", "b/1.png", "../../evil.png", "/etc/evil.png", "a/../../x.png"):
            file.writestr(name, picture(1))
        with pytest.warns(UserWarning, match="Duplicate name"):
            file.writestr("a/1.png", picture(2))
        link = zipfile.ZipInfo("a/link.png")
        link.create_system, link.external_attr = 3, 0o120777 << 16
        file.writestr(link, "/etc/passwd")
        file.writestr("a/bomb.png", bytes(80 << 20))
        file.writestr("b/other.png", picture(3), zipfile.ZIP_BZIP2)
    source = open_source(path, split=0)
    assert [entry.key for entry in source.entries] == ["a/1.png", "b/1.png"]
    assert source.read(source.entries[0]) == picture(1)
    failed = dict(source.failed)
    assert failed["a/1.png (number 2)"] == "duplicate name in the zip"
    assert "leaves the zip" in failed["../../evil.png"]
    assert "leaves the zip" in failed["a/../../x.png"]
    assert "absolute name" in failed["etc/evil.png"]
    assert "a link in a zip; not followed" in failed["a/link.png"]
    assert "a decompression bomb?" in failed["a/bomb.png"]
    assert "packed by method 12; only stored and deflated" in failed["b/other.png"]
    assert len(failed) == 7
    assert os.listdir(tmp_path) == ["w.zip"]


def patched(data: bytes, fields: dict[int, bytes]) -> bytes:
    """A zip whose first entry of the directory has other bytes at these places."""
    copy, at = bytearray(data), data.index(b"PK\1\2")
    for place, value in fields.items():
        copy[at + place : at + place + len(value)] = value
    return bytes(copy)


def test_zips_that_lie(tmp_path: Path) -> None:
    path = zip_of(tmp_path / "z.zip", {"a/1.png": picture(1) * 9, "b/1.png": picture(2) * 9})
    data = path.read_bytes()
    path.write_bytes(patched(data, {8: b"\1\0"}))
    with pytest.raises(DataError, match=r"'a/1\.png' is encrypted; unpack the zip with its password"):
        open_source(path)
    path.write_bytes(patched(data, {20: struct.pack("<I", len(data))}))
    with pytest.raises(DataError, match=r"members 'a/1\.png' and 'b/1\.png' overlap, as in a decompression bomb"):
        open_source(path)
    for fields in ({24: struct.pack("<I", 10)}, {24: struct.pack("<I", 1 << 20)}, {16: b"wxyz"}):
        path.write_bytes(patched(data, fields))
        source = open_source(path, split=0)
        with pytest.raises(BadPicture, match="damaged in the zip: its checksum does not fit"):
            source.read(source.entries[0])
        assert source.read(source.entries[1]) == picture(2) * 9
    path.write_bytes(data[:-30])
    with pytest.raises(DataError, match="damaged or cut short"):
        open_source(path)


def test_archives_of_something_else_stop(tmp_path: Path) -> None:
    zip_of(tmp_path / "dogs-vs-cats.zip", {"train.zip": b"PK\3\4", "test1.zip": b"PK\3\4", "sample.csv": b"id,label\n"})
    with pytest.raises(UsageError, match=r"holds other archives \(train\.zip, test1\.zip\), no pictures; unpack it"):
        open_source(tmp_path / "dogs-vs-cats.zip")
    zip_of(tmp_path / "gzip.zip", {"gzip/emnist-letters-train-images-idx3-ubyte.gz": b"\x1f\x8b"})
    with pytest.raises(UsageError, match="holds IDX files, no pictures; unpack it"):
        open_source(tmp_path / "gzip.zip")
    zip_of(tmp_path / "flat.zip", {"labels.csv": b"1.png,cat\n", "1.png": picture(1), "2.png": picture(2)})
    with pytest.raises(UsageError, match=r"labels\.csv in the zip is not read: unpack it"):
        open_source(tmp_path / "flat.zip")
    zip_of(tmp_path / "both.zip", {**CLASSES, "labels.csv": b"train/cat/1.jpg,dog\n"})
    assert (
        "labels.csv in the zip is not read: unpack it to have a list decide" in open_source(tmp_path / "both.zip").notes
    )


@pytest.mark.parametrize("protocol", [None, 2])
@pytest.mark.parametrize("end", [".tar.gz", ".tgz", ".tar"])
def test_cifars_archives_as_they_are(tmp_path: Path, protocol: int | None, end: str) -> None:
    folder = "cifar-10-batches-bin" if protocol is None else "cifar-10-batches-py"
    rows, right = write_cifar10(tmp_path / folder, protocol)
    root = tmp_path / "root"
    root.mkdir()
    path = root / f"cifar-10-{'binary' if protocol is None else 'python'}{end}"
    with tarfile.open(path, "w" if end == ".tar" else "w:gz") as tar:
        tar.add(tmp_path / folder, folder)
    for where in (path, root):
        source = open_source(where, work=tmp_path / "work")
        assert (source.name, source.classes) == ("cifar10", tuple(NAMES))
        assert labels(source, "train") + labels(source, "test") == right
        assert np.array_equal(pictures(source, "train"), rows[:10].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))


WNIDS = ("n00004475", "n00006024", "n12345678")


def fall() -> dict[str, bytes]:
    return {
        f"{wnid}.tar": tar_bytes({f"{wnid}_{n}.JPEG": picture(10 * k + n) for n in range(4)})
        for k, wnid in enumerate(WNIDS)
    }


@pytest.mark.parametrize("form", ["tar", "packed", "below", "folder"])
def test_a_fall_release_half_and_half(tmp_path: Path, form: str) -> None:
    """A tar of tars of classes, or a folder of them."""
    path = tmp_path / "fall09_whole.tar"
    if form == "folder":
        path = tmp_path / "fall09"
        path.mkdir()
        for name, data in fall().items():
            (path / name).write_bytes(data)
    else:
        above = "fall09/" if form == "below" else ""
        data = tar_bytes({f"{above}{name}": data for name, data in {**fall(), "urls.txt": b"..."}.items()})
        path.write_bytes(gzip.compress(data) if form == "packed" else data)
    source = open_source(path, split=0.5, into="test", work=tmp_path / "work")
    assert source.classes == WNIDS
    assert labels(source, "train") == labels(source, "test") == [0, 0, 1, 1, 2, 2]
    for entry in source.entries:
        _, wnid, name = entry.key.split("/")
        assert wnid == source.classes[entry.label]
        assert source.read(entry) == picture(10 * entry.label + int(name.split("_")[1][0]))
    assert form == "folder" or [reason for _, reason in source.skipped] == ["not a tar of a class"]


def shard(samples: dict[str, bytes]) -> bytes:
    return tar_bytes(samples)


def sample(key: str, label: str, end: str = "jpg", shade: int = 0) -> dict[str, bytes]:
    return {f"{key}.{end}": picture(shade), f"{key}.cls": label.encode()}


def test_a_webdataset_shard(tmp_path: Path) -> None:
    members: dict[str, bytes] = {"__meta.txt": b"x"}
    for n in range(24):
        members |= sample(f"a/{n:06d}", f"{n % 12}\n", "JPEG" if n % 2 else "webp", n)
    (tmp_path / "s-0.tar").write_bytes(shard(members))
    source = open_source(tmp_path / "s-0.tar", split=0)
    assert source.kind == "WebDataset"
    assert source.classes == tuple(map(str, range(12)))
    for entry in source.entries:
        n = int(entry.key[2:8])
        assert (entry.label, source.read(entry)) == (n % 12, picture(n))
    assert source.skipped == (("__meta.txt", "not a picture"),)


@pytest.mark.parametrize(
    ("names", "right"),
    [
        (("s-000.tar", "s-001.tar"), ("train", "train")),
        (("train-000.tar", "val-000.tar"), ("train", "val")),
        (("imagenet_train_0.tar", "imagenet_validation_0.tar"), ("train", "val")),
        (("train/0.tar", "test/0.tar"), ("train", "test")),
    ],
)
def test_a_folder_of_shards(tmp_path: Path, names: tuple[str, str], right: tuple[str, str]) -> None:
    """Every shard begins anew with its keys: the shard's name makes them unique."""
    for number, name in enumerate(names):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(shard(sample("0", "cat", shade=number) | sample("1", "dog", shade=9)))
    (tmp_path / "README.md").write_text("shards")
    source = open_source(tmp_path, split=0)
    assert source.classes == ("cat", "dog")
    stems = [name.removesuffix(".tar") for name in names]
    assert label_of(source) == {
        f"{stem}/{n}.jpg": (part, name)
        for stem, part in zip(stems, right, strict=True)
        for n, name in enumerate(("cat", "dog"))
    }


def test_shards_whose_splits_are_not_clear_stop(tmp_path: Path) -> None:
    for name in ("train-0.tar", "more-0.tar"):
        (tmp_path / name).write_bytes(shard(sample("0", "cat")))
    with pytest.raises(UsageError, match=r"train-0\.tar names a split and more-0\.tar does not; put the shards into"):
        open_source(tmp_path)
    (tmp_path / "more-0.tar").rename(tmp_path / "train-val-0.tar")
    with pytest.raises(UsageError, match="names two splits, train and val"):
        open_source(tmp_path)


def test_samples_that_lack_something_are_named(tmp_path: Path) -> None:
    members = sample("a", "0") | sample("b", "1") | {"c.jpg": picture(1), "d.cls": b"1", "e.jpg": picture(1)}
    members |= {"e.cls": b"0\n1", "f.jpg": picture(1), "f.cls": b"-1", "g.jpg": picture(1), "g.cls": b"\xff\xfe"}
    path = tmp_path / "s.tar"
    path.write_bytes(shard(members))
    with tarfile.open(path, "a") as tar:
        for name, data in (("h.jpg", picture(1)), ("h.cls", b"0"), ("h.cls", b"1")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    source = open_source(path, split=0)
    assert label_of(source) == {"a.jpg": ("train", "0"), "b.jpg": ("train", "1")}
    failed = dict(source.failed)
    assert failed["c.jpg"] == "its sample has neither a .cls nor a .json"
    assert failed["d.cls"] == "a label without a picture"
    assert failed["e.jpg"] == "its label '0\\n1' is neither a number from 0 nor a name"
    assert failed["f.jpg"] == "its label '-1' is neither a number from 0 nor a name"
    assert "can't be read" in failed["g.jpg"]
    assert failed["h.jpg"] == "its cls: duplicate name in the tar"
    path.write_bytes(shard(sample("a", "0") | {"a.seg.png": picture(1)}))
    with pytest.raises(UsageError, match=r"the sample 'a' has several pictures, a\.jpg and a\.seg\.png"):
        open_source(path)


def test_labels_in_json(tmp_path: Path) -> None:
    path = tmp_path / "s.tar"

    def write(*tables: object) -> Path:
        members = {}
        for n, table in enumerate(tables):
            members |= {f"{n}.png": picture(n), f"{n}.json": json.dumps(table).encode()}
        path.write_bytes(shard(members))
        return path

    assert open_source(write({"label": 2}, {"cls": 10}, {"label": "7", "cls": "7"}), split=0).classes == (
        "2",
        "7",
        "10",
    )
    assert open_source(write({"label": "dog"}, {"label": "cat"}), split=0).classes == ("cat", "dog")
    for table, text in (
        ({"caption": "a dog"}, "its JSON has neither 'cls' nor 'label': it has caption"),
        ({"label": 1, "cls": 2}, "'cls' and 'label' in its JSON differ"),
        ({"label": [1, 2]}, "its label is a list"),
        ({"label": True}, "its label is a bool"),
    ):
        with pytest.raises(UsageError, match=text):
            open_source(write(table))
    (tmp_path / "c.tar").write_bytes(tar_bytes({"cat/1.png": picture(1), "cat/1.json": b"{}", "dog/1.png": picture(2)}))
    assert open_source(tmp_path / "c.tar", split=0).classes == ("cat", "dog")


def test_a_shard_of_our_own_store(tmp_path: Path, digits: Store) -> None:
    shard_path = digits.path / "test-00000.tar"
    with pytest.raises(UsageError, match=r"is a shard of the store .*; point at the store"):
        open_source(shard_path)
    (tmp_path / "test-00000.tar").write_bytes(shard_path.read_bytes())
    source = open_source(tmp_path / "test-00000.tar", split=0)
    rows, split = digits.split("test").rows, digits.split("test")
    assert [int(source.classes[entry.label]) for entry in sorted(source.entries, key=lambda e: e.key)] == list(
        rows["label"]
    )
    entry = min(source.entries, key=lambda e: e.key)
    start = int(rows["offset"][0]) + 512 + 128
    stored = np.frombuffer(shard_path.read_bytes(), np.uint8, 28 * 28 * 3, start).reshape(28, 28, 3)
    assert np.array_equal(source.read(entry), stored)
    assert split.n == len(source.entries)


@pytest.mark.parametrize(
    ("array", "text"),
    [
        (np.zeros((2, 2, 3), np.float32), "a .npy of float32"),
        (np.zeros((2, 2, 4), np.uint8), r"a .npy of uint8 \(2, 2, 4\)"),
        (np.zeros((0, 2, 3), np.uint8), "a .npy of uint8"),
        (None, "a .npy that isn't read: not a numpy array"),
    ],
)
def test_arrays_that_are_no_pictures(tmp_path: Path, array: np.ndarray | None, text: str) -> None:
    buffer = io.BytesIO(b"" if array is not None else b"nothing")
    if array is not None:
        np.save(buffer, array)
    (tmp_path / "s.tar").write_bytes(shard({"0.npy": buffer.getvalue(), "0.cls": b"0"}))
    source = open_source(tmp_path / "s.tar", split=0)
    with pytest.raises(BadPicture, match=text):
        source.read(source.entries[0])


def test_grey_and_fortran_arrays_are_pictures(tmp_path: Path) -> None:
    grey, colour = (
        np.arange(6, dtype=np.uint8).reshape(2, 3),
        np.asfortranarray(np.arange(18, dtype=np.uint8).reshape(2, 3, 3)),
    )
    members = {}
    for n, array in enumerate((grey, colour)):
        buffer = io.BytesIO()
        np.save(buffer, array)
        members |= {f"{n}.npy": buffer.getvalue(), f"{n}.cls": str(n).encode()}
    (tmp_path / "s.tar").write_bytes(shard(members))
    source = open_source(tmp_path / "s.tar", split=0)
    assert np.array_equal(source.read(source.entries[0]), np.repeat(grey[:, :, None], 3, axis=2))
    assert np.array_equal(source.read(source.entries[1]), colour)
