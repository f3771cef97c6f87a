"""The pass in C from stored pictures to the net's input against the plain form: equal to the bit."""

import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from conftest import square
from convnet.data import augment, preprocess
from convnet.data.augment import Augmentation
from convnet.data.loader import Loader
from convnet.data.preprocess import Preprocessing
from convnet.data.store import Pixels, Split, Store, crop_square
from convnet.kernels.cpu import augment as augment_cpu
from convnet.kernels.cpu import compiled
from convnet.recipe import Recipe

pytestmark = pytest.mark.skipif(compiled.library()[0] is None, reason=compiled.state())
CPU = torch.device("cpu")


class Pictures:
    """What `augment.fill` asks of a split."""

    is_mapped = False

    def __init__(self, frames: Pixels, size: int) -> None:
        """frames: (M, H, W, 3); the squares are their upper left corners, so that rows don't lie side by side."""
        self.frames, self.size = frames, size

    def square(self, i: int) -> Pixels:
        return self.frames[i, : self.size, : self.size]


def bits(images: torch.Tensor) -> NDArray[np.integer]:
    """Of each number, so that 0.0 and -0.0 differ."""
    return images.view(torch.int32 if images.dtype == torch.float32 else torch.int16).numpy()


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_equals_the_plain_form_to_the_bit(data: st.DataObject) -> None:
    draw, whole = data.draw, st.integers
    size, pad = draw(whole(1, 40), "size"), draw(whole(0, 5), "pad")
    crop = draw(whole(1, size + 2 * pad), "crop")
    n, m = draw(whole(1, 5), "pictures"), draw(whole(1, 3), "stored")
    random = np.random.default_rng(draw(whole(0, 2**32), "seed"))
    frames = random.integers(0, 256, (m, size + draw(whole(0, 2)), size + draw(whole(0, 2)), 3), np.uint8)
    shape = {"picture": (size, size, 3), "colour": (3,)}
    means = [(random.random(each) * 255).astype(np.float32) for each in shape.values()]
    done = Preprocessing(
        size=size,
        pad=pad,
        crop=crop,
        channels=draw(st.sampled_from(["rgb", "grey"]), "channels"),
        mean=draw(st.sampled_from([*means, None]), "mean"),
        scale=draw(st.sampled_from([1.0, 1 / 255, -0.3, 0.017]), "scale"),
        offset=draw(st.sampled_from([0.0, -0.1, 3.0]), "offset"),
    )
    how = Augmentation(
        *random.integers(-pad, size + pad - crop + 1, (2, n)),
        mirrored=random.random(n) < draw(st.sampled_from([0.0, 0.5, 1.0]), "mirrored"),
        colour=(random.standard_normal((n, 3)) * draw(st.sampled_from([0, 20]), "colour")).astype(np.float32),
    )
    ids = random.integers(0, m, n)
    pictures = Pictures(frames, size)
    places = zip(ids, how.tops, how.lefts, strict=True)
    crops = np.stack([crop_square(pictures.square(i), top, left, crop) for i, top, left in places])
    for dtype in (torch.float32, torch.bfloat16):
        expected = augment.plain_input(crops, how, done, CPU, dtype)
        found = torch.full_like(expected, 7).contiguous(memory_format=torch.channels_last)
        augment.fill(found, pictures, ids, how, done)
        np.testing.assert_array_equal(bits(found), bits(expected))
        np.testing.assert_array_equal(bits(augment.to_input(crops, how, done, CPU, dtype)), bits(expected))


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 3), st.integers(1, 20), st.integers(1, 20), st.sampled_from(["rgb", "grey"]), st.integers(0, 99))
def test_whole_pictures_need_not_be_square(n: int, height: int, width: int, channels: str, seed: int) -> None:
    random = np.random.default_rng(seed)
    pictures = random.integers(0, 256, (n, height, width, 3), np.uint8)
    done = Preprocessing(32, 0, 24, channels, np.array([120, 110, 90.5], np.float32), 0.5, 0.25)
    how = Augmentation(
        np.zeros(n, np.int64), np.zeros(n, np.int64), random.random(n) < 0.5, np.zeros((n, 3), np.float32)
    )
    expected = augment.plain_input(pictures, how, done, CPU, torch.float32)
    found = augment.to_input(pictures, how, done, CPU)
    assert found.shape == (n, 1 if channels == "grey" else 3, height, width)
    np.testing.assert_array_equal(bits(found), bits(expected))


