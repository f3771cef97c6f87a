"""Kernels and what columns learned: against loops, known patterns, and the real convolutions of bvlc_alexnet."""

import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch

import caffe_writer as writer
from convnet.checkpoint import rebuild
from convnet.errors import UsageError
from convnet.nets import create_model
from convnet.visualize import plot
from convnet.visualize.filters import Kernels, colour_of, column_colour_of, draw_filters, filters, pictures_of
from convnet.visualize.specialisation import draw_specialisation, specialisation, tuning
from convnet.weights import read_weights

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def alexnet() -> torch.nn.Module:
    return create_model("alexnet", num_classes=2, seed=0)


def test_the_measure_of_colour_equals_a_loop() -> None:
    kernels = RNG.normal(size=(4, 3, 5, 6)).astype(np.float32)
    shares, coloured_sum, whole_sum = [], 0.0, 0.0
    for w in kernels.astype(float):
        coloured = whole = 0.0
        for y in range(5):
            for x in range(6):
                grey = (w[0, y, x] + w[1, y, x] + w[2, y, x]) / 3
                for c in range(3):
                    coloured += (w[c, y, x] - grey) ** 2
                    whole += w[c, y, x] ** 2
        shares.append(coloured / whole)
        coloured_sum += coloured
        whole_sum += whole
    np.testing.assert_allclose(colour_of(kernels), shares, rtol=1e-12)
    assert column_colour_of(kernels) == pytest.approx(coloured_sum / whole_sum, rel=1e-12)


def test_the_measure_of_colour_of_known_kernels() -> None:
    bars = RNG.normal(size=(1, 1, 7, 7))
    grey, opponent = np.repeat(bars, 3, 1), bars * np.array([1.0, -1.0, 0.0]).reshape(1, 3, 1, 1)
    red, noise, zeros = bars * np.eye(3)[0].reshape(1, 3, 1, 1), RNG.normal(size=(1, 3, 200, 200)), 0 * grey
    found = [float(colour_of(each)[0]) for each in (grey, opponent, red, noise, zeros)]
    np.testing.assert_allclose(found[:3], [0, 1, 2 / 3], atol=1e-12)
    assert found[3] == pytest.approx(2 / 3, abs=0.01)
    assert math.isnan(found[4])
    weak_grey_and_strong_opponent = np.concatenate([0.001 * grey, opponent, zeros])
    assert column_colour_of(weak_grey_and_strong_opponent) == pytest.approx(1, abs=1e-4)


def test_every_kernel_is_scaled_by_its_own_largest_weight() -> None:
    kernels = np.zeros((3, 3, 2, 2), np.float32)
    kernels[0, 1, 0, 1], kernels[0, 2, 1, 1] = -4, 2
    kernels[1, 0, 0, 0] = 1e-6
    pictures = pictures_of(kernels)
    expected = np.full((3, 2, 2, 3), 0.5)
    expected[0, 0, 1, 1], expected[0, 1, 1, 2], expected[1, 0, 0, 0] = 0, 0.75, 1
    np.testing.assert_allclose(pictures, expected)


def test_columns_are_the_nets(alexnet: torch.nn.Module) -> None:
    first, second, third = (filters(alexnet, layer) for layer in (None, "conv2", "conv3"))
    state = {name: tensor.numpy() for name, tensor in alexnet.state_dict().items()}
    assert first.layer == "conv1"
    for i in (0, 1):
        np.testing.assert_array_equal(first.columns[i], state["conv1.weight"][48 * i : 48 * (i + 1)])
        np.testing.assert_array_equal(second.columns[i], state[f"conv2.{i}.weight"])
        np.testing.assert_array_equal(third.columns[i], state["conv3.weight"][192 * i : 192 * (i + 1)])
    assert [len(each) for each in first.colour] == [48, 48]
    assert second.colour == second.column_colour == ()


@pytest.mark.parametrize(
    ("name", "layer", "shape"),
    [
        ("lenet5", "c1", (6, 1, 5, 5)),
        ("lenet5", "c3", (16, 6, 5, 5)),
        ("nin_small", "conv1", (16, 3, 3, 3)),
        ("nin_small", "cccp2", (64, 64, 1, 1)),
        ("googlenet_bn", "conv1", (64, 3, 7, 7)),
        ("googlenet_bn", "inception_3a.conv3x3", (128, 96, 3, 3)),
        ("cifar_11", "conv2", (64, 64, 5, 5)),
    ],
)
def test_layers_of_every_kind(name: str, layer: str, shape: tuple[int, ...]) -> None:
    found = filters(create_model(name, seed=0), layer)
    assert [each.shape for each in found.columns] == [shape]
    assert bool(found.colour) == (layer in ("c1", "conv1"))


