"""Training crops that are scaled, by VGG's S and of GoogLeNet's sizes, and ZFNet's: against the papers written out."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from convnet.data import augment, boxes, preprocess
from convnet.data.loader import Loader
from convnet.data.store import Store
from convnet.errors import UsageError
from convnet.kernels.cpu import augment as augment_cpu
from convnet.recipe import Recipe

VGG = Recipe(size=512, crop=224, smallest_size=256, mean="rgb", seed=5)
GOOGLENET = Recipe(size=256, crop=224, crop_area=0.08, crop_aspect=4 / 3, mean="rgb", seed=5)
SMALL = {
    "vgg": Recipe(size=32, crop=16, smallest_size=20, mean="rgb", batch=16, colour_std=0.1, seed=3),
    "googlenet": Recipe(
        size=32, crop=16, crop_area=0.1, crop_aspect=1.5, mean="none", batch=16, colour_std=0.0, seed=3
    ),
}
MANY = np.arange(20_000)


def test_vggs_boxes_are_crops_of_pictures_of_each_scale() -> None:
    left, top, right, bottom = boxes.sample(VGG, 1, MANY).T
    scale = 224 * 512 / (right - left)
    np.testing.assert_allclose(bottom - top, right - left)
    np.testing.assert_allclose(scale, scale.round(), rtol=1e-9)
    assert set(scale.round()) == set(range(256, 513))
    for edge in (left, top):
        place = edge * scale / 512  # in the picture of side S
        np.testing.assert_allclose(place, place.round(), atol=1e-6)
        assert {0, 1} <= set(place.round() / (scale.round() - 224))  # the first and the last, where there are several
    assert right.max() == bottom.max() == 512
    fixed = boxes.sample(replace(VGG, smallest_size=512), 1, MANY)
    assert (fixed == fixed.round()).all()
    assert (fixed[:, 2] - fixed[:, 0] == 224).all()


def test_googlenets_areas_are_uniform_and_its_sides_within_the_ratio() -> None:
    left, top, right, bottom = boxes.sample(GOOGLENET, 1, MANY).T
    width, height = right - left, bottom - top
    assert min(left.min(), top.min()) >= 0
    assert max(right.max(), bottom.max()) <= 256
    share = (width * height / 256**2 - 0.08) / 0.92
    quantiles = np.quantile(share, np.linspace(0.05, 0.95, 10))
    np.testing.assert_allclose(quantiles, np.linspace(0.05, 0.95, 10), atol=0.02)  # 5 standard deviations of 20,000
    ratio = width / height
    assert 0.75 - 1e-9 <= ratio.min() < 0.76
    assert 1.32 < ratio.max() <= 4 / 3 + 1e-9
    assert abs(np.log(ratio).mean()) < 0.01


@pytest.mark.parametrize("recipe", [VGG, GOOGLENET])
def test_boxes_are_functions_of_seed_epoch_and_picture(recipe: Recipe) -> None:
    ids = np.array([7, 3, 900])
    here = boxes.sample(recipe, 4, ids)
    assert (boxes.sample(recipe, 4, ids[1:2]) == here[1:2]).all()
    for other in (boxes.sample(recipe, 5, ids), boxes.sample(replace(recipe, seed=6), 4, ids)):
        assert (other != here).any(1).all()


def bicubic(square: np.ndarray, box: np.ndarray, crop: int) -> np.ndarray:
    """Keys' kernel with a = -0.5, stretched where the box is made smaller, written out with loops."""

    def along(values: np.ndarray, begin: float, end: float) -> np.ndarray:
        step = (end - begin) / crop
        stretch, rows = max(step, 1.0), []
        for k in range(crop):
            x = np.abs(np.arange(len(values)) + 0.5 - (begin + (k + 0.5) * step)) / stretch
            near, far = 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
            weights = np.where(x < 1, near, np.where(x < 2, far, 0))
            rows.append(np.tensordot(weights / weights.sum(), values, 1))
        return np.clip(np.array(rows), 0, 255)

    left, top, right, bottom = box
    across = along(square.astype(np.float64).transpose(1, 0, 2), left, right).transpose(1, 0, 2)
    return along(across, top, bottom)


