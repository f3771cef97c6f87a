"""Batches made on a device are the loader's: kept there, packed there, or copied there; and what is chosen when."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import Run
from convnet.data import augment, device_loader, preprocess
from convnet.data.device_loader import DeviceLoader, choose, load, squares
from convnet.data.loader import Loader
from convnet.data.store import Store
from convnet.errors import UsageError
from convnet.kernels import planes
from convnet.kernels.cuda import available as on_cuda
from convnet.progress import Silent
from convnet.recipe import Recipe
from kernel_place import PLACE

pytestmark = pytest.mark.cuda
RECIPE = Recipe(size=32, crop=24, far_edge=True, batch=16, colour_std=0.1, seed=3, pad=2)


class Notes(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, text: str) -> None:
        self.lines.append(text)


def loader(store: Store, recipe: Recipe = RECIPE, place: torch.device = PLACE, workers: int = 1) -> Loader:
    split = store.split("train")
    made = preprocess.of_recipe(recipe, store.mean_picture, store.statistics.mean_rgb)
    return Loader(split, store.statistics, np.arange(7, 47), recipe, made, place, workers)


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize(("mean", "workers"), [("picture", 0), ("rgb", 2), ("none", 1), ("scaled", 1)])
def test_batches_are_the_loaders(photos: Store, kept: bool, mean: str, workers: int) -> None:
    scaled = {"mean": "rgb", "pad": 0, "smallest_size": 28}
    recipe = replace(RECIPE, **(scaled if mean == "scaled" else {"mean": mean}))  # type: ignore[arg-type]
    if mean == "scaled" and kept:
        pytest.skip("pictures whose crops are scaled never lie on the device")
    plain = loader(photos, recipe, torch.device("cpu"), 0)
    own = loader(photos, recipe, workers=workers)
    made = DeviceLoader(own, load(own, False, Silent()) if kept else None)
    assert len(made) == len(plain) == 3
    n = 0
    for found, expected in zip(made.epoch(2, start=1), plain.epoch(2, start=1), strict=True):
        assert (found.ids == expected.ids).all()
        assert found.first == expected.first == 0
        assert torch.equal(found.labels.cpu(), expected.labels)
        assert found.images.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(found.images.cpu(), expected.images, rtol=1e-5, atol=1e-4)
        n += len(found.ids)
    assert n == len(plain.ids) - 16


def test_packed_pictures_are_those_that_were_packed(photos: Store) -> None:
    own = loader(photos)
    kept = load(own, True, Silent())
    assert kept.shape == (len(own.ids), planes.n_bytes(32))
    batch = next(DeviceLoader(own, kept).epoch(1))
    how = augment.sample(RECIPE, photos.statistics, 1, batch.ids)
    packed = planes.unpack(planes.pack(squares(own, batch.ids))).numpy()
    border = np.pad(packed, ((0, 0), (2, 2), (2, 2), (0, 0)))
    crops = [
        border[i, t + 2 : t + 26, w + 2 : w + 26] for i, (t, w) in enumerate(zip(how.tops, how.lefts, strict=True))
    ]
    expected = augment.plain_input(np.stack(crops), how, own.preprocessing, torch.device("cpu"), torch.float32)
    torch.testing.assert_close(batch.images.cpu(), expected, rtol=1e-5, atol=1e-4)


def test_damage_is_found_when_pictures_go_to_the_device(photos: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    from convnet.errors import DataError

    own = loader(Store(photos.path))
    monkeypatch.setattr("convnet.data.store.weighted_sum", lambda record: 0)
    with pytest.raises(DataError, match="is damaged at picture"):
        load(own, False, Silent())


@pytest.mark.parametrize(
    ("asked", "room", "says"),
    [
        ("auto", 1.0, "the training pictures lie on the device as they are"),
        ("auto", 0.9, "pictures go to the device a batch ahead: the training pictures would take"),
        ("420", 0.6, "the training pictures lie on the device as 4:2:0 planes"),
        ("no", 9.0, "pictures go to the device a batch ahead: as asked"),
    ],
)
def test_what_is_chosen(photos: Store, asked, room: float, says: str, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    """By the room that is left when a training step has twice its memory and the reserve stays free."""
    own, notes = loader(photos), Notes()
    n_bytes = len(own.ids) * 32 * 32 * 3
    monkeypatch.setattr(on_cuda, "serve", lambda place: True)
    monkeypatch.setattr(device_loader, "free", lambda place: device_loader.RESERVE + 2000 + int(room * n_bytes))
    found = choose(own, asked, lambda: 1000, notes)
    assert isinstance(found, DeviceLoader)
    assert notes.lines[0].startswith(says)
    assert (found.pictures is None) == ("ahead" in says)


def test_what_cannot_be_is_refused(photos: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    own, grey = loader(photos), loader(photos, replace(RECIPE, channels="grey", colour_std=0.0))
    monkeypatch.setattr(on_cuda, "serve", lambda place: True)
    monkeypatch.setattr(device_loader, "free", lambda place: 0)
    for asked, hint in (
        ("raw", "--resident 420 takes half, or leave it out"),
        ("420", "GiB that training leaves; leave"),
    ):
        with pytest.raises(UsageError, match=hint):
            choose(own, asked, lambda: 0, Silent())  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="--resident raw: it is for pictures in colour; leave it out"):
        choose(grey, "raw", lambda: 0, Silent())
    assert choose(grey, "auto", lambda: 0, Silent()) is grey
    with pytest.raises(UsageError, match="--resident yes: it must be auto, raw, 420 or no"):
        choose(own, "yes", lambda: 0, Silent())  # type: ignore[arg-type]


def test_crops_that_are_scaled_are_copied(photos: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    own, notes = loader(photos, replace(RECIPE, mean="rgb", pad=0, crop_area=0.5)), Notes()
    monkeypatch.setattr(on_cuda, "serve", lambda place: True)
    monkeypatch.setattr(device_loader, "free", lambda place: 1 << 40)
    made = choose(own, "auto", lambda: 0, notes)
    assert isinstance(made, DeviceLoader)
    assert made.pictures is None
    why = "the recipe's crops are scaled, each before it is copied"
    assert notes.lines == [f"pictures go to the device a batch ahead: {why}"]
    with pytest.raises(UsageError, match=f"--resident raw: {why}; leave it out"):
        choose(own, "raw", lambda: 0, Silent())


def test_elsewhere_the_loader_stays(photos: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    own = loader(photos, place=torch.device("cpu"))
    monkeypatch.setattr(on_cuda, "serve", lambda place: False)
    assert choose(own, "auto", lambda: 0, Silent()) is own
    with pytest.raises(
        UsageError, match="--resident 420: it needs a CUDA device with Triton, this is cpu; leave it out"
    ):
        choose(own, "420", lambda: 0, Silent())


def test_the_command_refuses_it_before_there_is_a_run(run: Run, photos: Store, tmp_path: Path) -> None:
    arguments = ("train", photos.path, "--recipe", "cifar_18", "--out", tmp_path / "run")
    code, _, text = run(*arguments, "--resident", "some")
    assert (code, text.splitlines()[-1]) == (2, "convnet: --resident some: it must be auto, raw, 420 or no")
    code, _, text = run(*arguments, "--set", "channels=grey", "--set", "colour_std=0", "--resident", "420")
    assert (code, "convnet: --resident 420: it is for pictures in colour; leave it out" in text) == (2, True)
    assert not (tmp_path / "run").exists()
