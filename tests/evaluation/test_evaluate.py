"""Views, scores and predictions against a computation picture by picture and crop by crop."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from conftest import scores_of, square, trained_net
from convnet import device
from convnet.data import preprocess
from convnet.data.preprocess import Preprocessing
from convnet.data.store import Store
from convnet.errors import DataError, Interrupted, UsageError
from convnet.evaluation.metrics import MATRIX, interval, rank
from convnet.evaluation.pictures import split_to_test
from convnet.evaluation.views import protocol
from convnet.io.signals import Stop
from convnet.nets import create_model
from convnet.recipe import Recipe

CPU = device.choose("fp32", "cpu")


def small_net(classes: int = 3) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 5, 2), nn.ReLU(), nn.MaxPool2d(3, 2), nn.Flatten(), nn.Linear(8 * 4 * 4, classes)
    )


def preprocessing(store: Store) -> Preprocessing:
    return preprocess.of_recipe(Recipe(size=32, crop=24), store.mean_picture, store.statistics.mean_rgb)


def brute_force(net: nn.Module, store: Store, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Posteriors and labels: crop by crop, one picture at a time."""
    places = [(4, 4)] if name == "single" else [(0, 0), (0, 8), (8, 0), (8, 8), (4, 4)]
    rows = []
    for i in range(store.split("test").n):
        pixels = square(store, "test", i).astype(np.float32) - store.mean_picture
        outputs = []
        for top, left in places:
            crop = pixels[top : top + 24, left : left + 24]
            for look in [crop] if name == "single" else [crop, crop[:, ::-1]]:
                with torch.no_grad():
                    outputs.append(net(torch.tensor(look.transpose(2, 0, 1).copy())[None])[0].softmax(0).numpy())
        rows.append(np.mean(outputs, axis=0))
    return np.array(rows), store.split("test").labels


@pytest.mark.parametrize("name", ["single", "ten-crop"])
def test_scores_equal_a_brute_force_on_100_pictures(photos: Store, name: str) -> None:
    net = small_net().eval()
    scores = trained_net(net, preprocessing(photos)).evaluate(photos.split("test"), views=name)
    posteriors, labels = brute_force(net, photos, name)
    assert scores.n == len(labels) == 100
    order = np.argsort(-posteriors, axis=1, kind="stable")
    assert scores.top1 == np.mean(order[:, 0] != labels)
    assert scores.top5 == np.mean([label not in row[:5] for row, label in zip(order, labels, strict=True)]) == 0
    np.testing.assert_array_equal(scores.predicted, order[:, 0])
    assert scores.loss == pytest.approx(-np.log(posteriors[np.arange(100), labels]).mean(), rel=1e-5)
    for k, row in enumerate(scores.per_class()):
        mine = labels == k
        assert row["n"] == mine.sum()
        assert row["top1_error"] == np.mean(order[mine, 0] != k)
    confusion = np.zeros((3, 3), int)
    for truth, said in zip(labels, order[:, 0], strict=True):
        confusion[truth, said] += 1
    np.testing.assert_array_equal(scores.confusion, confusion)
    told = json.loads(json.dumps(scores.to_dict(), allow_nan=False))
    assert (told["split"], told["views"], told["n"], told["loss"]) == ("test", name, 100, scores.loss)
    for top, error in {"top1": scores.top1, "top5": 0.0}.items():
        assert told[f"{top}_error"] == error
        assert told[f"{top}_accuracy"] == 1 - error
        assert told[f"{top}_interval"] == list(interval(error, 100))


def test_top5_of_many_classes_and_ties() -> None:
    generator = np.random.default_rng(0)
    posteriors = generator.integers(0, 6, (500, 12)) / 10  # many ties
    labels = generator.integers(0, 12, 500)
    ranks = rank(posteriors, labels)
    for row, label, found in zip(posteriors, labels, ranks, strict=True):
        assert sorted(range(12), key=lambda k: (-row[k], k)).index(label) == found
    scores = scores_of(tuple("abcdefghijkl"), labels, posteriors.argmax(1), ranks)
    expected = [label not in np.argsort(-row, kind="stable")[:5] for row, label in zip(posteriors, labels, strict=True)]
    assert scores.top5 == np.mean(expected) > 0
    told = scores.figures()
    assert (told["top1_accuracy"], told["top5_accuracy"]) == (1 - scores.top1, 1 - scores.top5)


