"""AlexNet in one column: the net of "One weird trick for parallelizing convolutional neural networks" (2014).

stage    output (C, H, W)   parameters   source
conv1     64   55   55         23,296   11x11, stride 4, padding 2
relu1     64   55   55              0
pool1     64   27   27              0
conv2    192   27   27        307,392   5x5, all maps
relu2    192   27   27              0
pool2    192   13   13              0
conv3    384   13   13        663,936   3x3, all maps
relu3    384   13   13              0
conv4    256   13   13        884,992
relu4    256   13   13              0
conv5    256   13   13        590,080
relu5    256   13   13              0
pool5    256    6    6              0
avgpool  256    6    6              0   nothing at 224 pixels
fc6     4096               37,752,832   dropout 0.5 before it
relu6   4096                        0
fc7     4096               16,781,312   dropout 0.5 before it
relu7   4096                        0
fc8     1000                4,097,000
total                      61,100,840

Differs: this is torchvision's `alexnet`, whose weights it takes. The 2014 paper has 384 maps in conv4, too, and says
nothing of padding, dropout or the initial values, which are torch's defaults here. From the paper of 2012 it differs
by its one column, fewer maps, no LRN, padding 2 in conv1, and dropout before fc6 and fc7, none before fc8. Pictures of
other sides are pooled to 6 x 6 maps by averages, which isn't dense evaluation.
"""

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convnet.nets.dropout import checked_rate, dropout
from convnet.nets.initial import check_init, uniform_by_fan_in
from convnet.nets.layers import NO_LIMIT, Net, StridedConv2d, check_images, connected, max_pool, record

SIDES = range(63, NO_LIMIT)  # pixels: 63 give one pixel at pool5


class AlexNetOWT(Net):
    """Pictures (N, 3, 224, 224), RGB, to logits (N, num_classes)."""

    paper = "Krizhevsky 2014"
    year = 2014
    input_size = 224
    last: ClassVar[str] = "fc8"
    inits: ClassVar[tuple[str, ...]] = ("paper", "fan-in")

    def __init__(self, num_classes: int = 1000, in_channels: int = 3, dropout: float = 0.5) -> None:
        super().__init__()
        self.dropout = checked_rate(dropout)
        self.num_classes = num_classes
        self.in_channels = in_channels
        self.conv1 = StridedConv2d(in_channels, 64, 11, stride=4, padding=2)
        self.conv2 = nn.Conv2d(64, 192, 5, padding=2)
        self.conv3 = nn.Conv2d(192, 384, 3, padding=1)
        self.conv4 = nn.Conv2d(384, 256, 3, padding=1)
        self.conv5 = nn.Conv2d(256, 256, 3, padding=1)
        self.fc6 = nn.Linear(256 * 6 * 6, 4096)
        self.fc7 = nn.Linear(4096, 4096)
        self.fc8 = nn.Linear(4096, num_classes)

    def forward(self, images: Tensor, stages: dict[str, Tensor] | None = None) -> Tensor:
        check_images(images, self, "alexnet_owt", SIDES)
        x = record(stages, "conv1", self.conv1(images))
        x = record(stages, "relu1", F.relu(x))
        x = record(stages, "pool1", max_pool(x))

        x = record(stages, "conv2", self.conv2(x))
        x = record(stages, "relu2", F.relu(x))
        x = record(stages, "pool2", max_pool(x))

        x = record(stages, "conv3", self.conv3(x))
        x = record(stages, "relu3", F.relu(x))
        x = record(stages, "conv4", self.conv4(x))
        x = record(stages, "relu4", F.relu(x))
        x = record(stages, "conv5", self.conv5(x))
        x = record(stages, "relu5", F.relu(x))
        x = record(stages, "pool5", max_pool(x))
        if not self.slides:
            x = record(stages, "avgpool", F.adaptive_avg_pool2d(x, 6))

        x = record(stages, "fc6", connected(self.fc6, dropout(x, self.dropout, self.training)))
        x = record(stages, "relu6", F.relu(x))
        x = record(stages, "fc7", connected(self.fc7, dropout(x, self.dropout, self.training)))
        x = record(stages, "relu7", F.relu(x))
        return record(stages, "fc8", connected(self.fc8, x))

    def initialize(self, init: str, generator: torch.Generator) -> None:
        """Draw all weights anew.

        "paper": torchvision's, weights and biases uniform within 1 / sqrt(fan-in). "fan-in": `uniform_by_fan_in`.

        Raises: UsageError for another name.
        """
        check_init(self, init)
        if init == "fan-in":
            uniform_by_fan_in(self, generator)
            return
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                weight = self.get_parameter(f"{name.partition('.')[0]}.weight")
                bound = math.sqrt(1 / weight[0].numel())
                parameter.uniform_(-bound, bound, generator=generator)