@pytest.mark.parametrize("serves", [True, False])
def test_it_is_called_where_it_serves_and_nowhere_else(serves: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(augment_cpu, "available", lambda device, dtype: serves)
    monkeypatch.setattr(augment_cpu, "augment", lambda *given, **named: calls.append(named))
    zeros = np.zeros(1, np.int64)
    how = Augmentation(zeros, zeros, zeros.astype(bool), np.zeros((1, 3), np.float32))
    augment.to_input(np.zeros((1, 4, 4, 3), np.uint8), how, Preprocessing(4, 0, 4, "rgb", None, 1.0, 0.0), CPU)
    assert len(calls) == serves


def test_a_crop_may_lie_wholly_outside() -> None:
    white, how = np.full((4, 4, 3), 255, np.uint8), np.zeros(4, bool)
    corners = np.array([[-3, 0], [4, 0], [0, -9], [3, 3]])
    out = torch.full((4, 3, 3, 3), 7.0).contiguous(memory_format=torch.channels_last)
    augment_cpu.augment([white] * 4, corners, how, np.zeros((4, 3), np.float32), None, out)
    expected = torch.zeros(4, 3, 3, 3)
    expected[3, :, 0, 0] = 255
    assert torch.equal(out, expected)


def test_nothing_is_written_beside_the_images() -> None:
    """The mirrored pixels are moved in larger pieces than they are."""
    random = np.random.default_rng(0)
    picture = random.integers(0, 256, (9, 9, 3), np.uint8)
    for dtype in (torch.float32, torch.bfloat16):
        for channels in (1, 3):
            around = torch.full((3, 9, 9, channels), 7, dtype=dtype)
            out = around[1:2].permute(0, 3, 1, 2)
            corners, colour = np.zeros((1, 2), np.int64), np.zeros((1, channels), np.float32)
            augment_cpu.augment([picture], corners, np.ones(1, bool), colour, None, out)
            assert (around[0] == 7).all()
            assert (around[2] == 7).all()
            if channels == 3:
                assert np.array_equal(around[1].float().numpy(), picture[:, ::-1])


RECIPE = Recipe(size=32, crop=24, far_edge=True, batch=16, seed=3)


def loader(store: Store, workers: int, dtype: torch.dtype, recipe: Recipe = RECIPE) -> Loader:
    split = store.split("train")
    done = preprocess.of_recipe(recipe, store.mean_picture, store.statistics.mean_rgb)
    return Loader(split, store.statistics, np.arange(split.n), recipe, done, CPU, workers, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("recipe", [RECIPE, replace(RECIPE, pad=4, mean="rgb"), replace(RECIPE, crop=32, mean="none")])
def test_batches_are_the_plain_forms(
    photos: Store, monkeypatch: pytest.MonkeyPatch, recipe: Recipe, dtype: torch.dtype
) -> None:
    fast = list(loader(photos, 2, dtype, recipe).epoch(1))
    monkeypatch.setattr(augment_cpu, "available", lambda place, dtype: False)
    for one, other in zip(fast, loader(photos, 2, dtype, recipe).epoch(1), strict=True):
        assert one.images.dtype == other.images.dtype == dtype
        assert one.images.is_contiguous(memory_format=torch.channels_last)
        np.testing.assert_array_equal(bits(one.images), bits(other.images))
        np.testing.assert_array_equal(one.ids, other.ids)


def test_no_crop_is_cut_out_before_the_pass(photos: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Split, "crops", lambda *given: pytest.fail("crops were copied"))
    assert len(list(loader(photos, 0, torch.float32).epoch(1))) == 6


def test_bf16_is_the_nearest_number_to_the_papers_arithmetic(photos: Store) -> None:
    batch = next(iter(loader(photos, 0, torch.bfloat16).epoch(1)))
    how = augment.sample(RECIPE, photos.statistics, 1, batch.ids)
    for k, i in enumerate(batch.ids):
        pixels = square(photos, "train", int(i)).astype(np.float64) - photos.mean_picture + how.colour[k]
        crop = pixels[how.tops[k] : how.tops[k] + 24, how.lefts[k] : how.lefts[k] + 24]
        crop = crop[:, ::-1] if how.mirrored[k] else crop
        error = np.abs(batch.images[k].float().numpy().transpose(1, 2, 0) - crop)
        assert (error <= np.abs(crop) * 2.0**-8 + 1e-4).all()  # half a unit of 8 bits, and what fp32 loses


def test_threads_beside_computation_change_nothing(photos: Store) -> None:
    """Loaders and torch's own threads at once, as in a training."""
    expected = [batch.images for batch in loader(photos, 0, torch.bfloat16).epoch(1)]
    wrong: list[str] = []

    def read() -> None:
        for _ in range(10):
            found = [batch.images for batch in loader(photos, 3, torch.bfloat16).epoch(1)]
            wrong.extend("differs" for a, b in zip(expected, found, strict=True) if not torch.equal(a, b))

    former = torch.get_num_threads()
    torch.set_num_threads(2)
    threads = [threading.Thread(target=read) for _ in range(2)]
    try:
        for thread in threads:
            thread.start()
        x = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
        product = x @ x
        while any(thread.is_alive() for thread in threads):
            assert torch.equal(x @ x, product)
    finally:
        for thread in threads:
            thread.join()
        torch.set_num_threads(former)
    assert not wrong
