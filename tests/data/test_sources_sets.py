"""Published data sets, written here as they are published: CIFAR, IDX, ILSVRC; and their damage."""

import gzip
import io
import os
import pickle
import struct
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from convnet.data.sources import Source, open_source
from convnet.data.sources.published.pickles import Array, read_pickle
from convnet.errors import DataError, UsageError

RNG = np.random.default_rng(0)
NAMES = [f"class {n}" for n in range(10)]


def rows_of(n: int) -> NDArray[np.uint8]:
    return RNG.integers(0, 256, (n, 3072), dtype=np.uint8)


def pictures(source: Source, split: str) -> NDArray[np.uint8]:
    return np.stack([source.read(entry) for entry in source.entries if entry.split == split])


def labels(source: Source, split: str) -> list[int]:
    return [entry.label for entry in source.entries if entry.split == split]


def write_cifar10(root: Path, protocol: int | None) -> tuple[NDArray[np.uint8], list[int]]:
    """Two training batches and a test batch of 5 pictures each; `protocol` None is binary."""
    rows, right = rows_of(15), [int(v) for v in RNG.integers(0, 10, 15)]
    root.mkdir(parents=True)
    for number, name in enumerate(("data_batch_1", "data_batch_2", "test_batch")):
        part = slice(5 * number, 5 * number + 5)
        if protocol is None:
            body = b"".join(bytes([label]) + row.tobytes() for label, row in zip(right[part], rows[part], strict=True))
            (root / f"{name}.bin").write_bytes(body)
        else:
            table = {
                b"batch_label": name.encode(),
                b"labels": right[part],
                b"data": rows[part],
                b"filenames": [b"x"] * 5,
            }
            (root / name).write_bytes(pickle.dumps(table, protocol))
    if protocol is None:
        (root / "batches.meta.txt").write_text("\n".join(NAMES) + "\n\n")
    else:
        (root / "batches.meta").write_bytes(pickle.dumps({b"label_names": [n.encode() for n in NAMES]}, protocol))
    return rows, right


