"""The released AlexNet without one of its parts: the nets of the settings files whose errors were measured.

Their names are those of the forms by the paper's text (alexnet_ablations.py, alexnet_columns.py) and `_2012`. Tables
list the stages that differ from `alexnet_2012`'s table. Errors are top-1 and top-5 on the validation pictures of 2012
with ten crops, where `alexnet_2012` has 40.66 and 18.21 %.
"""

from typing import ClassVar

from convnet.nets.alexnet_2012 import AlexNet2012


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
    order = " ".join(stage for stage in AlexNet2012.order.split() if "norm" not in stage and stage != "within2")


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
    padding: ClassVar[dict[str, int]] = {"conv2": 1, "conv5": 0}
    pooling: ClassVar[tuple[int, int, bool]] = (2, 2, True)


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
    maps: ClassVar[dict[str, int]] = {**AlexNet2012.maps, "conv2": 320}
    joined = ()
    units: ClassVar[dict[str, int]] = {"fc6": 8192}
    apart = ("fc6", "fc7")


class AlexNetHalf2012(AlexNet2012):
    """Half of net #145's kernels on one GPU: 39.17 and 18.23 % on the test pictures of 2010, where #145 has 37.47 and
    17.00 %. As `alexnet_2012` but for:

    stage    output (C, H, W)   parameters   differs
    conv1     48   55   55         17,472
    norm1     48   55   55              0   over the layer's 48 maps
    pool1     48   27   27              0
    relu1     48   27   27              0
    conv2    128   27   27        153,728
    relu2    128   27   27              0
    norm2    128   27   27              0   over the layer's 128 maps
    within2  128   27   27              0
    pool2    128   13   13              0
    conv3    192   13   13        221,376
    relu3    192   13   13              0
    conv4    192   13   13        331,968
    relu4    192   13   13              0
    conv5    256   13   13        442,624   not halved
    total                      59,798,312

    Differs from `alexnet_half`, the form by the paper's text, as `alexnet_2012` from `alexnet`.
    """

    name = "alexnet_half_2012"
    columns = 1
    norm_columns = 1
    maps: ClassVar[dict[str, int]] = {"conv1": 48, "conv2": 128, "conv3": 192, "conv4": 192, "conv5": 256}
