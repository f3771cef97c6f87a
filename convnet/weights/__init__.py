"""Others' weights: a file of Caffe, torchvision, timm or numpy -> one of our checkpoints, and a report of every tensor.

Nothing is guessed: a tensor that is missing, unexpected or of another shape is an error, unless the file is said to be
partial; then the report names it.
"""

import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor

from convnet import __version__
from convnet.checkpoint import MAGIC, Checkpoint, save
from convnet.data.resize import Fit
from convnet.errors import DataError, UsageError, unknown
from convnet.io import atomic
from convnet.io.strict_json import Json
from convnet.nets import create_model
from convnet.nets.describe import skeleton
from convnet.nets.layers import Net
from convnet.progress import SILENT, Progress
from convnet.weights import archives, caffe, download, metadata, names, preprocessing, select
from convnet.weights.match import joined_shape, match, squeezed
from convnet.weights.metadata import Metadata
from convnet.weights.names import KeyMap
from convnet.weights.preprocessing import Mean
from convnet.weights.report import Report, Row
from convnet.weights.state_dict import FileTensor, StateDict
from convnet.weights.torch_files import read_torch

READERS: Mapping[str, Callable[[Path], list[FileTensor]]] = MappingProxyType(
    {".caffemodel": caffe.read_net, ".safetensors": archives.read_safetensors, ".npz": archives.read_npz}
)
OF_TORCH = (".pth", ".pt", ".pkl", ".bin", ".pth.tar", ".ckpt")  # the last is Lightning's; ours has a mark of its own
ENDINGS = (".caffemodel", *OF_TORCH, ".safetensors", ".npz")
FOLDER = Path("weights")  # where known files and checkpoints go
MAX_CLASSES = 100_000
CHANNELS = ("rgb", "bgr")


def read_weights(
    path: Path,
    net_name: str | None = None,
    *,
    mean: Mean | None = None,
    classes: Path | None = None,
    partial: bool = False,
    pixels: str | None = None,
    rename: Mapping[str, str] = MappingProxyType({}),
    entry: str | None = None,
    channels: str | None = None,
    fit: Fit | None = None,
) -> tuple[Checkpoint, Report]:
    """A checkpoint of `net_name` with the weights in a file, its preprocessing and classes; and what was done.

    A `.safetensors` that we exported says all this itself; what is given takes the place of what it says.

    mean     Caffe's mean, a `.binaryproto` or `.npy` (3, H, W) or (3,), BGR; or grey levels R, G, B
    classes  a file with one name a line; of lines as in `synset_words.txt` the name is the first word, n01440764
    partial  load what fits; the rest of the net keeps its initial values
    pixels   "imagenet" or "half": how torchvision's and timm's scaled pixels, by ImageNet's mean and std or by 0.5
    rename   {a layer or tensor of the file: the net's}, where the file has another name for it
    entry    which of several sets of tensors in the file, as "state_dict_ema"
    channels  "rgb" or "bgr": the order in which the file's first layer and a mean's file have colours; None: BGR in
             Caffe's files, but for CIFAR's nets, whose data are RGB; RGB in others, with a mean of Caffe's in BGR
    fit      how pictures get their size, "crop", "pad" or "squash"; None: as one of our files says, or "crop"

    Raises: DataError for a file that can't be read or doesn't fit; UsageError for an unknown net or kind of file, or
    where a choice must be made.
    """
    state_dicts = read_state_dicts(path)
    own = metadata.read_metadata(path)
    if net_name is None and own is None:
        raise UsageError(f"{path}: the file doesn't say which net it is for; give --net")
    net_name = net_name or (own.net if own is not None else "")
    tensors, notes = _weights_of(path, state_dicts, net_name, own, entry, rename)
    net, options, writer, key_map = _net_of(path, net_name, tensors, own)
    report = Report(path.name, net_name, writer, notes=notes)
    matched = match(path, net, key_map, tensors, partial, report)
    sha256 = atomic.sha256_file(path)
    order = _channels(net, writer, own, channels, report)
    if own is not None:
        done, factors = metadata.preprocessing_of(own, path, net, mean, pixels, fit), own.factors
    else:
        mean_order = order if writer == "caffe" or channels else "bgr"
        pixels = preprocessing.pixels_of(net, writer, sha256, pixels)
        done, factors = preprocessing.preprocessing_of(net, mean, mean_order, pixels, fit or "crop", report)
    with archives.reading(path):
        weights = _convert(net, key_map, matched, order, factors, report, partial)
    if report.missing:
        initial = create_model(net_name, num_classes=net.num_classes, seed=0, **options).state_dict()
        weights |= {name: initial[name] for name in report.missing}
    imported: Json = {"file": path.name, "sha256": sha256, "writer": writer, "missing": sorted(report.missing)}
    return Checkpoint(
        recipe=preprocessing.recipe_of(net_name, options, done),
        preprocessing=done,
        classes=preprocessing.classes_of(classes, net.num_classes, own.classes if own is not None else None, report),
        weights={name: weights[name] for name in net.state_dict()},
        provenance={"convnet": __version__, "imported": imported},
    ), report


