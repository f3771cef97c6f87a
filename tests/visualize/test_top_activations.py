"""The strongest pictures against a search one by one; what of them is projected; maps; how all of it is drawn."""

import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from conftest import Run, square, trained_net
from convnet import checkpoint, device
from convnet.data import preprocess
from convnet.data.preprocess import Preprocessing
from convnet.data.store import Split, Store
from convnet.errors import UsageError
from convnet.evaluation.inference import NotFinite
from convnet.evaluation.seen import Seen, from_store
from convnet.nets import create_model, trace
from convnet.nets.layers import Net, record
from convnet.recipe import Recipe
from convnet.visualize import maps as find_maps
from convnet.visualize import plot, receptive_fields, top_activations
from convnet.visualize.deconv import Unit, deconv
from convnet.visualize.maps import draw_maps
from convnet.visualize.project import (
    GREY,
    OUTSIDE,
    draw_evolution,
    draw_features,
    epoch_checkpoints,
    over_training,
    project,
    project_picture,
    shown_patches,
    shown_projections,
)
from convnet.visualize.stages import last_convolution

CPU = device.choose("fp32", "cpu")
RECIPE = Recipe(net="cifar_26", size=32, crop=32, mean="picture", channels="rgb")


def small(seed: int = 0) -> Net:
    """cifar_26 with larger weights, so that its layers are not all but silent."""
    net = create_model("cifar_26", num_classes=3, seed=seed).eval()
    with torch.no_grad():
        net.conv1.weight.mul_(100.0)
        net.conv2.weight.mul_(3.0)
    return net


def preprocessing(store: Store) -> Preprocessing:
    return preprocess.of_recipe(RECIPE, store.mean_picture, None, 32)


def activations_of(net: Net, store: Store, i: int) -> dict[str, Tensor]:
    stages: dict[str, Tensor] = {}
    image = torch.tensor((square(store, "test", i).astype(np.float32) - store.mean_picture).transpose(2, 0, 1).copy())
    with torch.no_grad():
        net(image[None], stages)
    return stages


def test_equal_to_a_search_picture_by_picture(photos: Store) -> None:
    net, split = small(), photos.split("test")
    wanted = {"relu3": [7, 0, 63], "conv2": None, "fc64": [5]}
    found = top_activations(trained_net(net, preprocessing(photos)), split, wanted)
    assert list(found) == list(wanted)
    everything = [activations_of(net, photos, i) for i in range(split.n)]
    for stage, numbers in wanted.items():
        each = found[stage]
        assert each.maps.tolist() == (list(range(32)) if numbers is None else numbers)
        assert each.ids.shape == each.activations.shape == each.rows.shape == each.columns.shape == (len(each.maps), 9)
        for m, channel in enumerate(each.maps.tolist()):
            maps = [stages[stage][0, channel] for stages in everything]
            best = sorted(range(split.n), key=lambda i: (-float(maps[i].max()), i))[:9]
            assert each.ids[m].tolist() == best
            for i, unit, value in zip(best, each.units(m), each.activations[m], strict=True):
                assert unit.map == channel
                at = maps[i] if stage == "fc64" else maps[i][unit.row, unit.column]
                np.testing.assert_allclose(value, float(at), rtol=1e-5)
                np.testing.assert_allclose(value, float(maps[i].max()), rtol=1e-5)


