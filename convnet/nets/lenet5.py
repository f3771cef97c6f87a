"""LeNet-5: the net of "Gradient-Based Learning Applied to Document Recognition" (1998), section II.B.

stage     output (C, H, W)   parameters   paper
c1         6   28   28              156   5x5
s2         6   14   14               12   2x2 sub-sampling, trainable
c3        16   10   10            1,516   5x5, connected by table I
s4        16    5    5               32   2x2 sub-sampling, trainable
c5       120    1    1           48,120   5x5: all of S4
f6        84                     10,164
output    10                          0   eq. 7: distances to fixed 7x12 codes
total                            60,000

Every stage up to f6 ends in 1.7159 tanh(2x/3). Pixels: the background is -0.1 and the ink 1.175, which makes their mean
about 0 and their variance about 1.

Differs: the codes are drawn after figure 3, not copied. The logits are minus the distances. Sub-sampling takes the mean
of four where the paper adds them. No part of the paper are `output="linear"`, a trainable layer of 84 x K weights and K
biases, for any number of classes, and `c3="full"`, in which each map of C3 reads all of S2, to hold the table against.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convnet.errors import UsageError, unknown
from convnet.io.strict_json import Json
from convnet.kernels import ops
from convnet.kernels.plain import scaled_tanh as scaled_tanh
from convnet.kernels.plain import sub_sample, wide
from convnet.nets.layers import Net, check_images, hooked, linear

# Which maps of S2 each of the 16 maps of C3 sees. Paper: table I.
TABLE = (
    *((0, 1, 2), (1, 2, 3), (2, 3, 4), (3, 4, 5), (0, 4, 5), (0, 1, 5)),  # three neighbours
    *((0, 1, 2, 3), (1, 2, 3, 4), (2, 3, 4, 5), (0, 3, 4, 5), (0, 1, 4, 5), (0, 1, 2, 5)),  # four neighbours
    *((0, 1, 3, 4), (1, 2, 4, 5), (0, 2, 3, 5)),  # four apart
    (0, 1, 2, 3, 4, 5),
)
FEATURES = ("c1", "s2", "c3", "s4", "c5", "f6")  # the stages before the output
TABLES = {"table": TABLE, "full": (tuple(range(6)),) * len(TABLE)}

# The codes of the ten digits, 7 x 12 each: # is 1, . is -1.
BITMAPS = """
..###.. ...#... .#####. .#####. .....#. ####### ..####. ####### .#####. ..###..
.#...#. ..##... #.....# #.....# ....##. #...... .#....# ......# #.....# .#...#.
#.....# .#.#... ......# ......# ...#.#. #...... #...... .....#. #.....# #.....#
#.....# ...#... ......# ......# ..#..#. #...... #...... .....#. #.....# #.....#
#.....# ...#... .....#. ......# .#...#. #.####. #.####. ....#.. .#...#. #.....#
#.....# ...#... ....#.. ..####. #....#. ##....# ##....# ....#.. ..###.. #.....#
#.....# ...#... ...#... ......# #....#. ......# #.....# ...#... .#...#. #....##
#.....# ...#... ..#.... ......# ####### ......# #.....# ...#... #.....# .####.#
#.....# ...#... .#..... ......# .....#. ......# #.....# ..#.... #.....# ......#
#.....# ...#... #...... ......# .....#. ......# #.....# ..#.... #.....# ......#
.#...#. ...#... #...... #.....# .....#. #.....# .#...#. ..#.... #.....# #....#.
..###.. .#####. ####### .#####. .....#. .#####. ..###.. ..#.... .#####. .####..
"""


def digit_codes() -> Tensor:
    """The ten codes of +1 and -1, float32 (10, 84), row by row. Paper: figure 3."""
    rows = [line.split() for line in BITMAPS.split("\n") if line]
    drawings = ["".join(row[digit] for row in rows) for digit in range(10)]
    return torch.tensor([[1.0 if dot == "#" else -1.0 for dot in drawing] for drawing in drawings])


class SubSampling(nn.Module):
    """Halves the picture: the mean of each 2x2 square, times a trainable coefficient, plus a bias, per map.

    Differs: the paper adds the four, so that its coefficient is a quarter of this one.
    """

    def __init__(self, maps: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(maps))
        self.bias = nn.Parameter(torch.zeros(maps))

    def forward(self, x: Tensor) -> Tensor:
        return sub_sample(x, self.weight, self.bias)


class SparseConv2d(nn.Module):
    """A convolution whose map o sees only the input maps `table[o]`; it holds the kernels of these connections alone.

    weight: (connections, size, size), in the order of the table. The dense kernel is put together at each call. Weights
    and biases begin as torch's convolutions do, uniform within 1 / sqrt(the map's inputs).

    Raises: UsageError for a table with an empty row or a map that isn't there.
    """

    outputs: Tensor
    inputs: Tensor

    def __init__(self, maps: int, table: Sequence[Sequence[int]], size: int) -> None:
        super().__init__()
        if not table or not all(inputs and min(inputs) >= 0 and max(inputs) < maps for inputs in table):
            raise UsageError(f"each row of the table must name some of the input maps 0 to {maps - 1}, got {table}")
        pairs = torch.tensor([(o, i) for o, inputs in enumerate(table) for i in inputs])
        self.register_buffer("outputs", pairs[:, 0].contiguous(), persistent=False)
        self.register_buffer("inputs", pairs[:, 1].contiguous(), persistent=False)
        self.dense_shape = (len(table), maps, size, size)
        self.weight = nn.Parameter(torch.empty(len(pairs), size, size))
        self.bias = nn.Parameter(torch.empty(len(table)))
        weight, bias, first = self.weight.detach(), self.bias.detach(), 0
        for number, inputs in enumerate(table):
            bound = 1 / math.sqrt(len(inputs) * size**2)
            weight[first : first + len(inputs)].uniform_(-bound, bound)  # arithmetic on the meta device would load
            bias[number].uniform_(-bound, bound)  # torch's compiler, 2 s
            first += len(inputs)

    def dense(self) -> Tensor:
        """The kernel as an ordinary convolution's, zero where there is no connection."""
        return self.weight.new_zeros(self.dense_shape).index_put((self.outputs, self.inputs), self.weight)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.dense(), self.bias)