def import_weights(
    what: str,
    net_name: str | None = None,
    out: Path | None = None,
    *,
    mean: Path | None = None,
    classes: Path | None = None,
    partial: bool = False,
    pixels: str | None = None,
    rename: Mapping[str, str] = MappingProxyType({}),
    entry: str | None = None,
    channels: str | None = None,
    fit: Fit | None = None,
    progress: Progress = SILENT,
) -> tuple[Path, Report]:
    """Writes the checkpoint of a file, or of a known file by its name, which is downloaded to `weights/` first.

    out: weights/NAME.ckpt if None; a file that exists is not written over. The rest is `read_weights`'.

    Raises: UsageError, DataError, DiskError; ConvnetError when a file can't be downloaded.
    """
    path, file = Path(what), None
    if what in download.KNOWN or not (path.exists() or _ending(path) in ENDINGS):
        file = download.known(what)
        net_name = net_name or file.net
    if net_name is not None:
        skeleton(net_name)  # an unknown net is named before anything is downloaded
    if file is None:
        _check_ending(path)
    out = out or FOLDER / f"{path.name if file else path.name.removesuffix(_ending(path))}.ckpt"
    if out.exists():
        raise UsageError(f"{out} exists; choose another --out, as {FOLDER / path.name}.ckpt, or remove it")
    colour = None
    if file is not None:
        path = download.fetch(file, FOLDER, progress)
        pixels, colour = pixels or file.pixels, file.mean_colour
    checkpoint, report = read_weights(
        path, net_name, mean=mean or colour, classes=classes, partial=partial, pixels=pixels, rename=rename,
        entry=entry, channels=channels, fit=fit,
    )  # fmt: skip
    if file is not None and not file.digest:
        report.notes.append(f"no digest of {file.file_name} is published, so only its length and shapes were checked")
    save(out, checkpoint)
    return out, report


# What the file holds, and what the net needs


def _ending(path: Path) -> str:
    """The end of a name by which files are told apart: ".pth", ".pth.tar"."""
    name = path.name.lower()
    return ".pth.tar" if name.endswith(".pth.tar") else path.suffix.lower()


def _check_ending(path: Path) -> None:
    if _ending(path) not in ENDINGS:
        raise UsageError(f"{path}: its name must end in {', '.join(ENDINGS)}; known files: {', '.join(download.KNOWN)}")
    if not path.is_file():
        raise DataError(f"{path}: {'is not a file' if path.exists() else 'no such file'}")
    if is_checkpoint(path):
        raise UsageError(f"{path} is a checkpoint already; `evaluate`, `predict` and `export` take it as it is")


def is_checkpoint(path: Path) -> bool:
    """Whether a file is a checkpoint of ours by its first bytes; the reader names one that can't be read."""
    with suppress(OSError), open(path, "rb", opener=atomic.regular) as file:
        return file.read(len(MAGIC)) == MAGIC
    return False


def read_state_dicts(path: Path) -> list[StateDict]:
    """All that a file of weights holds. Raises: DataError naming the file."""
    _check_ending(path)
    ending = _ending(path)
    with archives.reading(path):
        state_dicts = read_torch(path) if ending in OF_TORCH else [StateDict("", READERS[ending](path))]
        if not any(state_dict.tensors for state_dict in state_dicts):
            raise DataError("it holds no tensors")
    return state_dicts


