"""Network in Network (2013): every convolution is followed by 1x1 convolutions, and no layer is fully connected.

Three nets, each with its table. A stage `conv1`, `cccp1` ... is the layer and its ReLU, the last layer's too, so that
no logit is negative; cccp, "cascaded cross-channel parametric pooling", is the paper's word for a 1x1 convolution. The
last layer has a map for each class, and the logits are the means of these maps: they show where a class is.
"""

from collections.abc import Sequence
from types import MappingProxyType
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from convnet.nets.convolutions import Conv2d
from convnet.nets.initial import gaussian, he_std
from convnet.nets.layers import NO_LIMIT, Chain

CONVS = tuple(f"conv{i}" for i in range(1, 5))
CCCPS = tuple(f"cccp{i}" for i in range(1, 9))


class GlobalAvgPool(nn.Module):
    """The mean of each map: (N, C, H, W) -> (N, C)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


class ReLUConv2d(Conv2d):
    """A convolution and its ReLU, which is a module within."""

    def __init__(self, maps_in: int, maps_out: int, size: int, stride: int = 1, padding: int = 0) -> None:
        super().__init__(maps_in, maps_out, size, stride, padding)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.relu(super().forward(x))
        return y


class NINNet(Chain):
    """What the nets of this file share: mlpconv, a small perceptron slid over the picture. Paper: 3.1."""

    paper = "Lin, Chen and Yan 2013"
    year = 2013
    relu_inside = True
    pooling: ClassVar[tuple[int, int, bool]] = (3, 2, True)

    def add_mlpconv(
        self, names: Sequence[str], maps_in: int, maps: Sequence[int], size: int, stride: int = 1, padding: int = 0
    ) -> None:
        """Adds a convolution, then 1x1 convolutions, under these names; maps: the units of each."""
        for name, maps_out in zip(names, maps, strict=True):
            self.add_module(name, ReLUConv2d(maps_in, maps_out, size, stride, padding))
            maps_in, size, stride, padding = maps_out, 1, 1, 0


class NINCifar10(NINNet):
    """Pictures (N, 3, 32, 32) to logits (N, num_classes): 10.4 % error, 8.8 % with mirrors and shifts.

    stage   output (C, H, W)   parameters   settings
    conv1    192   32   32         14,592   5x5 pad 2; std 0.05 in all layers
    cccp1    160   32   32         30,880
    cccp2     96   32   32         15,456
    pool1     96   16   16              0   max 3x3, stride 2; dropout 0.5 follows
    conv2    192   16   16        460,992   5x5 pad 2
    cccp3    192   16   16         37,056
    cccp4    192   16   16         37,056
    pool2    192    8    8              0   max 3x3, stride 2; dropout 0.5 follows
    conv3    192    8    8        331,968   3x3 pad 1
    cccp5    192    8    8         37,056
    cccp6     10    8    8          1,930
    pool3     10                        0   mean of the whole map
    total                         966,986

    Differs: nothing for 32 x 32. Larger pictures are averaged over the whole map too.
    """

    name = "nin_cifar10"
    chain = ("conv1", "cccp1", "cccp2", "pool1", "conv2", "cccp3", "cccp4", "pool2", "conv3", "cccp5", "cccp6", "pool3")
    caffe_channels: ClassVar[Literal["rgb", "bgr"]] = "rgb"
    input_size = 32
    dropout = 0.5
    dropped: ClassVar[tuple[str, ...]] = ("pool1", "pool2")
    last: ClassVar[str] = "cccp6"
    std: ClassVar[dict[str, float]] = dict.fromkeys((*CONVS[:3], *CCCPS[:6]), 0.05)
    sides = range(4, NO_LIMIT)

    def __init__(self, num_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__(num_classes, in_channels)
        self.add_mlpconv(("conv1", "cccp1", "cccp2"), in_channels, (192, 160, 96), 5, padding=2)
        self.add_mlpconv(("conv2", "cccp3", "cccp4"), 96, (192, 192, 192), 5, padding=2)
        self.add_mlpconv(("conv3", "cccp5", "cccp6"), 192, (192, 192, num_classes), 3, padding=1)
        self.pool3 = GlobalAvgPool()
        self.add_functions()


class NINImageNet(NINNet):
    """Pictures (N, 3, 224, 224) to logits (N, num_classes): the authors' net for ImageNet, as released for Caffe.

    stage   output (C, H, W)   parameters   settings
    conv1     96   54   54         34,944   11x11, stride 4; std 0.01
    cccp1     96   54   54          9,312   std 0.05, as wherever none is given
    cccp2     96   54   54          9,312
    pool1     96   27   27              0   max 3x3, stride 2
    conv2    256   27   27        614,656   5x5 pad 2
    cccp3    256   27   27         65,792
    cccp4    256   27   27         65,792
    pool2    256   13   13              0
    conv3    384   13   13        885,120   3x3 pad 1; std 0.01
    cccp5    384   13   13        147,840
    cccp6    384   13   13        147,840
    pool3    384    6    6              0   dropout 0.5 follows
    conv4   1024    6    6      3,539,968   3x3 pad 1
    cccp7   1024    6    6      1,049,600
    cccp8   1000    6    6      1,025,000   std 0.01
    pool4   1000                        0   mean of the whole map
    total                       7,595,176

    Differs: names; the release calls the first pool pool0 and the last three layers conv4-1024, cccp7-1024 and
    cccp8-1024. Larger pictures are averaged over the whole map, the release's over its first 6 x 6.
    """

    name = "nin_imagenet"
    chain = (*NINCifar10.chain, "conv4", "cccp7", "cccp8", "pool4")
    layer_names = MappingProxyType({"caffe": {layer: f"{layer}-1024" for layer in ("conv4", "cccp7", "cccp8")}})
    input_size = 224
    dropout = 0.5
    dropped: ClassVar[tuple[str, ...]] = ("pool3",)
    last: ClassVar[str] = "cccp8"
    std: ClassVar[dict[str, float]] = dict.fromkeys(("conv2", "conv4", *CCCPS[:7]), 0.05)
    sides = range(39, NO_LIMIT)

    def __init__(self, num_classes: int = 1000, in_channels: int = 3) -> None:
        super().__init__(num_classes, in_channels)
        self.add_mlpconv(("conv1", "cccp1", "cccp2"), in_channels, (96, 96, 96), 11, stride=4)
        self.add_mlpconv(("conv2", "cccp3", "cccp4"), 96, (256, 256, 256), 5, padding=2)
        self.add_mlpconv(("conv3", "cccp5", "cccp6"), 256, (384, 384, 384), 3, padding=1)
        self.add_mlpconv(("conv4", "cccp7", "cccp8"), 384, (1024, 1024, num_classes), 3, padding=1)
        self.pool4 = GlobalAvgPool()
        self.add_functions()


class NINSmall(NINNet):
    """Pictures (N, 3, 32, 32) to logits (N, num_classes): a small example with one 1x1 layer a block, for CIFAR-100.

    stage   output (C, H, W)   parameters   notes
    conv1     16   30   30            448   table 4.4: L11, 3x3
    cccp1     16   30   30            272   L12
    conv2     64   28   28          9,280   L21, 3x3
    cccp2     64   28   28          4,160   L22
    conv3    100   26   26         57,700   L31, 3x3
    cccp3    100   26   26         10,100   L32
    pool      100                       0   GAP: the mean of the whole map
    total                          81,960

    Differs: this net is of no paper; it's the example of the notes on classic nets. They give no initial values: here
    N(0, 2 / inputs), which keeps the scale through ReLUs (He and others 2015), for pictures of variance about 1.
    """

    name = "nin_small"
    chain = ("conv1", "cccp1", "conv2", "cccp2", "conv3", "cccp3", "pool")
    paper = "notes on classic nets, table 4.4, after Lin, Chen and Yan 2013"
    input_size = 32
    last: ClassVar[str] = "cccp3"
    sides = range(7, NO_LIMIT)

    def __init__(self, num_classes: int = 100, in_channels: int = 3) -> None:
        super().__init__(num_classes, in_channels)
        self.add_mlpconv(("conv1", "cccp1"), in_channels, (16, 16), 3)
        self.add_mlpconv(("conv2", "cccp2"), 16, (64, 64), 3)
        self.add_mlpconv(("conv3", "cccp3"), 64, (100, num_classes), 3)
        self.pool = GlobalAvgPool()
        self.add_functions()

    def sample_weights(self, init: str, generator: torch.Generator) -> None:
        """N(0, 2 / fan-in), biases 0."""
        gaussian(self, generator, he_std(self))


NETS = (NINCifar10, NINImageNet, NINSmall)