def test_pictures_that_are_equal_come_in_the_stores_order_and_strongest_maps_by_the_mean(photos: Store) -> None:
    net = small()
    with torch.no_grad():
        net.conv3.weight[1:4] = 0.0  # every picture's units are the bias
        net.conv3.bias[1:4] = torch.tensor([1e6, -1.0, 2e6])
    split, maps = photos.split("test"), {"conv3": [0, 1, 2, 3]}
    found = top_activations(trained_net(net, preprocessing(photos)), split, maps, n=4)["conv3"]
    for m in (1, 2, 3):
        assert found.ids[m].tolist() == [0, 1, 2, 3]
        assert found.units(m) == [Unit(m, 0, 0)] * 4
    assert found.strongest_maps(3).tolist() == [3, 1, 0]


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Every picture that is read from a store from now on."""
    reads: list[int] = []
    picture = Split.picture
    monkeypatch.setattr(Split, "picture", lambda self, i: reads.append(i) or picture(self, i))
    return reads


@pytest.mark.parametrize("wanted", [{"conv1": None}, {"conv1": None, "conv2": [3, 4], "conv3": None, "fc64": None}])
def test_the_store_is_read_once_for_all_layers_and_maps(
    photos: Store, monkeypatch: pytest.MonkeyPatch, wanted: dict[str, list[int] | None]
) -> None:
    reads = counted(monkeypatch)
    top_activations(trained_net(small(), preprocessing(photos)), photos.split("test"), wanted)
    assert sorted(reads) == list(range(100))


def test_activations_that_nobody_asked_for_are_not_held() -> None:
    """Of VGG-D's conv1_1 alone 16 pictures take 196 MiB."""
    made: dict[str, weakref.ref[Tensor]] = {}
    alive: dict[str, list[str]] = {}

    class Watched(Net):
        in_channels, input_size, columns = 3, 8, 2

        def forward(self, images: Tensor, stages: dict[str, Tensor] | None = None) -> Tensor:
            x = images
            for stage in ("one", "two", "three", "four"):
                x = record(stages, stage, x + 1)
                alive[stage] = [name for name, each in made.items() if each() is not None]
                made[stage] = weakref.ref(x)
            return x

    found = trace(Watched(), torch.zeros(1, 4, 8, 8), ["four", "two.1"])
    assert alive == {"one": [], "two": [], "three": ["two"], "four": ["two"]}
    assert {stage: x.shape[1] for stage, x in found.items()} == {"four": 4, "two.1": 2}
    assert float(found["two.1"].max()) == 2
    made.clear()
    assert len(trace(Watched(), torch.zeros(1, 4, 8, 8))) == 4
    assert alive["four"] == ["one", "two", "three"], "all of them when all are asked for"


def test_a_part_of_the_pictures_and_fewer_than_nine(photos: Store) -> None:
    found = top_activations(
        trained_net(small(), preprocessing(photos)), photos.split("test"), {"conv1": [0]}, ids=np.array([50, 3, 99])
    )["conv1"]
    assert sorted(found.ids[0].tolist()) == [3, 50, 99]


def test_a_damaged_net_ends_the_search(photos: Store) -> None:
    net = small()
    with torch.no_grad():
        net.conv2.bias[4] = torch.nan
    with pytest.raises(NotFinite, match=r"conv2 of '.*png' is not finite"):
        top_activations(trained_net(net, preprocessing(photos)), photos.split("test"), {"conv2": None})


@pytest.mark.parametrize(
    ("wanted", "text"),
    [
        ({"conv7": None}, "unknown stage 'conv7'"),
        ({"conv1": [32]}, "conv1 has the maps 0 to 31, no map 32"),
        ({}, "at least one"),
    ],
)
def test_what_the_net_does_not_have(photos: Store, wanted: dict[str, list[int] | None], text: str) -> None:
    with pytest.raises(UsageError, match=text):
        top_activations(trained_net(small(), preprocessing(photos)), photos.split("test"), wanted)


# projections beside patches


