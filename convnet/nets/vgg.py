"""VGG: the nets of "Very Deep Convolutional Networks for Large-Scale Image Recognition" (2014), table 1 and 4.1.

Configuration D, `vgg_d`:

stage     output (C, H, W)   parameters   paper
conv1_1     64  224  224         1,792   2.1: 3x3, stride 1, padding 1
relu1_1     64  224  224             0   2.1
conv1_2     64  224  224        36,928   table 1: conv3-64
relu1_2     64  224  224             0
pool1       64  112  112             0   2.1: 2x2, stride 2
conv2_1    128  112  112        73,856   table 1: conv3-128
relu2_1    128  112  112             0
conv2_2    128  112  112       147,584   table 1: conv3-128
relu2_2    128  112  112             0
pool2      128   56   56             0
conv3_1    256   56   56       295,168   table 1: conv3-256
relu3_1    256   56   56             0
conv3_2    256   56   56       590,080   table 1: conv3-256
relu3_2    256   56   56             0
conv3_3    256   56   56       590,080   table 1: conv3-256
relu3_3    256   56   56             0
pool3      256   28   28             0
conv4_1    512   28   28     1,180,160   table 1: conv3-512
relu4_1    512   28   28             0
conv4_2    512   28   28     2,359,808   table 1: conv3-512
relu4_2    512   28   28             0
conv4_3    512   28   28     2,359,808   table 1: conv3-512
relu4_3    512   28   28             0
pool4      512   14   14             0
conv5_1    512   14   14     2,359,808   table 1: conv3-512
relu5_1    512   14   14             0
conv5_2    512   14   14     2,359,808   table 1: conv3-512
relu5_2    512   14   14             0
conv5_3    512   14   14     2,359,808   table 1: conv3-512
relu5_3    512   14   14             0
pool5      512    7    7             0
fc6       4096             102,764,544   table 1: FC-4096; reads the maps in the order (C, H, W)
relu6     4096                       0   3.1: dropout 0.5 follows
fc7       4096              16,781,312   table 1: FC-4096
relu7     4096                       0   3.1: dropout 0.5 follows
fc8       1000               4,097,000   table 1: FC-1000; the softmax's logits
total                      138,357,544

All configurations; `_bn` has batch norm after each convolution, which is no part of the paper:

net             weight layers   parameters    with batch norm
vgg_a                      11  132,863,336       132,868,840
vgg_a_lrn                  11  132,863,336
vgg_b                      13  133,047,848       133,053,736
vgg_b_shallow               8  134,503,528
vgg_c                      16  133,638,952
vgg_d                      16  138,357,544       138,365,992
vgg_e                      19  143,667,240       143,678,248

Differs: the paper's text gives random weights "10^-2 variance", which is a standard deviation of 0.1; `init="paper"` is
that. It does not start: A's first loss is about 10^8, and the second isn't finite (8 pictures, rate 0.01). With
`init="glorot"`, which the paper's authors found after its submission, and pixels divided by their deviation of 65, it
falls from 1.41 to 0.10 in 20 steps at the paper's rate; without that division rate 0.01 diverges, 0.003 gives 4.2 to
0.86. The paper starts the first four convolutions and the three fully connected layers of B to E from a trained A. The
padding of `vgg_b_shallow`'s 5x5 (2 pixels) isn't in the text. Dropout divides by 0.5 in training.
"""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convnet.errors import UsageError, unknown
from convnet.nets.layers import Net, check_images, max_pool, record, response_norm

# Paper: table 1, "conv<size>-<maps>" without its "conv"; | is a 2x2 max-pooling, and one follows the last column.
TABLE_1 = {
    "a": "3-64 | 3-128 | 3-256 3-256 | 3-512 3-512 | 3-512 3-512",
    "a_lrn": "3-64 LRN | 3-128 | 3-256 3-256 | 3-512 3-512 | 3-512 3-512",
    "b": "3-64 3-64 | 3-128 3-128 | 3-256 3-256 | 3-512 3-512 | 3-512 3-512",
    "b_shallow": "5-64 | 5-128 | 5-256 | 5-512 | 5-512",  # section 4.1: a 5x5 for each pair of 3x3
    "c": "3-64 3-64 | 3-128 3-128 | 3-256 3-256 1-256 | 3-512 3-512 1-512 | 3-512 3-512 1-512",
    "d": "3-64 3-64 | 3-128 3-128 | 3-256 3-256 3-256 | 3-512 3-512 3-512 | 3-512 3-512 3-512",
    "e": "3-64 3-64 | 3-128 3-128 | 3-256 3-256 3-256 3-256 | 3-512 3-512 3-512 3-512 | 3-512 3-512 3-512 3-512",
}
SIDES = range(224, 256)  # pixels: the sides that give 7 x 7 maps at pool5
PAPER_STD = 0.1  # section 3.1: "the zero mean and 10^-2 variance"


