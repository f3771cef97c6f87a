"""Occlusion: the three maps against a loop of single predictions of pictures painted by hand."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import trained_net
from convnet import device
from convnet.data.preprocess import Preprocessing
from convnet.data.store import Store
from convnet.errors import UsageError
from convnet.evaluation.seen import Seen
from convnet.nets import create_model, trace
from convnet.visualize import plot
from convnet.visualize.occlusion import draw_occlusion, occlusion, places, share
from convnet.visualize.stages import last_maps

RNG = np.random.default_rng(0)
CPU = device.choose("fp32", "cpu")
MEAN = RNG.uniform(90, 150, (36, 36, 3)).astype(np.float32)
HOWS = {
    "mean picture": Preprocessing(36, 0, 32, "rgb", MEAN, 0.02, 0.0),
    "mean colour": Preprocessing(36, 0, 32, "rgb", np.float32([124, 117, 104]), 0.02, 0.1),
    "no mean": Preprocessing(32, 0, 32, "rgb", None, 1 / 127.5, -1.0),
    "grey": Preprocessing(36, 0, 32, "grey", MEAN, 0.02, 0.0),
}


def small(how: Preprocessing) -> torch.nn.Module:
    return create_model("nin_small", num_classes=5, in_channels=1 if how.channels == "grey" else 3, seed=1).eval()


def picture(label: int | None = None) -> Seen:
    return Seen("a.png", RNG.integers(0, 256, (32, 32, 3), np.uint8), label)


@torch.no_grad()
def by_hand(net: torch.nn.Module, seen: Seen, how: Preprocessing, layer: str, box: int, stride: int) -> dict:
    """Each place alone: its pixels are painted, and the net is asked about that one picture."""
    grey = 128 if how.mean is None else round(float(np.mean(how.mean, dtype=float)))
    whole = {name: x[0].numpy() for name, x in trace(net, trained_net(net, how).images([seen])).items()}
    chosen = max(range(len(whole[layer])), key=lambda k: float(whole[layer][k].sum()))
    corners = [at for at in range(32) if at + box <= 32 and (at % stride == 0 or at + box == 32)]
    activity, posteriors = np.empty((len(corners),) * 2), np.empty((len(corners), len(corners), 5))
    for i, top in enumerate(corners):
        for j, left in enumerate(corners):
            pixels = seen.pixels.copy()
            for y in range(top, top + box):
                for x in range(left, left + box):
                    pixels[y, x] = (grey, grey, grey)
            found = trace(net, trained_net(net, how).images([Seen("", pixels)]))
            activity[i, j] = found[layer][0, chosen].double().sum()
            logits = list(found.values())[-1][0].double()
            posteriors[i, j] = torch.exp(logits) / torch.exp(logits).sum()
    return {"map": chosen, "corners": corners, "activity": activity, "posteriors": posteriors, "grey": grey}


@pytest.mark.parametrize("name", HOWS)
@pytest.mark.parametrize(("box", "stride", "batch"), [(8, 6, 5), (11, 12, 64)])
def test_the_maps_equal_a_loop_of_single_predictions(name: str, box: int, stride: int, batch: int) -> None:
    how, seen = HOWS[name], picture(label=3)
    net = small(how)
    found = occlusion(trained_net(net, how), seen, layer="cccp2", box=box, stride=stride, batch=batch)
    truth = by_hand(net, seen, how, "cccp2", box, stride)
    assert (found.layer, found.map, found.label, found.grey) == ("cccp2", truth["map"], 3, truth["grey"])
    assert found.corners.tolist() == truth["corners"]
    np.testing.assert_allclose(found.activity, truth["activity"], rtol=1e-4)
    np.testing.assert_allclose(found.probability, truth["posteriors"][..., 3], rtol=1e-4)
    np.testing.assert_array_equal(found.best, truth["posteriors"].argmax(2))
    assert np.ptp(found.activity) > 0.001 * found.whole_activity  # squares change something


def test_the_square_covers_every_pixel() -> None:
    for side, box, stride in ((224, 32, 8), (32, 5, 7), (32, 32, 9), (32, 31, 50), (9, 1, 1)):
        covered = np.zeros(side, int)
        for first in places(side, box, stride):
            covered[first : first + box] += 1
        assert places(side, box, stride)[-1] == side - box
        assert covered.min() == (0 if (side, stride) == (32, 7) else 1)


def test_a_class_that_hangs_on_one_corner() -> None:
    """A net whose class 0 answers to the upper left corner's brightness: only squares there matter."""
    how = Preprocessing(32, 0, 32, "rgb", None, 1.0, 0.0)
    net = create_model("nin_small", num_classes=5, seed=0).eval()

    class Corner(type(net)):
        def forward(self, images, stages=None):
            if stages is not None:
                stages["conv1"] = images
            corner = images[:, :, :4, :4].mean((1, 2, 3)) / 100
            logits = torch.stack([corner, *[torch.ones_like(corner)] * 4], 1)
            if stages is not None:
                stages["pool"] = logits
            return logits

    net.__class__ = Corner
    seen = Seen("white", np.full((32, 32, 3), 255, np.uint8))
    found = occlusion(trained_net(net, how), seen, box=8, stride=4)
    assert found.label == found.whole_best == 0  # the most probable, as no class is known
    assert (found.probability < found.whole_probability - 0.01).tolist() == [
        [i < 1 and j < 1 for j in range(7)] for i in range(7)
    ]
    assert found.activity.argmin() in range(49)
    np.testing.assert_allclose(found.activity, 1024 * 255 - 64 * (255 - 128))


