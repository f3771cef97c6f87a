"""How is a net asked for some of its classes only? As a net that has no other outputs.

Sets such as ImageNet-A and ImageNet-R have 200 of the 1,000 classes; their published error rates are those of the most
probable class among the 200. A checkpoint keeps the rows of these classes in each tensor that has one for each class.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch

from convnet.checkpoint import Checkpoint
from convnet.errors import UsageError
from convnet.nets import create_model


def restricted(kept: Checkpoint, classes: Sequence[str]) -> Checkpoint:
    """The checkpoint of the net with the outputs `classes` only, in their order.

    Raises: UsageError for a class that the net lacks.
    """
    number = {name: k for k, name in enumerate(kept.classes)}
    if lacking := [name for name in classes if name not in number]:
        raise UsageError(f"the net has no class {lacking[0]!r}: its outputs can't be restricted to the store's classes")
    places = torch.tensor([number[name] for name in classes])
    shapes = [_shapes(kept, n) for n in (len(kept.classes), len(kept.classes) + 1)]
    weights = {
        name: tensor[places] if shapes[0][name] != shapes[1][name] else tensor for name, tensor in kept.weights.items()
    }
    return replace(kept, classes=tuple(classes), weights=weights, velocity=None)


def _shapes(kept: Checkpoint, n_classes: int) -> dict[str, torch.Size]:
    """Of the net's tensors with so many outputs."""
    with torch.device("meta"):
        net = create_model(kept.recipe.net, num_classes=n_classes, seed=0, **kept.recipe.net_options)
    return {name: tensor.shape for name, tensor in net.state_dict().items()}
