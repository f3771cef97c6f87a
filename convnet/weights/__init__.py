"""Others' weights: a file of Caffe, torchvision, timm or numpy -> one of our checkpoints, and a report of every tensor.

Nothing is guessed: a tensor that is missing, left over or of another shape is an error, unless the file is said to be
partial; then the report names it.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from convnet import __version__, files
from convnet.checkpoint import Checkpoint, save
from convnet.errors import DataError, UsageError
from convnet.nets import create_model
from convnet.nets.googlenet import GoogLeNet
from convnet.nets.layers import Net
from convnet.nets.lenet5 import LeNet5
from convnet.nets.vgg import INPUT_SIZES, SHRINK, VGG
from convnet.preprocess import Preprocessing
from convnet.progress import SILENT, Progress
from convnet.weights import archives, caffe, download, names, own, pictures
from convnet.weights.found import Found
from convnet.weights.own import Own
from convnet.weights.report import Report, Row

READERS: Mapping[str, Callable[[Path], list[Found]]] = MappingProxyType(
    {
        ".caffemodel": caffe.read_net,
        ".pth": archives.read_torch,
        ".pt": archives.read_torch,
        ".pkl": archives.read_torch,
        ".safetensors": archives.read_safetensors,
        ".npz": archives.read_npz,
    }
)
FOLDER = Path("weights")  # where known files and checkpoints go
MAX_CLASSES = 100_000
SHOWN = 6  # problems that an error lists


def read_weights(
    path: Path,
    net_name: str | None = None,
    *,
    mean: Path | tuple[float, float, float] | None = None,
    classes: Path | None = None,
    partial: bool = False,
    pixels: str | None = None,
) -> tuple[Checkpoint, Report]:
    """A checkpoint of `net_name` with the weights in a file, its preprocessing and classes; and what was done.

    A `.safetensors` that we exported says all this itself; what is given takes the place of what it says.

    mean     Caffe's mean, a `.binaryproto` or `.npy` (3, H, W) or (3,), BGR; or grey levels R, G, B
    classes  a file with one name a line; of lines as in `synset_words.txt` the name is the first word, n01440764
    partial  take what fits; the rest of the net keeps its initial values
    pixels   "imagenet" or "half": how torchvision's and timm's scaled pixels, by ImageNet's mean and std or by 0.5

    Raises: DataError for a file that can't be read or doesn't fit; UsageError for an unknown net or kind of file.
    """
    found = _read(path)
    told = own.own_of(path)
    net_name = net_name or (told.net if told is not None else None)
    if net_name is None:
        raise UsageError(f"{path}: the file doesn't say which net it is for; give --net")
    net, options, writer, naming = _net_of(path, net_name, found, told)
    report = Report(path.name, net_name, writer)
    chosen = _match(net, naming, found, report)
    if (report.missing or report.left_over) and not partial:
        raise DataError(_misfit(path, net_name, report, len(chosen), len(found)))
    if not chosen:
        raise DataError(f"{path}: no tensor of it fits {net_name}")
    sha256 = files.sha256_file(path)
    if told is not None:
        preprocessing, factors = _own_preprocessing(path, net, told, mean, pixels)
    else:
        scaling = pictures.pixels_of(net_name, net, writer, sha256, pixels)
        preprocessing, factors = pictures.preprocessing_of(net, writer, mean, scaling, report)
    try:
        weights = _convert(net, naming, chosen, writer, factors, report)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    if report.missing:
        fresh = create_model(net_name, num_classes=net.num_classes, seed=0, **options).state_dict()
        weights |= {name: fresh[name] for name in report.missing}
    kept = Checkpoint(
        recipe=pictures.recipe_of(net_name, options, preprocessing),
        preprocessing=preprocessing,
        classes=pictures.classes_of(classes, net.num_classes, told.classes if told is not None else None, report),
        weights={name: weights[name] for name in net.state_dict()},
        provenance={"convnet": __version__, "imported": {"file": path.name, "sha256": sha256, "writer": writer}},
    )
    return kept, report


def import_weights(
    what: str,
    net_name: str | None = None,
    out: Path | None = None,
    *,
    mean: Path | None = None,
    classes: Path | None = None,
    partial: bool = False,
    pixels: str | None = None,
    progress: Progress = SILENT,
) -> tuple[Path, Report]:
    """Writes the checkpoint of a file, or of a known file by its name, which is downloaded to `weights/` first.

    out: weights/NAME.ckpt if None; a file that exists is not written over. The rest is `read_weights`'.

    Raises: UsageError, DataError, DiskError; ConvnetError when a file can't be downloaded.
    """
    path, file = Path(what), None
    if what in download.KNOWN or not (path.exists() or path.suffix.lower() in READERS):
        file = download.known(what)
        net_name = net_name or file.net
    if net_name is not None:
        _empty(net_name)  # an unknown net is named before anything is downloaded
    if file is None:
        _check_ending(path)
    out = out or FOLDER / f"{path.name if file else path.stem}.ckpt"
    if out.exists():
        raise UsageError(f"{out} exists; choose another --out, or remove it")
    colour = None
    if file is not None:
        path = download.fetch(file, FOLDER, progress)
        pixels, colour = pixels or file.pixels, file.mean_colour
    kept, report = read_weights(path, net_name, mean=mean or colour, classes=classes, partial=partial, pixels=pixels)
    if file is not None and not file.digest:
        report.notes.append(f"no digest of {file.file_name} is published, so only its length and shapes were checked")
    save(out, kept)
    return out, report


# What the file holds, and what the net needs


def _check_ending(path: Path) -> None:
    if path.suffix.lower() == ".ckpt":
        raise UsageError(
            f"{path} is a checkpoint already, by its name; `evaluate`, `predict` and `export` take it as it is"
        )
    if path.suffix.lower() not in READERS:
        raise UsageError(f"{path}: its name must end in {', '.join(READERS)}; known files: {', '.join(download.KNOWN)}")


def _read(path: Path) -> list[Found]:
    _check_ending(path)
    if not path.is_file():
        raise DataError(f"{path}: {'is not a file' if path.exists() else 'no such file'}")
    try:
        found = READERS[path.suffix.lower()](path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    except DataError as error:
        raise DataError(str(error) if str(error).startswith(f"{path}:") else f"{path}: {error}") from error
    if not found:
        raise DataError(f"{path}: it holds no tensors")
    return found


def _empty(net_name: str, **options: Any) -> Net:
    """The net without numbers: shapes only."""
    with torch.device("meta"):
        return create_model(net_name, seed=0, **options)


def _naming(path: Path, net: Net, found: list[Found], told: Own | None) -> tuple[str, names.Naming]:
    """Whose names the file has, and them: as it says, or the writer most of whose names are there."""
    if path.suffix.lower() == ".caffemodel" or (told is not None and told.names == "caffe"):
        if any(name.endswith(".running_mean") for name in net.state_dict()):
            raise UsageError(f"{path}: Caffe's batch norm isn't read; choose a --net without it, or a file of PyTorch")
        return "caffe", names.caffe(net)
    here = {each.name for each in found}
    namings = names.in_state_dicts(net)
    if told is not None and told.names in namings:
        return told.names, namings[told.names]
    writer = max(namings, key=lambda name: len(here & namings[name].keys()))
    if not here & namings[writer].keys():
        some = ", ".join(repr(each.name) for each in found[:3])
        raise DataError(f"{path}: none of its names, such as {some}, is known in {' or '.join(namings)}")
    return writer, namings[writer]


def _net_of(
    path: Path, net_name: str, found: list[Found], told: Own | None
) -> tuple[Net, dict[str, Any], str, names.Naming]:
    """(the net without numbers, its options, whose names the file has, them)."""
    if told is not None and told.net == net_name:
        options: dict[str, Any] = dict(told.options)
        try:
            net = _empty(net_name, num_classes=len(told.classes), **options)
        except (UsageError, TypeError, ValueError, RuntimeError) as error:
            raise DataError(f"{path}: its metadata: net {net_name}: {' '.join(str(error).split())}") from error
    else:
        options = _options_of(_empty(net_name), found)
        net = _empty(net_name, **options)
        n_classes = _n_classes(net, found, _naming(path, net, found, told)[1])
        net = _empty(net_name, num_classes=n_classes, **options)
    return net, options, *_naming(path, net, found, told)


def _options_of(net: Net, found: list[Found]) -> dict[str, Any]:
    """The options of a net by the tensors that only some files have, by what its first layer and VGG's fc6 read."""
    here = {each.name: each for each in found}
    namings = (names.caffe(net), *names.in_state_dicts(net).values())

    def shapes_of(key: str) -> set[tuple[int, ...]]:
        sources = {source for naming in namings for source, targets in naming.items() if key in targets}
        return {here[source].shape for source in sources & here.keys()}

    options: dict[str, Any] = {}
    if isinstance(net, GoogLeNet) and not any(name.startswith(names.HEADS) for name in here):
        options["heads"] = False
    if isinstance(net, LeNet5) and "output.weight" in here:
        options["output"] = "linear"
    sides = {shape[1] for shape in shapes_of(next(iter(net.state_dict()))) if len(shape) == 4}
    if sides in ({1}, {3}) and sides != {net.in_channels}:
        options["in_channels"] = sides.pop()
    if isinstance(net, VGG):
        ours = net.fc6.weight.numel() // (net.input_size // SHRINK) ** 2  # for each of pool5's places
        totals = {math.prod(shape) for shape in shapes_of("fc6.weight")}
        sizes = [size for size in INPUT_SIZES[::SHRINK] if ours * (size // SHRINK) ** 2 in totals]
        if len(sizes) == 1 and sizes != [net.input_size]:
            options["input_size"] = sizes[0]
    return options


def _n_classes(net: Net, found: list[Found], naming: names.Naming) -> int:
    """The number of outputs that the file's last layer has, when it's the net's in everything else."""
    template = net.state_dict().get(f"{net.last}.weight")
    sources = [source for source, targets in naming.items() if targets == (f"{net.last}.weight",)]
    shape = next((_squeezed(each.shape, 2) for each in found if each.name in sources), ())
    if template is None or math.prod(shape[1:]) != math.prod(template.shape[1:]) or not shape:
        return net.num_classes
    if not 1 <= shape[0] <= MAX_CLASSES:
        raise DataError(f"{sources[0]} has {shape[0]:,} outputs; at most {MAX_CLASSES:,} classes are read")
    return shape[0]


def _match(net: Net, naming: names.Naming, found: list[Found], report: Report) -> dict[str, Found]:
    """{source: tensor} of all that fits, in the order of the net; the rest goes into the report."""
    shapes = {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}
    here = {each.name: each for each in found}
    chosen: dict[str, Found] = {}
    for source, targets in naming.items():
        wanted = _whole(source, [shapes[target] for target in targets])
        each = here.pop(source, None)
        if each is not None and _fits(each.shape, wanted):
            chosen[source] = each
            continue
        if each is None and source.endswith(".num_batches_tracked"):  # files from before PyTorch 0.4.1
            chosen[source] = Found(source, (), "int64", lambda: torch.zeros((), dtype=torch.int64))
            continue
        if each is not None:
            report.left_over[source] = f"its shape is {each.shape}, {', '.join(targets)} needs {wanted}"
        report.missing |= dict.fromkeys(targets, "initial values")
    report.left_over |= dict.fromkeys(here, "the net has no such tensor")
    return chosen


def _misfit(path: Path, net_name: str, report: Report, n_fit: int, n_found: int) -> str:
    problems = [f"{name}: {text}" for name, text in report.left_over.items()]
    problems += [f"{name}: not in the file" for name in report.missing]
    more = f"\n  and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
    lines = "\n  ".join(problems[:SHOWN])
    advice = "a partial file needs --partial" if n_fit else "is it another net's?"
    return f"{path} doesn't fit {net_name}, {n_fit} of its {n_found} tensors do; {advice}:\n  {lines}{more}"


def _whole(source: str, shapes: list[tuple[int, ...]]) -> tuple[int, ...]:
    """The shape of a layer's columns end to end."""
    return (sum(shape[0] for shape in shapes), *shapes[0][1:]) if len(shapes) > 1 else shapes[0]


def _squeezed(shape: tuple[int, ...], n: int) -> tuple[int, ...]:
    """Without the ones in front by which Caffe's legacy shapes have more than n sides: (1, 1, 10, 64) -> (10, 64)."""
    while len(shape) > n and shape[0] == 1:
        shape = shape[1:]
    return shape


def _fits(shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    """Whether a tensor can take the wanted shape with its numbers in their order."""
    if len(wanted) == 2 and len(shape) == 4 and shape[0] == wanted[0] and shape[2] == shape[3]:
        return math.prod(shape) == math.prod(wanted)  # a fully connected layer as a convolution: maps, rows, columns
    return _squeezed(shape, len(wanted)) == wanted


def _own_preprocessing(
    path: Path, net: Net, told: Own, mean: Path | tuple[float, float, float] | None, pixels: str | None
) -> tuple[Preprocessing, tuple[float, ...] | None]:
    """As one of our files says, but for a mean that is given; and the factors of the first convolution's channels."""
    if pixels is not None:
        raise UsageError(f"{path} says itself how its pixels were scaled; leave --pixels out")
    done = told.preprocessing
    if isinstance(mean, Path):
        done = replace(done, mean=pictures.mean_of(mean, done.size))
    elif told.mean_picture is not None:
        done = replace(done, mean=own.mean_picture_of(told, path))
    try:
        with torch.no_grad():
            channels = 1 if done.channels == "grey" else 3
            net.eval()(torch.empty(1, channels, done.crop, done.crop, device="meta"))
    except (UsageError, RuntimeError) as error:
        raise DataError(f"{path}: its metadata: {' '.join(str(error).split())}") from error
    return done, told.factors()


# Numbers


def _convert(
    net: Net,
    naming: names.Naming,
    chosen: dict[str, Found],
    writer: str,
    factors: tuple[float, ...] | None,
    report: Report,
) -> dict[str, Tensor]:
    """Our tensors, in memory of their own. `factors`, of R, G, B, divide the first convolution's input channels."""
    template = net.state_dict()
    first = next(iter(template)).partition(".")[0]
    weights: dict[str, Tensor] = {}
    for source, each in chosen.items():
        targets = naming[source]
        goal = template[targets[0]]
        whole = _whole(source, [tuple(template[target].shape) for target in targets])
        done = [f"{each.dtype} to float32"] if each.dtype != "float32" and goal.is_floating_point() else []
        if each.shape != whole:
            done.append(f"reshaped to {whole}")
        numbers = _finite(source, each.read().reshape(whole))
        if targets[0].partition(".")[0] == first and len(whole) == 4 and whole[1] == 3:
            if writer == "caffe":
                numbers = numbers.flip(1)
                done.append("BGR to RGB")
            if factors is not None and factors != (1.0, 1.0, 1.0):
                numbers = numbers.double() / torch.tensor(factors, dtype=torch.float64)[:, None, None]
                done.append(f"input channels divided by {', '.join(f'{factor:.6g}' for factor in factors)}")
        sizes = [len(template[target]) for target in targets] if len(targets) > 1 else None
        if sizes:
            done.append(f"split into {len(sizes)} columns")
        for target, part in zip(targets, torch.split(numbers, sizes) if sizes else [numbers], strict=True):
            weights[target] = part.to(goal.dtype).contiguous()
        report.rows.append(Row(source, each.shape, targets, "; ".join(done) or "copied"))
    return weights


def _finite(source: str, numbers: Tensor) -> Tensor:
    for piece in torch.split(numbers.reshape(-1), 1 << 18):  # a mask of the whole would cost a quarter of it again
        if not torch.isfinite(piece).all():
            raise DataError(f"{source} holds values that are not finite")
    return numbers