def test_a_feature_is_each_pictures_projection_and_patch_within_the_exact_field(photos: Store) -> None:
    net, split, how = small(), photos.split("test"), preprocessing(photos)
    found = top_activations(trained_net(net, how), split, {"conv2": None})["conv2"]
    which = found.strongest_maps(3)
    features = project(trained_net(net, how), found, which, split)
    n_cut = 0
    for m, feature in zip(which, features, strict=True):
        assert (feature.stage, feature.map) == ("conv2", found.maps[m])
        assert feature.patches.shape == feature.projections.shape == (9, 15, 15, 3)
        for k, (seen, unit) in enumerate(zip(from_store(split, found.ids[m], how), found.units(m), strict=True)):
            field = receptive_fields(net)["conv2"].of(unit.row, unit.column)
            whole = receptive_fields(net)["conv2"].whole(unit.row, unit.column)
            assert (feature.names[k], feature.units[k], feature.fields[k]) == (seen.name, unit, field)
            projection = deconv(net, trained_net(net, how).images([seen]), "conv2", [unit]).pixels[0]
            n_cut += field != whole
            for y in range(15):
                for x in range(15):
                    row, column = whole.top + y, whole.left + x
                    if 0 <= row < 32 and 0 <= column < 32:
                        assert (feature.patches[k, y, x] == seen.pixels[row, column]).all()
                        np.testing.assert_allclose(
                            feature.projections[k, y, x], projection[row, column], rtol=1e-4, atol=1e-6
                        )
                        projection[row, column] = 0
                    else:
                        assert np.isnan(feature.projections[k, y, x]).all()
            assert not projection.any()  # nothing is projected out of the field
    assert n_cut


def test_a_field_as_large_as_the_picture_is_the_picture(photos: Store) -> None:
    net, how = small(), preprocessing(photos)
    (picture,) = from_store(photos.split("test"), [8], how)
    (feature,) = project_picture(trained_net(net, how), picture, "fc64", [5])
    np.testing.assert_array_equal(feature.patches[0], picture.pixels)
    assert feature.fields[0] == (0, 0, 32, 32)


def test_the_strongest_maps_of_one_picture(photos: Store) -> None:
    net, how = small(), preprocessing(photos)
    (picture,) = from_store(photos.split("test"), [8], how)
    features = project_picture(trained_net(net, how), picture, "conv3", None, most=4)
    strengths = activations_of(net, photos, 8)["conv3"][0].amax((1, 2))
    assert [feature.map for feature in features] == strengths.argsort(descending=True)[:4].tolist()
    np.testing.assert_allclose(
        [float(f.activations[0]) for f in features], strengths.sort(descending=True)[0][:4], rtol=1e-5
    )
    with pytest.raises(UsageError, match="no map 64"):
        project_picture(trained_net(net, how), picture, "conv3", [64])


