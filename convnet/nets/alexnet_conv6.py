"""AlexNet with a sixth convolution: section 6's net for 10,184 and 22,000 classes, then fine-tuned on ILSVRC-2012.

stage    output (C, H, W)   parameters   paper
conv1     96   55   55         34,944   3.5: 11x11, stride 4
relu1     96   55   55              0
norm1     96   55   55              0   3.3: over the layer's 96 maps
pool1     96   27   27              0
conv2    256   27   27        307,456   3.5: 5x5x48, each column its own maps
relu2    256   27   27              0
norm2    256   27   27              0   3.3: over the layer's 256 maps
pool2    256   13   13              0
conv3    384   13   13        885,120   3.5: both columns read both
relu3    384   13   13              0
conv4    384   13   13        663,936   3.5: each column its own maps
relu4    384   13   13              0
conv5    256   13   13        442,624   3.5: each column its own maps
relu5    256   13   13              0
pool5    256    6    6              0
conv6    256    6    6        590,080   6: "an extra sixth convolutional layer over the last pooling layer"
relu6    256    6    6              0
fc7     4096               37,752,832
relu7   4096                        0   4.2: dropout 0.5 follows
fc8     4096               16,781,312
relu8   4096                        0   4.2: dropout 0.5 follows
fc9     1000                4,097,000
total                      61,555,304

Differs: nothing from what the text says. That conv6 is 3x3 with padding 1, 128 maps a column that read both columns,
begins with N(0, 0.03) and biases 1: the released settings files. The fully connected layers are numbered by depth, so
that the logits are fc9.
"""

from typing import ClassVar

from convnet.nets.alexnet_family import PAPER_BIAS, Family


class AlexNetConv6(Family):
    """Pictures (N, 3, 224, 224), RGB on the scale 0..255 with the mean subtracted, to logits (N, num_classes)."""

    name = "alexnet_conv6"
    order = Family.order.partition(" fc6")[0] + " conv6 relu6 fc7 relu7 fc8 relu8 fc9"
    last = "fc9"
    maps: ClassVar[dict[str, int]] = {**Family.maps, "conv6": 256}
    joined = ("conv3", "conv6")
    std: ClassVar[dict[str, float]] = {"conv6": 0.03}
    bias: ClassVar[dict[str, float]] = {**PAPER_BIAS, "conv6": 1.0, "fc8": 1.0}
