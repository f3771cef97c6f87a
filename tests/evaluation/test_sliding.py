"""Dense evaluation against crops: a net that slides gives at each place what its last layers give for that window."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convnet.errors import UsageError
from convnet.nets import create_model, trace
from convnet.nets.layers import Net, connected, sliding
from thin import thin_net

# the stage under the first fully connected layer, and by how many pixels a larger picture is larger
SLIDE = {
    "alexnet": ("pool5", 64),
    "alexnet_2012": ("pool5", 64),
    "alexnet_caffe": ("pool5", 64),
    "alexnet_owt": ("pool5", 64),
    "alexnet_4col": ("pool5", 64),
    "zfnet": ("pool5", 64),
    "vgg_a": ("pool5", 64),
    "cifar_26": ("pool3", 16),
    "cifar_18": ("pool3", 16),
    "lenet5": ("c5", 8),
}


def test_a_connected_layer_slides_as_it_would_be_applied_place_by_place() -> None:
    layer = nn.Linear(3 * 4 * 4, 5).double()
    x = torch.randn(2, 3, 6, 9, dtype=torch.float64)
    y = connected(layer, x)
    assert y.shape == (2, 5, 3, 6)
    for top in range(3):
        for left in range(6):
            place = layer(x[:, :, top : top + 4, left : left + 4].flatten(1))
            torch.testing.assert_close(y[:, :, top, left], place, rtol=0, atol=1e-12)
    assert torch.equal(connected(layer, x[:, :, :4, :4]), layer(x[:, :, :4, :4].flatten(1)))


def head_of(net: Net, below: Tensor) -> Tensor:
    """The fully connected layers alone, on maps of their own size, in eval mode."""
    layers = [layer for layer in net.children() if isinstance(layer, nn.Linear)]
    x = below.flatten(1)
    for i, layer in enumerate(layers):
        x = layer(x)
        x = F.relu(x) if i < len(layers) - 1 else x
    return x


@pytest.mark.parametrize("name", SLIDE)
def test_one_pass_is_the_explicit_sliding_of_the_last_layers(name: str) -> None:
    net = create_model("lenet5", output="linear") if name == "lenet5" else thin_net(name)
    net.eval()
    stage, more = SLIDE[name]
    with torch.inference_mode():
        own = torch.randn(2, net.in_channels, net.input_size, net.input_size)
        torch.testing.assert_close(sliding(net)(own), net(own), rtol=0, atol=1e-5)
        larger = torch.randn(2, net.in_channels, net.input_size + more, net.input_size + 2 * more)
        if name != "alexnet_owt":  # which pools any size to 6 x 6
            with pytest.raises(UsageError):
                net(larger)
        stages = trace(sliding(net), larger)
        scores, below = list(stages.values())[-1], stages[stage]
        side = trace(net, own)[stage].shape[2]
        height, width = (n - side + 1 for n in below.shape[2:])
        assert scores.shape == (2, net.num_classes, height, width)
        assert height >= 2
        assert width > height
        for top in range(height):
            for left in range(width):
                window = below[:, :, top : top + side, left : left + side]
                if name == "lenet5":
                    expected = net.output(net.f6(window.flatten(1)))
                else:
                    expected = head_of(net, window)
                torch.testing.assert_close(scores[:, :, top, left], expected, rtol=1e-5, atol=1e-5)


def test_the_rbf_output_slides() -> None:
    net = create_model("lenet5").eval()
    images = torch.randn(1, 1, 40, 36)
    stages = trace(sliding(net), images)
    assert stages["output"].shape == (1, 10, 3, 2)
    for top in range(3):
        for left in range(2):
            place = net.output(stages["f6"][:, :, top, left])
            torch.testing.assert_close(stages["output"][:, :, top, left], place)


@pytest.mark.parametrize("name", ["nin_cifar10", "nin_imagenet", "googlenet"])
def test_nets_that_average_globally_take_the_whole_picture(name: str) -> None:
    net = thin_net(name).eval()
    side = net.input_size
    images = torch.randn(1, 3, side + 32, side + 64)
    with torch.inference_mode():
        assert sliding(net)(images).shape == (1, net.num_classes)


def test_the_weights_are_shared_and_the_net_itself_stays_as_it_is() -> None:
    net = thin_net("alexnet").eval()
    slid = sliding(net)
    assert all(a is b for a, b in zip(net.parameters(), slid.parameters(), strict=True))
    assert slid.slides
    assert not net.slides


def test_locally_connected_layers_cannot_slide() -> None:
    with pytest.raises(UsageError, match=r"the locally connected layers of cifar_11 .* choose crops with --views"):
        sliding(create_model("cifar_11"))
