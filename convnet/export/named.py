"""Weights by name: tensors under our names, torchvision's or Caffe's, as .safetensors or .npz.

Numbers are copied as they are, with two exceptions. In torchvision's file the first convolution reads
(pixel / 255 - mean) / std; 255 std and our scale are multiplied into it. In Caffe's it reads BGR, but for CIFAR's nets.
"""

import io
import json
from collections.abc import Sequence
from pathlib import Path

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
from convnet.weights.names import KeyMap, caffe, in_state_dicts
from convnet.weights.preprocessing import PIXELS

TIMMS_CONVOLUTIONS = {"pre_logits.fc1": 7, "pre_logits.fc2": 1}  # its names for fc6 and fc7: the kernels' sides
NEAR = 0.01  # grey levels: a mean this near to a known one is that one
Normalize = dict[str, list[float]]  # {"mean", "std"} of R, G, B: the arguments of torchvision's Normalize


def write_safetensors(net: Net, checkpoint: Checkpoint, path: Path, names: str, mean: Path | None) -> list[str]:
    """Writes the tensors, with net, preprocessing and classes in the metadata; what the reader must know.

    mean: where the mean picture lies, whose sha256 is told. `weights/metadata.py` reads the metadata.
    """
    pictures = preprocess.to_dict(checkpoint.preprocessing)
    colour = checkpoint.preprocessing.mean
    if mean is not None:
        pictures |= {"mean_sha256": atomic.sha256_file(mean), "mean": mean.name}
    else:
        pictures["mean"] = None if colour is None else colour.tolist()
    weights, notes = checkpoint.weights, list[str]()
    if names == "torchvision":
        weights, normalize = in_torchvisions(net, checkpoint)
        pictures["normalize"] = normalize
        rounded = [round(each, 6) for each in normalize["mean"]]
        notes = [f"torchvision's pixels: Normalize(mean={rounded}, std={normalize['std']})"]
    elif names == "timm":
        weights = in_timms(net, checkpoint)
    elif names == "caffe":
        check(net, checkpoint.recipe.net)
        weights = in_caffes(net, checkpoint.weights)
        if checkpoint.preprocessing.channels == "rgb":
            pictures["channels"] = net.caffe_channels
            notes = [f"the first convolution reads {net.caffe_channels.upper()}"]
    metadata = {
        "format": "pt",  # what transformers and timm look for
        "convnet": __version__,
        "net": checkpoint.recipe.net,
        "net_options": json.dumps(recipe.to_dict(checkpoint.recipe)["net_options"]),
        "names": names,
        "preprocessing": json.dumps(pictures),
        "classes": json.dumps(list(checkpoint.classes)),
    }
    atomic.write_atomic(path, map(bytes, safetensors.sealed(weights, metadata)))
    return notes


def write_npz(checkpoint: Checkpoint, path: Path) -> list[str]:
    """Writes the tensors under our names; what the reader must know."""
    arrays = {name: tensor.contiguous().numpy() for name, tensor in checkpoint.weights.items()}
    with atomic.atomic(path) as file:
        np.savez(file, **arrays)  # type: ignore[arg-type] # no tensor is called allow_pickle
    return ["an .npz has no place for preprocessing: keep the checkpoint"]


def write_mean(preprocessing: Preprocessing, path: Path, order: str) -> None:
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


def in_torchvisions(net: Net, checkpoint: Checkpoint) -> tuple[dict[str, Tensor], Normalize]:
    """(tensors by torchvision's names, mean and std of its Normalize).

    Raises: UsageError for a net that torchvision doesn't have, or one whose pixels can't be said as its.
    """
    if not _is_torchvisions(net):
        known = (name for name in MODELS if name == MODELS[name].name and _is_torchvisions(skeleton(name)))
        raise UsageError(f"torchvision has no {checkpoint.recipe.net}; it has {', '.join(known)}")
    theirs = skeleton(net.name).sides
    if net.sides != theirs:
        raise UsageError(
            f"torchvision's {checkpoint.recipe.net} takes pictures with sides of {theirs[0]} pixels and more, this "
            f"one of {net.sides[0]}: use --names convnet"
        )
    done = checkpoint.preprocessing
    if done.channels != "rgb" or done.scale == 0 or (done.mean is not None and done.mean.ndim == 3):
        raise UsageError(
            "torchvision's nets read RGB less one colour; this one has a mean picture, grey pictures or a scale of 0: "
            "export it with --names convnet"
        )
    levels = np.zeros(3) if done.mean is None else done.mean.astype(np.float64)
    levels = levels - done.offset / done.scale
    mean, std = (levels / 255).tolist(), PIXELS["imagenet"][1]
    for known_mean, known_std in PIXELS.values():
        if np.allclose(levels, 255 * np.asarray(known_mean), 0, NEAR):
            mean, std = list(known_mean), known_std
    factors = torch.tensor([255 * each * done.scale for each in std], dtype=torch.float64)
    weights, first = dict(checkpoint.weights), next(iter(net.state_dict()))
    if not torch.allclose(factors, torch.ones_like(factors), 0, 1e-12):
        weights[first] = (weights[first].double() * factors[:, None, None]).float()
    return _joined(weights, in_state_dicts(net)["torchvision"]), {"mean": mean, "std": list(std)}


def in_timms(net: Net, checkpoint: Checkpoint) -> dict[str, Tensor]:
    """The tensors by timm's names, as they are but for fc6 and fc7, which are convolutions there.

    Raises: UsageError for a net that timm doesn't have, or not for such pictures.
    """
    name = checkpoint.recipe.net
    if "timm" not in net.layer_names:
        known = (each for each in MODELS if each == MODELS[each].name and "timm" in skeleton(each).layer_names)
        raise UsageError(f"timm has no {name}; it has {', '.join(known)}")
    if net.sides != (theirs := skeleton(net.name).sides):
        raise UsageError(f"timm's {name} takes sides of {theirs[0]} pixels and more, this one of {net.sides[0]}")
    weights = _joined(checkpoint.weights, in_state_dicts(net)["timm"])
    for layer, side in TIMMS_CONVOLUTIONS.items():
        weight = weights[f"{layer}.weight"]
        weights[f"{layer}.weight"] = weight.reshape(len(weight), -1, side, side)
    return weights


def _is_torchvisions(net: Net) -> bool:
    """Whether torchvision has the net itself, whose weights it publishes; others in one column have but its names."""
    return any(name.endswith(".torchvision") for name in net.published)


def in_caffes(net: Net, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """{LAYER.weight or LAYER.bias: tensor}: columns joined to groups, colours in the order of Caffe's models."""
    first = next(iter(net.state_dict()))
    if weights[first].ndim == 4 and weights[first].shape[1] == 3 and net.caffe_channels == "bgr":
        weights = {**weights, first: weights[first].flip(1)}
    return _joined(weights, caffe(net))


def _joined(weights: dict[str, Tensor], key_map: KeyMap) -> dict[str, Tensor]:
    return {
        source: torch.cat([weights[target] for target in targets]) if len(targets) > 1 else weights[targets[0]]
        for source, targets in key_map.items()
    }
