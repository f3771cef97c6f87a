"""AlexNet but for one of its parts: the nets against which the paper measures what each part is worth, and others.

A part is taken from the paper's text (`alexnet`). The nets that were measured have it taken from the released net
(`alexnet_2012`), and sometimes more: theirs are the names that end in `_2012`. Their errors are top-1 and top-5 on the
validation pictures of 2012 with ten crops, where `alexnet_2012` has 40.66 and 18.21 %.

Each table lists the stages that differ.
"""

from torch import nn

from convnet.nets.alexnet import AlexNet
from convnet.nets.alexnet_released import TORCHVISIONS, AlexNet2012
from convnet.nets.convolutions import Columns, ConnectedColumns
from convnet.nets.initial import NONE
from convnet.nets.layers import NO_LRN, without


class AlexNetHalf(AlexNet):
    """Half the kernels on one GPU, against which section 3.2 measures the two columns: one column of half the maps. As
    `alexnet` but for:

    stage    output (C, H, W)   parameters   differs
    conv1     48   55   55         17,472
    relu1     48   55   55              0
    norm1     48   55   55              0   3.3: over the layer's 48 maps
    pool1     48   27   27              0
    conv2    128   27   27        153,728
    relu2    128   27   27              0
    norm2    128   27   27              0   3.3: over the layer's 128 maps
    pool2    128   13   13              0
    conv3    192   13   13        221,376
    relu3    192   13   13              0
    conv4    192   13   13        331,968
    relu4    192   13   13              0
    conv5    256   13   13        442,624   footnote 2: not halved
    total                      59,798,312

    Differs: nothing. The last convolution and the fully connected layers are not halved (footnote 2). The net that was
    measured is `alexnet_half_2012`.
    """

    name = "alexnet_half"
    columns = 1
    layer_names = TORCHVISIONS
    maps = (48, 128, 192, 192, 256)


class AlexNet1Col(AlexNet):
    """One column of full width: every convolution reads all maps. As `alexnet` but for:

    stage    output (C, H, W)   parameters   differs
    conv2    256   27   27        614,656   5x5x96
    conv4    384   13   13      1,327,488   3x3x384
    conv5    256   13   13        884,992   3x3x384
    total                      62,378,344

    Differs: no net of the paper; it is what the columns leave out.
    """

    name = "alexnet_1col"
    columns = 1
    layer_names = TORCHVISIONS


class AlexNet4Col(AlexNet):
    """Four columns of a quarter of the maps; they meet where the two do. As `alexnet` but for:

    stage    output (C, H, W)   parameters   differs
    conv2    256   27   27        153,856   5x5x24
    conv4    384   13   13        332,160   3x3x96
    conv5    256   13   13        221,440   3x3x96
    total                      60,258,664

    Differs: no net of the paper.
    """

    name = "alexnet_4col"
    columns = 4


class AlexNetNoExchange(AlexNet):
    """No communication between the columns: what is shared elsewhere stays within them. As `alexnet` but for:

    stage    output (C, H, W)   parameters   differs
    norm1     96   55   55              0   over a column's 48 maps
    norm2    256   27   27              0   over a column's 128 maps
    conv3    384   13   13        442,752   3x3x128, each column its own maps
    total                      60,522,856

    Differs: the columns meet in fc6, and nothing makes up for the 442,368 weights that conv3 loses. The paper's text
    has no such net. In the one that was measured they meet in fc8, and conv2 is wider: `alexnet_no_exchange_2012`.
    """

    name = "alexnet_no_exchange"
    conv3_reads_all = False
    norm_columns = 2


class AlexNetNoLRN(AlexNet):
    """No response normalisation (section 3.3: 1.4 % and 1.2 % worse). As `alexnet` but for:

    stage    output (C, H, W)   parameters   differs
    norm1   none                        0
    norm2   none                        0
    total                      60,965,224

    Differs: nothing else.
    """

    name = "alexnet_no_lrn"
    chain = without(AlexNet.chain, "norm1", "norm2")
    small_recipe = "caffenet_small"
    lrn = NO_LRN


class AlexNetPool2(AlexNet):
    """Pools of 2 x 2 that do not overlap (section 3.4: 0.4 % and 0.3 % worse). As `alexnet` but for:

    stage    output (C, H, W)   parameters   differs
    pool1     96   27   27              0   2x2, stride 2
    pool2    256   13   13              0   2x2, stride 2
    pool5    256    6    6              0   2x2, stride 2
    total                      60,965,224

    Differs: nothing else. By the text its pools give "output of equivalent dimensions", as these do, which leave out
    partial windows. The net that was measured has other sizes: `alexnet_pool2_2012`.
    """

    name = "alexnet_pool2"
    sides = range(196, 228)
    pooling = (2, 2, False)


