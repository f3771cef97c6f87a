"""GoogLeNet: the net of "Going Deeper with Convolutions" (2014), table 1 and section 5.

stage          output (C, H, W)     googlenet  googlenet_bn   paper
conv1            64  112  112           9,472         9,536   7x7, stride 2
pool1            64   56   56               0             0   max 3x3, stride 2
norm1            64   56   56               0             -   5: LocalRespNorm
conv2_reduce     64   56   56           4,160         4,224   1x1
conv2           192   56   56         110,784       110,976   3x3
norm2           192   56   56               0             -
pool2           192   28   28               0             0   max 3x3, stride 2
inception_3a    256   28   28         163,696       155,872   64, 96-128, 16-32, 32
inception_3b    480   28   28         388,736       340,224   128, 128-192, 32-96, 64
pool3           480   14   14               0             0   max 3x3, stride 2
inception_4a    512   14   14         376,176       364,512   192, 96-208, 16-48, 64
head1          1000                 3,188,840     3,188,968   5: on 4a
inception_4b    512   14   14         449,160       425,232   160, 112-224, 24-64, 64
inception_4c    512   14   14         510,104       486,192   128, 128-256, 24-64, 64
inception_4d    528   14   14         605,376       573,312   112, 144-288, 32-64, 64
head2          1000                 3,190,888     3,191,016   5: on 4d
inception_4e    832   14   14         868,352       803,840   256, 160-320, 32-128, 128
pool4           832    7    7               0             0   max 3x3, stride 2; googlenet_bn: 2x2
inception_5a    832    7    7       1,043,456       978,944   256, 160-320, 32-128, 128
inception_5b   1024    7    7       1,444,080     1,347,040   384, 192-384, 48-128, 128
pool5          1024                         0             0   average 7x7; dropout 0.4 follows; googlenet_bn: 0.2
fc             1000                 1,025,000     1,025,000   linear; the softmax's logits
total                              13,378,280    13,004,888

The numbers of an inception are the maps of its 1x1, 3x3 reduce - 3x3, 5x5 reduce - 5x5 and pool proj. Every convolution
is followed by ReLU, and the stage is what follows it.

A head averages 5x5 with stride 3; 1x1 128, fc 1024, dropout 0.7 and fc 1000 follow. `heads=False` leaves both out:
6,998,552 parameters. They read 14x14 maps, that is sides of 223 to 270 pixels; the net itself takes larger and smaller
pictures, whose last maps are averaged whole. `googlenet_bn`'s heads average maps of any size to 4x4, each cell
over the pixels that it touches. In training the losses of the heads count 0.3 each (section 5).

`googlenet_bn` is torchvision's net, whose weights are the ones that can be had: batch norm (epsilon 0.001) after every
convolution instead of biases and response normalisation, 3x3 kernels in the branch that is called 5x5, a 2x2 pool4, and
dropout 0.2 before the last layer: 13,004,888 parameters, 6,624,904 without heads. It reads RGB scaled to -1..1.

Differs: the paper's text leaves open the padding, the rounding up in pooling, the constants of the response
normalisation (here AlexNet's) and the initial weights: `init="paper"` is that of Caffe's bvlc_googlenet, uniform within
sqrt(3 / fan-in) and biases 0.2, in the last layers 0. Dropout divides in training.
"""

import math
from collections import OrderedDict
from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar

import torch
from torch import Tensor, nn

from convnet.errors import UsageError
from convnet.io.strict_json import Json
from convnet.nets.convolutions import Conv2d
from convnet.nets.dropout import dropout
from convnet.nets.layers import CAFFE_LRN, NO_LIMIT, Net, ResponseNorm, check_images
from convnet.nets.nin import GlobalAvgPool, ReLUConv2d
from convnet.nets.published import of_berkeley, of_pytorch

