"""Class maps: by what theory says of their means, and against plain loops and finite differences."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import trained_net
from convnet import checkpoint, device
from convnet.data.preprocess import Preprocessing
from convnet.errors import UsageError
from convnet.evaluation.inference import NotFinite
from convnet.evaluation.seen import Seen
from convnet.nets import create_model, trace
from convnet.recipe import Recipe
from convnet.visualize import plot
from convnet.visualize.cam import ClassMap, cam, draw_cam, overlay

RNG = np.random.default_rng(0)
CPU = device.choose("fp32", "cpu")
SIDES = {"nin_small": 32, "nin_cifar10": 32, "googlenet": 64, "googlenet_bn": 64, "lenet5": 32, "cifar_11": 24}


def how(name: str) -> Preprocessing:
    return Preprocessing(SIDES[name], 0, SIDES[name], "grey" if name == "lenet5" else "rgb", None, 1 / 64, -2.0)


def picture(name: str, label: int | None = None) -> Seen:
    return Seen("a.png", RNG.integers(0, 256, (SIDES[name], SIDES[name], 3), np.uint8), label)


def made(name: str, **options: object) -> torch.nn.Module:
    net = create_model(name, num_classes=10, seed=0, **options).eval()
    with torch.no_grad():  # biases that matter
        generator = torch.Generator().manual_seed(1)
        for key, parameter in net.named_parameters():
            if key in ("fc.bias", "cccp3.bias", "cccp6.bias"):
                parameter.uniform_(0.5, 2, generator=generator)
    return net


@pytest.mark.parametrize(
    ("name", "layer"), [("nin_small", "cccp3"), ("nin_cifar10", "cccp6"), ("googlenet", "inception_5b")]
)
def test_the_mean_of_a_class_map_is_the_logit(name: str, layer: str) -> None:
    net, seen = made(name), picture(name)
    logits = net(trained_net(net, how(name)).images([seen]))[0].detach().numpy()
    found = cam(trained_net(net, how(name)), seen, labels=tuple(range(10)))
    assert {(each.kind, each.layer) for each in found} == {("CAM", layer)}
    for k, each in enumerate(found):
        assert each.map.mean(dtype=float) + each.bias == pytest.approx(float(logits[k]), rel=1e-4, abs=1e-5)
        assert each.logit == pytest.approx(float(logits[k]))
        assert each.probability == pytest.approx(math.exp(logits[k]) / np.exp(logits.astype(float)).sum())
    if name == "googlenet":
        assert [each.bias for each in found] == net.fc.bias.tolist()
        assert np.ptp([each.map.mean() for each in found]) > 0.01


def test_the_map_of_googlenet_equals_a_loop() -> None:
    net, seen = made("googlenet_bn"), picture("googlenet_bn")
    maps = trace(net, trained_net(net, how("googlenet_bn")).images([seen]))["inception_5b"][0].double().numpy()
    weights = net.fc.weight.detach().double().numpy()
    (found,) = cam(trained_net(net, how("googlenet_bn")), seen, labels=(7,))
    for y in range(maps.shape[1]):
        for x in range(maps.shape[2]):
            value = sum(weights[7, c] * maps[c, y, x] for c in range(len(maps)))
            assert found.map[y, x] == pytest.approx(value, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize(("name", "layer"), [("nin_small", "cccp3"), ("googlenet", "inception_5b")])
def test_grad_cam_of_pooled_nets_is_cam_up_to_the_number_of_places(name: str, layer: str) -> None:
    net, seen = made(name), picture(name)
    plain = cam(trained_net(net, how(name)), seen, top=10)
    by_gradient = cam(trained_net(net, how(name)), seen, top=10, layer=layer)
    for a, b in zip(plain, by_gradient, strict=True):
        assert (a.kind, b.kind, a.label) == ("CAM", "Grad-CAM", b.label)
        np.testing.assert_allclose(a.map, b.map * a.map.size, rtol=1e-4, atol=1e-5)
        assert math.isnan(b.bias)


def test_grad_cam_equals_finite_differences() -> None:
    """The mean of the derivatives by a map's places is that by the whole map, divided by the number of places."""
    net, seen = made("lenet5"), picture("lenet5")
    maps = trace(net, trained_net(net, how("lenet5")).images([seen]))["c3"].double()
    net = net.double()

    @torch.no_grad()
    def logit(maps: torch.Tensor, k: int) -> float:
        return float(net.output(net.f6(net.c5(net.s4(maps)).flatten(1)))[0, k])

    for k in (2, 9):
        expected = np.zeros(maps.shape[2:])
        for c in range(maps.shape[1]):
            up, down = maps.clone(), maps.clone()
            up[:, c] += 1e-4
            down[:, c] -= 1e-4
            slope = (logit(up, k) - logit(down, k)) / 2e-4 / maps[0, 0].numel()
            expected += slope * maps[0, c].numpy()
        (found,) = cam(trained_net(net.float(), how("lenet5")), seen, labels=(k,))
        net.double()
        assert (found.kind, found.layer) == ("Grad-CAM", "c3")
        np.testing.assert_allclose(found.map, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


def test_the_map_on_the_picture_is_bilinear() -> None:
    net, seen = made("cifar_11"), picture("cifar_11")
    (found,) = cam(trained_net(net, how("cifar_11")), seen, top=1)
    assert (found.kind, found.layer) == ("Grad-CAM", "relu4")
    side, n = 24, len(found.map)

    def between(at: int) -> list[tuple[int, float]]:
        place = min(max((at + 0.5) * n / side - 0.5, 0), n - 1)
        low = int(place)
        return [(low, 1 - (place - low)), (min(low + 1, n - 1), place - low)]

    for y in range(side):
        for x in range(side):
            value = sum(a * b * float(found.map[i, j]) for i, a in between(y) for j, b in between(x))
            assert found.on_picture[y, x] == pytest.approx(value, rel=1e-4, abs=1e-7)


def test_the_most_probable_classes_come_first_and_the_net_stays_as_it_was() -> None:
    net, seen = made("nin_small"), picture("nin_small")
    net.requires_grad_(False)
    found = cam(trained_net(net, how("nin_small")), seen, top=3, layer="conv2")
    logits = net(trained_net(net, how("nin_small")).images([seen]))[0].tolist()
    assert [each.label for each in found] == sorted(range(10), key=lambda k: -logits[k])[:3]
    assert all(parameter.grad is None for parameter in net.parameters())
    assert len({each.map.tobytes() for each in found}) == 3


def test_what_cannot_be_shown() -> None:
    net = made("nin_small")
    with pytest.raises(UsageError, match="unknown stage with maps 'fc'"):
        cam(trained_net(net, how("nin_small")), picture("nin_small"), layer="fc")
    with torch.no_grad():
        net.conv1.bias[0] = float("nan")
    with pytest.raises(NotFinite, match=r"the net's output of 'a\.png' is not finite"):
        cam(trained_net(net, how("nin_small")), picture("nin_small"))


# The picture and the command


def one_map(values: np.ndarray) -> ClassMap:
    seen = Seen("a", np.full((2, 2, 3), 100, np.uint8), 0)
    return ClassMap(seen, "CAM", "pool", 0, 1.0, 0.5, values, 0.0, values)


def test_the_colour_lies_where_the_map_is_positive() -> None:
    grey = 0.25 + 0.6 * 100 / 255
    mixed = overlay(one_map(np.float32([[-3, 0], [1, 2]])))
    np.testing.assert_allclose(mixed[0], grey, atol=1e-6)
    yellow = np.array([0xF0, 0xE4, 0x42]) / 255
    np.testing.assert_allclose(mixed[1, 1], 0.15 * grey + 0.85 * yellow, atol=1e-6)
    assert (mixed[1, 0, 0] > mixed[1, 0, 2] + 0.1).all()
    np.testing.assert_allclose(overlay(one_map(np.full((2, 2), -1, np.float32))), grey, atol=1e-6)


def test_the_figure_says_which_map_it_is(tmp_path: Path) -> None:
    net, names = made("nin_small"), [f"<i>{k}" for k in range(10)]
    for layer, kind in ((None, "CAM of cccp3"), ("conv2", "Grad-CAM of conv2")):
        found = [cam(trained_net(net, how("nin_small")), picture("nin_small", label=4), layer=layer) for _ in range(2)]
        figure = draw_cam(found, names)
        assert figure.get_supxlabel().startswith(f"{kind}: ")
        titles = [axes.get_title() for axes in figure.axes if axes.images]
        assert titles[0] == "<i>4"
        assert titles[1] == f"<i>{found[0][0].label}: {found[0][0].probability:.0%}"
        assert len(titles) == 6
        assert "&lt;i&gt;4" in plot.encoded(figure, "svg").decode()


def test_the_command(run, untrained: Path, tmp_path: Path) -> None:
    Image.fromarray(RNG.integers(0, 256, (40, 30, 3), np.uint8)).save(tmp_path / "a.png")
    code, out, _ = run("show", "cam", untrained, "a.png", "--class", 3)
    assert (code, out) == (0, "Grad-CAM of c3\nwritten: cam.png\n")
    weights = dict(create_model("nin_small", num_classes=4, seed=0).state_dict())
    recipe = Recipe(name="nin", net="nin_small", size=32, crop=32)
    net = checkpoint.Checkpoint(recipe, how("nin_small"), ("a", "b", "c", "d"), weights)
    checkpoint.save(tmp_path / "nin.ckpt", net)
    code, out, _ = run("show", "cam", "nin.ckpt", "a.png", "a.png", "--out", "maps.svg")
    assert (code, out) == (0, "CAM of cccp3\nwritten: maps.svg\n")
    code, _, err = run("show", "cam", "nin.ckpt", "a.png", "--top", 0)
    assert (code, err) == (2, "convnet: --top 0: must be at least 1\n")
    code, _, err = run("show", "cam", "nin.ckpt", "b.png")
    assert (code, err) == (3, "convnet: b.png: no such file\n")