@pytest.fixture(scope="module")
def kept(photos: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder with the nets after epochs 1, 5 and 12000."""
    folder = tmp_path_factory.mktemp("run")
    for epoch in (5, 1, 12000):
        weights = dict(small(epoch).state_dict())
        made = checkpoint.Checkpoint(RECIPE, preprocessing(photos), photos.classes, weights)
        checkpoint.save(folder / checkpoint.KEPT.format(epoch), made)
    checkpoint.save(folder / checkpoint.BEST, made)
    (folder / "epoch-0007.ckpt.part").write_bytes(b"")
    return folder


def test_over_training_each_epochs_own_strongest_picture_of_the_maps_that_the_last_chose(
    photos: Store, kept: Path
) -> None:
    found = epoch_checkpoints(kept)
    assert list(found) == [1, 5, 12000]
    split, how = photos.split("val"), preprocessing(photos)
    evolutions = over_training(found, {"conv1": [3], "conv2": None}, split, CPU, most=2)
    last = top_activations(trained_net(small(12000), how), split, {"conv2": None}, n=1)["conv2"]
    assert [row[0].map for row in evolutions["conv1"]] == [3]
    assert [row[0].map for row in evolutions["conv2"]] == last.maps[last.strongest_maps(2)].tolist()
    for row in evolutions["conv2"]:
        channel = row[0].map
        for feature, epoch in zip(row, found, strict=True):
            own = top_activations(trained_net(small(epoch), how), split, {"conv2": [channel]}, n=1)["conv2"]
            assert feature.names == (split.keys[own.ids[0, 0]],)
            assert feature.units == tuple(own.units(0))


def test_a_run_that_kept_no_epochs_says_how_to(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"keeps no epochs; train with --set keep_epochs=\[1,2,5,10\]"):
        epoch_checkpoints(tmp_path)
    with pytest.raises(UsageError, match=r"nowhere: no such folder; name a run"):
        epoch_checkpoints(tmp_path / "nowhere")


def test_the_last_convolution_is_what_is_shown_when_nothing_is_named() -> None:
    assert last_convolution(small()) == "conv3"
    assert last_convolution(create_model("lenet5")) == "c3"
    assert last_convolution(create_model("nin_small")) == "cccp3"


# maps


def test_maps_are_the_activations(photos: Store) -> None:
    net, how = small(), preprocessing(photos)
    (picture,) = from_store(photos.split("test"), [8], how)
    expected = activations_of(net, photos, 8)
    for stage in ("conv2", "fc64"):
        found = find_maps(trained_net(net, how), picture, stage)
        assert found.activations.shape == ((32, 16, 16) if stage == "conv2" else (64, 1, 1))
        np.testing.assert_allclose(found.activations.ravel(), expected[stage].ravel(), rtol=1e-4, atol=1e-4)
    some = find_maps(trained_net(net, how), picture, "conv2", [30, 2])
    np.testing.assert_allclose(some.activations, expected["conv2"][0, [30, 2]], rtol=1e-4, atol=1e-4)
    assert some.maps.tolist() == [30, 2]
    with pytest.raises(UsageError, match="no map 32"):
        find_maps(trained_net(net, how), picture, "conv2", [32])


def test_a_net_s_columns_are_drawn_apart() -> None:
    net = create_model("alexnet", num_classes=4, init="fan-in", seed=0).eval()
    how = Preprocessing(224, 0, 224, "rgb", None, 1.0, -120.0)
    picture = Seen("<b>$x$.png", np.random.default_rng(0).integers(0, 256, (224, 224, 3), np.uint8))
    found = find_maps(trained_net(net, how), picture, "relu3")
    assert found.columns == 2
    drawn = draw_maps(found)
    sheets = [axes for axes in drawn.axes if axes.get_title("left") or axes.get_title()]
    assert [axes.get_title() for axes in sheets] == [f"relu3, column {c}: 192 maps of 13 x 13" for c in (0, 1)]
    for c, axes in enumerate(sheets):
        shown = np.asarray(axes.images[0].get_array())
        for i in (0, 50, 191):
            top, left = i // 24 * 14, i % 24 * 14
            np.testing.assert_array_equal(shown[top : top + 13, left : left + 13], found.activations[192 * c + i])
        assert [label.get_text() for label in axes.get_yticklabels()] == [str(192 * c + 24 * row) for row in range(8)]
    part = find_maps(trained_net(net, how), picture, "conv3.1")
    assert (part.columns, part.activations.shape) == (1, (192, 13, 13))
    chosen = draw_maps(find_maps(trained_net(net, how), picture, "conv3", [7, 300]))
    assert [text.get_text() for axes in chosen.axes for text in axes.texts] == ["7", "300"]


# how it looks


def test_projections_are_scaled_by_themselves_and_what_is_outside_is_light(photos: Store) -> None:
    net, how = small(), preprocessing(photos)
    (picture,) = from_store(photos.split("test"), [8], how)
    (feature,) = project_picture(trained_net(net, how), picture, "conv1", [0])
    values = np.zeros((1, 5, 5, 3), np.float32)
    values[0, 2, 2], values[0, 0] = (4.0, -4.0, 0.0), np.nan
    (shown,) = shown_projections(replace(feature, projections=values))
    assert shown[2, 2].tolist() == [1.0, 0.0, GREY]
    assert (shown[0] == np.float32(OUTSIDE)).all()
    assert (shown[1] == GREY).all()
    (patch,) = shown_patches(replace(feature, projections=values, patches=np.full((1, 5, 5, 3), 255, np.uint8)))
    assert (patch[0] == np.float32(OUTSIDE)).all()
    assert (patch[1:] == 1.0).all()
    (silent,) = shown_projections(replace(feature, projections=np.zeros((1, 5, 5, 1), np.float32)))
    assert silent.shape == (5, 5, 3)
    assert (silent == GREY).all()


def test_figures_name_layers_maps_and_epochs(photos: Store, kept: Path) -> None:
    net, split, how = small(), photos.split("val"), preprocessing(photos)
    found = top_activations(trained_net(net, how), split, {"conv1": [3, 4, 5], "conv3": [1]})
    net = trained_net(net, how)
    features = [each for stage in found.values() for each in project(net, stage, range(len(stage.maps)), split)]
    drawn = draw_features(features, "a note")
    svg = plot.encoded(drawn, "svg").decode()
    for text in (
        "conv1: units see up to 5 x 5 pixels",
        "map 3: ",
        "conv3: units see up to 32 x 32 pixels",
        "map 1: ",
        "a note",
    ):
        assert text in svg
    evolutions = over_training(epoch_checkpoints(kept), {"conv1": [3]}, split, CPU, ids=np.arange(4))
    svg = plot.encoded(draw_evolution(evolutions, [1, 5, 12000]), "svg").decode()
    for text in ("epoch 1<", "epoch 5<", "epoch 12000<", "map 3<"):
        assert text in svg


# the command


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (40, 50, 3), np.uint8)).save(tmp_path / "a.png")
    return tmp_path / "a.png"


def test_the_commands_write_a_picture(run: Callable[..., Run], photos: Store, kept: Path, photo: Path) -> None:
    best = kept / "best.ckpt"
    for arguments in (
        ("maps", kept, photo),
        ("maps", best, photo, "--layer", "conv1", "--maps", "3,17", "--out", "two.svg"),
        ("deconv", kept, photos.path, "--layer", "conv1,conv2", "--n", 2, "--among", 20),
        ("deconv", best, photos.path, "--layer", "conv1", "--maps", "3", "--split", "val", "--form", "guided"),
        ("deconv", best, "--picture", photo, "--layer", "conv3", "--maps", "2"),
        ("deconv", best, photos.path, "--over-training", "--among", 5, "--n", 1, "--out", "over.png"),
    ):
        code, out, err = run("show", *arguments)
        assert (code, out.startswith("written: ")) == (0, True), err
        path = Path(out.removeprefix("written: ").strip())
        assert path.name in ("maps.png", "deconv.png", "two.svg", "over.png")
        if path.suffix == ".png":
            assert np.asarray(Image.open(path).convert("RGB")).std() > 10


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("deconv", "RUN"), "name a store to search, or a picture with --picture"),
        (("deconv", "RUN", "STORE", "--maps", "1"), "--maps are those of one layer: name it with --layer"),
        (("deconv", "RUN", "STORE", "--layer", "conv1", "--maps", "1,x"), "--maps 1,x: whole numbers with commas"),
        (("deconv", "RUN", "STORE", "--form", "deconf"), "unknown form 'deconf'"),
        (("deconv", "RUN", "STORE", "--n", "0"), "--n 0: at least 1 map"),
        (("deconv", "RUN", "STORE", "--picture", "PHOTO"), "--picture takes the place of a store"),
        (("deconv", "RUN", "STORE", "--out", "a.jpg"), "a picture's name ends in .png or .svg"),
        (("maps", "RUN", "PHOTO", "--layer", "conv9"), "unknown stage 'conv9'"),
        (("maps", "RUN", "nowhere.png"), "nowhere.png: no such file"),
        (("maps", "RUN", "."), ".: a folder; name its pictures, as FOLDER/*"),
        (("deconv", "nowhere", "STORE", "--over-training"), "nowhere: no such folder; name a run"),
    ],
)
def test_what_is_wrong_is_said(
    run: Callable[..., Run], photos: Store, kept: Path, photo: Path, arguments: tuple[str, ...], text: str
) -> None:
    named = {"RUN": kept, "STORE": photos.path, "PHOTO": photo}
    code, out, err = run("show", *(named.get(each, each) for each in arguments))
    assert code in (2, 3)
    assert text in err
    assert not out
