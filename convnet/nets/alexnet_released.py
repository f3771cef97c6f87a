"""The AlexNets that were released, by their names; their weights or settings are published.

alexnet_2012    its authors' settings, net #145 of 2012
alexnet_caffe   Caffe's `bvlc_alexnet`
caffenet        Caffe's `bvlc_reference_caffenet`
alexnet_bn      with batch normalisation
alexnet_owt     in one column: torchvision's `alexnet`

Each table lists the stages that differ from `alexnet`'s (alexnet.py), or that stand elsewhere.
"""

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import nn

from convnet.nets.alexnet import AlexNet
from convnet.nets.convolutions import StridedConv2d
from convnet.nets.initial import gaussian, he_std
from convnet.nets.layers import CAFFE_LRN, LRN, NO_LIMIT, Chain, without
from convnet.nets.published import of_berkeley, of_pytorch

TORCHVISIONS: Mapping[str, Mapping[str, str]] = {  # of nets in one column with eight layers, as alexnet_owt
    "torchvision": {
        **{f"conv{number}": f"features.{place}" for number, place in enumerate((0, 3, 6, 8, 10), 1)},
        **{f"fc{number}": f"classifier.{place}" for number, place in enumerate((1, 4, 6), 6)},
    }
}


class AlexNet2012(AlexNet):
    """Net #145 of the settings files, which is not quite the paper's text. As `alexnet` but for:

    stage    output (C, H, W)   parameters   settings
    norm1     96   55   55              0   after conv1, of signed values, in a column's 48 maps; alpha 1e-4 / 5
    pool1     96   27   27              0   after norm1
    relu1     96   27   27              0   after pool1
    norm2    256   27   27              0   within a column: 128 maps
    within2  256   27   27              0   after norm2, within a map: 5x5, k 1, alpha 0.001 / 25, beta 0.75
    total                      60,965,224

    Differs from the paper's text, by the settings files: layer 1 is conv, LRN, pool, ReLU, so that LRN sees signed
    values; layer 2 has a second normalisation, within each map; LRN's window ends at the column's edge and its alpha is
    divided by n; conv3, conv4 and conv5 begin with N(0, 0.03). Pools keep partial windows, which there are none of at
    224 pixels. How it was trained differs, too: recipe `alexnet_2012`.
    """

    name = "alexnet_2012"
    chain = ("conv1", "norm1", "pool1", "relu1", "conv2", "relu2", "norm2", "within2", *AlexNet.chain[7:])
    recipe = "alexnet_2012"  # and of the settings files beside #145, whose nets were to be compared with it
    lrn = LRN(n=5, k=2.0, alpha=1e-4 / 5, beta=0.75)
    sides = range(196, 228)
    norm_columns = 2
    within: ClassVar[Mapping[str, LRN]] = {"within2": LRN(n=5, k=1.0, alpha=0.001 / 25, beta=0.75)}
    pooling: ClassVar[tuple[int, int, bool]] = (3, 2, True)
    std: ClassVar[Mapping[str, float]] = {"conv3": 0.03, "conv4": 0.03, "conv5": 0.03}


class AlexNetCaffe(AlexNet):
    """Caffe's `bvlc_alexnet` (2014), for pictures (N, 3, 227, 227). As `alexnet` but for:

    stage    output (C, H, W)   parameters   settings
    conv1     96   55   55         34,944   11x11, stride 4, no padding
    norm1     96   55   55              0   k 1, n 5, alpha 1e-4 / 5; over the layer's 96 maps
    norm2    256   27   27              0   the same, over its 256 maps
    total                      60,965,224

    Differs from the paper's text (`alexnet`): LRN has k 1 and alpha divided by n; crops of 227 pixels and no padding in
    conv1; fc6 and fc7 begin with N(0, 0.005); biases begin at 0.1 where the paper has 1, with which Caffe's authors
    found "flat loss" (the readme of bvlc_alexnet; all else by its train_val.prototxt). Caffe's net reads BGR; its
    weights are turned to RGB when they are imported. Its pools keep partial windows, which there are none of at 227
    pixels.
    """

    name = "alexnet_caffe"
    paper = "Jia et al. 2014 (Caffe)"
    year = 2014
    recipe = "caffenet"  # Caffe's settings for the two are the same
    small_recipe = "caffenet_small"
    caffe_note = ""
    published = of_berkeley(
        "alexnet.caffe", "alexnet_caffe", "bvlc_alexnet.caffemodel", "9116a64c0fbe4459d18f4bb6b56d647b63920377"
    )
    input_size = 227
    sides = range(199, 231)
    edge = 0
    lrn = CAFFE_LRN
    pooling: ClassVar[tuple[int, int, bool]] = (3, 2, True)
    std: ClassVar[Mapping[str, float]] = {"fc6": 0.005, "fc7": 0.005}
    bias: ClassVar[Mapping[str, float]] = dict.fromkeys(AlexNet.bias, 0.1)


