"""The deconvnet against an implementation in nested loops, written from Zeiler and Fergus 2.1; theory; errors."""

import copy
from typing import ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convnet.errors import UsageError
from convnet.nets.layers import Net, record, response_norm, within_map_norm
from convnet.visualize.deconv import Form, Unit, deconv, peaks
from pools import ceil_max_pool, max_pool
from thin import images_for, thin_net

FORMS: tuple[Form, ...] = ("deconv", "guided", "gradient")


class Small(Net):
    """Two convolutions, response norm, overlapping pools (one with partial windows), a linear layer."""

    in_channels, input_size, num_classes = 2, 12, 3
    last: ClassVar[str] = "fc"

    def __init__(self, relu: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.relu = relu
        self.conv1 = nn.Conv2d(2, 4, 3, padding=1)
        self.conv2 = nn.Conv2d(4, 5, 3, stride=2, padding=1)
        self.fc = nn.Linear(5 * 2 * 2, 3)

    def forward(self, images: Tensor, stages: dict[str, Tensor] | None = None) -> Tensor:
        rectify = F.relu if self.relu else nn.Identity()
        x = record(stages, "conv1", self.conv1(images))
        x = record(stages, "relu1", rectify(x))
        x = record(stages, "norm1", response_norm(x, 3, 1.0, 0.5, 0.75) if self.relu else x)
        x = record(stages, "pool1", ceil_max_pool(x))  # 12 -> 6, the last windows reach over the edge
        x = record(stages, "conv2", self.conv2(x))  # 6 -> 3
        x = record(stages, "relu2", rectify(x))
        x = record(stages, "pool2", max_pool(x, 2, 1))  # 3 -> 2
        return record(stages, "fc", self.fc(x.flatten(1)))


# An independent deconvnet: numpy and loops, with no gradient anywhere.


def conv_up(x: np.ndarray, kernel: np.ndarray, bias: np.ndarray, stride: int, pad: int) -> np.ndarray:
    n_out, n_in, size, _ = kernel.shape
    side = (x.shape[1] + 2 * pad - size) // stride + 1
    y = np.zeros((n_out, side, side))
    for o in range(n_out):
        for i in range(side):
            for j in range(side):
                y[o, i, j] = bias[o]
                for c in range(n_in):
                    for u in range(size):
                        for v in range(size):
                            row, column = i * stride + u - pad, j * stride + v - pad
                            if 0 <= row < x.shape[1] and 0 <= column < x.shape[2]:
                                y[o, i, j] += kernel[o, c, u, v] * x[c, row, column]
    return y


def conv_down(y: np.ndarray, kernel: np.ndarray, stride: int, pad: int, shape: tuple[int, ...]) -> np.ndarray:
    """Each unit paints its kernel, weighted, where it reads."""
    x = np.zeros(shape)
    for o, i, j in np.ndindex(*y.shape):
        for c, u, v in np.ndindex(*kernel.shape[1:]):
            row, column = i * stride + u - pad, j * stride + v - pad
            if 0 <= row < shape[1] and 0 <= column < shape[2]:
                x[c, row, column] += kernel[o, c, u, v] * y[o, i, j]
    return x


def norm_up(x: np.ndarray, n: int, k: float, alpha: float, beta: float) -> np.ndarray:
    y = np.zeros_like(x)
    for c, i, j in np.ndindex(*x.shape):
        near = x[max(0, c - n // 2) : c + n // 2 + 1, i, j]
        y[c, i, j] = x[c, i, j] / (k + alpha * (near**2).sum()) ** beta
    return y


def pool_up(x: np.ndarray, size: int, stride: int, side: int) -> tuple[np.ndarray, dict]:
    """The maxima and the switches."""
    y, switches = np.zeros((len(x), side, side)), {}
    for c, i, j in np.ndindex(*y.shape):
        window = [
            (x[c, row, column], row, column)
            for row in range(i * stride, min(i * stride + size, x.shape[1]))
            for column in range(j * stride, min(j * stride + size, x.shape[2]))
        ]
        value, row, column = max(window, key=lambda each: each[0])
        y[c, i, j] = value
        switches[c, i, j] = row, column
    return y, switches


def pool_down(y: np.ndarray, switches: dict, shape: tuple[int, ...]) -> np.ndarray:
    x = np.zeros(shape)
    for (c, i, j), (row, column) in switches.items():
        x[c, row, column] += y[c, i, j]
    return x


class Loops:
    """`Small` without torch: every stage of one picture, and the way down from each of them."""

    def __init__(self, net: Small, image: np.ndarray) -> None:
        self.weights = {name: value.double().numpy() for name, value in net.state_dict().items()}
        self.image = image
        at: dict[str, np.ndarray] = {}
        at["conv1"] = conv_up(image, self.weights["conv1.weight"], self.weights["conv1.bias"], 1, 1)
        at["relu1"] = np.maximum(at["conv1"], 0)
        at["norm1"] = norm_up(at["relu1"], 3, 1.0, 0.5, 0.75)
        at["pool1"], self.switches1 = pool_up(at["norm1"], 3, 2, 6)
        at["conv2"] = conv_up(at["pool1"], self.weights["conv2.weight"], self.weights["conv2.bias"], 2, 1)
        at["relu2"] = np.maximum(at["conv2"], 0)
        at["pool2"], self.switches2 = pool_up(at["relu2"], 2, 1, 2)
        at["fc"] = self.weights["fc.weight"] @ at["pool2"].reshape(-1) + self.weights["fc.bias"]
        self.at = at

    def down(self, stage: str, signal: np.ndarray) -> np.ndarray:
        """Unpool, rectify, filter, from a signal in that stage to the pixels."""
        if stage == "fc":
            signal = np.maximum(signal, 0)
            flat = np.zeros(20)
            for k in range(3):
                for d in range(20):
                    flat[d] += self.weights["fc.weight"][k, d] * signal[k]
            return self.down("pool2", flat.reshape(5, 2, 2))
        if stage == "pool2":
            return self.down("relu2", pool_down(signal, self.switches2, self.at["relu2"].shape))
        if stage in ("relu2", "conv2"):
            signal = np.maximum(signal, 0)
            below = conv_down(signal, self.weights["conv2.weight"], 2, 1, self.at["pool1"].shape)
            return self.down("pool1", below)
        if stage == "pool1":
            return self.down("norm1", pool_down(signal, self.switches1, self.at["norm1"].shape))
        return conv_down(np.maximum(signal, 0), self.weights["conv1.weight"], 1, 1, self.image.shape)


def pictures(n: int, seed: int = 3) -> Tensor:
    return torch.randn(n, 2, 12, 12, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("stage", ["conv1", "relu1", "norm1", "pool1", "conv2", "relu2", "pool2", "fc"])
def test_equal_to_nested_loops_for_units_and_whole_maps_of_every_stage(stage: str) -> None:
    net = Small().eval()
    images = pictures(2)
    loops = [Loops(net, image.double().numpy()) for image in images]
    generator = np.random.default_rng(0)
    n_active = n_overlaps = 0
    for whole in (False, False, False, False, True, True):
        units, expected = [], []
        for loop in loops:
            maps = loop.at[stage]
            place = tuple(int(generator.integers(side)) for side in maps.shape)
            if not whole and n_active % 2 == 0:
                place = np.unravel_index(maps.argmax(), maps.shape)
            signal = np.zeros_like(maps)
            signal[place[0] if whole else place] = np.maximum(maps[place[0] if whole else place], 0)
            n_active += bool(signal.any())
            channel, row, column = (int(each) for each in (*place, 0, 0)[:3])
            units.append(Unit(channel) if whole else Unit(channel, row, column))
            expected.append(loop.down(stage, signal).transpose(1, 2, 0))
            n_overlaps += len(set(loop.switches1.values())) < len(loop.switches1)
        found = deconv(net, images, stage, units)
        assert found.pixels.dtype == np.float32
        np.testing.assert_allclose(found.pixels, np.stack(expected), rtol=1e-4, atol=1e-6)
    assert n_active >= 4
    assert n_overlaps  # some values met at a switch


def test_equal_to_an_explicit_deconvnet_of_alexnet() -> None:
    """Columns, the edge past the right and bottom, LRN: each layer's way down written out with conv_transpose2d."""
    net = thin_net("alexnet").eval()
    images = images_for(net, 2)
    stages: dict[str, Tensor] = {}
    with torch.no_grad():
        net(images, stages)
        best = [int(strength.argmax()) for strength in stages["pool5"].amax((2, 3))]
        units = peaks(stages["pool5"], best)
        signal = torch.zeros_like(stages["pool5"])
        for n, (channel, row, column) in enumerate(units):
            signal[n, channel, row, column] = stages["pool5"][n, channel, row, column]
        assert bool((signal.flatten(1).amax(1) > 0).all())
        signal = unpool(signal, stages["relu5"]).relu()
        signal = columns_down(net.conv5, signal).relu()
        signal = columns_down(net.conv4, signal).relu()
        signal = F.conv_transpose2d(signal, net.conv3.weight, padding=1)
        signal = unpool(signal, stages["norm2"]).relu()
        signal = columns_down(net.conv2, signal, 2)
        signal = unpool(signal, stages["norm1"]).relu()
        expected = F.conv_transpose2d(signal, net.conv1.weight, stride=4)[..., :224, :224]
    found = deconv(net, images, "pool5", units)
    assert np.abs(found.pixels).max() > 0
    np.testing.assert_allclose(found.pixels, expected.permute(0, 2, 3, 1), rtol=1e-3, atol=1e-5 * float(expected.max()))


def unpool(signal: Tensor, below: Tensor) -> Tensor:
    """3x3, stride 2; what meets is added."""
    switches = F.max_pool2d(below, 3, 2, return_indices=True)[1]
    return torch.zeros_like(below.flatten(2)).scatter_add(2, switches.flatten(2), signal.flatten(2)).view_as(below)


def columns_down(layer: nn.ModuleList, signal: Tensor, padding: int = 1) -> Tensor:
    parts = signal.chunk(2, 1)
    return torch.cat(
        [F.conv_transpose2d(part, conv.weight, padding=padding) for part, conv in zip(parts, layer, strict=True)], 1
    )


class Stack(Net):
    """One convolution that copies the picture, a ReLU, a pool."""

    def __init__(self, pool: bool) -> None:
        super().__init__()
        self.pool = pool
        self.conv = nn.Conv2d(1, 1, 1, bias=False)
        nn.init.ones_(self.conv.weight)

    def forward(self, images: Tensor, stages: dict[str, Tensor] | None = None) -> Tensor:
        x = record(stages, "relu", F.relu(self.conv(images)))
        return record(stages, "pool", max_pool(x)) if self.pool else x


def test_a_net_that_copies_gives_back_the_rectified_picture() -> None:
    image = torch.randn(1, 1, 7, 7, generator=torch.Generator().manual_seed(0))
    found = deconv(Stack(False), image, "relu", [Unit(0)])
    np.testing.assert_array_equal(found.pixels[0, ..., 0], image[0, 0].relu())
    one = deconv(Stack(False), image, "relu", [Unit(0, *divmod(int(image.argmax()), 7))])
    assert np.count_nonzero(one.pixels) == 1
    assert one.pixels.max() == float(image.max()) == one.activations[0]


def test_what_meets_at_a_switch_is_added() -> None:
    """The peak in the middle of 5x5 is the maximum of all four windows of 3x3 with stride 2; MaxUnpool2d keeps one."""
    image = torch.zeros(1, 1, 5, 5)
    image[0, 0, 2, 2] = 3.0
    found = deconv(Stack(True), image, "pool", [Unit(0)])
    assert found.pixels[0, 2, 2, 0] == 12.0
    assert np.count_nonzero(found.pixels) == 1
    values, places = F.max_pool2d(image, 3, 2, return_indices=True)
    assert float(F.max_unpool2d(values, places, 3, 2, output_size=(5, 5)).max()) == 3.0


def test_without_relus_and_norms_all_forms_are_the_gradient_times_the_activation() -> None:
    net = Small(relu=False).eval()
    images = pictures(3).requires_grad_()
    stages: dict[str, Tensor] = {}
    net(images, stages)
    unit = Unit(2, 1, 1)
    (gradient,) = torch.autograd.grad((stages["pool2"][:, 2, 1, 1] ** 2 / 2).sum(), images)
    for form in FORMS:
        found = deconv(net, images.detach(), "pool2", [unit] * 3, form)
        np.testing.assert_allclose(found.pixels, gradient.permute(0, 2, 3, 1), rtol=1e-5, atol=1e-7)


class TwoConvolutions(Net):
    """conv, ReLU, conv: one place where the forms differ."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.a, self.b = nn.Conv2d(2, 6, 3), nn.Conv2d(6, 3, 3)

    def forward(self, images: Tensor, stages: dict[str, Tensor] | None = None) -> Tensor:
        return record(stages, "b", self.b(record(stages, "relu", F.relu(self.a(images)))))


def test_the_forms_differ_in_how_they_pass_a_relu() -> None:
    net, images = TwoConvolutions(), pictures(2)
    stages: dict[str, Tensor] = {}
    with torch.no_grad():
        net(images, stages)
        units = peaks(stages["b"], [0, 2])
        signal = torch.zeros_like(stages["b"])
        for n, unit in enumerate(units):
            signal[n, unit.map, unit.row, unit.column] = stages["b"][n, unit.map, unit.row, unit.column]
        below, on = F.conv_transpose2d(signal, net.b.weight), stages["relu"] > 0
        expected = {"deconv": below.relu(), "guided": below.relu() * on, "gradient": below * on}
        for form in FORMS:
            pixels = F.conv_transpose2d(expected[form], net.a.weight).permute(0, 2, 3, 1)
            np.testing.assert_allclose(deconv(net, images, "b", units, form).pixels, pixels, rtol=1e-4, atol=1e-6)
    assert len({float(each.abs().sum()) for each in expected.values()}) == 3


def test_where_every_relu_lets_through_what_is_positive_guided_is_the_deconvnet() -> None:
    """All weights and pixels positive: every unit is on and every signal is positive, so the three forms agree."""
    net = Small().eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.abs_()
    images = pictures(2).abs()
    plain = Plain(net)
    found = [deconv(plain, images, "pool2", [Unit(3, 0, 1)] * 2, form).pixels for form in FORMS]
    np.testing.assert_allclose(found[0], found[1], rtol=1e-6)
    np.testing.assert_allclose(found[0], found[2], rtol=1e-6)
    assert found[0].max() > 0


class Plain(Small):
    """`Small` without its response norm."""

    def __init__(self, net: Small) -> None:
        super().__init__()
        self.load_state_dict(net.state_dict())

    def forward(self, images: Tensor, stages: dict[str, Tensor] | None = None) -> Tensor:
        x = record(stages, "pool1", ceil_max_pool(F.relu(self.conv1(images))))
        return record(stages, "pool2", max_pool(F.relu(self.conv2(x)), 2, 1))


class Norms(Net):
    """Both response norms and a tanh, which the deconvnet passes unchanged."""

    def forward(self, images: Tensor, stages: dict[str, Tensor] | None = None) -> Tensor:
        return record(
            stages, "tanh", torch.tanh(within_map_norm(response_norm(images, 3, 1.0, 0.5), 3, 1.0, 0.5, 0.75))
        )


def test_norms_and_tanh_are_passed_unchanged_and_no_signal_is_rectified_where_there_is_no_relu() -> None:
    images = pictures(1)
    found = deconv(Norms(), images, "tanh", [Unit(1)])
    expected = np.zeros((12, 12, 2), np.float32)
    expected[..., 1] = Norms()(images)[0, 1].numpy()
    assert expected.min() < 0
    np.testing.assert_array_equal(found.pixels[0], expected)
    assert np.count_nonzero(deconv(Norms(), images, "tanh", [Unit(1)], "gradient").pixels[..., 0])  # through the norms


@pytest.mark.parametrize(
    "name",
    [
        "googlenet",
        "googlenet_bn",
        "nin_small",
        "cifar_18",
        "cifar_11",
        "lenet5",
        "alexnet_tanh",
        "vgg_a_lrn",
        "alexnet_2012",
    ],
)
def test_every_kind_of_net_is_projected_from_every_stage(name: str) -> None:
    """A unit's projection stays within its picture, is finite, and leaves the net as it was."""
    net = copy.deepcopy(thin_net(name))
    images = images_for(net, 1)
    stages: dict[str, Tensor] = {}
    with torch.no_grad():
        net.eval()(images, stages)
        net.train()
    for stage in list(stages)[:: max(1, len(stages) // 5)]:
        found = deconv(net, images, stage, peaks(stages[stage], [0]))
        assert found.pixels.shape == (1, net.input_size, net.input_size, net.in_channels)
        assert np.isfinite(found.pixels).all()
        assert bool(found.pixels.any()) == (found.activations[0] > 0) or name in ("lenet5", "alexnet_tanh")
    assert all(module.training for module in net.modules())
    assert all(parameter.grad is None for parameter in net.parameters())


@pytest.mark.parametrize(
    ("stage", "units", "text"),
    [
        ("conv9", [Unit(0)], "unknown stage 'conv9'"),
        ("conv1", [Unit(4)], "conv1 has the maps 0 to 3, no map 4"),
        ("conv1", [Unit(-1)], "no map -1"),
        ("conv1", [Unit(0, 12, 0)], "conv1 has maps of 12 x 12, no unit in row 12, column 0; the first is 0"),
        ("fc", [Unit(0, 0, 1)], "fc has maps of 1 x 1"),
        ("conv1", [Unit(0), Unit(1)], "2 units for 1 pictures"),
    ],
)
def test_errors(stage: str, units: list[Unit], text: str) -> None:
    with pytest.raises(UsageError, match=text):
        deconv(Small(), pictures(1), stage, units)


def test_an_unknown_form_names_the_known_ones() -> None:
    with pytest.raises(UsageError, match=r"unknown form 'gradent'.*gradient"):
        deconv(Small(), pictures(1), "conv1", [Unit(0)], "gradent")  # type: ignore[arg-type]


def test_peaks_are_the_first_largest_units() -> None:
    maps = torch.tensor([[[[1.0, 5.0], [5.0, 2.0]], [[0.0, 0.0], [0.0, 7.0]]]])
    assert peaks(maps.expand(2, -1, -1, -1), [0, 1]) == [Unit(0, 0, 1), Unit(1, 1, 1)]
    assert peaks(torch.tensor([[3.0, 4.0]]), [1]) == [Unit(1, 0, 0)]