class ScaledTanh(nn.Module):
    """`scaled_tanh`: 1.7159 tanh(2x/3)."""

    def forward(self, x: Tensor) -> Tensor:
        return scaled_tanh(x)


class _Squashed(nn.Module):
    """What a stage up to f6 has besides its layer: the scaled tanh, a module within."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.tanh = ScaledTanh()

    def bare(self, x: Tensor) -> Tensor:
        """What the layer gives before its tanh."""
        y: Tensor = super().forward(x)
        return y

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.tanh(self.bare(x))
        return y


class TanhConv2d(_Squashed, nn.Conv2d):
    """A convolution and its scaled tanh."""


class TanhSparseConv2d(_Squashed, SparseConv2d):
    """A sparse convolution and its scaled tanh."""


class TanhSubSampling(_Squashed, SubSampling):
    """Sub-sampling and its scaled tanh."""


class TanhLinear(_Squashed, nn.Linear):
    """A fully connected layer, which slides over maps, and its scaled tanh."""

    def bare(self, x: Tensor) -> Tensor:
        return linear(self, x)


LAYERS = (TanhConv2d, TanhSubSampling, TanhSparseConv2d, TanhSubSampling, TanhConv2d, TanhLinear)  # of FEATURES
OF_CONVOLUTIONS = (("stride", (1, 1)), ("padding", (0, 0)), ("dilation", (1, 1)), ("padding_mode", "zeros"))


class RBF(nn.Module):
    """Radial basis function units: minus the squared distance of the features (N, D) to each class's fixed code (K, D).

    Features at each place of a map, (N, D, h, w), give (N, K, h, w). Logits, so larger is nearer. They are float32 or
    better under autocast too: a distance is a difference of large numbers. Paper: LeNet-5, eq. 7 (the distance itself).
    """

    codes: Tensor

    def __init__(self, codes: Tensor) -> None:
        super().__init__()
        self.register_buffer("codes", codes)

    def forward(self, x: Tensor) -> Tensor:
        if ops.is_proxy(x):  # of features
            return -(x[:, None] - self.codes).square().sum(2)
        x = wide(x)
        codes = self.codes.to(x.dtype).reshape(*self.codes.shape, *[1] * (x.ndim - 2))
        return -(x[:, None] - codes).square().sum(2)


def rbf_loss(logits: Tensor, labels: Tensor, j: float = math.inf) -> Tensor:
    """The 1998 paper's discriminative loss on RBF logits, averaged over the pictures.

    With y = -logits: y[label] + log(e^-j + sum_i e^-y_i). `j` stands for a class "rubbish" at that distance: pictures
    that are already further from all other codes no longer push. With j infinite it's the cross entropy.

    Paper: LeNet-5, eq. 9.
    """
    if j == math.inf:
        return F.cross_entropy(logits, labels)
    rubbish = logits.new_full((len(logits), 1), -j)
    return F.cross_entropy(torch.cat([logits, rubbish], 1), labels)


def _only_adds_up(weight: Tensor) -> bool:
    """Whether a gradient is added up and no more: nobody waits for it, and it lies as the weight does."""
    if type(weight) is not nn.Parameter or weight._backward_hooks or weight._post_accumulate_grad_hooks:
        return False
    return weight.is_contiguous() or (weight.ndim == 4 and weight.is_contiguous(memory_format=torch.channels_last))


class LeNet5(Net):
    """Pictures (N, 1, 32, 32) to logits (N, num_classes)."""

    name = "lenet5"
    paper = "LeCun, Bottou, Bengio and Haffner 1998"
    year = 1998
    small_recipe: ClassVar[str] = "lenet5_small"
    small_set: ClassVar[int] = 10_000
    input_size = 32
    sides = range(32, 33)
    last: ClassVar[str] = "output"

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 1,
        output: Literal["rbf", "linear"] = "rbf",
        c3: Literal["table", "full"] = "table",
    ) -> None:
        super().__init__(num_classes, in_channels)
        if c3 not in TABLES:
            raise UsageError(unknown("c3", str(c3), TABLES))
        if output not in ("rbf", "linear"):
            raise UsageError(unknown("output", str(output), ("rbf", "linear")))
        if output == "rbf" and num_classes != 10:
            raise UsageError(f"lenet5's rbf output has codes for the ten digits, not for {num_classes} classes: "
                             "use output=linear")  # fmt: skip
        self.c1 = TanhConv2d(in_channels, 6, 5)
        self.s2 = TanhSubSampling(6)
        self.table = TABLES[c3]
        self.c3 = TanhSparseConv2d(6, self.table, 5)
        self.s4 = TanhSubSampling(16)
        self.c5 = TanhConv2d(16, 120, 5)
        self.f6 = TanhLinear(120, 84)
        self.output = RBF(digit_codes()) if output == "rbf" else nn.Linear(84, num_classes)

    def forward(self, images: Tensor, stages: dict[str, Tensor] | None = None) -> Tensor:
        check_images(images, self)
        weights = self._weights_of_one_pass(images) if stages is None else None
        if weights is None:
            return self.run(images, stages, *FEATURES, "output")
        return self.run(ops.lenet5(images, weights, self.c3.outputs, self.c3.inputs), None, "output")

    def loss_and_gradients(self, images: Tensor, labels: Tensor, j: float) -> tuple[Tensor, Tensor] | None:
        """`rbf_loss` of a batch and how many pictures are wrong, without a graph; the gradients are left where
        `backward` leaves them.

        None, and nothing is done, where autograd must do it: of another output, and for who looks at a layer, at a
        gradient, or at torch's functions."""
        output = self.output
        if type(self) is not LeNet5 or type(output) is not RBF or hooked(self) or hooked(output):
            return None
        if output.codes.requires_grad or torch.is_anomaly_enabled():
            return None
        weights = self._weights_of_one_pass(images)
        if weights is None or not all(map(_only_adds_up, weights)) or not any(each.requires_grad for each in weights):
            return None
        found = ops.lenet5_step(images, labels, weights, self.c3.outputs, self.c3.inputs, output.codes, j)
        if found is None:
            return None
        loss, wrong, gradients = found
        for weight, gradient in zip(weights, gradients, strict=True):
            if not weight.requires_grad:
                continue
            if weight.grad is not None:
                weight.grad.detach().add_(gradient)
            elif gradient.stride() == weight.stride():
                weight.grad = gradient
            else:  # the kernels' of several maps, channels-last
                weight.grad = torch.empty_like(weight).copy_(gradient)
        return loss, wrong

    def _weights_of_one_pass(self, images: Tensor) -> list[Tensor] | None:
        """The weights and biases up to F6 where one pass can do with them alone. None where the features must be
        computed stage by stage: for who looks at one, or has put another in its place, and of pictures over which the
        net slides. Asked in steps of half a millisecond, so that no layer is looked for by `__getattr__`."""
        modules: Mapping[str, Any] = self._modules
        layers = [modules[stage] for stage in FEATURES]
        if ops.layer_by_layer(images) or tuple(map(type, layers)) != LAYERS:
            return None
        if images.shape[2:] != (self.input_size, self.input_size) or modules["c3"].dense_shape != (16, 6, 5, 5):
            return None
        tanhs = [layer._modules.get("tanh") for layer in layers]
        if any(type(tanh) is not ScaledTanh for tanh in tanhs) or any(map(hooked, (*layers, *tanhs))):
            return None
        for layer in (modules["c1"], modules["c5"]):
            if any(vars(layer)[name] != value for name, value in OF_CONVOLUTIONS):
                return None
        weights = [layer._parameters.get(name) for layer in layers for name in ("weight", "bias")]
        return None if any(weight is None for weight in weights) else weights

    def options_of(self, shapes: Mapping[str, tuple[int, ...]]) -> Json:
        options: Json = {"output": "linear"} if "output.weight" in shapes else {}
        full = shapes.get("c3.weight", ())[:1] == (sum(map(len, TABLES["full"])),)
        return options | ({"c3": "full"} if full else {})

    def sample_weights(self, init: str, generator: torch.Generator) -> None:
        """Uniform within 2.4 / fan-in of 0, biases included.

        The fan-in is a unit's number of inputs: 4 for sub-sampling, whose coefficient of the mean is four times that
        of the sum; 75 to 150 in C3. Paper: appendix A.
        """
        fan_in_c3 = torch.tensor([25.0 * len(inputs) for inputs in self.table])
        fan_in = {"c1": 25.0 * self.in_channels, "s2": 4.0, "s4": 4.0, "c5": 400.0, "f6": 120.0, "output": 84.0}
        for name, parameter in self.named_parameters():
            layer, kind = name.split(".")
            parameter.uniform_(-2.4, 2.4, generator=generator)
            if layer == "c3":
                per_weight = fan_in_c3[self.c3.outputs][:, None, None]
                parameter.div_(per_weight if kind == "weight" else fan_in_c3)
            else:
                parameter.div_(1.0 if (layer in ("s2", "s4") and kind == "weight") else fan_in[layer])


NETS = (LeNet5,)
