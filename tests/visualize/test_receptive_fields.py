"""Receptive fields against perturbed pixels: every pixel of small nets, every row and column of pixels of real ones."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convnet.errors import UsageError
from convnet.nets import MODELS, create_model
from convnet.nets.cifar import LocallyConnected2d
from convnet.nets.convolutions import Columns
from convnet.nets.layers import Net, record, response_norm, within_map_norm
from convnet.visualize.receptive_fields import Field, Fields, fields_of, receptive_fields
from pools import ceil_avg_pool, ceil_max_pool, max_pool
from thin import empty_for, shapes_of, thinned


class Odd(Net):
    """Odd strides and paddings, kernels that are not square, a dilation, columns, partial windows, an unused edge."""

    in_channels, input_size, columns = 2, 21, 2

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(2, 4, 4, stride=3, padding=1)
        self.conv2 = Columns(2, 4, 4, 3, padding=1)
        self.conv3 = nn.Conv2d(4, 2, (3, 2), stride=(1, 2), padding=(2, 1), dilation=(2, 1))
        self.fc = nn.Linear(2 * 2 * 2, 2)

    def forward(self, images: Tensor, stages: dict[str, Tensor] | None = None) -> Tensor:
        x = record(stages, "conv1", self.conv1(F.pad(images, (2, 0, 0, 3))))
        x = record(stages, "norm1", within_map_norm(response_norm(F.relu(x), 3), 3, 1.0, 1e-4, 0.75))
        x = record(stages, "pool1", ceil_max_pool(x, 3, 2))
        x = record(stages, "conv2", F.relu(self.conv2(x)))
        x = record(stages, "conv3", self.conv3(x))
        x = record(stages, "pool3", F.adaptive_avg_pool2d(x, 2))
        return record(stages, "fc", self.fc(x.flatten(1)))


class Branches(Net):
    """Branches of other sizes side by side, a locally connected layer, averages with partial windows."""

    in_channels, input_size = 1, 17

    def __init__(self) -> None:
        super().__init__()
        self.one, self.five = nn.Conv2d(1, 1, 1), nn.Conv2d(1, 2, 5, padding=2)
        self.local = LocallyConnected2d(4, 2, 4, 3, padding=1)

    def forward(self, images: Tensor, stages: dict[str, Tensor] | None = None) -> Tensor:
        x = record(stages, "pool1", max_pool(images, 2, 2))
        views = [self.one(x), self.five(x), F.max_pool2d(x, 3, 1, padding=1)]
        x = record(stages, "cat", torch.cat(views, 1))
        x = record(stages, "pool2", ceil_avg_pool(x, 3, 2))
        x = record(stages, "local", self.local(x))
        return record(stages, "mean", x.mean((2, 3)))


def changed_by(net: Net, seed: int) -> dict[str, Tensor]:
    """{stage: bool (h, w, H, W)}: whether a change of a pixel (H, W) changes any map of a unit (h, w)."""
    generator = torch.Generator().manual_seed(seed)
    side = net.input_size
    images = torch.randn(1, net.in_channels, side, side, generator=generator, dtype=torch.float64)
    plain: dict[str, Tensor] = {}
    found: dict[str, Tensor] = {}
    with torch.no_grad():
        net(images, plain)
        for by in (-30.0, -1.0, -0.01, 0.01, 1.0, 30.0):
            other = images.repeat(side * side, 1, 1, 1)
            other.view(side * side, net.in_channels, -1)[range(side * side), :, range(side * side)] += by
            stages: dict[str, Tensor] = {}
            net(other, stages)
            for stage, maps in stages.items():
                differs = ((maps - plain[stage]).abs() > 1e-11).any(1)  # rounding differs by the batch
                shape = (*differs.shape[1:], 1, 1)[:2]  # features are one unit
                seen = differs.reshape(side * side, -1).T.reshape(*shape, side, side)
                found[stage] = found.get(stage, torch.zeros((), dtype=torch.bool)) | seen
    return found


@pytest.mark.parametrize("kind", [Odd, Branches])
def test_equal_to_perturbing_every_pixel_of_small_nets(kind: type[Net]) -> None:
    """Random weights, pixels changed in both directions by much and little, over several pictures."""
    torch.manual_seed(0)
    net = kind().double().eval()
    seen: dict[str, Tensor] = {}
    for seed in range(4):
        for stage, changed in changed_by(net, seed).items():
            seen[stage] = seen.get(stage, torch.zeros((), dtype=torch.bool)) | changed
    n_clipped = 0
    for stage, found in receptive_fields(net).items():
        for row, column in np.ndindex(*seen[stage].shape[:2]):
            rows, columns = (torch.nonzero(seen[stage][row, column].any(axis))[:, 0] for axis in (1, 0))
            top, left = int(rows.min()), int(columns.min())
            expected = Field(top, left, int(rows.max()) + 1 - top, int(columns.max()) + 1 - left)
            assert found.of(row, column) == expected, (stage, row, column)
            n_clipped += found.whole(row, column) != expected
    assert n_clipped


REAL = ["alexnet", "zfnet", "alexnet_pool2", "alexnet_owt", "alexnet_bn", "googlenet", "googlenet_bn"]
SMALL = ["lenet5", "cifar_26", "cifar_11", "nin_cifar10", "nin_small", "cifar_tanh"]


def lit(net: Net, axis: int, side: int) -> dict[str, np.ndarray]:
    """{stage: bool (units, pixels)} along an axis: which units are on when one row or column of pixels is white.

    With positive weights and no biases nothing is lost in a ReLU or a max-pool, and nothing is on in a black picture.
    """
    dtype = next(net.parameters()).dtype
    rows: dict[str, list[np.ndarray]] = {}
    with torch.no_grad():
        for first in range(0, side, 16):
            lines = torch.arange(first, min(first + 16, side))
            images = torch.zeros(len(lines), net.in_channels, side, side, dtype=dtype)
            images.transpose(2, 2 + axis)[range(len(lines)), :, lines] = 1.0
            stages: dict[str, Tensor] = {}
            net(images, stages)
            for stage, maps in stages.items():
                units = maps[..., None, None] if maps.ndim == 2 else maps
                rows.setdefault(stage, []).append((units != 0).any(1).any(2 - axis).numpy())
    return {stage: np.concatenate(parts).T for stage, parts in rows.items()}


def positive(net: Net) -> Net:
    net = copy.deepcopy(net).eval()
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            parameter.abs_() if parameter.ndim > 1 else parameter.fill_(0.0 if name.endswith("bias") else 1.0)
    return net


@pytest.mark.parametrize("name", [*REAL, "vgg_d", *SMALL])
def test_equal_to_lighting_every_row_of_pixels(name: str) -> None:
    few = 1 if name in SMALL else 16  # of the maps: a field doesn't depend on their number
    with thinned(few):
        net = positive(create_model(name, seed=0, **({"input_size": 32} if name == "vgg_d" else {})))
    net = (
        net.double()
    )  # whose sums are direct: Winograd's leave a rounding where there is nothing; deep: 1e-40 of a unit
    side = 64 if "googlenet" in name else net.input_size
    check(receptive_fields(net, side), lit(net, 0, side), 0)
    if name in ("alexnet", "nin_small"):
        check(receptive_fields(net), lit(net, 1, side), 1)


def check(found: dict[str, Fields], seen: dict[str, np.ndarray], axis: int) -> None:
    assert list(found) == list(seen)
    for stage, units in seen.items():
        along = found[stage].columns if axis else found[stage].rows
        if stage == "output":  # LeNet-5's codes: on in a black picture too
            units = np.ones_like(units)
        for i, pixels in enumerate(units):
            assert (along.first[i], along.last[i]) == tuple(np.flatnonzero(pixels)[[0, -1]]), (stage, i)


def test_published_sizes() -> None:
    """AlexNet: by hand, 11 + 2*4 = 19, + 4*8 = 51, + 2*8 = 67, + 3 * 2*16 = 163, + 2*16 = 195. VGG 2.3: 5x5 and 7x7."""
    size = {stage: found.whole(0, 0).height for stage, found in receptive_fields(shapes_of("alexnet")).items()}
    expected = {"conv1": 11, "pool1": 19, "conv2": 51, "pool2": 67, "conv3": 99, "conv4": 131, "conv5": 163}
    assert {stage: size[stage] for stage in expected} == expected
    assert size["pool5"] == 195
    vgg = receptive_fields(shapes_of("vgg_d"))
    assert [vgg[stage].whole(9, 9).width for stage in ("conv1_1", "conv1_2")] == [3, 5]
    units = receptive_fields(shapes_of("alexnet"))["conv1"]
    assert units.of(54, 54) == Field(216, 216, 8, 8)  # it reads 3 zeros past each edge
    assert units.whole(54, 54) == Field(216, 216, 11, 11)


def test_columns_and_other_sides_and_unknown_names() -> None:
    net = shapes_of("alexnet")
    assert fields_of(net, "conv2.1").of(3, 4) == receptive_fields(net)["conv2"].of(3, 4)
    assert len(fields_of(net, "conv1", 240).rows.first) == 59
    with pytest.raises(UsageError, match=r"unknown stage 'conv2.2'"):
        fields_of(net, "conv2.2")


@pytest.mark.parametrize("name", MODELS)
def test_every_net_is_known(name: str) -> None:
    net = shapes_of(name)
    stages: dict[str, Tensor] = {}
    net.eval()(empty_for(net), stages)
    found = receptive_fields(net)
    assert list(found) == list(stages)
    for stage, each in found.items():
        for axis, side in zip((each.rows, each.columns), (*stages[stage].shape[2:], 1, 1), strict=False):
            assert len(axis.first) == side
            assert (axis.first >= 0).all()
            assert (axis.first <= axis.last).all()
            assert (axis.last < net.input_size).all()
            assert (axis.start <= axis.first).all()
            assert (axis.last <= axis.end).all()


class Flipped(Net):
    in_channels, input_size = 1, 4

    def forward(self, images: Tensor, stages: dict[str, Tensor] | None = None) -> Tensor:
        return record(stages, "flip", images.flip(3))


def test_a_function_of_which_nothing_is_known_is_named() -> None:
    with pytest.raises(UsageError, match="the net calls flip, of which it is not known"):
        receptive_fields(Flipped())


def test_a_unit_that_sees_nothing_has_no_height() -> None:
    class Bordered(Flipped):
        def forward(self, images: Tensor, stages: dict[str, Tensor] | None = None) -> Tensor:
            return record(stages, "pad", F.pad(images, (1, 1, 1, 1)))

    found = receptive_fields(Bordered())["pad"]
    assert found.of(0, 2) == Field(0, 1, 0, 1)
    assert found.whole(0, 2) == Field(-1, 1, 1, 1)