class CaffeNet(AlexNetCaffe):
    """Caffe's reference model, `bvlc_reference_caffenet` (2014), for pictures (N, 3, 227, 227). As `alexnet` but for:

    stage    output (C, H, W)   parameters   settings
    conv1     96   55   55         34,944   11x11, stride 4, no padding
    norm1     96   27   27              0   after pool1; k 1, n 5, alpha 1e-4 / 5; over the layer's 96 maps
    norm2    256   13   13              0   after pool2; the same, over its 256 maps
    total                      60,965,224

    Differs from the paper's text (`alexnet`): pooling comes before LRN; LRN has k 1 and alpha divided by n; crops of
    227 pixels and no padding in conv1; fc6 and fc7 begin with N(0, 0.005). Biases begin as the paper's, at 1 in conv2,
    conv4, conv5, fc6 and fc7: all by the train_val.prototxt of bvlc_reference_caffenet. Caffe's net reads BGR; its
    weights are turned to RGB when they are imported. Its pools keep partial windows, which there are none of at 227
    pixels.
    """

    name = "caffenet"
    chain = ("conv1", "relu1", "pool1", "norm1", "conv2", "relu2", "pool2", "norm2", *AlexNet.chain[8:])
    published = of_berkeley(
        "caffenet.caffe", "caffenet", "bvlc_reference_caffenet.caffemodel", "4c8d77deb20ea792f84eb5e6d0a11ca0a8660a46"
    )
    bias = AlexNet.bias


class AlexNetBN(AlexNetCaffe):
    """Pictures (N, 3, 227, 227), RGB on the scale 0..255, nothing subtracted, to logits (N, num_classes): the net of
    "ImageNet pre-trained models with batch normalization" (2016). As `alexnet` but for:

    stage    output (C, H, W)   parameters   paper
    data       3  227  227              6   before conv1: batch norm of the pixels, with a trainable scale and shift
    conv1     96   55   55         34,944   11x11, stride 4, no padding
    bn1       96   55   55              0   after conv1: batch norm without scale and shift
    norm1   none                        0
    bn2      256   27   27              0   after conv2
    norm2   none                        0
    bn3      384   13   13              0   after conv3
    bn4      384   13   13              0   after conv4
    bn5      256   13   13              0   after conv5
    fc6     4096               37,752,832   no dropout
    bn6     4096                        0   after fc6
    bn7     4096                        0   after fc7
    total                      60,965,230

    The best published single crop of an AlexNet: 60.4 % right, 82.5 % among five. No LRN, no dropout, no mean
    subtracted: the first layer normalises the pixels. Convolutions keep biases that the batch norm after them takes
    away again.

    Differs: reads RGB where Caffe reads BGR. Its pools keep partial windows, which there are none of at 227 pixels.
    Weights begin as in its settings: N(0, sqrt(2 / fan-in)), biases 0.
    """

    name = "alexnet_bn"
    chain = (
        *("data", "conv1", "bn1", "relu1", "pool1", "conv2", "bn2", "relu2", "pool2", "conv3", "bn3", "relu3"),
        *(
            "conv4",
            "bn4",
            "relu4",
            "conv5",
            "bn5",
            "relu5",
            "pool5",
            "fc6",
            "bn6",
            "relu6",
            "fc7",
            "bn7",
            "relu7",
            "fc8",
        ),
    )
    paper = "Simon, Rodner and Denzler 2016"
    year = 2016
    recipe = "alexnet_bn"
    small_recipe = ""
    torchvision = ""
    other_sizes = ""
    float32_input = True  # batch norm of the pixels
    inits = ("paper",)

    def __init__(self, num_classes: int = 1000, in_channels: int = 3) -> None:
        super().__init__(num_classes, in_channels, dropout=0.0)
        self.data = nn.BatchNorm2d(in_channels)
        for number, maps in enumerate(self.maps, 1):
            self.add_module(f"bn{number}", nn.BatchNorm2d(maps, affine=False))
        self.bn6 = nn.BatchNorm1d(4096, affine=False)
        self.bn7 = nn.BatchNorm1d(4096, affine=False)

    def sample_weights(self, init: str, generator: torch.Generator) -> None:
        """N(0, sqrt(2 / fan-in)), biases 0."""
        gaussian(self, generator, he_std(self))
        nn.init.ones_(self.data.weight)


