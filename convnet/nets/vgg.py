"""VGG: the nets of "Very Deep Convolutional Networks for Large-Scale Image Recognition" (2014), table 1 and 4.1.

Configurations A to E have 11, 13, 16, 16 and 19 layers with weights. A column holds a net's parameters; it lacks the
stages with "-".

stage     output (C, H, W)        vgg_a        vgg_b        vgg_c        vgg_d        vgg_e   paper
conv1_1     64  224  224          1,792        1,792        1,792        1,792        1,792   2.1: 3x3, stride 1, pad 1
relu1_1     64  224  224              0            0            0            0            0   2.1
conv1_2     64  224  224              -       36,928       36,928       36,928       36,928
relu1_2     64  224  224              -            0            0            0            0
pool1       64  112  112              0            0            0            0            0   2.1: 2x2, stride 2
conv2_1    128  112  112         73,856       73,856       73,856       73,856       73,856
relu2_1    128  112  112              0            0            0            0            0
conv2_2    128  112  112              -      147,584      147,584      147,584      147,584
relu2_2    128  112  112              -            0            0            0            0
pool2      128   56   56              0            0            0            0            0
conv3_1    256   56   56        295,168      295,168      295,168      295,168      295,168
relu3_1    256   56   56              0            0            0            0            0
conv3_2    256   56   56        590,080      590,080      590,080      590,080      590,080
relu3_2    256   56   56              0            0            0            0            0
conv3_3    256   56   56              -            -       65,792      590,080      590,080   table 1: 1x1 in C
relu3_3    256   56   56              -            -            0            0            0
conv3_4    256   56   56              -            -            -            -      590,080
relu3_4    256   56   56              -            -            -            -            0
pool3      256   28   28              0            0            0            0            0
conv4_1    512   28   28      1,180,160    1,180,160    1,180,160    1,180,160    1,180,160
relu4_1    512   28   28              0            0            0            0            0
conv4_2    512   28   28      2,359,808    2,359,808    2,359,808    2,359,808    2,359,808
relu4_2    512   28   28              0            0            0            0            0
conv4_3    512   28   28              -            -      262,656    2,359,808    2,359,808   1x1 in C
relu4_3    512   28   28              -            -            0            0            0
conv4_4    512   28   28              -            -            -            -    2,359,808
relu4_4    512   28   28              -            -            -            -            0
pool4      512   14   14              0            0            0            0            0
conv5_1    512   14   14      2,359,808    2,359,808    2,359,808    2,359,808    2,359,808
relu5_1    512   14   14              0            0            0            0            0
conv5_2    512   14   14      2,359,808    2,359,808    2,359,808    2,359,808    2,359,808
relu5_2    512   14   14              0            0            0            0            0
conv5_3    512   14   14              -            -      262,656    2,359,808    2,359,808   1x1 in C
relu5_3    512   14   14              -            -            0            0            0
conv5_4    512   14   14              -            -            -            -    2,359,808
relu5_4    512   14   14              -            -            -            -            0
pool5      512    7    7              0            0            0            0            0
fc6       4096              102,764,544  102,764,544  102,764,544  102,764,544  102,764,544   reads maps as (C, H, W)
relu6     4096                        0            0            0            0            0   3.1: dropout 0.5 follows
fc7       4096               16,781,312   16,781,312   16,781,312   16,781,312   16,781,312
relu7     4096                        0            0            0            0            0   3.1: dropout 0.5 follows
fc8       1000                4,097,000    4,097,000    4,097,000    4,097,000    4,097,000   the softmax's logits
total                       132,863,336  133,047,848  133,638,952  138,357,544  143,667,240

As `vgg_a` but for:

stage     output (C, H, W)    vgg_a_lrn   paper
norm1       64  224  224              0   after relu1_1; 2.1, table 1: AlexNet's response normalisation
total                       132,863,336

The shallow net that section 4.1 holds against B. As `vgg_a` but for:

stage     output (C, H, W)   vgg_b_shallow   paper
conv1_1     64  224  224             4,864   4.1: 5x5 in place of each pair of 3x3
conv2_1    128  112  112           204,928
conv3_1    256   56   56           819,456
conv3_2   none                           0
relu3_2   none                           0
conv4_1    512   28   28         3,277,312
conv4_2   none                           0
relu4_2   none                           0
conv5_1    512   14   14         6,554,112
conv5_2   none                           0
relu5_2   none                           0
total                          134,503,528

Batch norm after each convolution is no part of the paper. As `vgg_a`, `vgg_b`, `vgg_d`, `vgg_e` but for:

stage     output (C, H, W)     vgg_a_bn     vgg_b_bn     vgg_d_bn     vgg_e_bn   place
bn1_1       64  224  224            128          128          128          128   after conv1_1
bn1_2       64  224  224              -          128          128          128   after conv1_2
bn2_1      128  112  112            256          256          256          256   after conv2_1
bn2_2      128  112  112              -          256          256          256   after conv2_2
bn3_1      256   56   56            512          512          512          512   after conv3_1
bn3_2      256   56   56            512          512          512          512   after conv3_2
bn3_3      256   56   56              -            -          512          512   after conv3_3
bn3_4      256   56   56              -            -            -          512   after conv3_4
bn4_1      512   28   28          1,024        1,024        1,024        1,024   after conv4_1
bn4_2      512   28   28          1,024        1,024        1,024        1,024   after conv4_2
bn4_3      512   28   28              -            -        1,024        1,024   after conv4_3
bn4_4      512   28   28              -            -            -        1,024   after conv4_4
bn5_1      512   14   14          1,024        1,024        1,024        1,024   after conv5_1
bn5_2      512   14   14          1,024        1,024        1,024        1,024   after conv5_2
bn5_3      512   14   14              -            -        1,024        1,024   after conv5_3
bn5_4      512   14   14              -            -            -        1,024   after conv5_4
total                       132,868,840  133,053,736  138,365,992  143,678,248

All take sides of 224 to 255 pixels. `input_size=64` builds the net for sides of 64 to 95: pool5 then has 2 x 2 maps,
and fc6 reads these; 32 to 512 pixels can be chosen. The paper's nets see 224.

Section 3.1 begins B to E with layers of a trained A: `convnet train DATA --recipe vgg_d --start-from A.ckpt`. "The
first four convolutional layers" of A are conv1_1, conv2_1, conv3_1 and conv3_2; they go where B to E have layers of
these names, as the first four of B to E in their order have other shapes. The fully connected layers go with them. The
notes on classic nets go on step by step, VGG11, 13, 16, 19: D may begin with all layers of a trained B, E with D's.

Differs: the paper's text gives random weights "10^-2 variance", which is a standard deviation of 0.1; `init="paper"` is
that. It does not start: A's first loss is about 10^8, and the second isn't finite (8 pictures, rate 0.01). With
`init="glorot"`, which the paper's authors found after its submission, and pixels divided by their deviation of 65, it
falls from 1.41 to 0.10 in 20 steps at the paper's rate; without that division rate 0.01 diverges, 0.003 gives 4.2 to
0.86. The padding of `vgg_b_shallow`'s 5x5 (2 pixels) isn't in the text. Dropout divides by 0.5 in training.
"""

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar

