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

from collections.abc import Mapping
from typing import ClassVar

from torch import nn

from convnet.errors import UsageError
from convnet.nets.convolutions import StridedConv2d, convolution
from convnet.nets.layers import Chain

CHAIN = (
    "conv1 relu1 norm1 pool1 conv2 relu2 norm2 pool2 conv3 relu3 conv4 relu4 conv5 relu5 pool5 fc6 relu6 fc7 relu7 fc8"
)
LARGEST = 512  # pixels: the side of pictures that a net can be built for


class AlexNet(Chain):
    """Pictures (N, 3, 224, 224), RGB on the scale 0..255 with the mean subtracted, to logits (N, num_classes).

    The released nets and the variants are this one but for some of its constants, or a layer of their own.
    """

    name = "alexnet"
    paper = "Krizhevsky, Sutskever and Hinton 2012"
    year = 2012
    recipe: ClassVar[str] = "alexnet"  # the variants' too, which are to be compared with it: all layers but one are its
    small_recipe: ClassVar[str] = "alexnet_small"
    torchvision = "alexnet"
    caffe_note: ClassVar[str] = (
        "Caffe's bvlc_alexnet is alexnet_caffe here, its CaffeNet caffenet; this net has another padding and other "
        "constants of response normalisation"
    )

    chain: tuple[str, ...] = tuple(CHAIN.split())
    input_size = 224
    sides = range(224, 256)  # pixels: those that give 6 x 6 maps at pool5
    other_sizes: ClassVar[str] = "; the option input_size builds it for others"
    last: ClassVar[str] = "fc8"
    inits: ClassVar[tuple[str, ...]] = ("paper", "fan-in")
    dropped: ClassVar[tuple[str, ...]] = ("relu6", "relu7")  # section 4.2

    columns = 2  # section 3.2
    maps: ClassVar[tuple[int, int, int, int, int]] = (96, 256, 384, 384, 256)  # 3.5: of conv1 to conv5
    normed: ClassVar[tuple[str, ...]] = ("conv1", "conv2")  # 3.3
    conv3_reads_all: ClassVar[bool] = True  # 3.5: the maps of all columns
    edge: ClassVar[int] = 3  # zeros that conv1 reads past the right and bottom edges
    pooling: ClassVar[tuple[int, int, bool]] = (3, 2, False)  # 3.4
    bias: ClassVar[Mapping[str, float]] = dict.fromkeys(("conv2", "conv4", "conv5", "fc6", "fc7"), 1.0)  # section 5

    def __init__(
        self, num_classes: int = 1000, in_channels: int = 3, dropout: float = 0.5, input_size: int | None = None
    ) -> None:
        """input_size: pixels, to 512: the side of the pictures that fc6 is built for; None is the paper's.

        Raises: UsageError for another input_size or dropout.
        """
        super().__init__(num_classes, in_channels, dropout)
        self.places = 36  # of each of pool5's maps
        if input_size is not None:
            self.places, self.input_size, self.sides = self._built_for(input_size)
        n1, n2, n3, n4, n5 = self.maps
        self.conv1 = StridedConv2d(in_channels, n1, 11, stride=4, edge=self.edge)
        self.conv2 = convolution(self.columns, n1, n2, 5, padding=2)
        self.conv3 = convolution(1 if self.conv3_reads_all else self.columns, n2, n3, 3, padding=1)
        self.conv4 = convolution(self.columns, n3, n4, 3, padding=1)
        self.conv5 = convolution(self.columns, n4, n5, 3, padding=1)
        self.fc6: nn.Module = nn.Linear(n5 * self.places, 4096)
        self.fc7: nn.Module = nn.Linear(4096, 4096)
        self.fc8: nn.Module = nn.Linear(4096, num_classes)
        self.add_functions()

    def _built_for(self, input_size: object) -> tuple[int, int, range]:
        """The places of pool5's maps, the side of pictures, and all sides that give as many. Raises: UsageError."""
        by_side = {side: self._pool5(side) for side in range(1, LARGEST + 1)}
        if type(input_size) is not int or not by_side.get(input_size):
            least = next(side for side, n in by_side.items() if n)
            rule = f"a whole number of pixels from {least} to {LARGEST}"
            raise UsageError(f"{self.name}: input_size is {input_size!r}; it must be {rule}")
        alike = [side for side, n in by_side.items() if n == by_side[input_size]]
        return by_side[input_size] ** 2, input_size, range(alike[0], alike[-1] + 1)

    def _pool5(self, side: int) -> int:
        """The side of pool5's maps, of pictures so large; 0 where they are too small."""
        size, stride, partial = self.pooling
        side = (side + self.edge - 11) // 4 + 1
        for _ in range(3):
            if side < size:
                return 0
            side = (side - size + (stride - 1 if partial else 0)) // stride + 1
        return side


class AlexNetConv6(AlexNet):
    """A sixth convolution: section 6's net for 10,184 and 22,000 classes, then fine-tuned on ILSVRC-2012. As `alexnet`
    but for:

    stage    output (C, H, W)   parameters   section 6
    fc6     none                        0
    conv6    256    6    6        590,080   after pool5: "an extra sixth convolutional layer"
    relu6    256    6    6              0   after conv6
    fc7     4096               37,752,832
    fc8     4096               16,781,312
    relu8   4096                        0   after fc8; 4.2: dropout 0.5 follows
    fc9     1000                4,097,000   after relu8
    total                      61,555,304

    Differs: nothing from what the text says. That conv6 is 3x3 with padding 1, 128 maps a column that read both
    columns, begins with N(0, 0.03) and biases 1: the released settings files. The fully connected layers are numbered
    by depth, so that the logits are fc9.
    """

    name = "alexnet_conv6"
    chain = (*AlexNet.chain[:15], "conv6", "relu6", "fc7", "relu7", "fc8", "relu8", "fc9")
    last = "fc9"
    other_sizes = ""
    dropped = ("relu7", "relu8")
    std: ClassVar[Mapping[str, float]] = {"conv6": 0.03}
    bias: ClassVar[Mapping[str, float]] = {**AlexNet.bias, "conv6": 1.0, "fc8": 1.0}

    def __init__(self, num_classes: int = 1000, in_channels: int = 3, dropout: float = 0.5) -> None:
        super().__init__(num_classes, in_channels, dropout)
        fc6, fc7, fc8 = self.fc6, self.fc7, self.fc8
        del self.fc6, self.fc7, self.fc8
        self.conv6 = nn.Conv2d(256, 256, 3, padding=1)
        self.fc7, self.fc8, self.fc9 = fc6, fc7, fc8


NETS = (AlexNet, AlexNetConv6)
