"""Whole pictures: padded or squashed in preparation, and the same in prediction, evaluation and exports."""

import io
import json
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import trained_net
from convnet import checkpoint, device
from convnet.checkpoint import Checkpoint
from convnet.data import preprocess
from convnet.data.prepare import prepare
from convnet.data.preprocess import Preprocessing
from convnet.data.resize import FILL, FITS, Encoding, Fit, fitted
from convnet.data.sources import open_source
from convnet.data.store import Store
from convnet.data.store_header import read_header
from convnet.errors import DataError, UsageError
from convnet.evaluation import seen
from convnet.evaluation.inference import infer
from convnet.evaluation.pictures import check_gives, read
from convnet.evaluation.views import protocol
from convnet.export import export
from convnet.export.onnx import metadata
from convnet.nets import create_model
from convnet.recipe import Recipe
from convnet.weights import read_weights

SIZES = ((90, 60), (40, 71), (64, 64), (300, 7), (20, 33), (33, 32))  # width, height
S = 32
CPU = device.choose("fp32", "cpu")
fits = pytest.mark.parametrize("fit", get_args(Fit))


def plain(image: Image.Image, fit: str) -> np.ndarray:
    """What docs/store.md says, with Pillow and numpy alone: uint8 (S, S, 3)."""
    width, height = image.size
    if fit == "squash":
        return np.asarray(image.resize((S, S), Image.Resampling.BICUBIC))
    side = max(width, height) if fit == "pad" else min(width, height)
    wide, high = max(1, round(width * S / side)), max(1, round(height * S / side))
    pixels = np.asarray(image.resize((wide, high), Image.Resampling.BICUBIC))
    if fit == "crop":
        return pixels[(high - S) // 2 :, (wide - S) // 2 :][:S, :S]
    square = np.full((S, S, 3), 128, np.uint8)
    top, left = (S - high) // 2, (S - wide) // 2
    square[top : top + high, left : left + wide] = pixels
    return square


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            (folder / split / name).mkdir(parents=True)
            for i, (width, height) in enumerate(SIZES):
                pixels = random.integers(0, 256, (height, width, 3), np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{i}.png")
    return folder


def stored(photos: Path, folder: Path, fit: Fit, encoding: Encoding = "raw", side: int | None = None) -> Store:
    return prepare(
        open_source(photos), folder / f"{fit}-{encoding}", size=S, encoding=encoding, shorter_side=side, fit=fit
    )


def kept_of(store: Store) -> Checkpoint:
    """A net whose answers differ from picture to picture, with the store's preprocessing."""
    net = create_model("cifar_18", num_classes=2, seed=0)
    with torch.no_grad():
        for weights in net.parameters():
            weights.mul_(20 if weights.ndim > 1 else 1)
    recipe = Recipe(name="a", net="cifar_18", size=S, crop=S, mean="picture")
    means = store.mean_picture, store.statistics.mean_rgb
    done = preprocess.of_recipe(recipe, *means, store.shorter_side, store.fit)
    return Checkpoint(recipe, done, ("cat", "dog"), net.state_dict())


@fits
def test_stored_pixels_are_those_of_plain_pillow(photos: Path, tmp_path: Path, fit: Fit) -> None:
    store = stored(photos, tmp_path, fit)
    for name in ("train", "val"):
        split = store.split(name)
        assert split.n == 2 * len(SIZES)
        for i, key in enumerate(split.keys):
            np.testing.assert_array_equal(split.square(i), plain(Image.open(photos / key), fit), key)
    assert store.describe().startswith(f"2 classes, raw 32 x 32{'' if fit == 'crop' else f' by {fit}'}, train 12")
    enlarged = {"crop": 2, "pad": 0, "squash": 2}[fit]  # of the six: their shorter, or longer, side is below 32
    assert store.header["counts"]["enlarged"] == 4 * enlarged
    again = prepare(open_source(photos), store.path, size=S, fit=fit)
    assert again.identity == store.identity


def test_a_padded_picture_lies_in_the_middle_of_grey() -> None:
    square = fitted(np.zeros((10, 31, 3), np.uint8), 31, "pad")
    assert np.argwhere((square == 0).all((1, 2))).ravel().tolist() == list(range(10, 20))  # the odd row is below
    assert (square[:10] == FILL[0]).all()
    assert fitted(np.zeros((1, 60000, 3), np.uint8), 8, "pad").shape == (8, 8, 3)
    assert fitted(np.zeros((1, 60000, 3), np.uint8), 8, "squash").shape == (8, 8, 3)


@fits
def test_prediction_equals_evaluation_bitwise(photos: Path, tmp_path: Path, fit: Fit) -> None:
    """Of the file itself, and of the picture in the store; the checkpoint alone says how."""
    store = stored(photos, tmp_path, fit)
    checkpoint.save(tmp_path / "a.ckpt", kept_of(store))
    kept = checkpoint.load(tmp_path / "a.ckpt")
    assert (kept.preprocessing.fit, kept.preprocessing) == (fit, kept_of(store).preprocessing)
    net, split = checkpoint.rebuild(kept), store.split("val")
    paths = [photos / key for key in split.keys]
    for views in ("single", "dense", "ten-crop"):
        asked = protocol(views, kept.preprocessing, None)
        check_gives(split, asked.looks, kept.preprocessing)
        ((_, pictures),) = read(split, np.arange(split.n), asked.looks)
        if views == "dense":  # a raw store has what was cut off no more
            pictures = [{S: split.square(i)} for i in range(split.n)] if fit != "crop" else []
        found = asked.mean(infer(net, pictures, asked.looks, kept.preprocessing, CPU)) if pictures else []
        answers = list(trained_net(net, kept.preprocessing, kept.classes).predict(paths, top=2, views=views))
        for row, answer in zip(found, answers, strict=False):
            best = np.argsort(-row, kind="stable")
            assert answer.classes == tuple(kept.classes[k] for k in best)
            assert answer.probabilities == tuple(row[best].tolist())
    shown = seen.from_files(paths, kept.preprocessing)
    for i, picture in enumerate(shown):
        np.testing.assert_array_equal(picture.pixels, split.square(i))


@fits
def test_jpeg_stores_keep_the_frame(photos: Path, tmp_path: Path, fit: Fit) -> None:
    store = stored(photos, tmp_path, fit, "jpeg", 48)
    for i, key in enumerate(store.split("val").keys):
        with Image.open(photos / key) as image:
            frame, out = Image.fromarray(fitted(np.asarray(image), 48, fit)), io.BytesIO()
        frame.save(out, "JPEG", quality=95)
        assert min(frame.size) == 48
        assert fit == "crop" or frame.size == (48, 48)
        with Image.open(out) as image:
            np.testing.assert_array_equal(store.split("val").picture(i), np.asarray(image), key)
    looks = protocol("multi-crop+dense", kept_of(store).preprocessing, "40,48").looks
    ((_, pictures),) = read(store.split("val"), np.arange(1), looks)
    assert fit == "crop" or {key: each.shape for key, each in pictures[0].items()} == {40: (40, 40, 3), 48: (48, 48, 3)}


def test_a_net_is_not_tested_on_pictures_of_another_fit(photos: Path, tmp_path: Path) -> None:
    one, other = (stored(photos, tmp_path, fit) for fit in ("pad", "squash"))
    done = kept_of(one).preprocessing
    text = (
        r"squash-raw holds pictures fitted by squash, and the net knows them by pad: prepare the source with --fit pad"
    )
    with pytest.raises(UsageError, match=text):
        check_gives(other.split("val"), protocol("single", done, None).looks, done)
    with pytest.raises(UsageError, match="holds a store made from other pictures or settings"):
        prepare(open_source(photos), one.path, size=S, fit="squash")
    with pytest.raises(UsageError, match="--fit stretch: must be crop, pad, squash"):
        prepare(open_source(photos), tmp_path / "x", size=S, fit="stretch")  # type: ignore[arg-type]


def test_stores_and_checkpoints_of_cropped_pictures_are_as_before(photos: Path, tmp_path: Path) -> None:
    """Bytes of which earlier versions know nothing are only where they must not be overlooked."""
    crop, pad = (stored(photos, tmp_path, fit) for fit in ("crop", "pad"))
    assert (crop.header["version"], "fit" in crop.header) == (1, False)
    assert (pad.header["version"], pad.header["fit"]) == (2, "pad")
    assert "fit" not in preprocess.to_dict(kept_of(crop).preprocessing)
    values = preprocess.to_dict(kept_of(pad).preprocessing)
    assert values["fit"] == "pad"
    mean = kept_of(pad).preprocessing.mean
    assert preprocess.from_dict(values, mean).fit == "pad"
    del values["fit"]
    assert preprocess.from_dict(values, mean).fit == "crop"
    for wrong in ("stretch", 3):
        with pytest.raises(DataError, match="fit is n"):
            preprocess.from_dict({**values, "fit": wrong}, mean)


@pytest.mark.parametrize(
    ("version", "fit"), [(1, "pad"), (2, None), (2, "crop"), (2, "stretch"), (2, ["pad"]), (3, "pad")]
)
def test_a_header_whose_fit_and_version_disagree_is_refused(
    photos: Path, tmp_path: Path, version: int, fit: object
) -> None:
    from convnet.data.store_header import header_bytes

    header = stored(photos, tmp_path, "pad").header | {"version": version, "fit": fit}
    (tmp_path / "store.json").write_bytes(header_bytes({k: v for k, v in header.items() if v is not None}))
    with pytest.raises(DataError, match=r"fit is none of|is of format"):
        read_header(tmp_path)


@fits
def test_exports_say_the_fit_and_bring_it_back(photos: Path, tmp_path: Path, fit: Fit) -> None:
    kept = kept_of(stored(photos, tmp_path, fit))
    assert json.loads(metadata(kept)["pictures"])["fit"] == fit
    export(kept, tmp_path / "a.safetensors")
    again, _ = read_weights(tmp_path / "a.safetensors")
    assert again.preprocessing == kept.preprocessing
    other, _ = read_weights(tmp_path / "a.safetensors", fit="squash")
    assert other.preprocessing.fit == "squash"
    export(kept, tmp_path / "a.caffemodel")
    text = (tmp_path / "a.prototxt").read_text(encoding="utf-8")
    assert {"crop": "crops of", "pad": "padded to a square", "squash": "squashed to a square"}[fit] in text


def test_preprocessing_knows_its_fits() -> None:
    assert FITS == ("crop", "pad", "squash")
    assert Preprocessing(32, 0, 32, "rgb", None, 1.0, 0.0) != Preprocessing(32, 0, 32, "rgb", None, 1.0, 0.0, fit="pad")