def _weights_of(
    path: Path,
    state_dicts: list[StateDict],
    net_name: str,
    own: Metadata | None,
    entry: str | None,
    renames: Mapping[str, str],
) -> tuple[list[FileTensor], list[str]]:
    """The tensors that are the net's weights, by the keys that it knows; and notes on the choice."""
    if own is not None and not renames:  # our own file has nothing but the weights
        unsealed = "it has no sha256, being of an earlier version or changed: damage to it can't be told"
        return state_dicts[0].tensors, [] if own.is_sealed else [unsealed]
    net = skeleton(net_name)
    tensors, notes = select.choose(path, state_dicts, _key_maps(path, net, state_dicts[0].tensors, own), entry)
    keys = {tensor.name for tensor in tensors}
    key_map = max(_key_maps(path, net, tensors, own).values(), key=lambda key_map: len(keys & key_map.keys()))
    tensors = select.rename(path, tensors, key_map, renames)
    last = select.renamed_last(net, tensors, key_map)
    notes += [f"{old} is read as {new} (--rename)" for old, new in renames.items()]
    notes += [f"{old} is read as {new}: the only layer of another name, and it fits" for old, new in last.items()]
    return select.rename(path, tensors, key_map, last), notes


def _channels(net: Net, writer: str, own: Metadata | None, channels: str | None, report: Report) -> str:
    """In which order the file's first layer reads colours; a choice that isn't the writer's rule is noted."""
    if channels is not None:
        if channels not in CHANNELS:
            raise UsageError(unknown("order of colours", channels, CHANNELS))
        report.notes.append(f"the file's first layer is taken to read {channels.upper()} (--channels)")
        return channels
    if own is not None:
        return own.channels
    if writer != "caffe" or net.in_channels != 3:
        return "rgb"
    if net.caffe_channels == "rgb":
        report.notes.append("Caffe's CIFAR models read RGB, and so this file is taken; else give --channels bgr")
    return net.caffe_channels


def _key_maps(path: Path, net: Net, tensors: list[FileTensor], own: Metadata | None) -> dict[str, KeyMap]:
    """{writer: keys} of those who could have written the file. Raises: UsageError for Caffe's batch norm."""
    if path.suffix.lower() == ".caffemodel" or (own is not None and own.writer == "caffe"):
        if any(name.endswith(".running_mean") for name in net.state_dict()):
            raise UsageError(f"{path}: Caffe's batch norm isn't read; choose a --net without it, or a file of PyTorch")
        return {"caffe": names.caffe(net, [tensor.name for tensor in tensors])}
    return names.in_state_dicts(net)


def _key_map(path: Path, net: Net, tensors: list[FileTensor], own: Metadata | None) -> tuple[str, KeyMap]:
    """Whose keys the file has, and them: as it says, or the writer most of whose keys are there."""
    keys = {tensor.name for tensor in tensors}
    key_maps = _key_maps(path, net, tensors, own)
    if own is not None and own.writer in key_maps:
        return own.writer, key_maps[own.writer]
    writer = max(key_maps, key=lambda name: len(keys & key_maps[name].keys()))
    if not keys & key_maps[writer].keys():
        some = ", ".join(repr(tensor.name) for tensor in tensors[:3])
        raise DataError(f"{path}: none of its names, such as {some}, is known in {' or '.join(key_maps)}")
    return writer, key_maps[writer]


def _net_of(
    path: Path, net_name: str, tensors: list[FileTensor], own: Metadata | None
) -> tuple[Net, Json, str, KeyMap]:
    """(the net without numbers, its options, whose keys the file has, them)."""
    if own is not None and own.net == net_name:
        options: Json = dict(own.options)
        try:
            net = _on_meta(net_name, len(own.classes), options)
        except (UsageError, TypeError, ValueError, RuntimeError) as error:
            raise metadata.invalid(path, error, net_name) from error
    else:
        options = _options_of(skeleton(net_name), tensors)
        net = _on_meta(net_name, None, options)
        net = _on_meta(net_name, _n_classes(net, tensors, _key_map(path, net, tensors, own)[1]), options)
    return net, options, *_key_map(path, net, tensors, own)