@pytest.mark.parametrize("protocol", [None, 0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize("above", [False, True])
def test_cifar10(tmp_path: Path, protocol: int | None, above: bool) -> None:
    folder = tmp_path / ("cifar-10-batches-bin" if protocol is None else "cifar-10-batches-py")
    rows, right = write_cifar10(folder, protocol)
    source = open_source(tmp_path if above else folder)
    assert (source.name, source.natural_size, source.classes) == ("cifar10", 32, tuple(NAMES))
    planes = rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    assert np.array_equal(pictures(source, "train"), planes[:10])
    assert np.array_equal(pictures(source, "test"), planes[10:])
    assert labels(source, "train") + labels(source, "test") == right
    assert [entry.key for entry in source.entries][8:12] == ["train/00008", "train/00009", "test/00000", "test/00001"]
    assert source.skipped == source.failed == ()


@pytest.mark.parametrize("binary", [True, False])
def test_cifar100(tmp_path: Path, binary: bool) -> None:
    rows, right = rows_of(6), [5, 99, 0, 17, 3, 3]
    names = [f"fine{n}" for n in range(100)]
    for name, part in (("train", slice(0, 4)), ("test", slice(4, 6))):
        if binary:
            body = b"".join(
                bytes([7, label]) + row.tobytes() for label, row in zip(right[part], rows[part], strict=True)
            )
            (tmp_path / f"{name}.bin").write_bytes(body)
        else:
            table = {"fine_labels": right[part], "coarse_labels": [7], "data": rows[part]}
            (tmp_path / name).write_bytes(pickle.dumps(table, 2))
    if binary:
        (tmp_path / "fine_label_names.txt").write_text("\n".join(names))
    else:
        (tmp_path / "meta").write_bytes(pickle.dumps({"fine_label_names": names}, 2))
    source = open_source(tmp_path)
    assert (source.name, source.classes) == ("cifar100", tuple(names))
    assert labels(source, "train") + labels(source, "test") == right
    assert np.array_equal(pictures(source, "test"), rows[4:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))


def test_a_pickle_of_python_2() -> None:
    """As CIFAR is published: protocol 2, strings of bytes (opcode U and T)."""
    data = bytes(range(6))
    dtype = b"cnumpy\ndtype\n(U\x02u1K\x00K\x01tR(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR(K\x01(K\x02K\x03t"
    array += dtype + b"\x89T" + struct.pack("<I", 6) + data + b"tb"
    value = read_pickle(b"\x80\x02}(U\x04data" + array + b"U\x06labels](K\x01K\x02eu.", "x")
    assert value["labels"] == [1, 2]
    assert np.array_equal(value["data"].numpy(), np.arange(6).reshape(2, 3))


@pytest.mark.parametrize("protocol", range(6))
def test_pickles_equal_what_was_pickled(protocol: int) -> None:
    table: dict[Any, Any] = {
        b"a": np.arange(12, dtype=np.int64).reshape(3, 4),
        "f": np.asfortranarray(np.arange(6, dtype=np.uint8).reshape(2, 3)),
        "big": np.arange(3, dtype=">i2"),
        "values": [1, -5, 2**40, 2**80, 1.5, True, False, None, "é", b"\xff\x00", (1, 2), (), (1, 2, 3, 4), [], {}],
        "scalar": np.int64(7),
        "none": b"",
    }
    got = read_pickle(pickle.dumps(table, protocol), "x")
    for key, value in table.items():
        if isinstance(value, np.ndarray):
            assert isinstance(got[key], Array)
            assert got[key].numpy().dtype == value.dtype
            assert np.array_equal(got[key].numpy(), value)
        else:
            assert got[key] == value


class Evil:
    def __init__(self, call: Any, *given: Any) -> None:
        self.call, self.given = call, given

    def __reduce__(self) -> Any:
        return self.call, self.given


@pytest.mark.parametrize("protocol", range(6))
def test_nothing_that_a_pickle_names_is_called(tmp_path: Path, protocol: int) -> None:
    mark = tmp_path / "ran"
    for call, given in (
        (os.system, (f"touch {mark}",)),
        (eval, (f"open({str(mark)!r},'w')",)),
        (open, (str(mark), "w")),
    ):
        with pytest.raises(DataError, match=r"it wants to import '.*'; it is not read"):
            read_pickle(pickle.dumps({b"data": Evil(call, *given)}, protocol), "x")
    assert not mark.exists()


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"cos\nsystem\n(S'x'\ntR.", "it wants to import 'os.system'"),
        (b"\x80\x04\x8c\x02os\x8c\x06system\x93.", "it wants to import 'os.system'"),
        (b"(S'x'\nios\nsystem\n.", "it uses INST"),
        (b"\x80\x02\x82\x01.", "it uses EXT1"),
        (b"P1\n.", "it uses PERSID"),
        (b"cnumpy\nndarray\n(K\x01tR.", "it calls numpy.ndarray"),
        (b"cnumpy\ndtype\n(U\x01OtR.", "it holds an array of 'O'"),
        (b"c__builtin__\nbytes\n(K\x05tR.", None),
        (b"", "damaged"),
        (b".", "damaged"),
        (b"e.", "damaged"),
        (b"0.", "damaged"),
        (b"h\x05.", "damaged"),
        (b"}(K\x01u.", "damaged"),
        (b"T\xff\xff\xff\x7fabc", "damaged"),
        (b"I" + b"9" * 100_000 + b"\n.", "damaged"),
    ],
)
def test_pickles_that_are_refused(data: bytes, text: str | None) -> None:
    if text is None:
        assert read_pickle(data, "x") == b""
        return
    with pytest.raises(DataError, match=text):
        read_pickle(data, "x")


def twofold(n: int = 60) -> bytes:
    """A tuple of itself twice, n deep: to hash it takes 2^n steps."""
    return b"K\x01" + b"".join(b"q%ch%c\x86" % (i, i) for i in range(n))


def test_keys_that_take_for_ever_are_refused() -> None:
    with pytest.raises(DataError, match="a table with such keys"):
        read_pickle(b"\x80\x02}(" + twofold() + b"Nu.", "x")


def nested(n: int = 60) -> bytes:
    """A list of itself twice, n deep: to print it takes 2^n steps."""
    return b"]" + b"".join(b"q%c0](h%ch%ce" % (i, i, i) for i in range(n))