class AlexNetTanh(AlexNet):
    """Hyperbolic tangents instead of ReLUs: section 3.1's "standard way to model a neuron's output". As `alexnet` but
    for:

    stage    output (C, H, W)   parameters   differs
    tanh1     96   55   55              0   in place of relu1
    tanh2    256   27   27              0   in place of relu2
    tanh3    384   13   13              0   in place of relu3
    tanh4    384   13   13              0   in place of relu4
    tanh5    256   13   13              0   in place of relu5
    tanh6   4096                        0   in place of relu6; 4.2: dropout 0.5 follows
    tanh7   4096                        0   in place of relu7; 4.2: dropout 0.5 follows
    total                      60,965,224

    Differs: the paper compares the two on CIFAR-10 only (figure 1). Biases begin at 0: the paper's 1 are for ReLUs.
    """

    name = "alexnet_tanh"
    chain = tuple(name.replace("relu", "tanh") for name in AlexNet.chain)
    bias = NONE
    dropped = ("tanh6", "tanh7")


class AlexNetNoConv2(AlexNet):
    """Without the second convolution (section 7: a middle layer is worth about 2 %). As `alexnet` but for:

    stage    output (C, H, W)   parameters   differs
    conv2   none                        0
    relu2   none                        0
    norm2   none                        0   there is nothing new to normalise
    pool2     96   13   13              0   of pool1
    conv3    384   13   13        332,160   3x3x96
    total                      60,104,808

    Differs: the paper does not say how it closed the gap; pool2 stays, so that all later sizes do.
    """

    name = "alexnet_no_conv2"
    chain = without(AlexNet.chain, "conv2", "relu2", "norm2")
    small_recipe = "caffenet_small"

    def __init__(
        self, num_classes: int = 1000, in_channels: int = 3, dropout: float = 0.5, input_size: int | None = None
    ) -> None:
        super().__init__(num_classes, in_channels, dropout, input_size)
        del self.conv2
        self.conv3 = nn.Conv2d(96, 384, 3, padding=1)


class AlexNetNoConv3(AlexNet):
    """Without the third convolution (section 7: a middle layer is worth about 2 %). As `alexnet` but for:

    stage    output (C, H, W)   parameters   differs
    conv3   none                        0
    relu3   none                        0
    conv4    384   13   13        442,752   3x3x128, each column its own maps of pool2
    total                      59,858,920

    Differs: the columns then meet in fc6 only; the paper does not say how it closed the gap.
    """

    name = "alexnet_no_conv3"
    chain = without(AlexNet.chain, "conv3", "relu3")
    small_recipe = "caffenet_small"

    def __init__(
        self, num_classes: int = 1000, in_channels: int = 3, dropout: float = 0.5, input_size: int | None = None
    ) -> None:
        super().__init__(num_classes, in_channels, dropout, input_size)
        del self.conv3
        self.conv4 = Columns(2, 256, 384, 3, padding=1)


class AlexNetNoConv4(AlexNet):
    """Without the fourth convolution (section 7: a middle layer is worth about 2 %). As `alexnet` but for:

    stage    output (C, H, W)   parameters   differs
    conv4   none                        0
    relu4   none                        0
    total                      60,301,288

    Differs: nothing else; conv5's columns read conv3's maps.
    """

    name = "alexnet_no_conv4"
    chain = without(AlexNet.chain, "conv4", "relu4")
    small_recipe = "caffenet_small"

    def __init__(
        self, num_classes: int = 1000, in_channels: int = 3, dropout: float = 0.5, input_size: int | None = None
    ) -> None:
        super().__init__(num_classes, in_channels, dropout, input_size)
        del self.conv4


class AlexNetNoConv5(AlexNet):
    """Without the fifth convolution (section 7: a middle layer is worth about 2 %). As `alexnet` but for:

    stage    output (C, H, W)   parameters   differs
    conv5   none                        0
    relu5   none                        0
    pool5    384    6    6              0   of conv4
    fc6     4096               56,627,200   reads 384 maps
    total                      79,396,968

    Differs: the paper does not say how it closed the gap; with 256 maps in conv4 it would be `alexnet_no_conv4`.
    """

    name = "alexnet_no_conv5"
    chain = without(AlexNet.chain, "conv5", "relu5")
    small_recipe = "caffenet_small"

    def __init__(
        self, num_classes: int = 1000, in_channels: int = 3, dropout: float = 0.5, input_size: int | None = None
    ) -> None:
        super().__init__(num_classes, in_channels, dropout, input_size)
        del self.conv5
        self.fc6 = nn.Linear(384 * self.places, 4096)


