"""captum and torchcam find the nets' ReLUs, pools and stages as modules, and say of them what we say.

pytest -m peers runs these and nothing else.
"""

from copy import deepcopy

import numpy as np
import pytest
import torch
from torch import Tensor

from conftest import trained_net
from convnet.data.preprocess import Preprocessing
from convnet.evaluation.seen import Seen
from convnet.nets import trace
from convnet.nets.layers import Net
from convnet.visualize.cam import cam
from convnet.visualize.deconv import Unit, deconv
from convnet.visualize.stages import last_maps
from thin import images_for, new_thin_net

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore")]  # captum says that it sets hooks
WITHOUT_NORM = ["alexnet_no_lrn", "alexnet_owt", "nin_cifar10", "vgg_a"]
NETS = ["alexnet", "alexnet_2012", "caffenet", "cifar_11", "googlenet", "vgg_a_bn", "zfnet", *WITHOUT_NORM]


def example(name: str) -> tuple[Net, Tensor]:
    """Its logits are above 0: our projections begin with the logit, and a negative one turns the signal round."""
    net = deepcopy(new_thin_net(name)).eval()
    images = images_for(net, 1)
    with torch.no_grad():
        for bias in (each for path, each in net.named_parameters() if path == f"{net.last}.bias"):
            bias.add_(1 + net(images).abs().max())
    return net, images


def alike(found: Tensor | np.ndarray, expected: Tensor | np.ndarray, share: float = 1e-3) -> None:
    """Up to a share of the largest value: other roundings choose other places of a maximum."""
    found, expected = torch.as_tensor(found).detach(), torch.as_tensor(expected).detach()
    assert float((found - expected).norm()) <= share * float(expected.norm()) > 0


@pytest.mark.parametrize("method", ["GuidedBackprop", "Deconvolution"])
@pytest.mark.parametrize("name", NETS)
def test_projections(name: str, method: str) -> None:
    """Of the most probable class. A deconvnet where no norm is passed, as the paper leaves the way through it open."""
    attr = pytest.importorskip("captum.attr")
    if method == "Deconvolution" and name not in WITHOUT_NORM:
        pytest.skip("a norm lies on the way")
    net, images = example(name)
    logits = net(images)[0]
    best = int(logits.argmax())
    stage = net.last if name != "nin_cifar10" else "pool3"
    ours = deconv(net, images, stage, [Unit(best)], form="guided" if method == "GuidedBackprop" else "deconv")
    theirs = getattr(attr, method)(net).attribute(images, target=best)
    alike(ours.pixels, float(logits[best]) * theirs.permute(0, 2, 3, 1), 1e-2)


@pytest.mark.parametrize("name", WITHOUT_NORM)
def test_deep_lift_adds_up(name: str) -> None:
    """The attributions' sum is the difference of the logits: rules for each ReLU and pool were found."""
    attr = pytest.importorskip("captum.attr")
    net, images = example(name)
    _, delta = attr.DeepLift(net).attribute(images, torch.zeros_like(images), target=1, return_convergence_delta=True)
    logits = net(torch.cat([images, torch.zeros_like(images)]))[:, 1]
    assert float(delta.abs().max()) <= 1e-2 * float((logits[0] - logits[1]).abs())


@pytest.mark.parametrize("name", [*NETS, "lenet5", "cifar_26"])
def test_layers_activations_are_the_stages(name: str) -> None:
    attr = pytest.importorskip("captum.attr")
    net, images = example(name)
    for stage, expected in trace(net, images).items():
        if not stage.startswith("head"):
            found = attr.LayerActivation(net, net.get_submodule(stage)).attribute(images)
            alike(found, expected, 1e-4)


CAMS = {"alexnet": "relu5", "alexnet_owt": "relu5", "googlenet": "inception_5b", "vgg_a": "relu5_2", "zfnet": "relu5"}


@pytest.mark.parametrize("name", CAMS)
def test_grad_cam(name: str) -> None:
    """Its positive part; the layer is the one that ours takes by itself."""
    methods = pytest.importorskip("torchcam.methods")
    net, _ = example(name)
    side = net.input_size
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    trained = trained_net(net, Preprocessing(side, 0, side, "rgb", None, 1.0, -128.0))
    maps = cam(trained, Seen("a.png", pixels), labels=tuple(range(net.num_classes)), layer=CAMS[name])
    ours = max(maps, key=lambda each: float(each.map.max()))
    assert last_maps(trace(net, trained.images([Seen("a.png", pixels)]))) == CAMS[name]
    with methods.GradCAM(net, target_layer=CAMS[name]) as extractor:
        scores = net(trained.images([Seen("a.png", pixels)]).requires_grad_())
        (theirs,) = extractor(ours.label, scores, normalized=False)
    alike(np.maximum(ours.map, 0), theirs[0])
