"""AlexNet as Caffe's model zoo has it: `bvlc_alexnet` (2014).

stage    output (C, H, W)   parameters   paper
conv1     96   55   55         34,944   11x11, stride 4, no padding
relu1     96   55   55              0
norm1     96   55   55              0   k 1, n 5, alpha 1e-4 / 5; over the layer's 96 maps
pool1     96   27   27              0
conv2    256   27   27        307,456   each column its own maps
relu2    256   27   27              0
norm2    256   27   27              0
pool2    256   13   13              0
conv3    384   13   13        885,120   both columns read both
relu3    384   13   13              0
conv4    384   13   13        663,936   each column its own maps
relu4    384   13   13              0
conv5    256   13   13        442,624   each column its own maps
relu5    256   13   13              0
pool5    256    6    6              0
fc6     4096               37,752,832
relu6   4096                        0   dropout 0.5 follows
fc7     4096               16,781,312
relu7   4096                        0   dropout 0.5 follows
fc8     1000                4,097,000
total                      60,965,224

Differs from the paper's text (`alexnet`): LRN has k 1 and alpha divided by n; crops of 227 pixels and no padding in
conv1; fc6 and fc7 begin with N(0, 0.005); biases begin at 0.1 where the paper has 1, with which Caffe's authors found
"flat loss" (the readme of bvlc_alexnet; all else by its train_val.prototxt). Caffe's net reads BGR; its weights are
turned to RGB when they are imported. Its pools keep partial windows, which there are none of at 227 pixels.
"""

from typing import ClassVar

from convnet.nets.alexnet_family import PAPER_BIAS, CaffeFamily


class AlexNetCaffe(CaffeFamily):
    """Pictures (N, 3, 227, 227), RGB on the scale 0..255 with the mean subtracted, to logits (N, num_classes)."""

    name = "alexnet_caffe"
    std: ClassVar[dict[str, float]] = {"fc6": 0.005, "fc7": 0.005}
    bias: ClassVar[dict[str, float]] = dict.fromkeys(PAPER_BIAS, 0.1)
