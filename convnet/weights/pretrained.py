"""A net by name with trained weights: a published file's, a checkpoint's, or those of a file of others."""

from dataclasses import replace

from convnet import checkpoint, nets
from convnet.checkpoint import Checkpoint
from convnet.errors import UsageError
from convnet.evaluation.trained_net import checkpoint_at
from convnet.io import atomic
from convnet.nets.describe import own_name
from convnet.nets.layers import Net
from convnet.progress import SILENT, Progress
from convnet.weights import FOLDER, import_weights, is_checkpoint, read_weights
from convnet.weights.download import KNOWN


def create_model(
    name: str,
    *,
    pretrained: atomic.PathLike | None = None,
    num_classes: int | None = None,
    in_channels: int | None = None,
    init: str = "paper",
    seed: int | None = None,
    progress: Progress = SILENT,
    **options: object,
) -> Net:
    """A net, on the CPU, in training mode; with fresh weights, or with trained ones.

    pretrained: the name of a published file, as "vgg16.torchvision", which comes to weights/ once and is verified; or a
    checkpoint, a run's folder, or a file of weights. num_classes, in_channels: None is the paper's, or the trained
    net's; for other classes the layers that tell them apart are fresh. init: one of the net's `inits`; "paper" is every
    net's. seed: fresh weights are a function of it; None draws one from torch's global generator. options: the net's
    own, as `output="linear"`.

    `TrainedNet` has the trained net's preprocessing and classes as well.

    Raises: UsageError for a name, an init, an option or weights that aren't known, or don't fit the others; DataError
    for a file that is damaged or holds other tensors; ConvnetError when it can't be downloaded.

    >>> create_model("lenet5", num_classes=7, output="linear", seed=0).num_classes
    7
    """
    if pretrained is None:
        return nets.create_model(
            name, num_classes=num_classes, in_channels=in_channels, init=init, seed=seed, **options
        )
    kept = _trained(name, pretrained, progress)
    if own_name(kept.recipe.net) != own_name(name):
        raise UsageError(f"{pretrained} holds the net {own_name(kept.recipe.net)}, not {own_name(name)}")
    recipe = replace(kept.recipe, net_options={**kept.recipe.net_options, **options})
    net = checkpoint.rebuild(replace(kept, recipe=recipe))
    if in_channels not in (None, net.in_channels):
        raise UsageError(f"in_channels is {in_channels}; the weights of {pretrained} read {net.in_channels}")
    if num_classes not in (None, net.num_classes):
        net.reset_classifier(num_classes, init, seed)
    return net.train()


def _trained(name: str, pretrained: atomic.PathLike, progress: Progress) -> Checkpoint:
    path = atomic.as_path(pretrained, "pretrained")
    if str(pretrained) in KNOWN:
        path = FOLDER / f"{pretrained}.ckpt"
        if not path.exists():
            import_weights(str(pretrained), progress=progress)
    if path.is_dir() or is_checkpoint(path):
        return checkpoint.load(checkpoint_at(path))
    return read_weights(path, name)[0]
