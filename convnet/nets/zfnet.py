"""ZFNet: the net of "Visualizing and Understanding Convolutional Networks" (2013), figure 3.

stage    output (C, H, W)   parameters   paper
conv1     96  110  110          14,208   figure 3: 7x7, stride 2
relu1     96  110  110               0
pool1     96   55   55               0   3x3, stride 2
norm1     96   55   55               0   "contrast normalized" across the maps
conv2    256   26   26         614,656   5x5, stride 2
relu2    256   26   26               0
pool2    256   13   13               0
norm2    256   13   13               0
conv3    384   13   13         885,120   3x3, all maps: one column
relu3    384   13   13               0
conv4    384   13   13       1,327,488   3x3
relu4    384   13   13               0
conv5    256   13   13         884,992   3x3
relu5    256   13   13               0
pool5    256    6    6               0
fc6     4096                37,752,832   reads the maps in the order (C, H, W)
relu6   4096                         0   section 3: dropout 0.5 follows
fc7     4096                16,781,312
relu7   4096                         0   section 3: dropout 0.5 follows
fc8     1000                 4,097,000
total                       62,357,608

Differs: nothing that the paper says. It leaves open the padding, which follows from its sizes (conv1 1, conv2 0, the
others 1; pools keep partial windows: 110 to 55, 26 to 13), and the constants of the normalisation, which are AlexNet's
here (k 2, n 5, alpha 1e-4, beta 0.75). In training the paper sets filters whose root mean square exceeds 0.1 back to
that radius; this belongs to the update rule, not to the net. Initial weights are N(0, 0.01), biases 0: "all weights are
initialized to 10^-2" (section 3), read as the deviation.
"""

from typing import ClassVar

from torch import nn

from convnet.nets.alexnet import AlexNet
from convnet.nets.alexnet_released import TORCHVISIONS
from convnet.nets.convolutions import StridedConv2d
from convnet.nets.layers import Chain


class ZFNet(Chain):
    """Pictures (N, 3, 224, 224), RGB on the scale 0..255 with the mean subtracted, to logits (N, num_classes)."""

    name = "zfnet"
    chain = ("conv1", "relu1", "pool1", "norm1", "conv2", "relu2", "pool2", "norm2", *AlexNet.chain[8:])
    paper = "Zeiler and Fergus 2013"
    year = 2013
    small_recipe: ClassVar[str] = "alexnet_small"
    layer_names = TORCHVISIONS
    input_size = 224
    sides = range(207, 239)  # pixels: those that give 6 x 6 maps at pool5
    pooling: ClassVar[tuple[int, int, bool]] = (3, 2, True)
    dropped: ClassVar[tuple[str, ...]] = ("relu6", "relu7")
    last: ClassVar[str] = "fc8"
    inits: ClassVar[tuple[str, ...]] = ("paper", "fan-in")

    def __init__(self, num_classes: int = 1000, in_channels: int = 3, dropout: float = 0.5) -> None:
        super().__init__(num_classes, in_channels, dropout)
        self.conv1 = StridedConv2d(in_channels, 96, 7, stride=2, padding=1)
        self.conv2 = nn.Conv2d(96, 256, 5, stride=2)
        self.conv3 = nn.Conv2d(256, 384, 3, padding=1)
        self.conv4 = nn.Conv2d(384, 384, 3, padding=1)
        self.conv5 = nn.Conv2d(384, 256, 3, padding=1)
        self.fc6 = nn.Linear(256 * 6 * 6, 4096)
        self.fc7 = nn.Linear(4096, 4096)
        self.fc8 = nn.Linear(4096, num_classes)
        self.add_functions()


NETS = (ZFNet,)
