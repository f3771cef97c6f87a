"""AlexNet with batch normalisation: the net of "ImageNet pre-trained models with batch normalization" (2016).

stage    output (C, H, W)   parameters   paper
data       3  227  227              6   batch norm of the pixels, with a trainable scale and shift
conv1     96   55   55         34,944   11x11, stride 4, no padding
bn1       96   55   55              0   batch norm without scale and shift
relu1     96   55   55              0
pool1     96   27   27              0
conv2    256   27   27        307,456   each column its own maps
bn2      256   27   27              0
relu2    256   27   27              0
pool2    256   13   13              0
conv3    384   13   13        885,120   both columns read both
bn3      384   13   13              0
relu3    384   13   13              0
conv4    384   13   13        663,936   each column its own maps
bn4      384   13   13              0
relu4    384   13   13              0
conv5    256   13   13        442,624   each column its own maps
bn5      256   13   13              0
relu5    256   13   13              0
pool5    256    6    6              0
fc6     4096               37,752,832   no dropout
bn6     4096                        0
relu6   4096                        0
fc7     4096               16,781,312
bn7     4096                        0
relu7   4096                        0
fc8     1000                4,097,000
total                      60,965,230

The best published single crop of an AlexNet: 60.4 % right, 82.5 % among five. No LRN, no dropout, no mean subtracted:
the first layer normalises the pixels. Convolutions keep biases that the batch norm after them takes away again.

Differs: reads RGB where Caffe reads BGR. Its pools keep partial windows, which there are none of at 227 pixels. Weights
begin as in its settings: N(0, sqrt(2 / fan-in)), biases 0.
"""

import math
from typing import ClassVar

import torch
from torch import nn

from convnet.nets.alexnet_family import CaffeFamily
from convnet.nets.initial import check_init, gaussian


class AlexNetBN(CaffeFamily):
    """Pictures (N, 3, 227, 227), RGB on the scale 0..255, nothing subtracted, to logits (N, num_classes)."""

    paper = "Simon, Rodner and Denzler 2016"
    year = 2016
    name = "alexnet_bn"
    float32_input = True  # batch norm of the pixels
    order = (
        "data conv1 bn1 relu1 pool1 conv2 bn2 relu2 pool2 conv3 bn3 relu3 conv4 bn4 relu4 conv5 bn5 relu5 pool5 "
        "fc6 bn6 relu6 fc7 bn7 relu7 fc8"
    )
    inits: ClassVar[tuple[str, ...]] = ("paper",)

    def __init__(self, num_classes: int = 1000, in_channels: int = 3) -> None:
        super().__init__(num_classes, in_channels, dropout=0.0)
        self.data = nn.BatchNorm2d(in_channels)
        for number in range(1, 6):
            setattr(self, f"bn{number}", nn.BatchNorm2d(self.maps[f"conv{number}"], affine=False))
        self.bn6 = nn.BatchNorm1d(4096, affine=False)
        self.bn7 = nn.BatchNorm1d(4096, affine=False)

    def initialize(self, init: str, generator: torch.Generator) -> None:
        """Draw all weights anew: N(0, sqrt(2 / fan-in)), biases 0. Raises: UsageError for another name than "paper"."""
        check_init(self, init)
        weights = {name.partition(".")[0]: weight for name, weight in self.named_parameters() if weight.ndim > 1}
        gaussian(self, generator, {layer: math.sqrt(2 / weight[0].numel()) for layer, weight in weights.items()})
        nn.init.ones_(self.data.weight)