@pytest.mark.parametrize(
    "data",
    [
        b"cnumpy\ndtype\n(" + nested() + b"K\x00K\x01tR.",
        nested() + b"\x8c\x01x\x93.",
        b"cnumpy\ndtype\n(U\x02u1K\x00K\x01tR(K\x03" + twofold() + b"tb.",
        b"c_codecs\nencode\nq\x00X\xff\xff\x00\x00"
        + b"x" * 65535
        + b"q\x01X\x06\0\0\0latin1q\x02"
        + b"h\x00h\x01h\x02\x86R" * 60_000
        + b".",
    ],
)
def test_pickles_that_would_print_or_make_bytes_for_ever(data: bytes) -> None:
    with pytest.raises(DataError, match="x is a damaged python batch"):
        read_pickle(data, "x")


def test_labels_and_names_that_would_print_for_ever(tmp_path: Path) -> None:
    write_cifar10(tmp_path / "b", 2)
    meta, batch = tmp_path / "b/batches.meta", tmp_path / "b/data_batch_1"
    whole = meta.read_bytes()
    meta.write_bytes(b"\x80\x02}U\x0blabel_names](" + nested() + b"e" + b"s.")
    with pytest.raises(DataError, match="no list of different class names"):
        open_source(tmp_path / "b")
    meta.write_bytes(whole)
    pixels = pickle.dumps(rows_of(1), 2)[2:-1]
    batch.write_bytes(b"\x80\x02}(U\x04data" + pixels + b"U\x06labels](" + nested() + b"eu.")
    with pytest.raises(DataError, match="picture 0 has the label list, but there are 10 classes"):
        open_source(tmp_path / "b")


def test_cifar_files_of_the_wrong_length_or_label(tmp_path: Path) -> None:
    write_cifar10(tmp_path / "b", None)
    path = tmp_path / "b/data_batch_2.bin"
    data = path.read_bytes()
    path.write_bytes(data[:-1])
    with pytest.raises(DataError, match=r"data_batch_2\.bin: 15,364 bytes are not a multiple of 3,073 .* 30,730,000"):
        open_source(tmp_path / "b")
    path.write_bytes(b"\x0a" + data[1:])
    with pytest.raises(DataError, match="picture 0 has the label 10, but there are 10 classes"):
        open_source(tmp_path / "b")


def idx(values: NDArray[np.uint8]) -> bytes:
    return bytes((0, 0, 8, values.ndim)) + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()


@pytest.mark.parametrize(
    "name", ["{}-{}-idx{}-ubyte", "{}-{}.idx{}-ubyte", "{}-{}-idx{}-ubyte.gz", "x-{}-{}-idx{}-ubyte.gz"]
)
def test_idx(tmp_path: Path, name: str) -> None:
    images, right = RNG.integers(0, 256, (9, 28, 28), dtype=np.uint8), np.array([0, 3, 2, 1, 4, 0, 1, 2, 3], np.uint8)
    for part, cut in (("train", slice(0, 6)), ("t10k", slice(6, 9))):
        for what, values in (("images", images[cut]), ("labels", right[cut])):
            data = idx(values)
            (tmp_path / name.format(part, what, values.ndim)).write_bytes(
                gzip.compress(data) if ".gz" in name else data
            )
    source = open_source(tmp_path)
    assert (source.natural_size, source.classes) == (28, ("0", "1", "2", "3", "4"))
    assert labels(source, "train") + labels(source, "test") == right.tolist()
    assert np.array_equal(pictures(source, "test"), np.repeat(images[6:, :, :, None], 3, axis=3))
    assert [entry.key for entry in source.entries][5:7] == ["train/00005", "test/00000"]


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"\0\0\x08\x03" + struct.pack(">3I", 2**31, 2**31, 2**31), "its header claims"),
        (b"\0\0\x0d\x03" + bytes(12), "begins with 00 00 0d 03"),
        (b"\0\0\x08", "begins with 00 00 08"),
        (b"\0\0\x08\x03" + struct.pack(">3I", 2, 4, 4) + bytes(31), "32 values expected, 31 found"),
        (b"\0\0\x08\x03" + struct.pack(">3I", 2, 4, 4) + bytes(33), "32 values expected, more found"),
        (b"\0\0\x08\x03" + struct.pack(">3I", 3, 4, 4) + bytes(48), "2 labels for 3 images"),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_damaged_idx(tmp_path: Path, data: bytes, text: str, packed: bool) -> None:
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(np.zeros(2, np.uint8)))
    name = "train-images-idx3-ubyte" + (".gz" if packed else "")
    (tmp_path / name).write_bytes(gzip.compress(data) if packed else data)
    text = text if not packed or "claims" not in text else "its header claims"
    with pytest.raises(DataError, match=text):
        open_source(tmp_path)