@pytest.mark.parametrize("n", [1, 7, 359, 50_000])
def test_wilsons_interval_is_where_the_normal_test_stops_rejecting(n: int) -> None:
    """Its ends are the rates p whose distance from the measured one is 1.96 sqrt(p (1 - p) / n)."""
    for wrong in {0, 1, n // 3, n}:
        for end in interval(wrong / n, n):
            distance = 1.959964 * np.sqrt(end * (1 - end) / n)
            assert abs(end - wrong / n) == pytest.approx(distance, rel=1e-6, abs=1e-7)
    low, high = interval(0.25, n)
    assert 0 < low < 0.25 < high < 1


def test_of_many_classes_the_matrix_is_told_by_its_entries() -> None:
    generator = np.random.default_rng(0)
    classes = tuple(f"class{k}" for k in range(MATRIX + 1))
    labels, said = (generator.integers(0, 40, 300) * 50 for _ in range(2))
    scores = scores_of(classes, labels, said, np.ones(300, np.int64))
    told = scores.to_dict()
    assert "confusion" not in told
    assert len(told["confused"]) < 300
    assert told["confused"] == [
        [*pair, int(scores.confusion[*pair])] for pair in np.argwhere(scores.confusion).tolist()
    ]


def test_alexnet_ten_crop_equals_single_crops(photos: Store) -> None:
    """The whole path with the real net: ten crops of 224 in 256, on pictures read from a file."""
    net = create_model("alexnet", num_classes=3, init="fan-in", seed=0).eval()
    mean = np.full((256, 256, 3), 120, np.float32)
    pre = Preprocessing(256, 0, 224, "rgb", mean, 1.0, 0.0)
    path = photos.path.parent / "large.png"
    pixels = np.random.default_rng(1).integers(0, 256, (256, 256, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    (found,) = trained_net(net, pre, ("a", "b", "c")).predict([path], top=3, views="ten-crop")
    outputs = []
    for top, left in [(0, 0), (0, 32), (32, 0), (32, 32), (16, 16)]:
        crop = torch.tensor(pixels[top : top + 224, left : left + 224].transpose(2, 0, 1).copy()).float() - 120
        for look in (crop, crop.flip(2)):
            with torch.no_grad():
                outputs.append(net(look[None])[0].softmax(0))
    expected = torch.stack(outputs).mean(0)
    order = expected.argsort(descending=True)
    assert found.classes == tuple("abc"[k] for k in order)
    np.testing.assert_allclose(found.probabilities, expected[order].numpy(), rtol=1e-4)


def test_the_net_is_left_in_its_mode_and_some_pictures_can_be_chosen(photos: Store) -> None:
    net = small_net().train()
    scores = trained_net(net, preprocessing(photos)).evaluate(photos.split("test"), ids=np.array([3, 1, 2]))
    assert net.training
    assert scores.labels.tolist() == photos.split("test").labels[[3, 1, 2]].tolist()


def test_evaluation_refuses_what_it_can_not_do(photos: Store, digits: Store) -> None:
    net = small_net()
    with pytest.raises(
        UsageError, match=r"holds pictures of 28 pixels .* prepare the source with --size 32 --shorter-side 32"
    ):
        trained_net(net, preprocessing(photos)).evaluate(digits.split("test"))
    with pytest.raises(UsageError, match=r"unknown views 'tencrop': did you mean 'ten-crop'\?"):
        protocol("tencrop", preprocessing(photos))
    with torch.no_grad():
        net[4].bias[1] = float("nan")
    with pytest.raises(DataError, match=r"the net's output for 'test/.*' is not finite"):
        trained_net(net, preprocessing(photos)).evaluate(photos.split("test"))
    stop = Stop()
    stop.ask(15)
    with pytest.raises(Interrupted):
        trained_net(small_net(), preprocessing(photos)).evaluate(photos.split("test"), stop=stop)


def test_the_split_to_test_is_the_first_that_has_pictures(photos: Store) -> None:
    store = Store(photos.path)
    for name in ("test", "val", "train"):
        assert split_to_test(store).name == name
        assert split_to_test(store, "val").name == "val"
        store.splits[name].n = 0
        with pytest.raises(UsageError, match=f"has no pictures in its split {name}; choose another with --split"):
            trained_net(small_net(), preprocessing(photos)).evaluate(store.split(name))


def test_predictions_keep_their_order_around_bad_pictures(photos: Store, tmp_path: Path) -> None:
    paths = []
    for i in range(70):
        path = tmp_path / f"{i}.png"
        if i % 9 == 4:
            path.write_text("no picture", encoding="utf-8")
        else:
            Image.fromarray(square(photos, "test", i)).save(path)
        paths.append(path)
    paths += [tmp_path / "missing.png", tmp_path]
    answers = list(trained_net(small_net().eval(), preprocessing(photos), photos.classes).predict(paths, top=2))
    assert [answer.name for answer in answers] == [str(path) for path in paths]
    scores = trained_net(small_net(), preprocessing(photos)).evaluate(photos.split("test"))
    for i, answer in enumerate(answers[:70]):
        if i % 9 == 4:
            assert answer.failed == "not a picture: begins with 'no picture'"
        else:
            assert answer.classes[0] == photos.classes[scores.predicted[i]]
            assert len(answer.classes) == 2
            assert answer.probabilities[0] >= answer.probabilities[1]
    assert [answer.failed for answer in answers[70:]] == ["no such file", "a folder; name its pictures, as FOLDER/*"]
