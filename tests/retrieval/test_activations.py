"""The activations of pictures, in parts, against the net's own trace; averaged over views, against a loop."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import convnet
from conftest import trained_net
from convnet.data.preprocess import Preprocessing
from convnet.data.store import Store
from convnet.errors import UsageError
from convnet.evaluation.seen import from_store
from convnet.evaluation.trained_net import TrainedNet
from convnet.nets import create_model
from convnet.nets.layers import sliding
from convnet.retrieval import activations as asking
from convnet.retrieval.activations import activations, stages_of
from convnet.retrieval.pictures import of_files, of_split, pictures_at

HOW = Preprocessing(size=32, pad=0, crop=32, channels="rgb", mean=None, scale=1.0, offset=0.0, shorter_side=32)


@pytest.fixture(scope="module")
def net(photos: Store) -> TrainedNet:
    """CIFAR's net of 13 % on crops of 24 of squares of 32."""
    how = replace(HOW, crop=24, mean=photos.mean_picture)
    return trained_net(create_model("cifar_13", seed=0, num_classes=3), how)


def write(folder: Path, n: int) -> Path:
    folder.mkdir()
    for i in range(n):
        pixels = np.random.default_rng(i).integers(0, 256, (32, 40, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return folder


def test_each_stage_is_that_of_trace(net: TrainedNet, photos: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    split, stages = photos.split("val"), stages_of(net, "all")
    seen = from_store(split, range(split.n), net.preprocessing)
    assert stages == list(net.trace(seen[:1]))
    monkeypatch.setattr(asking, "BATCH", 7)
    parts = list(activations(net, of_split(split), stages))
    assert [len(part.keys) for part in parts] == [7, 7, 7, 7, 2]
    assert [key for part in parts for key in part.keys] == list(split.keys)
    assert np.array_equal(np.concatenate([part.labels for part in parts]), split.labels[:])
    for part in parts:
        traced = net.trace(seen[part.done - len(part.keys) : part.done])  # the same batch: the same to the last bit
        assert list(part.stages) == list(traced)
        for stage, x in traced.items():
            assert np.array_equal(part.stages[stage], x.numpy())
    later = list(activations(net, of_split(split), stages, first=parts[1].done))
    assert [part.keys for part in later] == [part.keys for part in parts[2:]]
    assert all(np.array_equal(a.stages[stage], b.stages[stage])
               for a, b in zip(later, parts[2:], strict=True) for stage in stages)  # fmt: skip


def test_columns_are_parts_of_their_stage(photos: Store) -> None:
    net = trained_net(create_model("cifar_13", seed=0, num_classes=3), replace(HOW, crop=24))
    net.net.columns = 2
    (part,) = activations(net, of_split(photos.split("val")), ["conv2.1", "conv2"])
    assert np.array_equal(part.stages["conv2.1"], part.stages["conv2"][:, 32:])


def test_views_are_averaged(net: TrainedNet, photos: Store) -> None:
    split = photos.split("val")
    (found,) = activations(net, of_split(split), ["pool2", "relu4"], views="ten-crop")
    squares = torch.from_numpy(np.stack([split.square(i) for i in range(split.n)])).float()
    images = (squares - torch.from_numpy(photos.mean_picture)).permute(0, 3, 1, 2) * net.preprocessing.scale
    corners = [(0, 0), (0, 8), (8, 0), (8, 8), (4, 4)]
    crops = [images[:, :, y : y + 24, x : x + 24] for y, x in corners]
    views = [net.trace(view, found.stages) for crop in crops for view in (crop, crop.flip(3))]
    for stage, x in found.stages.items():
        mean = torch.stack([view[stage] for view in views]).double().mean(0)
        scale = float(mean.abs().max())
        assert np.abs(x - mean.numpy()).max() < 1e-5 * scale  # float32 sums of other batches


def test_dense_is_averaged_over_the_picture_and_its_mirror(tmp_path: Path) -> None:
    net = trained_net(create_model("vgg_a", seed=0, num_classes=3, input_size=32), HOW)
    pictures = of_files([write(tmp_path / "in", 2)])
    found = list(activations(net, pictures, ["conv2_1", "relu7"], views="dense", scales="64"))
    assert found[0].stages["relu7"].shape == (2, 4096)
    for i, key in enumerate(found[0].keys):
        pixels = np.asarray(Image.open(tmp_path / "in" / key).resize((80, 64), Image.Resampling.BICUBIC))
        image = torch.from_numpy(pixels.copy()).float().permute(2, 0, 1)[None]
        views = [convnet.trace(sliding(net.net), view, ["conv2_1", "relu7"]) for view in (image, image.flip(3))]
        for stage in ("conv2_1", "relu7"):
            mean = torch.stack([view[stage].mean((2, 3))[0] for view in views]).mean(0).numpy()
            difference = np.abs(found[0].stages[stage][i] - mean).max()
            assert difference < 1e-4 * np.abs(mean).max()  # float32 sums in another order


def test_large_stages_are_asked_for_a_few_pictures_at_a_time() -> None:
    assert asking._batch({"conv1": (96, 55, 55), "relu1": (96, 55, 55)}) == 2**24 // (2 * 96 * 55 * 55)
    assert asking._batch({"fc7": (4096,)}) == asking.BATCH
    assert asking._batch({"maps": (2**25,)}) == 1


def test_any_folder_will_do(net: TrainedNet, tmp_path: Path) -> None:
    folder = write(tmp_path / "in", 3)
    (folder / "sub").mkdir()
    shutil.move(folder / "1.png", folder / "sub" / "1.png")
    (folder / "2.png").write_bytes((folder / "0.png").read_bytes()[:-20])
    (folder / "notes.txt").write_text("no picture", encoding="utf-8")
    pictures = pictures_at([folder])
    assert pictures.keys == ("0.png", "2.png", "sub/1.png")
    assert [(row["status"], row["key"]) for row in pictures.odd] == [("skipped", "notes.txt")]
    (part,) = activations(net, pictures, ["fc10"])
    assert part.keys == ["0.png", "sub/1.png"]
    assert part.labels is None
    assert [(row["status"], row["key"]) for row in part.odd] == [("failed", "2.png")]
    paths = [folder / "0.png", folder / "sub" / "1.png"]
    assert np.array_equal(part.stages["fc10"], net.trace(paths)["fc10"].numpy())
    named = pictures_at(paths)
    assert named.keys == tuple(map(str, paths))
    assert named.identity != replace(pictures).identity


def test_what_is_wrong_is_said(net: TrainedNet, photos: Store, tmp_path: Path) -> None:
    folder = write(tmp_path / "in", 1)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="unknown stage 'fc7'"):
        stages_of(net, "fc7")
    with pytest.raises(UsageError, match="no pictures there"):
        pictures_at([tmp_path / "empty"])
    with pytest.raises(UsageError, match="is named twice"):
        pictures_at([folder / "0.png", folder / "0.png"])
    with pytest.raises(UsageError, match="No such file"):
        pictures_at([tmp_path / "none"])
    with pytest.raises(UsageError, match="--split val is for a store"):
        pictures_at([folder], "val")
    with pytest.raises(UsageError, match="choose one of them"):
        next(activations(net, of_files([folder]), ["fc10"], views="dense+ten-crop"))
