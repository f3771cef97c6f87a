"""AlexNet as its authors released it in 2012: net #145 of the settings files, which is not quite the paper's text.

stage    output (C, H, W)   parameters   paper
conv1     96   55   55         34,944   3.5: 11x11, stride 4
norm1     96   55   55              0   of signed values, within a column: 48 maps; k 2, n 5, alpha 1e-4 / 5
pool1     96   27   27              0
relu1     96   27   27              0   after the pooling
conv2    256   27   27        307,456   3.5: 5x5x48, each column its own maps
relu2    256   27   27              0
norm2    256   27   27              0   within a column: 128 maps
within2  256   27   27              0   within a map: 5x5, k 1, alpha 0.001 / 25, beta 0.75
pool2    256   13   13              0
conv3    384   13   13        885,120   3.5: 3x3x256, both columns read both
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

Differs from the paper's text, by the settings files: layer 1 is conv, LRN, pool, ReLU, so that LRN sees signed values;
layer 2 has a second normalisation, within each map; LRN's window ends at the column's edge and its alpha is divided by
n; conv3, conv4 and conv5 begin with N(0, 0.03). Pools keep partial windows, which there are none of at 224 pixels.
How it was trained differs, too: recipe `alexnet_2012`.
"""

from typing import ClassVar

from torch import Tensor

from convnet.nets.alexnet_family import Family
from convnet.nets.layers import LRN
from convnet.nets.norms import within_map_norm


class AlexNet2012(Family):
    """Pictures (N, 3, 224, 224), RGB on the scale 0..255 with the mean subtracted, to logits (N, num_classes)."""

    name = "alexnet_2012"
    lrn = LRN(n=5, k=2.0, alpha=1e-4 / 5, beta=0.75)
    order = (
        "conv1 norm1 pool1 relu1 conv2 relu2 norm2 within2 pool2 conv3 relu3 conv4 relu4 conv5 relu5 pool5 "
        "fc6 relu6 fc7 relu7 fc8"
    )
    sides = range(196, 228)
    norm_columns: ClassVar[int] = 2
    pooling: ClassVar[tuple[int, int, bool]] = (3, 2, True)
    std: ClassVar[dict[str, float]] = {"conv3": 0.03, "conv4": 0.03, "conv5": 0.03}

    def apply_stage(self, stage: str, x: Tensor) -> Tensor:
        if stage == "within2":
            return within_map_norm(x, size=5, k=1.0, alpha=0.001 / 25, beta=0.75)
        return super().apply_stage(stage, x)