class AlexNetOWT(Chain):
    """Pictures (N, 3, 224, 224), RGB, to logits (N, num_classes): the net in one column of "One weird trick for
    parallelizing convolutional neural networks" (2014). As `alexnet` but for:

    stage    output (C, H, W)   parameters   source
    conv1     64   55   55         23,296   11x11, stride 4, padding 2
    relu1     64   55   55              0
    norm1   none                        0
    pool1     64   27   27              0
    conv2    192   27   27        307,392   5x5, all maps
    relu2    192   27   27              0
    norm2   none                        0
    pool2    192   13   13              0
    conv3    384   13   13        663,936   3x3, all maps
    conv4    256   13   13        884,992
    relu4    256   13   13              0
    conv5    256   13   13        590,080
    avgpool  256    6    6              0   after pool5; nothing at 224 pixels
    fc6     4096               37,752,832   dropout 0.5 before it
    fc7     4096               16,781,312   dropout 0.5 before it
    total                      61,100,840

    Differs: this is torchvision's `alexnet`, whose weights it takes. The 2014 paper has 384 maps in conv4, too, and
    says nothing of padding, dropout or the initial values, which are torch's defaults here. From the paper of 2012 it
    differs by its one column, fewer maps, no LRN, padding 2 in conv1, and dropout before fc6 and fc7, none before fc8.
    Pictures of other sides are pooled to 6 x 6 maps by averages, which isn't dense evaluation.
    """

    name = "alexnet_owt"
    chain = (*without(AlexNet.chain, "norm1", "norm2")[:13], "avgpool", *AlexNet.chain[15:])
    not_slid: ClassVar[tuple[str, ...]] = ("avgpool",)
    paper = "Krizhevsky 2014"
    year = 2014
    small_recipe: ClassVar[str] = "caffenet_small"
    torchvision = "alexnet"
    layer_names = TORCHVISIONS
    published = of_pytorch("alexnet_owt", "alexnet-owt-7be5be79.pth")
    input_size = 224
    sides = range(63, NO_LIMIT)  # pixels: 63 give one pixel at pool5
    last: ClassVar[str] = "fc8"
    inits: ClassVar[tuple[str, ...]] = ("paper", "fan-in")
    dropped: ClassVar[tuple[str, ...]] = ("avgpool", "relu6")

    def __init__(self, num_classes: int = 1000, in_channels: int = 3, dropout: float = 0.5) -> None:
        super().__init__(num_classes, in_channels, dropout)
        self.conv1 = StridedConv2d(in_channels, 64, 11, stride=4, padding=2)
        self.conv2 = nn.Conv2d(64, 192, 5, padding=2)
        self.conv3 = nn.Conv2d(192, 384, 3, padding=1)
        self.conv4 = nn.Conv2d(384, 256, 3, padding=1)
        self.conv5 = nn.Conv2d(256, 256, 3, padding=1)
        self.fc6 = nn.Linear(256 * 6 * 6, 4096)
        self.fc7 = nn.Linear(4096, 4096)
        self.fc8 = nn.Linear(4096, num_classes)
        self.avgpool = nn.AdaptiveAvgPool2d(6)
        self.add_functions()

    def sample_weights(self, init: str, generator: torch.Generator) -> None:
        """By "paper" torchvision's: weights and biases uniform within 1 / sqrt(fan-in)."""
        if init == "fan-in":
            super().sample_weights(init, generator)
            return
        for name, parameter in self.named_parameters():
            weight = self.get_parameter(f"{name.partition('.')[0]}.weight")
            bound = math.sqrt(1 / weight[0].numel())
            parameter.uniform_(-bound, bound, generator=generator)


NETS = (AlexNet2012, AlexNetCaffe, CaffeNet, AlexNetBN, AlexNetOWT)
