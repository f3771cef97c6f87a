"""The classic ConvNets as their papers give them: from a folder of pictures to a trained and honestly tested net.

>>> import convnet
>>> net = convnet.create_model("lenet5", seed=0)
>>> convnet.list_models("lenet*")
['lenet5']

A trained net, from a checkpoint or a run's folder:

    trained = convnet.load("runs/photos")
    trained.predict(["holiday/1.jpg"], top=3)
    trained.evaluate("stores/photos", views="ten-crop").top1
    trained.features(["holiday/1.jpg"], "fc7")  # (1, 4096)
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from convnet import visualize
    from convnet.data.store import Store
    from convnet.evaluation.trained_net import TrainedNet, load
    from convnet.nets import create_model, features, list_models, trace
    from convnet.nets.layers import response_norm
    from convnet.recipe import load_recipe
    from convnet.training.train import train

__version__ = "0.1.0"
__all__ = [
    "Store",
    "TrainedNet",
    "__version__",
    "create_model",
    "features",
    "list_models",
    "load",
    "load_recipe",
    "response_norm",
    "trace",
    "train",
    "visualize",
]

_HOMES = {
    "Store": "convnet.data.store",
    "TrainedNet": "convnet.evaluation.trained_net",
    "load": "convnet.evaluation.trained_net",
    "load_recipe": "convnet.recipe",
    "train": "convnet.training.train",
    "create_model": "convnet.nets",
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