class AlexNetHalf2012(AlexNet2012):
    """Half of net #145's kernels on one GPU: 39.17 and 18.23 % on the test pictures of 2010, where #145 has 37.47 and
    17.00 %. As `alexnet_half` but for:

    stage    output (C, H, W)   parameters   differs
    norm1     48   55   55              0   after conv1
    pool1     48   27   27              0   after norm1
    relu1     48   27   27              0   after pool1
    within2  128   27   27              0   after norm2
    total                      59,798,312

    Differs from `alexnet_half`, the form by the paper's text, as `alexnet_2012` from `alexnet`.
    """

    name = "alexnet_half_2012"
    columns = 1
    layer_names = TORCHVISIONS
    norm_columns = 1
    maps = AlexNetHalf.maps


class AlexNetNoExchange2012(AlexNet2012):
    """Net #150, whose columns meet in fc8 only: 41.83 and 19.33 %. As `alexnet_2012` but for:

    stage    output (C, H, W)   parameters   differs
    conv2    320   27   27        384,320   160 maps a column: as many parameters in all as with communication
    relu2    320   27   27              0
    norm2    320   27   27              0   within a column: 160 maps
    within2  320   27   27              0
    pool2    320   13   13              0
    conv3    384   13   13        553,344   3x3x160, each column its own maps
    fc6     8192               37,756,928   4096 units a column, of its own maps
    relu6   8192                        0   dropout 0.5 follows
    fc7     4096               16,781,312   2048 units a column, of its own 4096
    total                      60,714,408

    Differs from `alexnet_no_exchange`, which is `alexnet` with conv3 in columns and all else as it was.
    """

    name = "alexnet_no_exchange_2012"
    other_sizes = ""
    maps = (96, 320, 384, 384, 256)
    conv3_reads_all = False

    def __init__(self, num_classes: int = 1000, in_channels: int = 3, dropout: float = 0.5) -> None:
        super().__init__(num_classes, in_channels, dropout)
        self.fc6 = ConnectedColumns(2, 256 * 6 * 6, 8192)
        self.fc7 = ConnectedColumns(2, 8192, 4096)


class AlexNetNoLRN2012(AlexNet2012):
    """Net #148, without its three normalisations: 42.03 and 19.36 %. As `alexnet_2012` but for:

    stage    output (C, H, W)   parameters   differs
    norm1   none                        0
    norm2   none                        0
    within2 none                        0
    total                      60,965,224

    Differs from `alexnet_no_lrn`, the form by the paper's text: in layer 1 ReLU follows the pooling, which is the same
    function; conv3, conv4 and conv5 begin with N(0, 0.03).
    """

    name = "alexnet_no_lrn_2012"
    chain = without(AlexNet2012.chain, "norm1", "norm2", "within2")
    small_recipe = "caffenet_small"
    lrn = NO_LRN


class AlexNetPool2_2012(AlexNet2012):  # noqa: N801 - a 2 beside a year
    """Net #147, pools of 2 x 2 that do not overlap: 41.06 and 18.51 %. As `alexnet_2012` but for:

    stage    output (C, H, W)   parameters   differs
    pool1     96   28   28              0   2x2, stride 2, the partial windows kept
    relu1     96   28   28              0
    conv2    256   26   26        307,456   padding 1
    relu2    256   26   26              0
    norm2    256   26   26              0
    within2  256   26   26              0
    pool2    256   13   13              0   2x2, stride 2
    conv5    256   11   11        442,624   no padding
    relu5    256   11   11              0
    pool5    256    6    6              0   2x2, stride 2, the partial windows kept
    total                      60,965,224

    Differs from `alexnet_pool2`, the form by the paper's text, which has the sizes of 3 x 3 pools: 28, 26 and 11 pixels
    for its 27, 27 and 13.
    """

    name = "alexnet_pool2_2012"
    sides = range(216, 248)
    other_sizes = ""
    pooling = (2, 2, True)

    def __init__(self, num_classes: int = 1000, in_channels: int = 3, dropout: float = 0.5) -> None:
        super().__init__(num_classes, in_channels, dropout)
        self.conv2 = Columns(2, 96, 256, 5, padding=1)
        self.conv5 = Columns(2, 384, 256, 3)


NETS = (
    *(AlexNetHalf, AlexNet1Col, AlexNet4Col, AlexNetNoExchange, AlexNetNoLRN, AlexNetPool2, AlexNetTanh),
    *(AlexNetNoConv2, AlexNetNoConv3, AlexNetNoConv4, AlexNetNoConv5),
    *(AlexNetHalf2012, AlexNetNoExchange2012, AlexNetNoLRN2012, AlexNetPool2_2012),
)