# Paper: table 1, the maps of 1x1, 3x3 reduce, 3x3, 5x5 reduce, 5x5, pool proj.
TABLE_1 = {
    "inception_3a": (64, 96, 128, 16, 32, 32),
    "inception_3b": (128, 128, 192, 32, 96, 64),
    "inception_4a": (192, 96, 208, 16, 48, 64),
    "inception_4b": (160, 112, 224, 24, 64, 64),
    "inception_4c": (128, 128, 256, 24, 64, 64),
    "inception_4d": (112, 144, 288, 32, 64, 64),
    "inception_4e": (256, 160, 320, 32, 128, 128),
    "inception_5a": (256, 160, 320, 32, 128, 128),
    "inception_5b": (384, 192, 384, 48, 128, 128),
}
POOLS = {"inception_3b": "pool3", "inception_4e": "pool4"}
HEADS = {"inception_4a": "head1", "inception_4d": "head2"}  # section 5: what each auxiliary head reads
HEAD_SIDE = 4  # of the maps that a head makes of those that it reads
HEAD_MAPS = range(14, 17)  # the sides of the maps that its 5x5 average with stride 3 turns into 4 x 4

# What Caffe and torchvision call the layers.
VIEWS = {
    "conv1x1": ("1x1", "branch1"),
    "reduce3x3": ("3x3_reduce", "branch2.0"),
    "conv3x3": ("3x3", "branch2.1"),
    "reduce5x5": ("5x5_reduce", "branch3.0"),
    "conv5x5": ("5x5", "branch3.1"),
    "pool_proj": ("pool_proj", "branch4.1"),
}
CAFFES = {
    "conv1": "conv1/7x7_s2",
    "conv2_reduce": "conv2/3x3_reduce",
    "conv2": "conv2/3x3",
    "fc": "loss3/classifier",
    **{f"head{i}.conv": f"loss{i}/conv" for i in (1, 2)},
    **{f"head{i}.fc1": f"loss{i}/fc" for i in (1, 2)},
    **{f"head{i}.fc2": f"loss{i}/classifier" for i in (1, 2)},
    **{f"{stage}.{view}": f"{stage}/{theirs}" for stage in TABLE_1 for view, (theirs, _) in VIEWS.items()},
}
TORCHVISIONS = {
    "conv1": "conv1",
    "conv2_reduce": "conv2",
    "conv2": "conv3",
    "fc": "fc",
    "head1": "aux1",
    "head2": "aux2",
    **{
        f"{stage}.{view}": f"{stage.replace('_', '')}.{theirs}"
        for stage in TABLE_1
        for view, (_, theirs) in VIEWS.items()
    },
}


