"""What do the nets of AlexNet's family share? Five convolutions or so, three fully connected layers, in a given order.

`alexnet.py` is the paper's net in plain sight. The others state what they change: the order of the stages, the maps,
the columns, the normalisation, the initial values. `order` is a net's forward pass; a stage is a kind and a layer's
number, so that `norm2` is layer 2's response normalisation.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convnet.kernels.one_pass import in_one_pass
from convnet.kernels.plain import Block
from convnet.nets.columns import Columns, ConnectedColumns, exchange
from convnet.nets.dropout import checked_rate, dropout
from convnet.nets.initial import NONE, check_init, gaussian, uniform_by_fan_in
from convnet.nets.layers import Net, StridedConv2d, check_images, connected, record, response_norm
from convnet.nets.norms import CAFFE_LRN

POOLED = 6  # pixels: the side of the last pooling layer's maps, which the first fully connected layer reads
PAPER_BIAS = {"conv2": 1.0, "conv4": 1.0, "conv5": 1.0, "fc6": 1.0, "fc7": 1.0}  # section 5; elsewhere 0


class Family(Net):
    """A net by its `order`; what a subclass does not state is as the paper's text has it (`alexnet`)."""

    paper = "Krizhevsky, Sutskever and Hinton 2012"
    year = 2012
    input_size = 224
    columns = 2
    inits: ClassVar[tuple[str, ...]] = ("paper", "fan-in")
    last: ClassVar[str] = "fc8"

    name: ClassVar[str]  # as errors call it
    order: ClassVar[str] = (
        "conv1 relu1 norm1 pool1 conv2 relu2 norm2 pool2 conv3 relu3 conv4 relu4 conv5 relu5 pool5 "
        "fc6 relu6 fc7 relu7 fc8"
    )
    sides: ClassVar[range] = range(224, 256)  # pixels: the sides that give 6 x 6 maps after the last pooling
    edge: ClassVar[int] = 3  # zeros that conv1 reads past the right and bottom edges
    maps: ClassVar[Mapping[str, int]] = {"conv1": 96, "conv2": 256, "conv3": 384, "conv4": 384, "conv5": 256}
    padding: ClassVar[Mapping[str, int]] = {"conv2": 2}  # elsewhere 1
    joined: ClassVar[tuple[str, ...]] = ("conv3",)  # the convolutions that read all columns
    units: ClassVar[Mapping[str, int]] = MappingProxyType({})  # of a fully connected layer before the last; else 4096
    apart: ClassVar[tuple[str, ...]] = ()  # the fully connected layers that read their own column only
    norm_columns: ClassVar[int] = 1  # equal parts of the maps, at whose edges the norms' windows end
    pooling: ClassVar[tuple[int, int, bool]] = (3, 2, False)  # size, stride, whether partial windows are kept
    std: ClassVar[Mapping[str, float]] = NONE  # of a layer's initial weights; elsewhere 0.01
    bias: ClassVar[Mapping[str, float]] = PAPER_BIAS

    def __init__(self, num_classes: int = 1000, in_channels: int = 3, dropout: float = 0.5) -> None:
        super().__init__()
        self.dropout = checked_rate(dropout)  # after all fully connected layers but the last
        self.num_classes = num_classes
        self.in_channels = in_channels
        n_below = in_channels
        for stage in self.order.split():
            if stage.startswith("conv"):
                setattr(self, stage, self.convolution(stage, n_below))
                n_below = self.maps[stage]
            elif stage.startswith("fc"):
                n_inputs = n_below * POOLED**2 if stage == self.first_linear else n_below
                n_below = num_classes if stage == self.last else self.units.get(stage, 4096)
                is_apart = stage in self.apart
                layer = ConnectedColumns(self.columns, n_inputs, n_below) if is_apart else nn.Linear(n_inputs, n_below)
                setattr(self, stage, layer)

    @property
    def first_linear(self) -> str:
        return next(stage for stage in self.order.split() if stage.startswith("fc"))

    def convolution(self, stage: str, n_below: int) -> nn.Module:
        """conv1 reads the picture, a joined layer all maps below; the others read their own column's."""
        maps = self.maps[stage]
        if stage == "conv1":
            return StridedConv2d(n_below, maps, 11, stride=4, edge=self.edge)
        size, padding = 5 if stage == "conv2" else 3, self.padding.get(stage, 1)
        if self.columns == 1 or stage in self.joined:
            return nn.Conv2d(n_below, maps, size, padding=padding)
        return Columns(self.columns, n_below, maps, size, padding=padding)

    def forward(self, images: Tensor, stages: dict[str, Tensor] | None = None) -> Tensor:
        check_images(images, self, self.name, self.sides)
        x, order = images, self.order.split()
        while order:
            n, block = self.as_block(order)
            fast = in_one_pass(x, block) if stages is None and block is not None else None
            if fast is None:
                n, fast = 1, record(stages, order[0], self.apply_stage(order[0], x))
            x, order = fast, order[n:]
        return x

    def as_block(self, order: list[str]) -> tuple[int, Block | None]:
        """How many of the next stages one pass can do: [ReLU,] norm and pooling, norm, pooling and ReLU, or ReLU and
        pooling."""
        kinds = [stage.rstrip("0123456789") for stage in order[:3]]
        if kinds[:2] == ["relu", "pool"]:
            size, stride, ceil = self.pooling
            return 2, Block(size=size, stride=stride, ceil=ceil, relu_before=True)
        before, after = kinds == ["relu", "norm", "pool"], kinds == ["norm", "pool", "relu"]
        if not (before or after or kinds[:2] == ["norm", "pool"]):
            return 1, None
        block = Block(*self.lrn, self.norm_columns, *self.pooling, relu_before=before, relu_after=after)
        return 2 + (before or after), block

    def apply_stage(self, stage: str, x: Tensor) -> Tensor:
        kind = stage.rstrip("0123456789")
        if kind == "relu":
            return F.relu(x)
        if kind == "norm":
            return self.norm(x)
        if kind == "pool":
            return self.pool(x)
        if kind == "fc":
            x = x if stage == self.first_linear else dropout(x, self.dropout, self.training)
            return self.units_of(stage, x)
        y: Tensor = getattr(self, stage)(x)
        return y

    def units_of(self, stage: str, x: Tensor) -> Tensor:
        layer = getattr(self, stage)
        y: Tensor = layer(x) if stage in self.apart else connected(layer, x)
        return y

    def norm(self, x: Tensor) -> Tensor:
        return exchange([response_norm(part, *self.lrn) for part in x.chunk(self.norm_columns, 1)])

    def pool(self, x: Tensor) -> Tensor:
        size, stride, ceil = self.pooling
        return F.max_pool2d(x, size, stride, ceil_mode=ceil)

    def initialize(self, init: str, generator: torch.Generator) -> None:
        """Draw all weights anew.

        "paper": N(0, `std`) and the constants `bias`, layer by layer. "fan-in": `uniform_by_fan_in`.

        Raises: UsageError for another name.
        """
        check_init(self, init)
        if init == "paper":
            gaussian(self, generator, self.std, self.bias)
        else:
            uniform_by_fan_in(self, generator)


class CaffeFamily(Family):
    """As Caffe runs these nets: 227 pixels without padding, pools with partial windows, LRN with k 1 and alpha / n."""

    paper = "Jia et al. 2014 (Caffe)"
    year = 2014
    input_size = 227
    sides: ClassVar[range] = range(199, 231)
    edge: ClassVar[int] = 0
    lrn = CAFFE_LRN
    pooling: ClassVar[tuple[int, int, bool]] = (3, 2, True)