import torch
from torch import nn

from convnet.errors import UsageError
from convnet.io.strict_json import Json
from convnet.nets.layers import Chain
from convnet.nets.published import of_oxford, of_pytorch

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
SHRINK = 32  # pixels of the picture for one of pool5: five poolings of 2
INPUT_SIZES = range(SHRINK, 513)  # pixels; 512 is the largest scale of section 3
FROM_A = ("conv1_1", "conv2_1", "conv3_1", "conv3_2", "fc6", "fc7", "fc8")  # section 3.1: with what B to E begin
PAPER_STD = 0.1  # section 3.1: "the zero mean and 10^-2 variance"


# What torchvision and timm call the fully connected layers.
CONNECTED = {
    "torchvision": {"fc6": "classifier.0", "fc7": "classifier.3", "fc8": "classifier.6"},
    "timm": {"fc6": "pre_logits.fc1", "fc7": "pre_logits.fc2", "fc8": "head.fc"},
}


class VGG(Chain):
    """Pictures (N, in_channels, 224, 224), on the scale 0..255 less the mean colour, to logits (N, num_classes).

    input_size: pixels, 32 to 512: the side of the pictures that fc6 is built for, rounded down to whole 32s.
    dropout: the share of fc6's and fc7's units that is dropped in training, from 0 to below 1.

    Raises: UsageError for another input_size or dropout.
    """

    configuration: ClassVar[str]  # of table 1
    batch_norm: ClassVar[bool] = False

    paper = "Simonyan and Zisserman 2014"
    year = 2014
    recipe: ClassVar[str] = (
        "vgg_d"  # all are trained alike; ours with batch norm, where torchvision's rate is 10 x larger
    )
    small_recipe: ClassVar[str] = "vgg_small"
    pooling: ClassVar[tuple[int, int, bool]] = (2, 2, False)
    dropped: ClassVar[tuple[str, ...]] = ("relu6", "relu7")
    other_sizes = "; the option input_size builds it for others"
    last: ClassVar[str] = "fc8"
    inits: ClassVar[tuple[str, ...]] = ("paper", "glorot", "he")

    def __init__(
        self, num_classes: int = 1000, in_channels: int = 3, input_size: int = 224, dropout: float = 0.5
    ) -> None:
        super().__init__(num_classes, in_channels, dropout)
        self.input_size = _checked_size(self.name, input_size)
        n_maps = input_size // SHRINK  # a side of pool5's maps
        self.sides = range(n_maps * SHRINK, (n_maps + 1) * SHRINK)
        self.blocks = [block.split() for block in TABLE_1[self.configuration].split(" | ")]
        maps, chain = in_channels, list[str]()
        for b, block in enumerate(self.blocks, 1):
            for i, (size, maps_out) in enumerate(_convolutions(block), 1):
                self.add_module(f"conv{b}_{i}", nn.Conv2d(maps, maps_out, size, padding=size // 2))
                if self.batch_norm:
                    self.add_module(f"bn{b}_{i}", nn.BatchNorm2d(maps_out))
                maps = maps_out
                chain += [f"conv{b}_{i}", *([f"bn{b}_{i}"] if self.batch_norm else []), f"relu{b}_{i}"]
            chain += [*([f"norm{b}"] if "LRN" in block else []), f"pool{b}"]
        self.chain = (*chain, "fc6", "relu6", "fc7", "relu7", "fc8")
        self.fc6 = nn.Linear(512 * n_maps * n_maps, 4096)
        self.fc7 = nn.Linear(4096, 4096)
        self.fc8 = nn.Linear(4096, num_classes)
        self.add_functions()
        if self.batch_norm:
            self.starts = {}
        if self.torchvision:
            self.layer_names = {writer: {**self._features(), **fc} for writer, fc in CONNECTED.items()}

    def options_of(self, shapes: Mapping[str, tuple[int, ...]]) -> Json:
        """By what fc6 reads."""
        a_place = self.fc6.weight.numel() // (self.input_size // SHRINK) ** 2  # of pool5's maps
        n_weights = math.prod(shapes.get("fc6.weight", (0,)))
        sizes = [size for size in INPUT_SIZES[::SHRINK] if a_place * (size // SHRINK) ** 2 == n_weights]
        return {"input_size": sizes[0]} if sizes and sizes != [self.input_size] else {}

    def _features(self) -> dict[str, str]:
        """Where the layers stand in others' `features`: convolution, (batch norm,) ReLU; a pooling after each block."""
        names, at = {}, 0
        for b, block in enumerate(self.blocks, 1):
            for i in range(1, len(block) + 1):
                names[f"conv{b}_{i}"] = f"features.{at}"
                if self.batch_norm:
                    names[f"bn{b}_{i}"] = f"features.{at + 1}"
                at += 3 if self.batch_norm else 2
            at += 1
        return names

    def sample_weights(self, init: str, generator: torch.Generator) -> None:
        """Biases are 0, batch norm's factors 1.

        "paper": N(0, variance 10^-2), section 3.1.
        "glorot": uniform within sqrt(6 / (fan-in + fan-out)): Glorot and Bengio 2010, named in section 3.1.
        "he": N(0, variance 2 / fan-in), which keeps the signal through all layers, the last layer N(0, 0.01): He et al.
        2015, eq. 10. For small sets, on which Glorot's values take long to start; pixels divided by 65 too.
        """
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
            elif name.startswith("bn"):
                parameter.fill_(1.0)
            elif init == "paper":
                parameter.normal_(0, PAPER_STD, generator=generator)
            elif init == "he":
                std = 0.01 if name.startswith(self.last) else math.sqrt(2 / parameter[0].numel())
                parameter.normal_(0, std, generator=generator)
            else:
                nn.init.xavier_uniform_(parameter, generator=generator)


def _layers(configuration: str) -> tuple[str, ...]:
    blocks = enumerate(TABLE_1[configuration].split(" | "), 1)
    return *(f"conv{b}_{i + 1}" for b, block in blocks for i in range(len(block.split()))), "fc6", "fc7", "fc8"


def _checked_size(name: str, input_size: object) -> int:
    if type(input_size) is not int or input_size not in INPUT_SIZES:
        raise UsageError(
            f"{name}: input_size is {input_size!r}; it must be a whole number of pixels from {INPUT_SIZES[0]} to "
            f"{INPUT_SIZES[-1]}"
        )
    return input_size


def _convolutions(block: list[str]) -> list[tuple[int, int]]:
    """(kernel's side, maps) of the convolutions between two poolings of table 1."""
    pairs = (entry.split("-") for entry in block if entry != "LRN")
    return [(int(size), int(maps)) for size, maps in pairs]


class VGGA(VGG):
    """Configuration A: 11 layers with weights."""

    name = "vgg_a"
    aliases = ("vgg11",)
    configuration = "a"
    recipe = "vgg_a"
    torchvision = "vgg11"
    published = of_pytorch("vgg_a", "vgg11-8a719046.pth")


class VGGALRN(VGG):
    """A with a response normalisation."""

    name = "vgg_a_lrn"
    configuration = "a_lrn"
    recipe = "vgg_a"


class VGGB(VGG):
    """Configuration B: 13 layers."""

    name = "vgg_b"
    aliases = ("vgg13",)
    configuration = "b"
    torchvision = "vgg13"
    starts = MappingProxyType({"vgg_a": FROM_A})
    published = of_pytorch("vgg_b", "vgg13-19584684.pth")


class VGGBShallow(VGG):
    """The net that section 4.1 holds against B."""

    name = "vgg_b_shallow"
    configuration = "b_shallow"


class VGGC(VGG):
    """Configuration C: 16 layers, three of them 1x1."""

    name = "vgg_c"
    configuration = "c"
    starts = MappingProxyType({"vgg_a": FROM_A})


class VGGD(VGG):
    """Configuration D: 16 layers."""

    name = "vgg_d"
    aliases = ("vgg16",)
    configuration = "d"
    torchvision = "vgg16"
    starts = MappingProxyType({"vgg_a": FROM_A, "vgg_b": _layers("b")})
    published = of_pytorch("vgg_d", "vgg16-397923af.pth") | of_oxford("vgg_d", 16)


class VGGE(VGG):
    """Configuration E: 19 layers."""

    name = "vgg_e"
    aliases = ("vgg19",)
    configuration = "e"
    torchvision = "vgg19"
    starts = MappingProxyType({"vgg_a": FROM_A, "vgg_d": _layers("d")})
    published = of_pytorch("vgg_e", "vgg19-dcbb9e9d.pth") | of_oxford("vgg_e", 19)


class VGGABN(VGGA):
    """A with batch norm."""

    name = "vgg_a_bn"
    aliases = ("vgg11_bn",)
    torchvision = "vgg11_bn"
    batch_norm = True
    published = of_pytorch("vgg_a_bn", "vgg11_bn-6002323d.pth")


class VGGBBN(VGGB):
    """B with batch norm."""

    name = "vgg_b_bn"
    aliases = ("vgg13_bn",)
    torchvision = "vgg13_bn"
    batch_norm = True
    published = of_pytorch("vgg_b_bn", "vgg13_bn-abd245e5.pth")


class VGGDBN(VGGD):
    """D with batch norm."""

    name = "vgg_d_bn"
    aliases = ("vgg16_bn",)
    torchvision = "vgg16_bn"
    batch_norm = True
    published = of_pytorch("vgg_d_bn", "vgg16_bn-6c64b313.pth")


class VGGEBN(VGGE):
    """E with batch norm."""

    name = "vgg_e_bn"
    aliases = ("vgg19_bn",)
    torchvision = "vgg19_bn"
    batch_norm = True
    published = of_pytorch("vgg_e_bn", "vgg19_bn-c79401a0.pth")


NETS = (VGGA, VGGALRN, VGGB, VGGBShallow, VGGC, VGGD, VGGE, VGGABN, VGGBBN, VGGDBN, VGGEBN)
