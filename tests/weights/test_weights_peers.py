"""torchvision's and timm's own nets, whole and with random weights: their files here, ours there, their pictures."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from conftest import CPU, trained_net
from convnet.checkpoint import Checkpoint
from convnet.data.preprocess import Preprocessing
from convnet.evaluation.seen import Seen
from convnet.evaluation.trained_net import TrainedNet
from convnet.export import export
from convnet.nets import MODELS, create_model
from convnet.recipe import Recipe
from convnet.weights import names, read_weights
from convnet.weights.preprocessing import PIXELS, preprocessing_of
from convnet.weights.report import Report
from peers import alike, package
from thin import shapes_of

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore")]  # timm has deprecated names of its own
LIMIT = 1e-4  # of the largest logit: float32 rounds 1e-6, a constant or a place that is wrong changes percents
PHOTOS = np.random.default_rng(0).integers(0, 256, (4, 224, 224, 3), np.uint8)
# file: (who makes the net, its name there, ours, how pixels are scaled)
FILES = {
    "alexnet.pth": ("torchvision", "alexnet", "alexnet_owt", "imagenet"),
    "alexnet.safetensors": ("torchvision", "alexnet", "alexnet_owt", "imagenet"),
    "alexnet.legacy.pth": ("torchvision", "alexnet", "alexnet_owt", "imagenet"),
    "vgg11.pth": ("torchvision", "vgg11", "vgg_a", "imagenet"),
    "vgg16_bn.pth": ("torchvision", "vgg16_bn", "vgg_d_bn", "imagenet"),
    "googlenet.pth": ("torchvision", "googlenet", "googlenet_bn", "imagenet"),
    "googlenet.half.pth": ("torchvision", "googlenet", "googlenet_bn", "half"),
    "timm.vgg11.safetensors": ("timm", "vgg11", "vgg_a", "imagenet"),
    "timm.vgg13_bn.safetensors": ("timm", "vgg13_bn", "vgg_b_bn", "imagenet"),
}
TORCHVISIONS = sorted({net.name for net in MODELS.values() if any(".torchvision" in each for each in net.published)})


def theirs_of(writer: str, name: str, n_classes: int = 1000) -> nn.Module:
    if writer == "timm":
        return package("timm").create_model(name, num_classes=n_classes)
    heads = {"init_weights": False} if name == "googlenet" else {}
    return getattr(package("torchvision.models"), name)(num_classes=n_classes, **heads)


def randomize(net: nn.Module) -> None:
    """He's initial values, and batch norm with statistics that are not 0 and 1: a wrong place for any would show."""
    torch.manual_seed(1)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values in (module.weight, module.running_var):
                nn.init.uniform_(values, 0.5, 1.5)
            for values in (module.bias, module.running_mean):
                nn.init.normal_(values, 0, 0.1)
        elif isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)
            if module.bias is not None:
                nn.init.normal_(module.bias, 0, 0.1)


def normalized(pixels: np.ndarray, mean: list[float], std: list[float]) -> Tensor:
    """uint8 (N, H, W, 3) -> float32 (N, 3, H, W), as torchvision's ToTensor and Normalize do it."""
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    return (images - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]


@torch.no_grad()
def logits_of(net: TrainedNet, pixels: np.ndarray) -> Tensor:
    return net.net(net.images([Seen(str(i), each) for i, each in enumerate(pixels)]))


@pytest.mark.parametrize("writer", ["torchvision", "timm"])
def test_names_and_shapes_are_those_of_every_net_there(writer: str) -> None:
    for ours in (shapes_of(name) for name in TORCHVISIONS):
        maps = names.in_state_dicts(ours)
        if writer in maps:
            with torch.device("meta"):
                theirs = theirs_of(writer, ours.torchvision).state_dict()
            assert theirs.keys() == maps[writer].keys(), ours.name
            for key, (own,) in maps[writer].items():
                assert theirs[key].numel() == ours.state_dict()[own].numel(), f"{ours.name}: {key}"


