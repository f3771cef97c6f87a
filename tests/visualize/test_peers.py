"""captum, torchcam, pytorch-grad-cam and torchvision find the nets' ReLUs, pools and stages as modules, and say of them
what we say."""

import math
from copy import deepcopy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from conftest import trained_net
from convnet.data.preprocess import Preprocessing
from convnet.evaluation.seen import Seen
from convnet.nets import MODELS, trace
from convnet.nets.layers import Net
from convnet.visualize.cam import ClassMap, cam
from convnet.visualize.deconv import Unit, deconv
from convnet.visualize.stages import last_maps
from peers import alike, package
from thin import images_for, new_thin_net, thin_net

pytestmark = [
    pytest.mark.peers,
    pytest.mark.filterwarnings("ignore"),
]  # captum says that it sets hooks, torchvision that training has more nodes
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


PROJECTIONS = [*(("GuidedBackprop", name) for name in NETS), *(("Deconvolution", name) for name in WITHOUT_NORM)]


@pytest.mark.parametrize(("method", "name"), PROJECTIONS)
def test_projections(method: str, name: str) -> None:
    """Of the most probable class. A deconvnet where no norm is passed, as the paper leaves the way through it open."""
    attr = package("captum.attr")
    net, images = example(name)
    logits = net(images)[0]
    best = int(logits.argmax())
    stage = net.last if name != "nin_cifar10" else "pool3"
    ours = deconv(net, images, stage, [Unit(best)], form="guided" if method == "GuidedBackprop" else "deconv")
    theirs = getattr(attr, method)(net).attribute(images, target=best)
    alike(f"captum {method} {name}", ours.pixels, float(logits[best]) * theirs.permute(0, 2, 3, 1), 0.1)


@pytest.mark.parametrize("name", WITHOUT_NORM)
def test_deep_lift_adds_up(name: str) -> None:
    """The attributions' sum is the difference of the logits: rules for each ReLU and pool were found."""
    attr = package("captum.attr")
    net, images = example(name)
    _, delta = attr.DeepLift(net).attribute(images, torch.zeros_like(images), target=1, return_convergence_delta=True)
    logits = net(torch.cat([images, torch.zeros_like(images)]))[:, 1]
    alike(f"captum DeepLift {name}", (logits[0] - logits[1] + delta)[0], logits[0] - logits[1], 1e-2)


@pytest.mark.parametrize("name", ["alexnet_no_lrn", "alexnet_owt", "cifar_26", "vgg_a", "vgg_a_bn"])
def test_lrp_keeps_the_relevance(name: str) -> None:
    """Without biases the pixels' relevances add up to the logit. captum knows layers by their exact class."""
    attr, rules = package("captum.attr"), package("captum.attr._utils.lrp_rules")
    net, images = example(name)
    with torch.no_grad():
        for path, parameter in net.named_parameters():
            parameter.mul_(not path.endswith("bias"))
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d) and type(layer) is not nn.Conv2d:
            layer.rule = rules.EpsilonRule()
    alike(f"captum LRP {name}", attr.LRP(net).attribute(images, target=1).sum(), net(images)[0, 1], 1e-2)


@pytest.mark.parametrize("name", [*NETS, "lenet5", "cifar_26"])
def test_layers_activations_are_the_stages(name: str) -> None:
    attr = package("captum.attr")
    net, images = example(name)
    for stage, expected in trace(net, images).items():
        if not stage.startswith("head"):
            found = attr.LayerActivation(net, net.get_submodule(stage)).attribute(images)
            alike(f"captum LayerActivation {name} {stage}", found, expected, 1e-4)


def module_in_torchvision(name: str, stage: str) -> str:
    """torchvision counts by the number at a leaf's end: VGG's conv3_1 is "conv3" there, and conv3_2 "conv3_1"."""
    layer, _, number = stage.partition("_")
    if not name.startswith("vgg") or not number:
        return stage
    return layer if number == "1" else f"{layer}_{int(number) - 1}"


@pytest.mark.parametrize("name", sorted({net.name for net in MODELS.values()}))
def test_torchvisions_feature_extractor_finds_every_stage(name: str) -> None:
    """It traces the net twice, for training too. Unhooked layers are torch's own, whose sums are in another order."""
    extraction = package("torchvision.models.feature_extraction")
    net, images = deepcopy(thin_net(name)).eval(), images_for(thin_net(name))
    expected = {stage: x for stage, x in trace(net, images).items() if not stage.startswith("head")}
    names = {module_in_torchvision(name, stage): stage for stage in expected}
    found = extraction.create_feature_extractor(net, names)(images)
    assert list(found) == list(expected)
    for stage, x in found.items():
        alike(f"torchvision create_feature_extractor {name} {stage}", x, expected[stage], 1e-4, math.inf)


CAMS = {"alexnet": "relu5", "alexnet_owt": "relu5", "googlenet": "inception_5b", "vgg_a": "relu5_2", "zfnet": "relu5"}


def class_map(name: str) -> tuple[ClassMap, Net, Tensor]:
    """The Grad-CAM of the class with the largest values, at the layer that ours takes by itself; the net's input."""
    net, _ = example(name)
    side = net.input_size
    seen = Seen("a.png", np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8))
    trained = trained_net(net, Preprocessing(side, 0, side, "rgb", None, 1.0, -128.0))
    assert last_maps(trace(net, trained.images([seen]))) == CAMS[name]
    maps = cam(trained, seen, labels=tuple(range(net.num_classes)), layer=CAMS[name])
    return max(maps, key=lambda each: float(each.map.max())), net, trained.images([seen])


@pytest.mark.parametrize("name", CAMS)
def test_torchcams_grad_cam(name: str) -> None:
    """Its positive part."""
    methods = package("torchcam.methods")
    ours, net, images = class_map(name)
    with methods.GradCAM(net, target_layer=CAMS[name]) as extractor:
        (theirs,) = extractor(ours.label, net(images.requires_grad_()), normalized=False)
    alike(f"torchcam GradCAM {name}", np.maximum(ours.map, 0), theirs[0], 1e-2)


@pytest.mark.parametrize("name", CAMS)
def test_pytorch_grad_cams_heatmaps(name: str) -> None:
    """The positive part on the picture, from 0 to 1: it's enlarged there between its smallest and its largest value."""
    peer, targets = package("pytorch_grad_cam"), package("pytorch_grad_cam.utils.model_targets")
    ours, net, images = class_map(name)
    with peer.GradCAM(net, [net.get_submodule(CAMS[name])]) as extractor:
        (theirs,) = extractor(images, [targets.ClassifierOutputTarget(ours.label)])
    positive = torch.from_numpy(ours.map).clamp(min=0)
    large = F.interpolate((positive - positive.min())[None, None], images.shape[2:], mode="bilinear")[0, 0]
    alike(f"pytorch-grad-cam GradCAM {name}", (large - large.min()) / (large.max() - large.min()), theirs, 1e-2)
