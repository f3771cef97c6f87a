"""Neighbours equal a brute force over all training pictures, one at a time."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.colors import same_color
from PIL import Image

from conftest import Run, square, trained_net
from convnet import device
from convnet.data import preprocess
from convnet.data.prepare import prepare
from convnet.data.preprocess import Preprocessing
from convnet.data.sources import open_source
from convnet.data.store import Store
from convnet.errors import UsageError
from convnet.evaluation.inference import NotFinite
from convnet.evaluation.seen import from_store
from convnet.kernels import winograd
from convnet.nets import create_model
from convnet.nets.layers import Net
from convnet.recipe import Recipe
from convnet.retrieval.activations import before_classes
from convnet.visualize import neighbours as find
from convnet.visualize.neighbours import SAME, draw_neighbours
from convnet.visualize.search import BATCH

CPU = device.choose("fp32", "cpu")


@pytest.fixture(scope="module")
def net() -> Net:
    return create_model("cifar_relu", num_classes=3, seed=0).eval()


def preprocessing(store: Store) -> Preprocessing:
    return preprocess.of_recipe(Recipe(size=32, crop=32), store.mean_picture, None, 32)


def brute_force(net: Net, store: Store, query: np.ndarray, stage: str | None) -> list[tuple[float, int]]:
    """(distance, position) of every training picture, nearest first; the picture itself, or a stage's activation."""

    def feature(pixels: np.ndarray) -> np.ndarray:
        if stage is None:
            return pixels.astype(np.int64)
        stages: dict[str, torch.Tensor] = {}
        image = torch.tensor((pixels.astype(np.float32) - store.mean_picture).transpose(2, 0, 1).copy())
        with torch.no_grad():
            net(image[None], stages)
        return stages[stage][0].double().numpy()

    asked = feature(query)
    rows = [
        (float(np.sqrt(((feature(square(store, "train", i)) - asked) ** 2).sum())), i)
        for i in range(store.split("train").n)
    ]
    return sorted(rows)


@pytest.mark.parametrize("layer", [None, "conv2"])
def test_neighbours_equal_brute_force(net: Net, photos: Store, layer: str | None) -> None:
    how = preprocessing(photos)
    queries = from_store(photos.split("test"), [3, 50, 99], how)
    by_layer, by_pixels = find(trained_net(net, how), queries, photos.split("train"), layer=layer, n=6)
    assert (by_layer.measure, by_pixels.measure) == (layer or "pool3", "pixels")
    for found, stage in ((by_layer, layer or "pool3"), (by_pixels, None)):
        assert found.searched == 90
        assert found.ids.shape == found.distances.shape == (3, 6)
        for q, query in enumerate(queries):
            right = brute_force(net, photos, query.pixels, stage)[:6]
            assert found.ids[q].tolist() == [i for _, i in right]
            tolerance = {"rtol": 1e-5} if stage else {"rtol": 0, "atol": 0}
            np.testing.assert_allclose(found.distances[q], [d for d, _ in right], **tolerance)
            keys = [photos.split("train").keys[i] for i in found.ids[q]]
            assert [picture.name for picture in found.nearest[q]] == keys


