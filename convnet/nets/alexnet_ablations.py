"""AlexNet without one of its parts: the nets against which the paper measures what each part is worth.

A part is taken from the paper's text (`alexnet`); the nets that were measured have it taken from the released net, and
sometimes more: alexnet_ablations_2012.py. Tables that say "but for" list the stages that differ from `alexnet`'s.
"""

from typing import ClassVar

import torch
from torch import Tensor

from convnet.nets.alexnet_family import Family
from convnet.nets.initial import NONE


def without(*stages: str) -> str:
    """The order of the paper's stages without these."""
    return " ".join(stage for stage in Family.order.split() if stage not in stages)


class AlexNetNoLRN(Family):
    """No response normalisation (section 3.3: 1.4 % and 1.2 % worse). As `alexnet` but for:

    stage    output (C, H, W)   parameters   differs
    norm1   none                        0
    norm2   none                        0
    total                      60,965,224

    Differs: nothing else.
    """

    name = "alexnet_no_lrn"
    order = without("norm1", "norm2")


class AlexNetPool2(Family):
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
    sides: ClassVar[range] = range(196, 228)
    pooling: ClassVar[tuple[int, int, bool]] = (2, 2, False)


class AlexNetNoExchange(Family):
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
    joined = ()
    norm_columns: ClassVar[int] = 2


class AlexNetNoConv2(Family):
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
    order = without("conv2", "relu2", "norm2")


class AlexNetNoConv3(Family):
    """Without the third convolution (section 7: a middle layer is worth about 2 %). As `alexnet` but for:

    stage    output (C, H, W)   parameters   differs
    conv3   none                        0
    relu3   none                        0
    conv4    384   13   13        442,752   3x3x128, each column its own maps of pool2
    total                      59,858,920

    Differs: the columns then meet in fc6 only; the paper does not say how it closed the gap.
    """

    name = "alexnet_no_conv3"
    order = without("conv3", "relu3")


class AlexNetNoConv4(Family):
    """Without the fourth convolution (section 7: a middle layer is worth about 2 %). As `alexnet` but for:

    stage    output (C, H, W)   parameters   differs
    conv4   none                        0
    relu4   none                        0
    total                      60,301,288

    Differs: nothing else; conv5's columns read conv3's maps.
    """

    name = "alexnet_no_conv4"
    order = without("conv4", "relu4")


class AlexNetNoConv5(Family):
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
    order = without("conv5", "relu5")


class AlexNetTanh(Family):
    """Hyperbolic tangents instead of ReLUs.

    stage    output (C, H, W)   parameters   paper
    conv1     96   55   55         34,944   3.5: 11x11, stride 4
    tanh1     96   55   55              0   3.1: "the standard way to model a neuron's output"
    norm1     96   55   55              0   3.3: over the layer's 96 maps
    pool1     96   27   27              0
    conv2    256   27   27        307,456   3.5: 5x5x48, each column its own maps
    tanh2    256   27   27              0
    norm2    256   27   27              0   3.3: over the layer's 256 maps
    pool2    256   13   13              0
    conv3    384   13   13        885,120   3.5: both columns read both
    tanh3    384   13   13              0
    conv4    384   13   13        663,936   3.5: each column its own maps
    tanh4    384   13   13              0
    conv5    256   13   13        442,624   3.5: each column its own maps
    tanh5    256   13   13              0
    pool5    256    6    6              0
    fc6     4096               37,752,832
    tanh6   4096                        0   4.2: dropout 0.5 follows
    fc7     4096               16,781,312
    tanh7   4096                        0   4.2: dropout 0.5 follows
    fc8     1000                4,097,000
    total                      60,965,224

    Differs: the paper compares the two on CIFAR-10 only (figure 1). Biases begin at 0: the paper's 1 are for ReLUs.
    """

    name = "alexnet_tanh"
    order = Family.order.replace("relu", "tanh")
    bias = NONE

    def apply_stage(self, stage: str, x: Tensor) -> Tensor:
        return torch.tanh(x) if stage.startswith("tanh") else super().apply_stage(stage, x)