def loader(store: Store, recipe: Recipe, workers: int = 0) -> Loader:
    split = store.split("train")
    made = preprocess.of_recipe(recipe, store.mean_picture, store.statistics.mean_rgb)
    return Loader(split, store.statistics, np.arange(split.n), recipe, made, torch.device("cpu"), workers)


@pytest.mark.parametrize("name", SMALL)
def test_a_batch_is_the_boxes_resized(photos: Store, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within a grey level and a half: Pillow rounds after each direction. The C pass and the plain form are equal."""
    recipe, load = SMALL[name], loader(photos, SMALL[name])
    batch = next(load.epoch(2))
    how = augment.sample(recipe, photos.statistics, 2, batch.ids)
    assert how.boxes is not None
    mean = 0.0 if load.preprocessing.mean is None else load.preprocessing.mean
    for k, i in enumerate(batch.ids.tolist()):
        wanted = bicubic(load.split.square(i), how.boxes[k], recipe.crop) - mean + how.colour[k]
        wanted = wanted[:, ::-1] if how.mirrored[k] else wanted
        assert np.abs(batch.images[k].permute(1, 2, 0).numpy() - wanted).max() < 1.5
    for other in loader(photos, recipe, workers=2).epoch(2):
        assert torch.equal(other.images, batch.images)
        break
    monkeypatch.setattr(augment_cpu, "available", lambda device, dtype: False)
    torch.testing.assert_close(next(load.epoch(2)).images, batch.images, rtol=0, atol=1e-4)


def test_a_box_as_large_as_the_crop_is_cut_out(photos: Store) -> None:
    square = photos.split("train").square(0)
    cut = boxes.resized(square, np.array([3.0, 5.0, 27.0, 29.0]), 24)
    assert (cut == square[5:29, 3:27]).all()


def test_zfnets_crops_are_the_corners_and_the_centre(photos: Store) -> None:
    recipe = Recipe(size=32, crop=23, crop_at="corners")
    how = augment.sample(recipe, photos.statistics, 1, MANY)
    places, counts = np.unique(how.corners, axis=0, return_counts=True)
    assert places.tolist() == [[0, 0], [0, 9], [4, 4], [9, 0], [9, 9]]
    assert (np.abs(counts / len(MANY) - 0.2) < 0.015).all()  # 5 standard deviations


def test_what_does_not_fit_together_is_refused() -> None:
    scaled = {"size": 512, "mean": "rgb"}
    for changes, says in (
        ({**scaled, "smallest_size": 200}, "smallest_size = 200: must be crop = 224 to size = 512, or 0"),
        ({**scaled, "smallest_size": 513}, "smallest_size = 513: must be crop = 224 to size = 512, or 0"),
        ({"smallest_size": 240}, 'smallest_size = 240: needs mean = "rgb" or "none", not "picture"'),
        ({"crop_area": 0.5}, 'crop_area = 0.5: needs mean = "rgb" or "none", not "picture"'),
        ({**scaled, "crop_area": 0.5, "random_crop": False}, "crop_area = 0.5: needs random_crop = true, not false"),
        ({**scaled, "crop_area": 0.5, "pad": 4}, "crop_area = 0.5: needs pad = 0, not 4"),
        ({**scaled, "crop_area": 0.5, "smallest_size": 256}, "crop_area = 0.5: must be 1 with smallest_size = 256"),
        ({**scaled, "crop_aspect": 2.0}, "crop_aspect = 2.0: needs crop_area below 1"),
    ):
        with pytest.raises(UsageError) as caught:
            Recipe(**changes)  # type: ignore[arg-type]
        assert says in str(caught.value)
