"""ZFNet against its paper's numbers."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from convnet.errors import UsageError
from convnet.nets import create_model, trace
from convnet.nets.layers import Net
from convnet.nets.zfnet import ZFNet


def meta_net() -> Net:
    with torch.device("meta"):
        return ZFNet().eval()


def test_parameters_sizes_and_multiply_adds() -> None:
    net, images = meta_net(), torch.empty(1, 3, 224, 224, device="meta")
    assert sum(p.numel() for p in net.parameters()) == 62_357_608
    stages = trace(net, images)
    sizes = [stages[s].shape[-1] for s in ("conv1", "pool1", "conv2", "pool2", "conv3", "conv4", "conv5", "pool5")]
    assert sizes == [110, 55, 26, 13, 13, 13, 13, 6]
    with FlopCounterMode(display=False) as counter:
        net(images)
    assert counter.get_total_flops() / 2 == pytest.approx(1.168e9, rel=5e-4)


def test_input_sizes_are_those_that_give_6_by_6() -> None:
    net = meta_net()
    for side in (207, 238):
        assert trace(net, torch.empty(1, 3, side, side, device="meta"))["pool5"].shape[2:] == (6, 6)
    for side in (206, 239):
        with pytest.raises(UsageError, match=f"zfnet takes pictures with sides of 207 to 238 pixels, got {side} x 224"):
            net(torch.empty(1, 3, side, 224, device="meta"))


def test_initial_values() -> None:
    for key, parameter in create_model("zfnet", num_classes=4, seed=0).named_parameters():
        if key.endswith("bias"):
            assert not parameter.any()
        else:
            tolerance = max(0.001, 4 / (2 * parameter.numel()) ** 0.5)
            assert parameter.std().item() == pytest.approx(0.01, rel=tolerance), key


def test_it_is_one_column_normalised_after_pooling() -> None:
    net = meta_net()
    assert [m.groups for m in net.modules() if isinstance(m, nn.Conv2d)] == [1] * 5
    stages = list(trace(net, torch.empty(1, 3, 224, 224, device="meta")))
    assert stages[:4] == ["conv1", "relu1", "pool1", "norm1"]
    assert net.columns == 1
