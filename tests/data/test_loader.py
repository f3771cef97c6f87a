"""Batches against a brute force written from the paper's section 4.1, and their independence of workers and order."""

import math
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_nets import NAMES

from conftest import square
from convnet import device
from convnet.data import augment, preprocess
from convnet.data.loader import Loader
from convnet.data.store import Split, Store
from convnet.io import prefetch, rng
from convnet.nets import recipe_of
from convnet.recipe import Recipe, load_recipe
from convnet.training.data import choose_data
from convnet.training.step import EagerSteps
from thin import images_for, new_thin_net, of_each_kind

RECIPE = Recipe(size=32, crop=24, far_edge=True, batch=16, colour_std=0.1, seed=3)
CPU = torch.device("cpu")


def loader(store: Store, recipe: Recipe = RECIPE, workers: int = 0) -> Loader:
    split = store.split("train")
    pre = preprocess.of_recipe(recipe, store.mean_picture, store.statistics.mean_rgb)
    return Loader(split, store.statistics, np.arange(split.n), recipe, pre, CPU, workers)


def order_of(load: Loader, epoch: int) -> np.ndarray:
    return np.concatenate(list(load.steps(epoch)))


def test_a_batch_equals_the_paper_written_out(photos: Store) -> None:
    load, seen = loader(photos), 0
    for batch in load.epoch(2):
        how = augment.sample(RECIPE, photos.statistics, 2, batch.ids)
        for k, i in enumerate(batch.ids):
            pixels = square(photos, "train", int(i)).astype(np.float64) - photos.mean_picture
            crop = pixels[how.tops[k] : how.tops[k] + 24, how.lefts[k] : how.lefts[k] + 24]
            crop = crop + how.colour[k]
            crop = crop[:, ::-1] if how.mirrored[k] else crop
            torch.testing.assert_close(batch.images[k], torch.tensor(crop.transpose(2, 0, 1).copy()).float())
            assert batch.labels[k] == photos.split("train").labels[i]
            seen += 1
    assert seen == photos.split("train").n


def test_the_colour_shift_is_the_papers(photos: Store) -> None:
    statistics = photos.statistics
    ids = np.arange(4000)
    how = augment.sample(RECIPE, statistics, 1, ids)
    along = how.colour @ statistics.eigenvectors  # a_i lambda_i / 255 for each eigenvector
    factors = along / (statistics.eigenvalues / 255)
    assert np.abs(factors.mean(0)).max() < 0.01
    np.testing.assert_allclose(factors.std(0), 0.1, rtol=0.05)
    assert np.abs(np.corrcoef(factors.T) - np.eye(3)).max() < 0.05
    released = augment.sample(replace(RECIPE, colour_by="std"), statistics, 1, ids).colour @ statistics.eigenvectors
    np.testing.assert_allclose(released / np.sqrt(statistics.eigenvalues), factors, rtol=1e-3, atol=1e-4)


def test_without_a_colour_shift_each_of_the_three_colours_gets_nothing(photos: Store) -> None:
    how = augment.sample(replace(RECIPE, colour_std=0.0), photos.statistics, 1, np.arange(5))
    assert how.colour.dtype == np.float32
    np.testing.assert_array_equal(how.colour, np.zeros((5, 3)))


def test_crops_cover_all_places_and_half_are_mirrored(photos: Store) -> None:
    how = augment.sample(RECIPE, photos.statistics, 1, np.arange(20_000))
    assert set(how.tops) == set(how.lefts) == set(range(9))
    assert np.bincount(how.tops).std() / np.bincount(how.tops).mean() < 0.05
    assert abs(how.mirrored.mean() - 0.5) < 0.02
    assert abs(np.corrcoef(how.tops, how.lefts)[0, 1]) < 0.03


def test_the_papers_2048_crops(photos: Store) -> None:
    how = augment.sample(replace(RECIPE, far_edge=False), photos.statistics, 1, np.arange(20_000))
    assert set(how.tops) == set(how.lefts) == set(range(8))
    assert not replace(RECIPE, crop=32, far_edge=False).size - 32
    assert set(augment.sample(replace(RECIPE, crop=32, far_edge=False), photos.statistics, 1, np.arange(9)).tops) == {0}


def test_what_is_drawn_for_a_picture_depends_on_seed_epoch_and_picture_alone(photos: Store) -> None:
    ids = np.array([5, 9, 2])
    together = augment.sample(RECIPE, photos.statistics, 4, ids)
    alone = augment.sample(RECIPE, photos.statistics, 4, ids[1:2])
    assert (together.tops[1], together.lefts[1], together.mirrored[1]) == (
        alone.tops[0],
        alone.lefts[0],
        alone.mirrored[0],
    )
    np.testing.assert_array_equal(together.colour[1], alone.colour[0])
    many = np.arange(200)
    before = augment.sample(RECIPE, photos.statistics, 4, many)
    for other in (
        augment.sample(RECIPE, photos.statistics, 5, many),
        augment.sample(replace(RECIPE, seed=4), photos.statistics, 4, many),
    ):
        assert abs(np.corrcoef(other.tops, before.tops)[0, 1]) < 0.25
        assert abs(np.corrcoef(other.lefts, before.lefts)[0, 1]) < 0.25
        assert 0.35 < (other.mirrored == before.mirrored).mean() < 0.65
        assert abs(np.corrcoef(other.colour[:, 0], before.colour[:, 0])[0, 1]) < 0.25