def test_a_training_picture_is_its_own_nearest_and_equals_come_in_the_stores_order(
    net: Net, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twice the same picture: at distance 0 both, the earlier first; and no batch, however cut, changes it. By direct
    sums: Winograd's serve by the number of pictures at once, and round otherwise."""
    monkeypatch.setattr(winograd, "serves", lambda *given: False)
    generator = np.random.default_rng(1)
    pixels = generator.integers(0, 256, (12, 32, 32, 3), np.uint8)
    for k in range(3):
        place = tmp_path / "source" / "train" / f"c{k}"
        place.mkdir(parents=True)
        for i in range(12):
            Image.fromarray(pixels[i]).save(place / f"{i}.png")  # each picture three times, under three labels
    store = prepare(open_source(tmp_path / "source", split=0), tmp_path / "store", size=32)
    how, split = preprocessing(store), store.split("train")
    for found in find(trained_net(net, how), from_store(split, [7], how), split, n=4):
        twins = [i for i, key in enumerate(split.keys) if key.split("/")[-1] == split.keys[7].split("/")[-1]]
        assert len(twins) == 3
        assert found.ids[0, :3].tolist() == twins
        assert found.distances[0, :3].tolist() == [0, 0, 0]
        assert found.distances[0, 3] > 0


def test_the_search_can_be_limited_and_there_may_be_few_pictures(net: Net, photos: Store) -> None:
    how, split = preprocessing(photos), photos.split("train")
    queries = from_store(photos.split("test"), [0], how)
    ids = np.array([4, 30, 31, 77])
    for part in find(trained_net(net, how), queries, split, n=6, ids=ids):
        assert part.searched == 4
        assert sorted(part.ids[0].tolist()) == ids.tolist()
        assert (np.diff(part.distances[0]) >= 0).all()


def test_no_more_than_a_batch_is_held(net: Net, photos: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    def counted(*arguments: object) -> object:
        sizes.append(len(list(arguments[1])))  # type: ignore[call-overload]
        return from_store(*arguments)  # type: ignore[arg-type]

    for name in ("evaluation.seen", "visualize.neighbours"):
        monkeypatch.setattr(sys.modules[f"convnet.{name}"], "from_store", counted)
    how = preprocessing(photos)
    find(trained_net(net, how), from_store(photos.split("test"), [0], how), photos.split("train"))
    assert max(sizes) == BATCH
    assert sum(sizes) == 90 + 2 * 6, "each picture is read once for both measures, and the nearest to be shown"


@pytest.mark.parametrize(
    ("name", "stage"),
    [("lenet5", "f6"), ("alexnet", "relu7"), ("cifar_18", "pool3"), ("nin_cifar10", "cccp5"), ("vgg_a", "relu7"),
     ("googlenet", "pool5"), ("alexnet_bn", "relu7")],
)  # fmt: skip
def test_the_layer_before_the_classes(name: str, stage: str) -> None:
    with torch.device("meta"):
        net = create_model.__globals__["MODELS"][name]()
    how = Preprocessing(net.input_size, 0, net.input_size, "rgb", None, 1.0, 0.0)
    assert before_classes(replace(trained_net(net, how), device=replace(CPU, device=torch.device("meta")))) == stage


def test_errors(net: Net, photos: Store) -> None:
    how, split = preprocessing(photos), photos.split("train")
    queries = from_store(photos.split("test"), [0], how)
    with pytest.raises(UsageError, match="unknown stage 'fc7'"):
        find(trained_net(net, how), queries, split, layer="fc7")
    with pytest.raises(UsageError, match="--n 0: at least 1 neighbour"):
        find(trained_net(net, how), queries, split, n=0)
    broken = create_model("cifar_relu", num_classes=3, seed=0).eval()
    with torch.no_grad():
        next(broken.parameters()).fill_(float("nan"))
    with pytest.raises(NotFinite, match=r"pool3 of .*is not finite; the net's weights may be damaged"):
        find(trained_net(broken, how), queries, split)


def test_a_frame_marks_the_querys_own_class(net: Net, photos: Store) -> None:
    how = preprocessing(photos)
    queries = from_store(photos.split("test"), [0, 60], how)
    found = find(trained_net(net, how), queries, photos.split("train"), n=6)
    made = draw_neighbours(found, photos.classes)
    framed = [axes for axes in made.axes if same_color(axes.spines["left"].get_edgecolor(), SAME)]
    own = [p.label == q.label for each in found for q, row in zip(each.queries, each.nearest, strict=True) for p in row]
    assert len(made.axes) == 2 + 2 * 2 * 6
    assert len(framed) == sum(own) > 0
    labels = [axes.get_xlabel() for axes in made.axes]
    name = photos.classes[found[0].nearest[0][0].label or 0]
    assert f"{name}\n{found[0].distances[0, 0]:.2f}" in labels or f"{name}\n{found[0].distances[0, 0]:,.0f}" in labels


def test_the_command(run: Run, untrained: Path, digits: Store) -> None:
    Image.fromarray(np.full((30, 40, 3), 9, np.uint8)).save("p.png")
    for arguments, images in ((["--n", "1"], 13), (["p.png", "p.png"], 26)):
        code, out, err = run("show", "neighbours", untrained, digits.path, *arguments, "-q", "--out", "n.svg")
        assert (code, out, err) == (0, "written: n.svg\n", "")
        text = Path("n.svg").read_text(encoding="utf-8")
        assert text.count("<image") == images
        assert ">f6<" in text
        assert ">pixels<" in text
    code, _, err = run("show", "neighbours", untrained, digits.path, "--layer", "f7")
    assert code == 2
    assert "unknown stage 'f7': did you mean 'f6'?" in err