def _on_meta(net_name: str, n_classes: int | None, options: Json) -> Net:
    """The net without numbers: shapes only."""
    with torch.device("meta"):
        return create_model(net_name, num_classes=n_classes, seed=0, **options)


def _options_of(net: Net, tensors: list[FileTensor]) -> Json:
    """The options of a net by the tensors that only some files have, by what its first layer and its own say."""
    in_file = {tensor.name: tensor.shape for tensor in tensors}
    shapes = dict(in_file)  # by our names too, where they are known
    for key_map in (names.caffe(net, in_file), *names.in_state_dicts(net).values()):
        for source in key_map.keys() & in_file.keys():
            shapes |= dict.fromkeys(key_map[source], in_file[source])
    options: Json = net.options_of(shapes)
    first = shapes.get(next(iter(net.state_dict())), ())
    if len(first) == 4 and first[1] in (1, 3) and first[1] != net.in_channels:
        options["in_channels"] = first[1]
    return options


def _n_classes(net: Net, tensors: list[FileTensor], key_map: KeyMap) -> int:
    """The number of outputs that the file's last layer has, when it's the net's in everything else."""
    target = f"{net.last}.weight"
    template = net.state_dict().get(target)
    tensor = next((tensor for tensor in tensors if key_map.get(tensor.name) == (target,)), None)
    if template is None or tensor is None:
        return net.num_classes
    shape = squeezed(tensor.shape, 2)
    if not shape or math.prod(shape[1:]) != math.prod(template.shape[1:]):
        return net.num_classes
    if not 1 <= shape[0] <= MAX_CLASSES:
        raise DataError(f"{tensor.name} has {shape[0]:,} outputs; at most {MAX_CLASSES:,} classes are read")
    return shape[0]


# Numbers


def _convert(
    net: Net,
    key_map: KeyMap,
    matched: dict[str, FileTensor],
    order: str,
    factors: tuple[float, ...] | None,
    report: Report,
    partial: bool,
) -> dict[str, Tensor]:
    """Our tensors, in memory of their own. `factors`, of R, G, B, divide the first convolution's input channels.
    partial: those that aren't finite are left out, as torchvision's vgg16_features has them where it has no weights."""
    template = net.state_dict()
    first = next(iter(template)).partition(".")[0]
    weights: dict[str, Tensor] = {}
    for source, tensor in matched.items():
        targets = key_map[source]
        goal = template[targets[0]]
        shape = joined_shape([tuple(template[target].shape) for target in targets])
        done = [f"{tensor.dtype} to float32"] if tensor.dtype != "float32" and goal.is_floating_point() else []
        if tensor.shape != shape:
            done.append(f"reshaped to {shape}")
        numbers = tensor.read().reshape(shape)
        if not _is_finite(numbers):
            if not partial:
                raise DataError(f"{source} holds values that are not finite; --partial leaves it out")
            report.unexpected[source] = "it holds values that are not finite"
            report.missing |= dict.fromkeys(targets, "initial values")
            continue
        if targets[0].partition(".")[0] == first and len(shape) == 4 and shape[1] == 3:
            if order == "bgr":
                numbers = numbers.flip(1)
                done.append("BGR to RGB")
            if factors is not None and factors != (1.0, 1.0, 1.0):
                numbers = numbers.double() / torch.tensor(factors, dtype=torch.float64)[:, None, None]
                done.append(f"input channels divided by {', '.join(f'{factor:.6g}' for factor in factors)}")
        parts: tuple[Tensor, ...] = (numbers,)
        if len(targets) > 1:
            parts = torch.split(numbers, [len(template[target]) for target in targets])
            done.append(f"split into {len(parts)} columns")
        for target, part in zip(targets, parts, strict=True):
            weights[target] = part.to(goal.dtype).contiguous()
        report.rows.append(Row(tensor.source or source, tensor.shape, targets, "; ".join(done) or "copied"))
    if not weights:
        raise DataError("every tensor that fits holds values that are not finite")
    return weights


def _is_finite(numbers: Tensor) -> bool:
    pieces = torch.split(numbers.reshape(-1), 1 << 18)  # a mask of the whole would cost a quarter of it again
    return all(bool(torch.isfinite(piece).all()) for piece in pieces)
