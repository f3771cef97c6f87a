"""A store made in parts, in any number and order, killed, doubled, at once: the bytes of one process's, or none."""

import gzip
import json
import os
import random
import re
import shutil
import signal
import sys
import tarfile
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

from convnet.data import prepare as preparing
from convnet.data.preparation import records
from convnet.data.preparation.commit import merge
from convnet.data.prepare import PartOfStore, prepare, prepare_part
from convnet.data.resize import Settings
from convnet.data.sources import Source, open_source
from convnet.data.store import Store
from convnet.errors import ConvnetError, DataError, UsageError
from convnet.progress import Silent
from forked import run
from pictures import content, encoded, photo, write_photos

SIZE = 10
SETTINGS = Settings(SIZE, SIZE, "raw")
PER_SHARD = 5  # pictures: 36 of training are 8 shards, 11 of validation 3
SHARDS = 11


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preparing, "SHARD_BYTES", PER_SHARD * (3 * SIZE**2 + 128 + 3 * 512))
    monkeypatch.setattr(preparing, "JPEG_PICTURES", PER_SHARD)
    monkeypatch.setattr(os, "fsync", lambda handle: None)  # what reaches the disk when is not in question


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_photos(tmp_path_factory.mktemp("photos"), {"train/a": 21, "train/b": 14, "val/a": 5, "val/b": 6})
    (root / "train/a/broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (root / "train/a/text.txt").write_bytes(b"no picture")
    return root


@pytest.fixture
def source(folder: Path) -> Source:
    return open_source(folder)


class Told(Silent):
    """Keeps what is noted and warned of."""

    def __init__(self) -> None:
        self.notes, self.warnings = list[str](), list[str]()

    def note(self, text: str) -> None:
        self.notes.append(text)

    def warn(self, text: str) -> None:
        self.warnings.append(text)


def made_by_one(source: Source, path: Path, settings: Settings = SETTINGS) -> dict[str, bytes]:
    prepare(source, path, size=SIZE, encoding=settings.encoding, fit=settings.fit, workers=1)
    return content(path)


def part(source: Source, path: Path, i: int, n: int, settings: Settings = SETTINGS) -> PartOfStore:
    made = prepare_part(source, path, (i, n), settings, workers=1)
    assert isinstance(made, PartOfStore)
    return made


@pytest.mark.parametrize("n", [1, 2, 7, 64])
@pytest.mark.parametrize("settings", [SETTINGS, Settings(SIZE, SIZE, "jpeg", fit="pad")], ids=["raw", "jpeg"])
def test_parts_in_any_order_make_the_store_of_one_process(
    source: Source, tmp_path: Path, n: int, settings: Settings
) -> None:
    order = list(range(1, n + 1))
    random.Random(n).shuffle(order)
    made = [part(source, tmp_path / "s", i, n, settings) for i in order]
    assert not (tmp_path / "s/store.json").exists()
    assert sorted(shard for each in made for shard in each.shards) == sorted(
        name for name in content(tmp_path / "s") if name.endswith(".tar")
    )
    assert (sum(each.pictures for each in made), sum(each.failed for each in made)) == (47, 1)
    assert {each.n_shards for each in made} == {SHARDS}
    assert max(len(each.shards) for each in made) - min(len(each.shards) for each in made) <= 1
    assert merge(tmp_path / "s", workers=1).header["counts"]["used"] == 46
    assert content(tmp_path / "s") == made_by_one(source, tmp_path / "right", settings)


def test_merging_twice_and_a_late_part_have_nothing_to_do(source: Source, tmp_path: Path) -> None:
    part(source, tmp_path / "s", 1, 1)
    merge(tmp_path / "s")
    right, told = content(tmp_path / "s"), Told()
    assert merge(tmp_path / "s", progress=told).path == tmp_path / "s"
    assert isinstance(prepare_part(source, tmp_path / "s", (1, 1), SETTINGS, progress=told), Store)
    assert told.notes == [
        f"{tmp_path / 's'} is merged already: nothing to do",
        f"{tmp_path / 's'} is already prepared from these pictures: nothing to do",
    ]
    (tmp_path / "s/.work").mkdir()  # of a merging that was killed at its very end
    (tmp_path / "s/.work/plan").write_bytes(b"")
    merge(tmp_path / "s")
    assert content(tmp_path / "s") == right


def test_one_process_goes_on_where_parts_have_begun(source: Source, tmp_path: Path) -> None:
    part(source, tmp_path / "s", 2, 3)
    assert made_by_one(source, tmp_path / "s") == made_by_one(source, tmp_path / "right")


def test_parts_go_on_where_one_process_was_stopped_and_another_number_of_them(source: Source, tmp_path: Path) -> None:
    class Stop(Silent):
        def update(self, done: int, **values: str) -> None:
            if done >= 20:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(source, tmp_path / "s", size=SIZE, workers=1, progress=Stop())
    part(source, tmp_path / "s", 2, 2)
    with pytest.raises(UsageError, match=r"of 11 shards 2 are missing or damaged: train 3-4; make part 1 of 2 again"):
        merge(tmp_path / "s")
    for i in (3, 1, 2):
        part(source, tmp_path / "s", i, 3)
    merge(tmp_path / "s")
    assert content(tmp_path / "s") == made_by_one(source, tmp_path / "right")


# killed, and several at once

EVENTS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree", "os.truncate"}


def start(work: Callable[[], object], kill_at: int = 0) -> int:
    """A process that does it, and is killed at one of its file operations."""
    child = os.fork()
    if child:
        return child
    count = [0]

    def hook(event: str, details: object) -> None:
        if event in EVENTS:
            count[0] += 1
            if count[0] == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    try:
        work()
        os._exit(0)
    finally:
        traceback.print_exc()
        os._exit(1)


def killed(folder: str, place: str, *numbers: str) -> None:
    """Prints how each process ended that made a part or merged; called in a young process, as forks need it."""
    preparing.SHARD_BYTES, n = map(int, numbers)
    records.CHUNK, os.fsync = 3, lambda handle: None  # type: ignore[assignment]
    source, out = open_source(folder), Path(place)
    choice, order = random.Random(n), list(range(1, n + 1))
    choice.shuffle(order)

    def make(i: int) -> Callable[[], object]:
        return lambda: prepare_part(source, out, (i, n), SETTINGS, workers=1 + i % 2)

    def ended(children: list[int]) -> list[int]:
        return [os.waitpid(child, 0)[1] for child in children]

    killed = []
    for i in order:  # each is killed at a moment of its beginning and at one of its work
        killed += ended([start(make(i), choice.randrange(1, 10)), start(make(i), choice.randrange(20, 60))])
    again = ended([start(make(i)) for i in order + order[:2]])  # all at once, two of them twice
    merged = ended([start(lambda: merge(out), 40), start(lambda: merge(out), 60)] if n == 2 else [])
    print(json.dumps([killed, again, merged, ended([start(lambda: merge(out))])]))


@pytest.mark.parametrize("n", [1, 2, 7, 24, pytest.param(64, marks=pytest.mark.large)])
def test_each_part_killed_and_then_all_at_once(folder: Path, source: Source, tmp_path: Path, n: int) -> None:
    words = [str(word) for word in (folder, tmp_path / "s", preparing.SHARD_BYTES, n)]
    (done,) = run("test_parts:killed", [(1, words)])
    assert done.codes == [0], done.stderr
    killed, again, _, merged = json.loads(done.stdout)
    hits = sum(status == 9 for status in killed)
    assert hits >= 0.9 * n, "of the two kills of each part one fires"
    assert set(again) == {0}, done.stderr
    assert merged == [0], done.stderr
    assert content(tmp_path / "s") == made_by_one(source, tmp_path / "right")
    print(f"{hits} kills of {len(killed)} fired")


# refusals


def everything(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


def test_a_merge_names_what_is_missing_and_changes_nothing(source: Source, tmp_path: Path) -> None:
    for i in (2, 5, 7):
        part(source, tmp_path / "s", i, 7)
    before = everything(tmp_path / "s")
    text = (
        f"{tmp_path / 's'}: of 11 shards 6 are missing or damaged: train 0, 3-5, 7; val 0; make part 1, 3-4, 6 of 7 "
        "again (--part i/7), and then merge"
    )
    with pytest.raises(UsageError, match=re.escape(text)):
        merge(tmp_path / "s")
    assert everything(tmp_path / "s") == before


def test_a_merge_names_what_is_damaged_and_its_part_makes_it_anew(source: Source, tmp_path: Path) -> None:
    for i in (1, 2):
        part(source, tmp_path / "s", i, 2)
    shard = tmp_path / "s/train-00001.tar"
    data = bytearray(shard.read_bytes())
    data[5000] ^= 1
    shard.write_bytes(data)
    told = Told()
    with pytest.raises(DataError, match=r"of 11 shards 1 are missing or damaged: train 1; make part 1 of 2 again"):
        merge(tmp_path / "s", progress=told)
    assert [f"{shard} is damaged at byte" in text for text in told.warnings] == [True]
    part(source, tmp_path / "s", 1, 2)
    merge(tmp_path / "s")
    assert content(tmp_path / "s") == made_by_one(source, tmp_path / "right")


@pytest.mark.parametrize(
    ("settings", "change", "text"),
    [
        (Settings(9, 10, "raw"), None, "was begun with size 10, not 9"),
        (Settings(SIZE, SIZE, "jpeg"), None, "was begun with encoding raw, not jpeg"),
        (Settings(SIZE, SIZE, "raw", 1000), None, "was begun with max_pixels 268435456, not 1000"),
        (Settings(SIZE, SIZE, "raw", fit="pad"), None, "was begun with fit crop, not pad"),
        (
            SETTINGS,
            lambda copy: os.utime(next(copy.glob("val/a/*.*")), (1, 1)),
            "begun with files of other sizes or times",
        ),
        (SETTINGS, lambda copy: next(copy.glob("val/a/*.*")).unlink(), "was begun with other pictures or classes"),
        (SETTINGS, lambda copy: (copy / "train/a/text.txt").unlink(), "was begun with other files left out"),
    ],
)
def test_parts_with_another_source_or_other_settings_are_refused(
    folder: Path, tmp_path: Path, settings: Settings, change: Callable[[Path], object] | None, text: str
) -> None:
    copy = tmp_path / "in"
    shutil.copytree(folder, copy)
    part(open_source(copy), tmp_path / "s", 1, 2)
    if change is not None:
        change(copy)
    before = everything(tmp_path / "s")
    with pytest.raises(UsageError, match=text) as caught:
        part(open_source(copy), tmp_path / "s", 2, 2, settings)
    assert "every part needs the same source and settings" in str(caught.value)
    assert everything(tmp_path / "s") == before


def test_a_damaged_plan_is_never_gone_on_with(source: Source, tmp_path: Path) -> None:
    part(source, tmp_path / "s", 1, 2)
    plan = tmp_path / "s/.work/plan"
    whole = plan.read_bytes()
    for place in range(0, 8 * len(whole), 97):
        data = bytearray(whole)
        data[place // 8] ^= 1 << place % 8
        plan.write_bytes(data)
        for work in (lambda: part(source, tmp_path / "s", 2, 2), lambda: merge(tmp_path / "s")):
            with pytest.raises(DataError, match=f"{re.escape(str(plan))} is damaged: its sha256 does not match"):
                work()


@pytest.mark.parametrize("numbers", [(0, 4), (5, 4), (-1, 4), (1, 0), (0, 0)])
def test_a_part_is_one_of_n(source: Source, tmp_path: Path, numbers: tuple[int, int]) -> None:
    with pytest.raises(UsageError, match="must be i/n with i from 1 to n"):
        part(source, tmp_path / "s", *numbers)
    assert not (tmp_path / "s").exists()


def test_merging_and_preparing_wait_for_no_part(source: Source, tmp_path: Path) -> None:
    errors = list[ConvnetError]()

    class Others(Silent):
        def update(self, done: int, **values: str) -> None:
            for work in (lambda: merge(tmp_path / "s"), lambda: prepare(source, tmp_path / "s", size=SIZE)):
                with pytest.raises(UsageError) as caught:
                    work()
                errors.append(caught.value)
            assert part(source, tmp_path / "s", 2, 2).pictures  # while another part is made

    prepare_part(source, tmp_path / "s", (1, 2), SETTINGS, workers=1, progress=Others())
    assert {str(error) for error in errors} == {
        f"{tmp_path / 's'} is in use by one or more processes (preparing parts); wait for it, or choose another folder"
    }
    merge(tmp_path / "s")
    assert content(tmp_path / "s") == made_by_one(source, tmp_path / "right")


def test_a_folder_of_something_else_is_left_alone(source: Source, tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(b"precious")
    with pytest.raises(UsageError, match=r"is not empty \(it holds 'photo.jpg'\)"):
        part(source, tmp_path, 1, 2)
    for place in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UsageError, match="holds no parts of a store; make them with: convnet prepare SOURCE"):
            merge(place)
    assert {path.name for path in tmp_path.iterdir()} == {"photo.jpg"}


def test_classes_that_are_unfit_are_told_when_merged(tmp_path: Path) -> None:
    for name in ("a/1", "a/2", "b/empty"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / f"{name}.png").write_bytes(
            b"" if "empty" in name else encoded(photo(len(name), SIZE, SIZE), "PNG")
        )
    source = open_source(tmp_path / "in", split=0)
    part(source, tmp_path / "s", 1, 1)
    with pytest.raises(DataError, match=r"class 'b' has no picture that can be used; failed: 'b/empty\.png': empty"):
        merge(tmp_path / "s")


def test_each_part_unpacks_a_compressed_tar_for_itself(folder: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "set.tar", "w") as tar:
        tar.add(folder, "set")
    (tmp_path / "set.tgz").write_bytes(gzip.compress((tmp_path / "set.tar").read_bytes(), 1))

    def opened(work: str) -> Source:
        return open_source(tmp_path / "set.tgz", work=tmp_path / work)

    for i in (1, 2):
        part(opened(f"s/.work/{i}-of-2"), tmp_path / "s", i, 2)
    merge(tmp_path / "s")
    assert content(tmp_path / "s") == made_by_one(opened("right/.work"), tmp_path / "right")
