"""A large split's index, mapped: the same as one that is read whole, and nothing of it is used that wasn't checked."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from convnet.data import index as of_index
from convnet.data.check import check_store
from convnet.data.prepare import prepare
from convnet.data.sources import Entry, Source
from convnet.data.store import Store
from convnet.errors import DataError
from pictures import photo

BENCHMARK = Path(__file__).parents[2] / "benchmarks/index.py"
N = 330  # pictures: 10 blocks and 10 rows


def source() -> Source:
    """N pictures of 8 x 8 pixels in 3 classes."""
    entries = [Entry(f"train/{i % 7}\n/{i:04d}", "train", 3 * i // N, i, str(i)) for i in range(N)]
    return Source(
        "counted", "test", ("a", "b", "c"), entries, (), (), 8, (), lambda entry: photo(int(entry.place), 8, 8)
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store whose index is small, and so is read whole."""
    return prepare(source(), tmp_path_factory.mktemp("whole") / "store")


@pytest.fixture
def small_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(of_index, "MAPPED", 1 << 12)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same pictures, with an index that counts as large."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(of_index, "MAPPED", 1 << 12)
        return prepare(source(), tmp_path_factory.mktemp("large") / "store").path


@pytest.fixture
def mapped(large: Path, small_limit: None, tmp_path: Path) -> Store:
    """A copy of it, to be damaged."""
    return Store(shutil.copytree(large, tmp_path / "store"))


def test_a_mapped_index_gives_what_one_that_is_read_gives(whole: Store, mapped: Store) -> None:
    one, other = whole.split("train"), mapped.split("train")
    assert (one.rows.mapped, other.rows.mapped is None) == (None, False)
    assert "train.blocks.npy" not in whole.header["files"]
    for name in ("train.index.npy", "train.keys.jsonl"):
        assert whole.header["files"][name] == mapped.header["files"][name]
    ids = np.random.default_rng(0).permutation(N)[:50]
    for at in (ids, slice(None), slice(70, 3, -7), 329, -1, np.array([-1, 0, 329])):
        np.testing.assert_array_equal(one.labels[at], other.labels[at])
        np.testing.assert_array_equal(one.rows[at], other.rows[at])
    assert one.describe(ids) == f"{whole.path}: 50 pictures in train-00000.tar"
    assert other.describe(ids) == f"{mapped.path}: 50 pictures in train-00000.tar"
    assert len(one.labels) == len(other.labels) == len(other.rows) == len(other.keys) == N
    assert list(one.keys) == list(other.keys)
    assert other.keys[-1] == one.keys[329]
    assert other.keys[60:70] == one.keys[60:70]
    for i in (0, 31, 32, 329):
        np.testing.assert_array_equal(one.picture(i), other.picture(i))


def test_labels_by_a_nets_classes(whole: Store, mapped: Store) -> None:
    classes = ["other", *reversed(whole.classes)]
    one, other = (store.with_labels_of(classes, "net").split("train") for store in (whole, mapped))
    np.testing.assert_array_equal(one.labels[:], other.labels[:])
    assert [classes[k] for k in other.labels[:]] == [whole.classes[k] for k in whole.split("train").labels[:]]


def test_only_blocks_of_rows_that_are_used_are_read(mapped: Store) -> None:
    """Damage elsewhere isn't noticed when the store is opened: `convnet check` and who uses the row tell it."""
    file = mapped.path / "train.index.npy"
    flip(file, 128 + 80 * 200)
    rows = Store(mapped.path).split("train").rows
    np.testing.assert_array_equal(rows[:192], mapped.split("train").rows[:192])
    for at in (200, slice(190, 195), np.array([3, 223])):
        with pytest.raises(
            DataError, match=r"train.index.npy is damaged in rows 192 to 223: .*; prepare the store again"
        ):
            _ = rows[at]
    with pytest.raises(DataError, match="rows 192 to 223"):
        Store(mapped.path).split("train").picture(199)
    with pytest.raises(DataError, match="rows 192 to 223"):
        _ = Store(mapped.path).split("train").labels[np.arange(N)]
    assert any("train.index.npy is damaged" in problem.text for problem in check_store(mapped.path).problems)


def test_every_change_of_the_index_is_found(mapped: Store) -> None:
    for byte in range(0, 80 * N + 128, 487):
        flip(mapped.path / "train.index.npy", byte)
        with pytest.raises(DataError, match=r"train.index.npy"):
            _ = Store(mapped.path).split("train").rows[:]
        flip(mapped.path / "train.index.npy", byte)
    assert len(Store(mapped.path).split("train").rows[:]) == N


@pytest.mark.parametrize("at", [0, 70, 329])
def test_a_changed_name_is_found_when_its_block_is_read(mapped: Store, at: int) -> None:
    file = mapped.path / "train.keys.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    flip(file, len(b"".join(lines[:at])) + 2)
    keys = Store(mapped.path).split("train").keys
    first = at // 32 * 32
    with pytest.raises(DataError, match=rf"the names {first} to {min(first + 31, 329)} are damaged: "):
        _ = keys[at]
    assert keys[150] == mapped.split("train").keys[150]


def test_the_digests_are_under_the_headers_sha256(mapped: Store) -> None:
    flip(mapped.path / "train.blocks.npy", 300)
    with pytest.raises(DataError, match=r"train.blocks.npy is damaged: its sha256 does not match"):
        Store(mapped.path)


def test_a_mapped_index_that_was_cut_is_an_error_not_the_end(mapped: Store) -> None:
    file = mapped.path / "train.index.npy"
    size = file.stat().st_size
    with open(file, "r+b") as opened:
        opened.truncate(size - 80)
    with pytest.raises(DataError, match=f"train.index.npy has {size - 80} bytes instead of {size}"):
        mapped.split("train").check_lengths()
    with pytest.raises(DataError, match=f"train.index.npy has {size - 80} bytes instead of {size}"):
        Store(mapped.path)


def test_a_large_index_of_an_earlier_version_is_read_whole(whole: Store, tmp_path: Path, small_limit: None) -> None:
    path = shutil.copytree(whole.path, tmp_path / "store")
    assert Store(path).split("train").rows.mapped is None
    flip(path / "train.index.npy", 5000)
    with pytest.raises(DataError, match=r"train.index.npy is damaged: its sha256 does not match"):
        Store(path)


@pytest.mark.large
def test_15_million_pictures_open_in_200_mb(tmp_path: Path) -> None:
    """Resident, in a process of its own, beside what Python and torch have."""
    command = [sys.executable, BENCHMARK, tmp_path, "--json"]
    told = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    assert told["open_bytes"] - told["before_bytes"] < 200e6


def flip(file: Path, byte: int) -> None:
    with open(file, "r+b") as opened:
        opened.seek(byte)
        (old,) = opened.read(1)
        opened.seek(byte)
        opened.write(bytes([old ^ 4]))