def test_an_unknown_layer_is_told_the_known_ones(alexnet: torch.nn.Module) -> None:
    with pytest.raises(
        UsageError, match=r"unknown layer with kernels 'fc6': .*Known: conv1, conv2, conv3, conv4, conv5"
    ):
        filters(alexnet, "fc6")


def test_the_figure_shows_the_kernels(alexnet: torch.nn.Module) -> None:
    shown = filters(alexnet)
    made = draw_filters(shown)
    assert [axes.get_title("left") for axes in made.axes] == [
        f"column {i}: {shown.column_colour[i]:.0%} of the energy is colour" for i in (0, 1)
    ]
    for i, axes in enumerate(made.axes):
        sheet, pictures = np.asarray(axes.images[0].get_array()), pictures_of(shown.columns[i])
        for k in (0, 15, 16, 47):  # sixteen in a row; 11 pixels and 2 between
            top, left = k // 16 * 13, k % 16 * 13
            np.testing.assert_array_equal(sheet[top : top + 11, left : left + 11], pictures[k])
        assert len(axes.lines) == 2 * 48  # a bar under each
        ends = np.array([line.get_xdata() for line in axes.lines[1::2]])
        np.testing.assert_allclose(ends[:, 1] - ends[:, 0], 11 * shown.colour[i])


def test_slices_are_the_strongest(alexnet: torch.nn.Module) -> None:
    shown = filters(alexnet, "conv2")
    made = draw_filters(shown, most=3, slices=2)
    for axes, kernels in zip(made.axes, shown.columns, strict=True):
        norms = [float(np.linalg.norm(kernel)) for kernel in kernels]
        chosen = sorted(range(128), key=lambda o: -norms[o])[:3]
        assert [label.get_text() for label in axes.get_yticklabels()] == [str(o) for o in chosen]
        sheet = np.asarray(axes.images[0].get_array())
        for row, o in enumerate(chosen):
            inputs = sorted(range(48), key=lambda i: -float(np.linalg.norm(kernels[o, i])))[:2]
            for column, i in enumerate(inputs):
                tile = sheet[6 * row : 6 * row + 5, 6 * column : 6 * column + 5, 0]
                np.testing.assert_allclose(tile, 0.5 + kernels[o, i] / 2 / np.abs(kernels[o]).max(), atol=1e-6)


def test_pictures_of_grey_and_of_small_layers_are_files(tmp_path: Path) -> None:
    net = create_model("lenet5", seed=0)
    for layer in ("c1", "c3"):
        for suffix, begin in ((".png", b"\x89PNG"), (".svg", b"<?xml")):
            path = plot.save(draw_filters(filters(net, layer)), tmp_path / f"{layer}{suffix}")
            assert path.read_bytes().startswith(begin)


def test_a_layer_that_reads_three_maps_is_not_taken_for_one_that_reads_colours() -> None:
    kernels = RNG.normal(size=(4, 3, 5, 5)).astype(np.float32)
    made = draw_filters(Kernels("conv2", (kernels,), (), ()))
    assert made.axes[0].get_title(loc="left") == ""
    assert [each.get_text() for each in made.axes[0].get_yticklabels()] == [
        str(o) for o in np.argsort(-np.square(kernels).sum((1, 2, 3)))
    ]


# What columns learned


def grating(degrees: float, frequency: float = 0.2, side: int = 11) -> np.ndarray:
    """(1, 3, side, side): grey bars that lie at that angle, within a round window."""
    y, x = np.mgrid[:side, :side] - (side - 1) / 2
    across = np.radians(degrees + 90)
    phase = 2 * np.pi * frequency * (x * np.cos(across) - y * np.sin(across))
    return np.repeat((np.cos(phase) * np.exp(-(x**2 + y**2) / 18))[None, None], 3, 1)


@pytest.mark.parametrize("degrees", [0, 30, 90, 135])
def test_a_grating_has_its_direction_and_frequency(degrees: float) -> None:
    found = tuning(grating(degrees))
    turned = (np.degrees(found.orientation[0]) - degrees + 90) % 180 - 90
    assert abs(turned) < 0.5
    assert found.selectivity[0] > 0.9
    assert found.frequency[0] == pytest.approx(0.2, abs=0.01)


