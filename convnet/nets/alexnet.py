"""AlexNet: the net of "ImageNet Classification with Deep Convolutional Neural Networks" (2012), as its text gives it.

stage    output (C, H, W)   parameters   paper
conv1     96   55   55          34,944   3.5: 11x11, stride 4, all channels
relu1     96   55   55               0   3.1
norm1     96   55   55               0   3.3: k 2, n 5, alpha 1e-4, beta 0.75; over the layer's 96 maps
pool1     96   27   27               0   3.4: 3x3, stride 2
conv2    256   27   27         307,456   3.5: 5x5x48, each column its own maps
relu2    256   27   27               0
norm2    256   27   27               0   3.3: over the layer's 256 maps
pool2    256   13   13               0
conv3    384   13   13         885,120   3.5: 3x3x256, both columns read both
relu3    384   13   13               0
conv4    384   13   13         663,936   3.5: 3x3x192, each column its own maps
relu4    384   13   13               0
conv5    256   13   13         442,624   3.5: 3x3x192, each column its own maps
relu5    256   13   13               0
pool5    256    6    6               0
fc6     4096                37,752,832   3.5; reads the maps in the order (C, H, W)
relu6   4096                         0   4.2: dropout 0.5 follows
fc7     4096                16,781,312
relu7   4096                         0   4.2: dropout 0.5 follows
fc8     1000                 4,097,000   3.5: the softmax's logits
total                       60,965,224

Two columns of half the maps each, the paper's two GPUs: column 0 holds the first half of a layer's maps. A layer that
reads both columns (conv3, fc6, fc7, fc8; conv1, which reads the picture) is one dense layer here: the same function.

Differs: nothing in the function. The paper's padding is not in its text; conv1 reads 3 zeros past the right and bottom
edges, which gives its 55 x 55 from 224 (the "253,440 neurons" of figure 2 contradict 55 x 55 x 96). Dropout divides by
0.5 in training where the paper multiplies by 0.5 in testing: the same net, with weights of fc7 and fc8 scaled alike.
"""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convnet.nets.columns import Columns
from convnet.nets.dropout import checked_rate, dropout
from convnet.nets.initial import check_init, gaussian, uniform_by_fan_in
from convnet.nets.layers import Net, StridedConv2d, check_images, connected, record, relu_norm_pool, relu_pool

SIDES = range(224, 256)  # pixels: the sides that give 6 x 6 maps at pool5


class AlexNet(Net):
    """Pictures (N, 3, 224, 224), RGB on the scale 0..255 with the mean subtracted, to logits (N, num_classes)."""

    paper = "Krizhevsky, Sutskever and Hinton 2012"
    year = 2012
    input_size = 224
    columns = 2
    last: ClassVar[str] = "fc8"
    inits: ClassVar[tuple[str, ...]] = ("paper", "fan-in")

    def __init__(self, num_classes: int = 1000, in_channels: int = 3, dropout: float = 0.5) -> None:
        super().__init__()
        self.dropout = checked_rate(dropout)
        self.num_classes = num_classes
        self.in_channels = in_channels
        self.conv1 = StridedConv2d(in_channels, 96, 11, stride=4, edge=3)
        self.conv2 = Columns(2, 96, 256, 5, padding=2)
        self.conv3 = nn.Conv2d(256, 384, 3, padding=1)
        self.conv4 = Columns(2, 384, 384, 3, padding=1)
        self.conv5 = Columns(2, 384, 256, 3, padding=1)
        self.fc6 = nn.Linear(256 * 6 * 6, 4096)
        self.fc7 = nn.Linear(4096, 4096)
        self.fc8 = nn.Linear(4096, num_classes)

    def forward(self, images: Tensor, stages: dict[str, Tensor] | None = None) -> Tensor:
        check_images(images, self, "alexnet", SIDES)
        x = record(stages, "conv1", self.conv1(images))
        x = relu_norm_pool(x, stages, 1)

        x = record(stages, "conv2", self.conv2(x))
        x = relu_norm_pool(x, stages, 2)

        x = record(stages, "conv3", self.conv3(x))
        x = record(stages, "relu3", F.relu(x))
        x = record(stages, "conv4", self.conv4(x))
        x = record(stages, "relu4", F.relu(x))
        x = record(stages, "conv5", self.conv5(x))
        x = relu_pool(x, stages, "relu5", "pool5", 3)

        x = record(stages, "fc6", connected(self.fc6, x))
        x = record(stages, "relu6", F.relu(x))
        x = record(stages, "fc7", connected(self.fc7, dropout(x, self.dropout, self.training)))
        x = record(stages, "relu7", F.relu(x))
        return record(stages, "fc8", connected(self.fc8, dropout(x, self.dropout, self.training)))

    def initialize(self, init: str, generator: torch.Generator) -> None:
        """Draw all weights anew.

        "paper": N(0, 0.01); biases 1 in conv2, conv4, conv5, fc6, fc7, else 0 (section 5).
        "fan-in": uniform of standard deviation sqrt(1 / (3 fan-in)), conv1's divided by the pixels' 65; the last layer
        N(0, 0.01); biases 0. For small sets, on which the paper's values do not start to learn.

        Raises: UsageError for another name.
        """
        check_init(self, init)
        if init == "paper":
            gaussian(self, generator, bias=dict.fromkeys(("conv2", "conv4", "conv5", "fc6", "fc7"), 1.0))
        else:
            uniform_by_fan_in(self, generator)