def test_each_epoch_and_each_seed_has_an_order_of_its_own(photos: Store) -> None:
    order = order_of(loader(photos), 1)
    assert sorted(order) == list(range(90))
    for other in (order_of(loader(photos), 2), order_of(loader(photos, replace(RECIPE, seed=4)), 1), np.arange(90)):
        assert (order == other).mean() < 0.1


def test_very_many_pictures_have_a_computed_order(photos: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every picture once an epoch, from any step on, also of a part of the split that is itself computed."""
    monkeypatch.setattr(rng, "SORTED", 20)
    data = choose_data(replace(RECIPE, validation=0.2), without_val(photos))
    load = replace(loader(photos), ids=data.train_ids)
    assert isinstance(load.ids, rng.Order)
    assert len(load.ids) == 72
    for epoch in (1, 2):
        order = order_of(load, epoch)
        assert sorted([*order, *data.val_ids]) == list(range(90))
        for start in range(len(load) + 1):
            assert [*map(list, load.steps(epoch, start))] == [*map(list, load.steps(epoch))][start:]
    assert (order_of(load, 1) == order_of(load, 2)).mean() < 0.1
    assert sorted(order_of(replace(load, ids=choose_data(RECIPE, photos).train_ids), 3)) == list(range(90))
    monkeypatch.setattr(rng, "SORTED", 90)
    assert list(choose_data(RECIPE, photos).train_ids) == list(range(90)), "so many are still listed as they lie"


def without_val(store: Store) -> Store:
    store = Store(store.path)
    del store.splits["val"]
    return store


@pytest.mark.parametrize("workers", [0, 1, 2, 4])
def test_workers_change_nothing(photos: Store, workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor how many batches are made at once: two of the sixteen pictures here."""
    with monkeypatch.context() as patch:
        patch.setattr("convnet.data.loader.PIECE", 1)
        plain = list(loader(photos).epoch(3))
    monkeypatch.setattr("convnet.data.loader.PIECE", 2 * 16 * 3 * 24 * 24 * 4)
    for one, other in zip(plain, loader(photos, workers=workers).epoch(3), strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.labels, other.labels)
        np.testing.assert_array_equal(one.ids, other.ids)


def test_as_many_workers_read_at_once_as_are_asked_for(photos: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Six batches: each is read only while another one is."""
    both = threading.Barrier(2)
    monkeypatch.setattr("convnet.data.loader.PIECE", 1)
    monkeypatch.setattr(Split, "check_lengths", lambda split: both.wait(60))
    assert len(list(loader(photos, workers=2).epoch(1))) == 6


@pytest.mark.parametrize("workers", [1, 2])
def test_each_worker_has_two_batches_to_read_ahead(
    photos: Store, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    class CountedFuture(prefetch.Future[Any]):
        def __init__(self) -> None:
            asked.append(self)
            super().__init__()

    monkeypatch.setattr(prefetch, "Future", CountedFuture)
    monkeypatch.setattr("convnet.data.loader.PIECE", 1)
    batches = loader(photos, workers=workers).epoch(1)
    next(batches)
    assert len(asked) == 2 * workers + 1
    next(batches)
    assert len(asked) == min(2 * workers + 2, len(loader(photos)))
    batches.close()


def test_starting_in_the_middle_gives_the_same_batches(photos: Store) -> None:
    load = loader(photos, workers=1)
    whole = list(load.epoch(1))
    assert len(whole) == len(load) == math.ceil(90 / 16)
    for start in range(len(whole) + 1):
        rest = list(load.epoch(1, start))
        assert [batch.ids.tolist() for batch in rest] == [batch.ids.tolist() for batch in whole[start:]]


@settings(max_examples=50, deadline=None)
@given(n=st.integers(1, 500), epoch=st.integers(1, 50), seed=st.integers(0, 2**63 - 1))
def test_every_picture_once_an_epoch(n: int, epoch: int, seed: int) -> None:
    order = rng.permutation(n, seed, rng.stream("order"), epoch)
    np.testing.assert_array_equal(np.sort(order), np.arange(n))


def test_an_abandoned_epoch_leaves_no_thread(photos: Store) -> None:
    before = {*threading.enumerate()}  # of other tests, whose reads hang
    batches = loader(photos, workers=2).epoch(1)
    next(batches)
    batches.close()
    assert not {*threading.enumerate()} - before


def test_lenets_input_is_padded_grey_and_scaled(digits: Store) -> None:
    recipe = Recipe(size=28, pad=2, crop=32, channels="grey", mean="none", scale=1.275 / 255, offset=-0.1,
                    random_crop=False, mirror=False, colour_std=0.0, batch=8)  # fmt: skip
    batch = next(iter(loader(digits, recipe).epoch(1)))
    assert batch.images.shape == (8, 1, 32, 32)
    for k, i in enumerate(batch.ids):
        grey = np.pad(square(digits, "train", int(i))[..., 0], 2).astype(np.float64)
        torch.testing.assert_close(batch.images[k, 0], torch.tensor(grey * 1.275 / 255 - 0.1).float())


@pytest.mark.parametrize("form", [augment.to_input, augment.plain_input])
def test_grey_is_pillows(form: Callable[..., torch.Tensor]) -> None:
    """A million colours: some lie where the last bit of the sum decides."""
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (1, 1024, 1024, 3), np.uint8)
    pre = preprocess.Preprocessing(1024, 0, 1024, "grey", None, 1.0, 0.0)
    zeros = np.zeros(1, np.int64)
    how = augment.Augmentation(zeros, zeros, zeros.astype(bool), np.zeros((1, 3), np.float32))
    images = form(pixels, how, pre, CPU, torch.float32)
    np.testing.assert_array_equal(images[0, 0].numpy(), np.asarray(Image.fromarray(pixels[0]).convert("L")))


def test_the_weights_of_grey_are_where_the_colours_are() -> None:
    assert augment.mean_luma(torch.empty(2, 3, 5, 5, device="meta")).device.type == "meta"


@pytest.mark.parametrize("name", of_each_kind(NAMES))
def test_a_net_learns_the_same_from_pictures_in_bf16(name: str) -> None:
    """Its first layer would round them itself; where it would not, the net says so."""
    where = device.Device(CPU, torch.bfloat16, torch.channels_last, 1, "")
    results = []
    for dtype in (torch.float32, torch.bfloat16):
        step = EagerSteps(new_thin_net(name).train(), load_recipe(recipe_of(name)), where)
        images = images_for(step.net).to(dtype, memory_format=torch.channels_last)
        loss = step.gradients(images, torch.tensor([1, 3]), 0).loss
        gradients = [step.rule.computed(each).grad for each in step.rule.parameters]
        results.append([loss, *(gradient for gradient in gradients if gradient is not None)])
    assert loss.isfinite()
    same = all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert same == (step.input_dtype == torch.bfloat16)


def uneven(recipe: Recipe, photos: Store) -> Loader:
    """30 pictures of class 0, 7 of class 1 and 2 of class 2."""
    load = loader(photos, recipe)
    labels = load.split.labels
    ids = np.concatenate([np.flatnonzero(labels == label)[:n] for label, n in enumerate((30, 7, 2))])
    return replace(load, ids=np.sort(ids))


def test_a_balanced_order_has_each_class_equally_often(photos: Store) -> None:
    """Of a large class other pictures in each epoch, of a small one all, again and again; the same when resumed."""
    load = uneven(replace(RECIPE, balance="order", batch=8), photos)
    orders = [order_of(load, epoch) for epoch in (1, 2)]
    for order in orders:
        pictures, counts = np.unique(order, return_counts=True)
        of = load.split.labels[pictures]
        assert [counts[of == label].sum() for label in range(3)] == [13, 13, 13]
        assert set(counts[of == 0]) == {1}
        assert set(counts[of == 1]) == {1, 2}
        assert sorted(counts[of == 2]) == [6, 7]
        assert np.abs(np.diff(np.flatnonzero(load.split.labels[order] == 2))).max() > 3  # in no fixed turn
    assert set(orders[0]) != set(orders[1])
    assert (np.concatenate(list(load.steps(1, 2))) == orders[0][16:]).all()
    with_twice = next(step for step in range(5) if len(set(orders[0][8 * step : 8 * step + 8])) < 8)
    batch = next(load.epoch(1, with_twice))
    first, second = np.flatnonzero(batch.ids == commonest(batch.ids))[:2]
    assert not torch.equal(batch.images[first], batch.images[second])  # cropped and coloured anew


def commonest(ids: np.ndarray) -> int:
    pictures, counts = np.unique(ids, return_counts=True)
    return int(pictures[counts.argmax()])


def test_processes_share_a_balanced_order(photos: Store) -> None:
    from convnet.io.processes import Processes

    load = uneven(replace(RECIPE, balance="order", batch=8), photos)
    whole = list(load.epoch(1))
    parts = [list(replace(load, processes=Processes(rank, 2)).epoch(1)) for rank in range(2)]
    for batch, *own in zip(whole, *parts, strict=True):
        assert torch.equal(torch.cat([each.images for each in own]), batch.images)
        assert all((each.ids == batch.ids).all() for each in own)