def test_idx_files_that_are_missing(tmp_path: Path) -> None:
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx(np.zeros((2, 4, 4), np.uint8)))
    with pytest.raises(UsageError, match="train-labels-idx1-ubyte is missing"):
        open_source(tmp_path)


def write_idx(folder: Path, prefix: str, images: NDArray[np.uint8], right: list[int], end: str = "") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for part in ("train", "test" if prefix else "t10k"):
        for what, values in (("images", images), ("labels", np.array(right, np.uint8))):
            data = idx(values)
            name = f"{prefix}{part}-{what}-idx{values.ndim}-ubyte{end}"
            (folder / name).write_bytes(gzip.compress(data, 1) if end else data)


def test_emnist_is_turned_upright_and_has_its_own_labels(tmp_path: Path) -> None:
    upright = RNG.integers(0, 256, (6, 28, 28), dtype=np.uint8)
    right = [1, 26, 2, 3, 10, 1]
    write_idx(tmp_path, "emnist-letters-", upright.transpose(0, 2, 1), right, ".gz")
    source = open_source(tmp_path)
    assert (source.classes, source.name) == (("1", "2", "3", "10", "26"), "emnist-letters")
    assert "the labels are 1, 2, 3, 10, 26; output k of a net is" in " ".join(source.notes)
    mapping = tmp_path / "emnist-letters-mapping.txt"
    mapping.write_text("".join(f"{n} {64 + n} {96 + n}\n" for n in range(1, 27)))
    source = open_source(tmp_path)
    assert source.classes == ("Aa", "Bb", "Cc", "Jj", "Zz")
    assert [source.classes[label] for label in labels(source, "test")] == ["Aa", "Zz", "Bb", "Cc", "Jj", "Aa"]
    assert np.array_equal(pictures(source, "train"), np.repeat(upright[:, :, :, None], 3, axis=3))
    assert source.skipped == source.failed == ()
    assert "no picture has the labels 4, 5 ... 25; they are no classes" in " ".join(source.notes)
    for text, message in (
        ("1 65\n", "lacks the label 2"),
        ("1 x\n", "line 1"),
        ("1 65\n1 66\n", "label 1 is there twice"),
    ):
        mapping.write_text(text)
        with pytest.raises(DataError, match=message):
            open_source(tmp_path)


def test_several_idx_sets_in_a_folder_are_chosen_by_pointing_at_one(tmp_path: Path) -> None:
    images = RNG.integers(0, 256, (3, 28, 28), dtype=np.uint8)
    for name, right in (("emnist-digits-", [0, 1, 2]), ("emnist-balanced-", [46, 1, 2])):
        write_idx(tmp_path / "EMNIST/raw", name, images, right)
    (tmp_path / "EMNIST/raw/emnist-balanced-mapping.txt").write_text("1 49\n2 50\n46 116\n")
    text = r"several IDX sets: emnist-balanced, emnist-digits; point at the images of one.*emnist-balanced-test-images"
    for where in ("EMNIST", "EMNIST/raw", ""):
        with pytest.raises(UsageError, match=text):
            open_source(tmp_path / where)
    source = open_source(tmp_path / "EMNIST/raw/emnist-balanced-train-images-idx3-ubyte")
    assert (source.name, source.classes, labels(source, "train")) == ("emnist-balanced", ("1", "2", "t"), [2, 0, 1])


