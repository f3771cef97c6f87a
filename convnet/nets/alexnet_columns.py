"""AlexNet with other columns than two: section 3.2's net on one GPU, one column of full width, four columns.

Tables that say "but for" list the stages that differ from `alexnet`'s table.
"""

from typing import ClassVar

from convnet.nets.alexnet_family import Family


class AlexNetHalf(Family):
    """Half the kernels on one GPU, against which section 3.2 measures the two columns: one column of half the maps.

    stage    output (C, H, W)   parameters   paper
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
    relu5    256   13   13              0
    pool5    256    6    6              0
    fc6     4096               37,752,832
    relu6   4096                        0   4.2: dropout 0.5 follows
    fc7     4096               16,781,312
    relu7   4096                        0   4.2: dropout 0.5 follows
    fc8     1000                4,097,000
    total                      59,798,312

    Differs: nothing. The last convolution and the fully connected layers are not halved (footnote 2). The net that was
    measured is `alexnet_half_2012`.
    """

    name = "alexnet_half"
    columns = 1
    maps: ClassVar[dict[str, int]] = {"conv1": 48, "conv2": 128, "conv3": 192, "conv4": 192, "conv5": 256}


class AlexNet1Col(Family):
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


class AlexNet4Col(Family):
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
