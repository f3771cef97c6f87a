"""The CIFAR-10 nets of cuda-convnet, by their test error in percent, and the net of figure 1 of the AlexNet paper.

`cifar_26` is "80 seconds" of training on a GPU of 2011; `cifar_13` and `cifar_11` are the "four-layer CNN" of AlexNet
3.3, "13 % test error rate without normalization and 11 % with". Each class has its table. The layers have the names of
the settings files; `relu`, `tanh` and `norm` are ours, numbered with their layer.

All: pixels 0..255 with the mean picture subtracted; convolutions 5x5, pad 2; pools 3x3, stride 2, with the partial
windows at the right and bottom edges, and averages over the pixels inside; weights N(0, std of the layer), biases 0.
"""

import math
from collections.abc import Callable, Mapping
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from convnet.errors import UsageError
from convnet.kernels import ops
from convnet.kernels.local import AS_READ, BACK
from convnet.nets.layers import LRN, Chain, without

SIDES_6 = range(24, 28)  # pixels: those that give 6 x 6 maps after two pools


class LocallyConnected2d(nn.Module):
    """A convolution that shares nothing: each place has its own kernels and its own biases. Stride 1.

    (N, maps_in, side, side) -> (N, maps_out, side', side') with side' = side + 2 padding - size + 1.
    weight: (side', side', maps_out, maps_in, size, size); bias: (maps_out, side', side'). Both begin as torch's
    convolutions do, uniform within 1 / sqrt(fan-in).

    Raises: UsageError when the kernel is larger than the padded picture.
    """

    def __init__(self, maps_in: int, maps_out: int, side: int, size: int, padding: int = 0) -> None:
        super().__init__()
        out = side + 2 * padding - size + 1
        if out < 1:
            raise UsageError(f"a kernel of {size} x {size} doesn't fit {side} x {side} pixels with padding {padding}")
        self.side, self.size, self.padding, self.shape = side, size, padding, (maps_out, out, out)
        bound = 1 / math.sqrt(maps_in * size**2)
        self.weight = nn.Parameter(torch.empty(out, out, maps_out, maps_in, size, size).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(maps_out, out, out).uniform_(-bound, bound))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """After `to` and the like the weights lie in memory as the products read them, which then need no copy."""
        self.weight.data = self.weight.data.permute(AS_READ).contiguous().permute(BACK)  # first: `fn` may share it
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def forward(self, x: Tensor) -> Tensor:
        if not ops.is_proxy(x) and x.shape[2:] != (self.side, self.side):
            size = f"{x.shape[2]} x {x.shape[3]}"
            raise UsageError(
                f"this locally connected layer has weights for {self.side} x {self.side} pixels, got {size}"
            )
        return ops.locally_connected(x, self.weight, self.bias, self.padding)


class CifarNet(Chain):
    """What the nets of this file share."""

    paper = "cuda-convnet (Krizhevsky 2011)"
    year = 2011
    pooling: ClassVar[tuple[int, int, bool]] = (3, 2, True)
    average_pools: ClassVar[tuple[str, ...]] = ("pool2", "pool3")
    caffe_channels: ClassVar[Literal["rgb", "bgr"]] = "rgb"
    input_size = 32
    sides = range(32, 40)  # pixels: those that give 4 x 4 maps after three pools
    last: ClassVar[str] = "fc10"