def test_torchvisions_roots(tmp_path: Path) -> None:
    images = RNG.integers(0, 256, (3, 28, 28), dtype=np.uint8)
    for end in ("", ".gz"):
        write_idx(tmp_path / "MNIST/raw", "", images, [0, 1, 2], end)
    for where in ("", "MNIST", "MNIST/raw"):
        source = open_source(tmp_path / where)
        assert (source.name, source.classes) == ("MNIST", ("0", "1", "2"))
        assert dict(source.skipped)["train-images-idx3-ubyte.gz"] == "train-images-idx3-ubyte is used"
    write_idx(tmp_path / "FashionMNIST/raw", "", images, [0, 1, 2])
    with pytest.raises(UsageError, match="several data sets: FashionMNIST/raw, MNIST/raw; point at one of them"):
        open_source(tmp_path)
    root = tmp_path / "cifar"
    write_cifar10(root / "cifar-10-batches-py", 2)
    (root / "cifar-10-python.tar.gz").write_bytes(b"as downloaded")
    assert open_source(root).name == "cifar10"
    (root / "cifar-100-python").mkdir()
    with pytest.raises(UsageError, match=r"cifar-10-batches-py, cifar-100-python; point"):
        open_source(root)


WNIDS = ("n00000007", "n00000003", "n00000005")  # in devkit order 1, 2, 3: not sorted


def picture(shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (shade, 0, 0)).save(buffer, "JPEG")
    return buffer.getvalue()


def tar_bytes(members: dict[str, bytes], mode: str = "w") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def train_tars() -> dict[str, bytes]:
    return {
        f"{wnid}.tar": tar_bytes({f"{wnid}_{n}.JPEG": picture(10 * k + n) for n in range(3)})
        for k, wnid in enumerate(WNIDS)
    }


def val_files() -> dict[str, bytes]:
    return {f"ILSVRC2012_val_{n:08d}.JPEG": picture(100 + n) for n in range(1, 5)}


def devkit() -> dict[str, bytes]:
    from scipy.io import savemat

    synsets = np.zeros((5, 1), dtype=[("ILSVRC2012_ID", object), ("WNID", object), ("words", object)])
    for n, wnid in enumerate((*WNIDS, "n00000001", "n00000002")):
        synsets[n, 0] = (float(n + 1), wnid, "words")
    buffer = io.BytesIO()
    savemat(buffer, {"synsets": synsets})
    return {"meta.mat": buffer.getvalue(), "ILSVRC2012_validation_ground_truth.txt": b"2\n1\n3\n1\n"}


RIGHT = {1: "n00000003", 2: "n00000007", 3: "n00000005", 4: "n00000007"}


def assert_ilsvrc(source: Source) -> None:
    assert (source.name, source.classes) == ("imagenet", tuple(sorted(WNIDS)))
    train = [entry for entry in source.entries if entry.split == "train"]
    assert len(train) == 9
    for entry in train:
        wnid, name = entry.key.split("/")[1:]
        assert source.classes[entry.label] == wnid
        assert source.read(entry) == picture(10 * WNIDS.index(wnid) + int(name.split("_")[1][0]))
    val = [entry for entry in source.entries if entry.split == "val"]
    assert len(val) == 4
    for entry in val:
        number = int(entry.key[-13:-5])
        assert source.classes[entry.label] == RIGHT[number]
        assert source.read(entry) == picture(100 + number)
    assert source.failed == ()


@pytest.mark.parametrize("train", ["tar", "tars", "folders", "root"])
@pytest.mark.parametrize("val", ["tar", "folder"])
@pytest.mark.parametrize("truth", ["devkit", "packed", "wnids", "indices"])
def test_ilsvrc(tmp_path: Path, train: str, val: str, truth: str) -> None:
    if train == "tar":
        (tmp_path / "ILSVRC2012_img_train.tar").write_bytes(tar_bytes(train_tars()))
    for name, data in train_tars().items():
        if train == "folders":
            (tmp_path / "train" / name[:9]).mkdir(parents=True)
            with tarfile.open(fileobj=io.BytesIO(data)) as tar:
                for member in tar:
                    (tmp_path / "train" / name[:9] / member.name).write_bytes(tar.extractfile(member).read())
        elif train != "tar":
            folder = tmp_path / ("train" if train == "tars" else "")
            folder.mkdir(exist_ok=True)
            (folder / name).write_bytes(data)
    if val == "tar":
        (tmp_path / "ILSVRC2012_img_val.tar").write_bytes(tar_bytes(val_files()))
    else:
        (tmp_path / "val").mkdir()
        for name, data in val_files().items():
            (tmp_path / "val" / name).write_bytes(data)
    if truth == "devkit":
        (tmp_path / "ILSVRC2012_devkit_t12/data").mkdir(parents=True)
        for name, data in devkit().items():
            (tmp_path / "ILSVRC2012_devkit_t12/data" / name).write_bytes(data)
    elif truth == "packed":
        files = {f"ILSVRC2012_devkit_t12/data/{name}": data for name, data in devkit().items()}
        (tmp_path / "ILSVRC2012_devkit_t12.tar.gz").write_bytes(tar_bytes(files, "w:gz"))
    else:
        order = sorted(WNIDS)
        what = {n: wnid if truth == "wnids" else str(order.index(wnid)) for n, wnid in RIGHT.items()}
        (tmp_path / "val.txt").write_text("".join(f"ILSVRC2012_val_{n:08d}.JPEG {w}\n" for n, w in what.items()))
    assert_ilsvrc(open_source(tmp_path))