class VGG(Net):
    """Pictures (N, in_channels, 224, 224), on the scale 0..255 less the mean colour, to logits (N, num_classes)."""

    paper = "Simonyan and Zisserman 2014"
    year = 2014
    input_size = 224
    last: ClassVar[str] = "fc8"
    inits: ClassVar[tuple[str, ...]] = ("paper", "glorot")

    def __init__(self, configuration: str, batch_norm: bool, /, num_classes: int = 1000, in_channels: int = 3) -> None:
        super().__init__()
        self.name = f"vgg_{configuration}{'_bn' if batch_norm else ''}"
        self.batch_norm, self.in_channels, self.num_classes = batch_norm, in_channels, num_classes
        self.blocks = [block.split() for block in TABLE_1[configuration].split(" | ")]
        maps = in_channels
        for b, block in enumerate(self.blocks, 1):
            for i, (size, maps_out) in enumerate(_convolutions(block), 1):
                self.add_module(f"conv{b}_{i}", nn.Conv2d(maps, maps_out, size, padding=size // 2))
                if batch_norm:
                    self.add_module(f"bn{b}_{i}", nn.BatchNorm2d(maps_out))
                maps = maps_out
        self.fc6 = nn.Linear(512 * 7 * 7, 4096)
        self.fc7 = nn.Linear(4096, 4096)
        self.fc8 = nn.Linear(4096, num_classes)

    def forward(self, images: Tensor, stages: dict[str, Tensor] | None = None) -> Tensor:
        check_images(images, self.name, self.in_channels, SIDES)
        x = images
        for b, block in enumerate(self.blocks, 1):
            for i, _ in enumerate(_convolutions(block), 1):
                x = record(stages, f"conv{b}_{i}", getattr(self, f"conv{b}_{i}")(x))
                if self.batch_norm:
                    x = record(stages, f"bn{b}_{i}", getattr(self, f"bn{b}_{i}")(x))
                x = record(stages, f"relu{b}_{i}", F.relu(x))
            if "LRN" in block:
                x = record(stages, f"norm{b}", response_norm(x))
            x = record(stages, f"pool{b}", max_pool(x, 2, 2))

        x = record(stages, "fc6", self.fc6(x.flatten(1)))
        x = record(stages, "relu6", F.relu(x))
        x = record(stages, "fc7", self.fc7(F.dropout(x, 0.5, self.training)))
        x = record(stages, "relu7", F.relu(x))
        return record(stages, "fc8", self.fc8(F.dropout(x, 0.5, self.training)))

    def initialize(self, init: str, generator: torch.Generator) -> None:
        """Draw all weights anew; biases are 0, batch norm's factors 1.

        "paper": N(0, variance 10^-2), section 3.1.
        "glorot": uniform within sqrt(6 / (fan-in + fan-out)): Glorot and Bengio 2010, named in section 3.1.

        Raises: UsageError for another name.
        """
        if init not in self.inits:
            raise UsageError(unknown("init", init, self.inits))
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if name.endswith("bias"):
                    parameter.zero_()
                elif name.startswith("bn"):
                    parameter.fill_(1.0)
                elif init == "paper":
                    parameter.normal_(0, PAPER_STD, generator=generator)
                else:
                    nn.init.xavier_uniform_(parameter, generator=generator)


def _convolutions(block: list[str]) -> list[tuple[int, int]]:
    """(kernel's side, maps) of the convolutions between two poolings of table 1."""
    pairs = (entry.split("-") for entry in block if entry != "LRN")
    return [(int(size), int(maps)) for size, maps in pairs]