@pytest.mark.parametrize("file", FILES)
def test_their_files_give_their_logits(tmp_path: Path, file: str) -> None:
    writer, name, ours, scaling = FILES[file]
    theirs, path = theirs_of(writer, name).eval(), tmp_path / file
    randomize(theirs)
    if path.suffix == ".safetensors":
        save_file(theirs.state_dict(), path)
    else:
        torch.save(theirs.state_dict(), path, _use_new_zipfile_serialization="legacy" not in file)
    kept, report = read_weights(path, ours, pixels=scaling)
    with torch.no_grad():
        expected = theirs(normalized(PHOTOS, *map(list, PIXELS[scaling])))
    alike(f"{file}, {len(report.rows)} tensors", logits_of(TrainedNet.of(kept, CPU), PHOTOS), expected, LIMIT, np.inf)
    path.unlink()  # half a gigabyte


@pytest.mark.parametrize("name", ["alexnet_owt", "vgg_a", "vgg_d_bn", "googlenet_bn"])
def test_our_files_give_our_logits_there(tmp_path: Path, name: str) -> None:
    """With a mean, a scale and an offset that aren't torchvision's; loaded strictly."""
    net, path = create_model(name, num_classes=10, seed=0), tmp_path / "net.safetensors"
    randomize(net)
    mean = np.asarray((100.0, 120.5, 90.25), np.float32)
    done = Preprocessing(size=256, pad=0, crop=224, channels="rgb", mean=mean, scale=0.02, offset=0.1)
    kept = Checkpoint(Recipe(net=name), done, tuple("abcdefghij"), net.state_dict())
    export(kept, path, names="torchvision")
    theirs = theirs_of("torchvision", net.torchvision, 10).eval()
    theirs.load_state_dict(load_file(path))
    with safe_open(path, "pt") as opened, torch.no_grad():
        how = json.loads(opened.metadata()["preprocessing"])["normalize"]
        found = theirs(normalized(PHOTOS, how["mean"], how["std"]))
    alike(f"torchvision {net.torchvision} from ours", found, logits_of(TrainedNet.of(kept, CPU), PHOTOS), LIMIT, np.inf)
    path.unlink()


def transform_of(writer: str) -> Callable[[Image.Image], Tensor]:
    """What the writer does with test pictures of VGG-A."""
    if writer == "torchvision":
        return package("torchvision.models").VGG11_Weights.IMAGENET1K_V1.transforms()
    data = package("timm.data")
    return data.create_transform(**data.resolve_data_config({}, model=theirs_of("timm", "vgg11")))


@pytest.mark.parametrize("writer", ["torchvision", "timm"])
def test_their_pictures_are_ours_but_for_what_the_import_says(writer: str) -> None:
    """The same where nothing is resized; else bilinear, rounded down, and cut a pixel off where the room is odd."""
    transform, net = transform_of(writer), shapes_of("vgg_a")
    done, factors = preprocessing_of(net, None, "rgb", "imagenet", "crop", Report("a", "vgg_a", writer))
    square = np.random.default_rng(1).integers(0, 256, (256, 256, 3), np.uint8)
    ours = trained_net(net, done).images([square])[0] / torch.tensor(factors)[:, None, None]
    alike(f"{writer}'s pictures", ours, transform(Image.fromarray(square)), 1e-6, np.inf)
    for height, width in ((300, 401), (517, 333), (256, 259)):
        photo = Image.fromarray(np.random.default_rng(2).integers(0, 256, (height, width, 3), np.uint8))
        sides = [int(256 * side / min(height, width)) for side in (width, height)]
        left, top = (round((side - 224) / 2) for side in sides)
        resized = photo.resize(sides, Image.Resampling.BILINEAR).crop((left, top, left + 224, top + 224))
        expected = normalized(np.asarray(resized)[None], *map(list, PIXELS["imagenet"]))[0]
        alike(f"{writer}'s pictures of {width} x {height}", transform(photo), expected, 1e-6, np.inf)
