"""How do weights leave by name? Tensors under our names, torchvision's or Caffe's, as .safetensors or .npz.

Numbers are copied as they are, with two exceptions. In torchvision's file the first convolution reads
(pixel / 255 - mean) / std; 255 std and our scale are multiplied into it. In Caffe's it reads BGR, but for CIFAR's nets.
"""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from convnet import __version__, recipe
from convnet.checkpoint import Checkpoint
from convnet.data import preprocess
from convnet.data.preprocess import Preprocessing
from convnet.errors import UsageError
from convnet.export.prototxt import check
from convnet.io import atomic, safetensors
from convnet.nets import MODELS
from convnet.nets.describe import skeleton
from convnet.nets.layers import Net
from convnet.weights.names import Naming, caffe, in_state_dicts
from convnet.weights.pictures import PIXELS

NEAR = 0.01  # grey levels: a mean this near to a known one is that one


def write_safetensors(net: Net, kept: Checkpoint, path: Path, names: str, mean: Path | None) -> list[str]:
    """Writes the tensors, with net, preprocessing and classes in the metadata; what the reader must know.

    mean: where the mean picture lies, whose sha256 is told. `weights/own.py` reads the metadata.
    """
    pictures = preprocess.to_dict(kept.preprocessing)
    colour = kept.preprocessing.mean
    if mean is not None:
        pictures["mean_sha256"] = atomic.sha256_file(mean)
    pictures["mean"] = mean.name if mean is not None else None if colour is None else colour.tolist()
    if names == "torchvision":
        weights, normalize, notes = in_torchvisions(net, kept)
        pictures["normalize"] = normalize
    elif names == "caffe":
        check(net, kept.recipe.net)
        weights, notes = in_caffes(net, kept.weights), []
        if kept.preprocessing.channels == "rgb":
            pictures["channels"] = net.caffe_channels
            notes = [f"the first convolution reads {net.caffe_channels.upper()}"]
    else:
        weights, notes = kept.weights, []
    metadata = {
        "format": "pt",  # what transformers and timm look for
        "convnet": __version__,
        "net": kept.recipe.net,
        "net_options": json.dumps(recipe.to_dict(kept.recipe)["net_options"]),
        "names": names,
        "preprocessing": json.dumps(pictures),
        "classes": json.dumps(list(kept.classes)),
    }
    atomic.write_atomic(path, map(bytes, safetensors.sealed(weights, metadata)))
    return notes


def write_npz(kept: Checkpoint, path: Path) -> list[str]:
    """Writes the tensors under our names; what the reader must know."""
    arrays = {name: tensor.contiguous().numpy() for name, tensor in kept.weights.items()}
    with atomic.atomic(path) as file:
        np.savez(file, **arrays)  # type: ignore[arg-type] # no tensor is called allow_pickle
    return ["an .npz has no place for preprocessing: keep the checkpoint"]


def has_mean_picture(preprocessing: Preprocessing) -> bool:
    return preprocessing.mean is not None and preprocessing.mean.ndim == 3


def write_mean(preprocessing: Preprocessing, path: Path, order: str = "bgr") -> None:
    """Writes the mean picture as Caffe's: float32 (3, size, size), its colours in this order."""
    assert preprocessing.mean is not None
    planes = np.moveaxis(preprocessing.mean, -1, 0)
    data = io.BytesIO()  # a real file numpy writes past Python, and a full disk would have no name
    np.save(data, np.ascontiguousarray(planes[::-1] if order == "bgr" else planes))
    atomic.write_new(path, data.getvalue())


def write_classes(classes: Sequence[str], path: Path) -> None:
    """Writes the classes' names, one a line, line k for output k. Raises: UsageError for a name with a line break."""
    for name in classes:
        if name.splitlines() != [name] or name.strip() != name:
            raise UsageError(
                f"the class {name!r} can't stand in a line of {path.name}: export an .onnx or .safetensors"
            )
    atomic.write_new(path, "".join(f"{name}\n" for name in classes).encode())


def in_torchvisions(net: Net, kept: Checkpoint) -> tuple[dict[str, Tensor], dict[str, Any], list[str]]:
    """(tensors by torchvision's names, mean and std of its Normalize, what the reader must know).

    Raises: UsageError for a net that torchvision doesn't have, or one whose pixels can't be said as its.
    """
    if not _is_torchvisions(net):
        known = (name for name in MODELS if name == MODELS[name].name and _is_torchvisions(skeleton(name)))
        raise UsageError(f"torchvision has no {kept.recipe.net}; it has {', '.join(known)}")
    theirs = skeleton(net.name).sides
    if net.sides != theirs:
        raise UsageError(
            f"torchvision's {kept.recipe.net} takes pictures with sides of {theirs[0]} pixels and more, this one of "
            f"{net.sides[0]}: use --names convnet"
        )
    naming = in_state_dicts(net)["torchvision"]
    done = kept.preprocessing
    if has_mean_picture(done) or done.channels != "rgb" or done.scale == 0:
        raise UsageError(
            "torchvision's nets read RGB less one colour; this one has a mean picture, grey pictures or a scale of 0: "
            "export it with --names convnet"
        )
    levels = np.zeros(3) if done.mean is None else done.mean.astype(np.float64)
    levels = levels - done.offset / done.scale
    known = (name for name, (mean, _) in PIXELS.items() if np.allclose(levels, 255 * np.asarray(mean), 0, NEAR))
    name = next(known, None)
    std = PIXELS[name or "imagenet"][1]
    mean = list(PIXELS[name][0]) if name else [float(level) / 255 for level in levels]
    factors = torch.tensor([255 * each * done.scale for each in std], dtype=torch.float64)
    weights = dict(kept.weights)
    first = next(iter(net.state_dict()))
    if not torch.allclose(factors, torch.ones_like(factors), 0, 1e-12):
        weights[first] = (weights[first].double() * factors[:, None, None]).float()
    return (
        _joined(weights, naming),
        {"mean": mean, "std": list(std)},
        [f"torchvision's pixels: Normalize(mean={[round(each, 6) for each in mean]}, std={list(std)})"],
    )


def _is_torchvisions(net: Net) -> bool:
    """Whether torchvision has the net itself, by names that are known."""
    return bool(net.torchvision) and "torchvision" in net.layer_names


def in_caffes(net: Net, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """{LAYER.weight or LAYER.bias: tensor}: columns joined to groups, colours in the order of Caffe's models."""
    first = next(iter(net.state_dict()))
    is_turned = weights[first].ndim == 4 and weights[first].shape[1] == 3 and net.caffe_channels == "bgr"
    flipped = weights[first].flip(1) if is_turned else weights[first]
    return _joined({**weights, first: flipped}, caffe(net))


def _joined(weights: dict[str, Tensor], naming: Naming) -> dict[str, Tensor]:
    return {
        source: torch.cat([weights[target] for target in targets]) if len(targets) > 1 else weights[targets[0]]
        for source, targets in naming.items()
    }