class Cifar26(CifarNet):
    """Pictures (N, 3, 32, 32) to logits (N, num_classes): the net of 26 % error.

    stage   output (C, H, W)   parameters   settings
    conv1     32   32   32          2,432   5x5 pad 2; std 1e-4
    pool1     32   16   16              0   max
    relu1     32   16   16              0
    conv2     32   16   16         25,632   std 0.01
    relu2     32   16   16              0
    pool2     32    8    8              0   average
    conv3     64    8    8         51,264   std 0.01
    relu3     64    8    8              0
    pool3     64    4    4              0   average
    fc64      64                   65,600   std 0.1
    relu4     64                        0
    fc10      10                      650   std 0.1
    total                         145,578

    Differs: nothing.
    """

    name = "cifar_26"
    chain: tuple[str, ...] = (
        "conv1",
        "pool1",
        "relu1",
        "conv2",
        "relu2",
        "pool2",
        "conv3",
        "relu3",
        "pool3",
        "fc64",
        "relu4",
        "fc10",
    )
    std: ClassVar[dict[str, float]] = {"conv1": 1e-4, "conv2": 0.01, "conv3": 0.01, "fc64": 0.1, "fc10": 0.1}

    def __init__(self, num_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__(num_classes, in_channels)
        self.conv1 = nn.Conv2d(in_channels, 32, 5, padding=2)
        self.conv2 = nn.Conv2d(32, 32, 5, padding=2)
        self.conv3 = nn.Conv2d(32, 64, 5, padding=2)
        self.fc64 = nn.Linear(64 * 4 * 4, 64)
        self.fc10 = nn.Linear(64, num_classes)
        self.add_functions()


class Cifar18(CifarNet):
    """Pictures (N, 3, 32, 32) to logits (N, num_classes): the net of 18 % error, with normalisation within the maps.

    stage   output (C, H, W)   parameters   settings
    conv1     32   32   32          2,432   5x5 pad 2; std 1e-4
    pool1     32   16   16              0   max
    relu1     32   16   16              0
    norm1     32   16   16              0   within the map: 3x3, k 1, alpha 5e-5 / 9 of the plain sum, beta 0.75
    conv2     32   16   16         25,632   std 0.01
    relu2     32   16   16              0
    pool2     32    8    8              0   average
    norm2     32    8    8              0   as norm1
    conv3     64    8    8         51,264   std 0.01
    relu3     64    8    8              0
    pool3     64    4    4              0   average
    fc10      10                   10,250   std 0.01
    total                          89,578

    Differs: nothing.
    """

    name = "cifar_18"
    chain: tuple[str, ...] = (
        "conv1",
        "pool1",
        "relu1",
        "norm1",
        "conv2",
        "relu2",
        "pool2",
        "norm2",
        "conv3",
        "relu3",
        "pool3",
        "fc10",
    )
    norm = LRN(n=3, k=1.0, alpha=5e-5 / 9, beta=0.75)
    within: ClassVar[Mapping[str, LRN]] = {"norm1": norm, "norm2": norm}
    std: ClassVar[dict[str, float]] = {"conv1": 1e-4, "conv2": 0.01, "conv3": 0.01, "fc10": 0.01}

    def __init__(self, num_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__(num_classes, in_channels)
        self.conv1 = nn.Conv2d(in_channels, 32, 5, padding=2)
        self.conv2 = nn.Conv2d(32, 32, 5, padding=2)
        self.conv3 = nn.Conv2d(32, 64, 5, padding=2)
        self.fc10 = nn.Linear(64 * 4 * 4, num_classes)
        self.add_functions()


class Cifar13(CifarNet):
    """Pictures (N, 3, 24, 24) to logits (N, num_classes): the net of 13 % error, with two locally connected layers.

    stage    output (C, H, W)   parameters   settings
    conv1      64   24   24          4,864   5x5 pad 2; std 1e-4
    relu1      64   24   24              0
    pool1      64   12   12              0   max
    conv2      64   12   12        102,464   std 0.01
    relu2      64   12   12              0
    pool2      64    6    6              0   max
    local3     32    6    6        664,704   3x3 pad 1, locally connected; std 0.04
    relu3      32    6    6              0
    local4     32    6    6        332,928   3x3 pad 1, locally connected; std 0.04
    relu4      32    6    6              0
    fc10       10                   11,530   std 0.01
    total                        1,116,490

    Differs: nothing.
    """

    name = "cifar_13"
    chain: tuple[str, ...] = (
        "conv1",
        "relu1",
        "pool1",
        "conv2",
        "relu2",
        "pool2",
        "local3",
        "relu3",
        "local4",
        "relu4",
        "fc10",
    )
    input_size = 24
    sides = SIDES_6
    average_pools = ()
    std: ClassVar[dict[str, float]] = {"conv1": 1e-4, "conv2": 0.01, "local3": 0.04, "local4": 0.04, "fc10": 0.01}

    local3_maps: ClassVar[int] = 32
    fixed: ClassVar[str] = "the locally connected layers of cifar_13 have weights for each place of one size"

    def __init__(self, num_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__(num_classes, in_channels)
        self.conv1 = nn.Conv2d(in_channels, 64, 5, padding=2)
        self.conv2 = nn.Conv2d(64, 64, 5, padding=2)
        self.local3 = LocallyConnected2d(64, self.local3_maps, side=6, size=3, padding=1)
        self.local4 = LocallyConnected2d(self.local3_maps, 32, side=6, size=3, padding=1)
        self.fc10 = nn.Linear(32 * 6 * 6, num_classes)
        self.add_functions()


class Cifar11(Cifar13):
    """The net of 11 % error, with normalisation across the maps. As `cifar_13` but for:

    stage    output (C, H, W)   parameters   settings
    norm1      64   12   12              0   after pool1; n 9, k 1, alpha 0.001 / 9 of the plain sum, beta 0.75
    norm2      64   12   12              0   after relu2; as norm1
    local3     64    6    6      1,329,408   3x3 pad 1, locally connected; std 0.04
    relu3      64    6    6              0
    local4     32    6    6        664,704   3x3 pad 1, locally connected; std 0.04
    total                        2,112,970

    Differs: nothing.
    """

    name = "cifar_11"
    chain: tuple[str, ...] = (
        "conv1",
        "relu1",
        "pool1",
        "norm1",
        "conv2",
        "relu2",
        "norm2",
        "pool2",
        *Cifar13.chain[6:],
    )
    lrn = LRN(n=9, k=1.0, alpha=0.001 / 9, beta=0.75)
    local3_maps = 64
    fixed = "the locally connected layers of cifar_11 have weights for each place of one size"


class CifarReLU(Cifar18):
    """The net of the AlexNet paper's figure 1, with ReLU. As `cifar_18` but for:

    stage   output (C, H, W)   parameters   settings
    norm1   none                        0
    norm2   none                        0
    total                          89,578

    Differs: the paper says four layers and no regularisation, no more. This is `cifar_18` without its normalisation.
    """

    name = "cifar_relu"
    chain = without(Cifar18.chain, "norm1", "norm2")
    paper = "Krizhevsky, Sutskever and Hinton 2012, figure 1"
    year = 2012
    within: ClassVar[Mapping[str, LRN]] = {}


class CifarTanh(CifarReLU):
    """Figure 1's "equivalent network with tanh neurons". As `cifar_relu` but for:

    stage   output (C, H, W)   parameters   settings
    tanh1     32   16   16              0   in place of relu1
    tanh2     32   16   16              0   in place of relu2
    tanh3     64    8    8              0   in place of relu3
    total                          89,578

    Differs: as `cifar_relu`.
    """

    name = "cifar_tanh"
    chain = tuple(name.replace("relu", "tanh") for name in CifarReLU.chain)


NETS = (Cifar26, Cifar18, Cifar13, Cifar11, CifarReLU, CifarTanh)