def test_a_round_blob_has_no_direction_and_a_flat_kernel_nothing() -> None:
    y, x = np.mgrid[:11, :11] - 5.0
    blob = np.exp(-(x**2 + y**2) / 6)[None, None].repeat(3, 1)
    found = tuning(np.concatenate([blob, np.full_like(blob, 0.3), np.zeros_like(blob)]))
    assert found.selectivity[0] < 0.01
    assert np.isnan(found.selectivity[1:]).all()
    assert np.isnan(found.frequency[1:]).all()


def test_tuning_equals_a_plain_transform() -> None:
    kernels = RNG.normal(size=(2, 3, 4, 5))
    found = tuning(kernels)
    for o, w in enumerate(kernels):
        vector, total, weighted = 0j, 0.0, 0.0
        for v in range(-32, 32):
            for u in range(-32, 32):
                radius = math.hypot(u, v) / 64
                if not 0 < radius <= 0.5:
                    continue
                power = 0.0
                for c in range(3):
                    wave = np.exp(-2j * np.pi * (v * np.arange(4)[:, None] + u * np.arange(5)) / 64)
                    power += abs(((w[c] - w[c].mean()) * wave).sum()) ** 2
                vector += power * np.exp(2j * math.atan2(-v, u))
                total += power
                weighted += power * radius
        assert found.selectivity[o] == pytest.approx(abs(vector) / total, rel=1e-9)
        assert found.frequency[o] == pytest.approx(weighted / total, rel=1e-9)


def test_a_net_of_one_column_has_nothing_to_compare() -> None:
    with pytest.raises(UsageError, match=r"this net has one column: .* `convnet show filters`"):
        specialisation(create_model("lenet5", seed=0))


def test_the_picture_of_columns(alexnet: torch.nn.Module, tmp_path: Path) -> None:
    found = specialisation(alexnet)
    assert [each.colour.shape for each in found.columns] == [(48,), (48,)]
    made = draw_specialisation(found)
    assert len(made.axes) == 8
    assert plot.save(made, tmp_path / "columns.svg").read_bytes().startswith(b"<?xml")


# The command


def test_the_commands(run, untrained: Path, tmp_path: Path) -> None:
    code, out, _ = run("show", "filters", untrained)
    assert (code, out) == (0, "c1: reads grey pictures\nwritten: filters.png\n")
    assert (tmp_path / "filters.png").read_bytes().startswith(b"\x89PNG")
    code, out, _ = run("show", "filters", untrained, "--layer", "c3", "--out", "c3.svg")
    assert (code, out) == (0, "written: c3.svg\n")
    code, _, err = run("show", "specialisation", untrained)
    assert code == 2
    assert err.startswith("convnet: this net has one column")
    code, _, err = run("show", "filters", untrained, "--out", "kernels.jpg")
    assert (code, err) == (2, "convnet: kernels.jpg: a picture's name ends in .png or .svg\n")
    code, _, err = run("show", "filters", untrained, "--most", 0)
    assert (code, err) == (2, "convnet: --most and --slices must be at least 1\n")


# The real convolutions of bvlc_alexnet


@pytest.mark.data
def test_the_real_columns_learned_colour_and_direction(tmp_path: Path) -> None:
    """Acceptance: nobody says which column is which; the pictures are in docs/gallery.md."""
    if not (data := os.environ.get("CONVNET_DATA")) or not Path(data, "alexnet-bvlc-conv").is_dir():
        pytest.skip("CONVNET_DATA doesn't name a folder with alexnet-bvlc-conv")
    arrays = np.load(Path(data, "alexnet-bvlc-conv", "conv1-5.npz"))
    names = [f"conv{i}" for i in range(1, 6)]
    path = tmp_path / "bvlc.caffemodel"
    path.write_bytes(writer.net({name: [arrays[f"{name}.weight"], arrays[f"{name}.bias"]] for name in names}, 2))
    kept, _ = read_weights(path, "alexnet_caffe", partial=True)
    found = specialisation(rebuild(kept))
    shares = found.kernels.column_colour
    coloured, grey = (found.columns[i] for i in np.argsort(shares)[::-1])
    print(f"colour {max(shares):.3f} and {min(shares):.3f}: {max(shares) / min(shares):.1f} times")
    assert max(shares) >= 2 * min(shares)
    assert max(shares) > 2 / 3  # more than random weights have
    assert np.mean((grey.colour < 0.25) & (grey.selectivity > 0.5)) > 0.5  # oriented and grey
    assert np.mean(coloured.colour > 0.75) > 0.5
    assert np.median(grey.selectivity) > np.median(coloured.selectivity)
    assert np.median(grey.frequency) > np.median(coloured.frequency)
