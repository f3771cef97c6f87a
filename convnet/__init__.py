"""The classic ConvNets as their papers give them: from a folder of pictures to a trained and honestly tested net.

Nets, each an ordinary nn.Module:

    create_model("vgg16", num_classes=10)       with the paper's initial values, or pretrained="vgg16.torchvision"
    list_models("vgg*")                         the names
    trace(net, images, ["conv3", "fc7"])        {stage: activation}; features(net, images, "fc7"): one of them, flat
    net.reset_classifier(10)                    fresh layers for other classes
    response_norm                               the papers' local response normalisation

A trained net, from a checkpoint or a run's folder:

    trained = load("runs/photos")               a TrainedNet: .net, .preprocessing, .classes, .device
    trained.predict(["holiday/1.jpg"], top=3)   of files, or uint8 (H, W, 3) each
    trained.features(["holiday/1.jpg"], "fc7")  (1, 4096); .trace: all stages; .images: what the net takes
    trained.evaluate("stores/photos", views="ten-crop").top1
    visualize                                   what it has learned: functions that return arrays

Data and training:

    prepare("photos", "stores/photos")          makes the store of a folder of pictures, or of "digits"; opens it
    store = Store("stores/photos")              what was made
    StoreDataset(store, "train")                a dataset for torch's own DataLoader
    train(load_recipe("alexnet"), store, "runs/photos")

>>> import convnet, torch
>>> net = convnet.create_model("lenet5", seed=0)
>>> convnet.list_models("lenet*")
['lenet5']
>>> convnet.trace(net, torch.zeros(1, 1, 32, 32), ["f6"])["f6"].shape
torch.Size([1, 84])

A picture is a file or its pixels, an image the tensor that a net takes. Errors are `convnet.errors.ConvnetError`.
docs/library.md has more.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from convnet import visualize
    from convnet.data.prepare import prepare
    from convnet.data.store import Store
    from convnet.evaluation.dataset import StoreDataset
    from convnet.evaluation.trained_net import TrainedNet, load
    from convnet.nets import features, list_models, trace
    from convnet.nets.layers import response_norm
    from convnet.recipe import load_recipe
    from convnet.training.train import train
    from convnet.weights.pretrained import create_model

__version__ = "0.1.0"
__all__ = [
    "Store",
    "StoreDataset",
    "TrainedNet",
    "__version__",
    "create_model",
    "features",
    "list_models",
    "load",
    "load_recipe",
    "prepare",
    "response_norm",
    "trace",
    "train",
    "visualize",
]

_HOMES = {
    "Store": "convnet.data.store",
    "StoreDataset": "convnet.evaluation.dataset",
    "TrainedNet": "convnet.evaluation.trained_net",
    "load": "convnet.evaluation.trained_net",
    "load_recipe": "convnet.recipe",
    "prepare": "convnet.data.prepare",
    "train": "convnet.training.train",
    "create_model": "convnet.weights.pretrained",
    "features": "convnet.nets",
    "list_models": "convnet.nets",
    "trace": "convnet.nets",
    "response_norm": "convnet.nets.layers",
}


def __getattr__(name: str) -> object:
    """Public names are imported when they are used: the command answers --help without loading torch."""
    if name == "visualize":
        return import_module("convnet.visualize")
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'convnet' has no attribute '{name}'")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