def ilsvrc(root: Path) -> Path:
    (root / "ILSVRC2012_img_train.tar").write_bytes(tar_bytes(train_tars()))
    (root / "ILSVRC2012_img_val.tar").write_bytes(tar_bytes(val_files()))
    return root


def test_ilsvrc_without_a_ground_truth_stops(tmp_path: Path) -> None:
    ilsvrc(tmp_path)
    with pytest.raises(
        UsageError, match=r"no ground truth \(ILSVRC2012_val.*put ILSVRC2012_devkit_t12\.tar\.gz .* never assumed"
    ):
        open_source(tmp_path)
    name = "ILSVRC2012_validation_ground_truth.txt"
    (tmp_path / name).write_bytes(devkit()[name])
    with pytest.raises(UsageError, match=r"not in wnid order, and meta\.mat"):
        open_source(tmp_path)
    (tmp_path / "meta.mat").write_bytes(devkit()["meta.mat"][:200])
    with pytest.raises(DataError, match=r"meta\.mat can't be read"):
        open_source(tmp_path)


def test_ilsvrc_indices_that_do_not_fit_and_pictures_that_are_missing(tmp_path: Path) -> None:
    ilsvrc(tmp_path)
    (tmp_path / "val.txt").write_text("ILSVRC2012_val_00000001.JPEG 3\n")
    with pytest.raises(UsageError, match="index 3 is not below the 3 classes"):
        open_source(tmp_path)
    rows = ["00000001.JPEG n00000003", "00000002.JPEG n99999999", "00000009.JPEG n00000003"]
    (tmp_path / "val.txt").write_text("".join(f"ILSVRC2012_val_{row}\n" for row in rows))
    source = open_source(tmp_path)
    assert dict(source.failed) == {
        "val/ILSVRC2012_val_00000003.JPEG": "not in the ground truth",
        "val/ILSVRC2012_val_00000004.JPEG": "not in the ground truth",
        "val/ILSVRC2012_val_00000009.JPEG": "in the ground truth, but missing",
    }
    assert dict(source.skipped)["val/ILSVRC2012_val_00000002.JPEG"] == "its class n99999999 has no training pictures"


def data_folder() -> Path:
    root = os.environ.get("CONVNET_DATA")
    if not root:
        pytest.skip("CONVNET_DATA is not set")
    return Path(root)


@pytest.mark.data
def test_mnist() -> None:
    source = open_source(data_folder() / "mnist")
    assert (source.name, source.natural_size, len(source.classes)) == ("mnist", 28, 10)
    assert (len(labels(source, "train")), len(labels(source, "test"))) == (60_000, 10_000)
    assert labels(source, "train")[:5] == [5, 0, 4, 1, 9]


@pytest.mark.data
def test_real_cifar10(tmp_path: Path) -> None:
    root = data_folder()
    subprocess.run([sys.executable, root / "unpack-cifar10", tmp_path], check=True, capture_output=True)
    source = open_source(tmp_path)
    assert source.classes[:3] == ("airplane", "automobile", "bird")
    assert (len(labels(source, "train")), len(labels(source, "test"))) == (50_000, 10_000)
    assert labels(source, "train")[:5] == [6, 9, 9, 4, 1]