def convolution(maps_in: int, maps: int, size: int, stride: int = 1, *, bn: bool, relu: bool = True) -> nn.Module:
    """A convolution that keeps the size but for its stride, and its ReLU; with batch norm instead of biases if asked.
    relu=False leaves the ReLU to what follows."""
    if not bn:
        return (ReLUConv2d if relu else Conv2d)(maps_in, maps, size, stride, size // 2)
    conv = Conv2d(maps_in, maps, size, stride, padding=size // 2, bias=False)
    layers: dict[str, nn.Module] = {"conv": conv, "bn": nn.BatchNorm2d(maps, eps=0.001)}
    return nn.Sequential(OrderedDict(layers | ({"relu": nn.ReLU()} if relu else {})))


class Inception(nn.Module):
    """Four views of the same maps, side by side: 1x1, 3x3, 5x5, and the largest of 3x3. Paper: figure 2(b)."""

    branches = (("conv1x1",), ("reduce3x3", "conv3x3"), ("reduce5x5", "conv5x5"), ("pool", "pool_proj"))

    def __init__(self, maps_in: int, maps: tuple[int, int, int, int, int, int], *, bn: bool) -> None:
        super().__init__()
        n1, reduce3, n3, reduce5, n5, proj = maps
        self.conv1x1 = convolution(maps_in, n1, 1, bn=bn, relu=False)
        self.reduce3x3 = convolution(maps_in, reduce3, 1, bn=bn)
        self.conv3x3 = convolution(reduce3, n3, 3, bn=bn, relu=False)
        self.reduce5x5 = convolution(maps_in, reduce5, 1, bn=bn)
        self.conv5x5 = convolution(reduce5, n5, 3 if bn else 5, bn=bn, relu=False)
        self.pool = nn.MaxPool2d(3, 1, padding=1)
        self.pool_proj = convolution(maps_in, proj, 1, bn=bn, relu=False)
        self.relu = nn.ReLU()  # of all views at once

    def forward(self, x: Tensor) -> Tensor:
        views = [
            self.conv1x1(x),
            self.conv3x3(self.reduce3x3(x)),
            self.conv5x5(self.reduce5x5(x)),
            self.pool_proj(self.pool(x)),
        ]
        y: Tensor = self.relu(torch.cat(views, 1))
        return y


class Head(nn.Module):
    """An auxiliary classifier. Paper: section 5."""

    def __init__(self, maps_in: int, num_classes: int, *, bn: bool) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(HEAD_SIDE) if bn else nn.AvgPool2d(5, 3)
        self.conv = convolution(maps_in, 128, 1, bn=bn)
        self.fc1 = nn.Linear(128 * HEAD_SIDE**2, 1024)
        self.relu = nn.ReLU()
        self.fc2 = nn.Linear(1024, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.fc1(self.conv(self.pool(x)).flatten(1)))
        logits: Tensor = self.fc2(dropout(x, 0.7, self.training))
        return logits


class GoogLeNet(Net):
    """What the forms of the net share; a form states what it changes: its names, `lrn`, `bn`."""

    bn: ClassVar[bool] = False  # torchvision's form
    torchvision = "googlenet"
    layer_names: Mapping[str, Mapping[str, str]] = MappingProxyType({"caffe": CAFFES})
    relu_inside = True
    pooling: ClassVar[tuple[int, int, bool]] = (3, 2, True)
    input_size = 224
    sides = range(31, NO_LIMIT)  # pixels: from 31 on something is left at pool4
    dropout = 0.4
    dropped: ClassVar[tuple[str, ...]] = ("pool5",)
    last: ClassVar[str] = "fc"

    def __init__(self, num_classes: int = 1000, in_channels: int = 3, heads: bool = True) -> None:
        super().__init__(num_classes, in_channels)
        bn = self.bn
        self.conv1 = convolution(in_channels, 64, 7, 2, bn=bn)
        self.conv2_reduce = convolution(64, 64, 1, bn=bn)
        self.conv2 = convolution(64, 192, 3, bn=bn)
        maps = 192
        for stage, views in TABLE_1.items():
            self.add_module(stage, Inception(maps, views, bn=bn))
            n1, _, n3, _, n5, proj = views
            maps = n1 + n3 + n5 + proj
            if heads and stage in HEADS:
                self.add_module(HEADS[stage], Head(maps, num_classes, bn=bn))
        self.fc = nn.Linear(maps, num_classes)
        for number in (1, 2, 3, 4):
            size = 2 if bn and number == 4 else 3
            self.add_module(f"pool{number}", nn.MaxPool2d(size, 2, ceil_mode=True))
        if not bn:
            self.norm1, self.norm2 = ResponseNorm(*self.lrn), ResponseNorm(*self.lrn)
        self.pool5 = GlobalAvgPool()
        weights = dict.fromkeys(HEADS.values(), 0.3) if heads else {}  # section 5
        self.loss_weights = {"logits": 1.0, **weights}

    def forward(self, images: Tensor, stages: dict[str, Tensor] | None = None) -> Tensor:
        """Logits. Into `stages` go the auxiliary heads' logits too, where their maps have the size that they read."""
        check_images(images, self)
        asked = isinstance(stages, dict)  # torch.fx gives a proxy
        norms = ([], []) if self.bn else (["norm1"], ["norm2"])
        x = self.run(images, stages, "conv1", "pool1", *norms[0], "conv2_reduce", "conv2", *norms[1], "pool2")
        for stage in TABLE_1:
            x = self.run(x, stages, stage)
            if asked and HEADS.get(stage) in self.loss_weights and (self.bn or _fit_heads(x)):
                self.run(x, stages, HEADS[stage])
            if stage in POOLS:
                x = self.run(x, stages, POOLS[stage])
        x = dropout(self.run(x, stages, "pool5"), self.dropout, self.training)
        return self.run(x, stages, "fc")

    def heads(self, images: Tensor) -> dict[str, Tensor]:
        """{"logits", "head1", "head2"}: three times (N, num_classes); "logits" alone for a net without heads.

        Raises: UsageError for pictures of sizes that give the heads other maps than they read.
        """
        stages: dict[str, Tensor] = {}
        outputs = {"logits": self(images, stages)}
        for name in self.loss_weights:
            if name != "logits" and name not in stages:
                raise UsageError(f"{self.name}'s heads read pictures with sides of 223 to 270 pixels, got "
                                 f"{images.shape[2]} x {images.shape[3]}: use the option heads=False")  # fmt: skip
        return outputs | {name: stages[name] for name in self.loss_weights if name != "logits"}

    def options_of(self, shapes: Mapping[str, tuple[int, ...]]) -> Json:
        return {} if any(name.startswith(tuple(HEADS.values())) for name in shapes) else {"heads": False}

    def is_of_classes(self, name: str) -> bool:
        return name.rpartition(".")[0] in (self.last, *(f"{head}.fc2" for head in HEADS.values()))

    def sample_weights(self, init: str, generator: torch.Generator) -> None:
        """Uniform within sqrt(3 / fan-in); biases 0.2, in the last layers 0 (Caffe's bvlc_googlenet).

        With batch norm: N(0, 0.01); batch norm's factors 1, biases 0 (torchvision's).
        """
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                parameter.fill_(0.0 if self.bn or "fc." in name or "fc2." in name else 0.2)
            elif ".bn." in name:
                parameter.fill_(1.0)
            elif self.bn:
                parameter.normal_(0, 0.01, generator=generator)
            else:
                bound = math.sqrt(3 / parameter[0].numel())
                parameter.uniform_(-bound, bound, generator=generator)


class PaperGoogLeNet(GoogLeNet):
    """Pictures (N, in_channels, 224, 224), less their mean, to logits (N, num_classes)."""

    name = "googlenet"
    paper = "Szegedy et al. 2014"
    year = 2014
    caffe_note: ClassVar[str] = (
        "Caffe's bvlc_googlenet is googlenet_caffe here; this net has other constants of response normalisation"
    )


class GoogLeNetCaffe(GoogLeNet):
    """Pictures (N, 3, 224, 224), RGB on the scale 0..255 less their mean colour, to logits (N, num_classes): the net of
    Caffe's model zoo, `bvlc_googlenet` (2014). As `googlenet` but for:

    stage          output (C, H, W)   parameters   differs
    norm1            64   56   56              0   k 1, n 5, alpha 1e-4 / 5
    norm2           192   56   56              0   the same
    total                             13,378,280

    Differs from the paper's text (`googlenet`), which leaves the constants of the response normalisation open: these
    are in the train_val.prototxt of bvlc_googlenet, and with its weights this net gives its outputs. Those were trained
    in 60 epochs without the paper's crops of 8 to 100 % of the area; the initial weights are the ones that `googlenet`
    borrows. Caffe's net reads BGR; its weights are turned to RGB when they are imported.
    """

    name = "googlenet_caffe"
    paper = "Guadarrama 2014 (Caffe)"
    year = 2014
    lrn = CAFFE_LRN
    published = of_berkeley(
        *("googlenet.caffe", "googlenet_caffe", "bvlc_googlenet.caffemodel"),
        sha1="405fc5acd08a3bb12de8ee5e23a96bec22f08204",
        mean=(123.0, 117.0, 104.0),
    )


class GoogLeNetBN(GoogLeNet):
    """Pictures (N, in_channels, 224, 224), scaled to -1..1, to logits (N, num_classes)."""

    name = "googlenet_bn"
    paper = "torchvision 2019"
    year = 2019
    recipe = "googlenet"  # ours: torchvision's weights were not trained there, and no settings are published
    bn = True
    dropout = 0.2
    layer_names = MappingProxyType({"torchvision": TORCHVISIONS})
    pixels_note: ClassVar[str] = (
        "a GoogLeNet of torchvision doesn't say how its pixels were scaled: give --pixels half for one that was "
        "trained on from torchvision's published file, --pixels imagenet for one trained from the start"
    )
    published = of_pytorch("googlenet_bn", "googlenet-1378be20.pth", "half")


def _fit_heads(x: Tensor) -> bool:
    return x.shape[2] in HEAD_MAPS and x.shape[3] in HEAD_MAPS


NETS = (PaperGoogLeNet, GoogLeNetCaffe, GoogLeNetBN)
