"""The classic ConvNets as their papers give them: from a folder of pictures to a trained and honestly tested net.

>>> import convnet
>>> net = convnet.create_model("lenet5", seed=0)
>>> convnet.list_models("lenet*")
['lenet5']
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from convnet.nets import create_model, features, list_models, trace
    from convnet.nets.layers import response_norm

__version__ = "0.1.0"
__all__ = ["__version__", "create_model", "features", "list_models", "response_norm", "trace"]

_HOMES = {
    "create_model": "convnet.nets",
    "features": "convnet.nets",
    "list_models": "convnet.nets",
    "trace": "convnet.nets",
    "response_norm": "convnet.nets.layers",
}


def __getattr__(name: str) -> Any:
    """Public names are imported when they are used: the command answers --help without loading torch."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'convnet' has no attribute '{name}'")