def test_which_stage_is_looked_at_without_a_word() -> None:
    for name, side, stage in (
        ("lenet5", 32, "c3"),
        ("nin_small", 32, "cccp3"),
        ("cifar_11", 24, "relu4"),
        ("cifar_26", 32, "relu3"),
        ("googlenet", 64, "inception_5b"),
        ("alexnet", 224, "relu5"),
        ("alexnet_owt", 224, "relu5"),
    ):
        net = create_model(name, num_classes=10, seed=0)
        assert last_maps(trace(net, torch.zeros(1, net.in_channels, side, side))) == stage


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"box": 33}, "--box 33: must be 1 to 32 pixels, the side of the net's input"),
        ({"box": 0}, "--box 0: must be 1 to 32"),
        ({"stride": 0}, "--stride 0: must be at least 1 pixel"),
        ({"layer": "cccp9"}, "unknown stage with maps 'cccp9': did you mean 'cccp3'?"),
        ({"layer": "pool"}, "unknown stage with maps 'pool'"),
    ],
)
def test_what_does_not_fit(options: dict, text: str) -> None:
    how = HOWS["no mean"]
    with pytest.raises(UsageError) as caught:
        occlusion(trained_net(small(how), how), picture(), **options)
    assert str(caught.value).startswith(text)


# The picture and the command


def test_the_figure_is_the_papers(tmp_path: Path) -> None:
    how = HOWS["mean colour"]
    found = occlusion(trained_net(small(how), how), picture(label=2), box=8, stride=4)
    names = ["a", "b", "<i>c $x$", "d", "e"]
    made = draw_occlusion([found, found], names)
    titles = [axes.get_title() for axes in made.axes if axes.get_title()]
    assert titles[:4] == ["<i>c $x$", f"sum of cccp3, map {found.map}", "its probability", "most probable class"]
    assert len(titles) == 8
    meshes = [axes.collections[0] for axes in made.axes[:4] if axes.collections]
    np.testing.assert_array_equal(meshes[0].get_array(), found.activity)
    np.testing.assert_array_equal(meshes[1].get_array(), found.probability)
    first = [i for i, each in enumerate(found.best.ravel()) if each == found.whole_best]
    assert (np.asarray(meshes[2].get_array()).ravel() == 0).nonzero()[0].tolist() == first
    text = plot.encoded(made, "svg").decode()
    assert "&lt;i&gt;c $x$" in text
    shown = np.asarray(made.axes[0].images[0].get_array())
    at = np.unravel_index(found.probability.argmin(), found.probability.shape)
    top, left = found.corners[list(at)]
    assert (shown[top : top + 8, left : left + 8] == found.grey).all()
    assert (shown != found.picture.pixels).any(2).sum() <= 64


@pytest.mark.parametrize(("n", "text"), [(0, "0%"), (1, "<1%"), (500, "50%"), (999, "99%"), (1000, "100%")])
def test_shares(n: int, text: str) -> None:
    assert share(n, 1000) == text


def test_the_command(run, untrained: Path, digits: Store, tmp_path: Path) -> None:
    arguments = ["show", "occlusion", untrained, digits.path, "--box", 16, "--stride", 8]
    code, out, err = run(*arguments, "--ids", "0,5", "--class", "7")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[-1] == "written: occlusion.png"
    assert len(lines) == 3
    assert lines[0].startswith(f"{digits.split('test').keys[0]}: 7 ")
    assert (tmp_path / "occlusion.png").read_bytes().startswith(b"\x89PNG")
    place = tmp_path / "3"
    place.mkdir()
    Image.fromarray(RNG.integers(0, 256, (40, 30, 3), np.uint8)).save(place / "a.png")
    code, out, _ = run("show", "occlusion", untrained, place / "a.png", "--stride", 16, "--box", 16, "--out", "o.svg")
    assert code == 0
    assert out.startswith(f"{place / 'a.png'}: 3 ")  # the folder's name is a class of the net
    code, _, err = run("show", "occlusion", untrained, digits.path, "--class", "seven")
    assert (code, err.startswith("convnet: unknown class 'seven': ")) == (2, True)
    (tmp_path / "names").write_text("0 crane, bird\n1 crane\n2 two, deux\n", encoding="utf-8")
    code, out, _ = run(*arguments, "--ids", "0", "--class", "deux", "--names", "names")
    assert code == 0
    assert ": two, deux " in out
    code, _, err = run(*arguments, "--class", "crane", "--names", "names")
    assert (code, err) == (2, "convnet: --class crane: names 0, 1; choose one of these\n")
    code, _, err = run("show", "occlusion", untrained, digits.path, "--box", 40)
    assert (code, err) == (2, "convnet: --box 40: must be 1 to 32 pixels, the side of the net's input\n")


def test_pictures_of_a_store(run, untrained: Path, digits: Store, photos: Store, tmp_path: Path) -> None:
    """By number, or some evenly spaced; what doesn't fit is told."""
    arguments = ["show", "occlusion", untrained, digits.path, "--box", 16, "--stride", 16]
    keys = digits.split("val").keys
    _, out, _ = run(*arguments, "--split", "val", "--ids", "7,2")
    assert [line.split(": ")[0] for line in out.splitlines()[:2]] == [keys[7], keys[2]]
    _, out, _ = run(*arguments, "--split", "val")
    n = digits.split("val").n
    assert [line.split(": ")[0] for line in out.splitlines()[:3]] == [keys[0], keys[n // 3], keys[2 * n // 3]]
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(tmp_path / "a.png")
    for words, text in (
        ((digits.path, "--ids", "359"), "--ids 359: test has the pictures 0 to 358"),
        ((digits.path, "--ids", "one"), "--ids one: whole numbers with commas between them"),
        (("a.png", "--ids", "1"), "--ids and --split choose pictures of a store; here pictures are named"),
        ((photos.path,), f"{photos.path} has 3 classes that {untrained} lacks, as {photos.classes[0]!r}, "),
    ):
        code, _, err = run("show", "occlusion", untrained, *words)
        assert (code, err.removesuffix("\n")[: len(text) + 9]) == (2, f"convnet: {text}")
