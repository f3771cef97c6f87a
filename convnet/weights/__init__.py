"""Others' weights: a file of Caffe, torchvision, timm or numpy -> one of our checkpoints, and a report of every tensor.

Nothing is guessed: a tensor that is missing, left over or of another shape is an error, unless the file is said to be
partial; then the report names it.
"""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import Tensor

from convnet import __version__, files
from convnet.checkpoint import Checkpoint, save
from convnet.errors import DataError, UsageError
from convnet.nets import create_model
from convnet.nets.googlenet import GoogLeNet
from convnet.nets.layers import Net
from convnet.preprocess import Preprocessing
from convnet.progress import SILENT, Progress
from convnet.recipe import Recipe
from convnet.weights import archives, caffe, download, names, pictures
from convnet.weights.found import Found
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
    net_name: str,
    *,
    mean: Path | tuple[float, float, float] | None = None,
    classes: Path | None = None,
    partial: bool = False,
    pixels: str | None = None,
) -> tuple[Checkpoint, Report]:
    """A checkpoint of `net_name` with the weights in a file, its preprocessing and classes; and what was done.

    mean     Caffe's mean, a `.binaryproto` or `.npy` (3, H, W) or (3,), BGR; or grey levels R, G, B
    classes  a file with one name a line; of lines as in `synset_words.txt` the name is the first word, n01440764
    partial  take what fits; the rest of the net keeps its initial values
    pixels   "imagenet" or "half": how torchvision's and timm's scaled pixels, by ImageNet's mean and std or by 0.5

    Raises: DataError for a file that can't be read or doesn't fit; UsageError for an unknown net or kind of file.
    """
    net = _empty(net_name)
    found = _read(path)
    sha256 = files.sha256_file(path)
    writer, naming = _naming(path, net, found)
    net, options = _fitted(net_name, net, found, naming)
    writer, naming = _naming(path, net, found)
    report = Report(path.name, net_name, writer)
    chosen = _match(net, naming, found, report)
    if (report.missing or report.left_over) and not partial:
        raise DataError(_misfit(path, net_name, report))
    if not chosen:
        raise DataError(f"{path}: no tensor of it fits {net_name}")
    scaling = pictures.pixels_of(net_name, writer, sha256, pixels)
    preprocessing, factors = pictures.preprocessing_of(net, writer, mean, scaling, report)
    try:
        weights = _convert(net, naming, chosen, writer, factors, report)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    if report.missing:
        fresh = create_model(net_name, num_classes=net.num_classes, seed=0, **options).state_dict()
        weights |= {name: fresh[name] for name in report.missing}
    kept = Checkpoint(
        recipe=_recipe(net_name, options, preprocessing),
        preprocessing=preprocessing,
        classes=pictures.classes_of(classes, net.num_classes, report),
        weights={name: weights[name] for name in net.state_dict()},
        provenance={"convnet": __version__, "imported": {"file": path.name, "sha256": sha256, "writer": writer}},
    )
    return kept, report


def import_weights(
    what: str,
    net_name: str | None,
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
    if path.suffix.lower() not in READERS:
        file = download.known(what)
        net_name = net_name or file.net
    if net_name is None:
        raise UsageError(f"{path}: a file doesn't say which net it is for; give --net")
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


def _read(path: Path) -> list[Found]:
    if path.suffix.lower() not in READERS:
        raise UsageError(f"{path}: its name must end in {', '.join(READERS)}; known files: {', '.join(download.KNOWN)}")
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


def _naming(path: Path, net: Net, found: list[Found]) -> tuple[str, names.Naming]:
    """Whose names the file has, and them: the writer most of whose names are there."""
    if path.suffix.lower() == ".caffemodel":
        return "caffe", names.caffe(net)
    here = {each.name for each in found}
    namings = names.in_state_dicts(net)
    writer = max(namings, key=lambda name: len(here & namings[name].keys()))
    if not here & namings[writer].keys():
        some = ", ".join(repr(each.name) for each in found[:3])
        raise DataError(f"{path}: none of its names, such as {some}, is known in {' or '.join(namings)}")
    return writer, namings[writer]


def _fitted(net_name: str, net: Net, found: list[Found], naming: names.Naming) -> tuple[Net, dict[str, Any]]:
    """The net with the file's number of classes, and with GoogLeNet's heads only if the file has them; its options."""
    options: dict[str, Any] = {}
    if isinstance(net, GoogLeNet) and not any(each.name.startswith(names.HEADS) for each in found):
        options["heads"] = False
    last = next((source for source, targets in naming.items() if targets == (f"{net.last}.weight",)), None)
    sides = next((_squeezed(each.shape) for each in found if each.name == last), ())
    n_classes = sides[0] if sides else net.num_classes
    if not 1 <= n_classes <= MAX_CLASSES:
        raise DataError(f"{last} has {n_classes:,} outputs; at most {MAX_CLASSES:,} classes are read")
    if n_classes == net.num_classes and not options:
        return net, options
    return _empty(net_name, num_classes=n_classes, **options), options


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


def _misfit(path: Path, net_name: str, report: Report) -> str:
    problems = [f"{name}: {text}" for name, text in report.left_over.items()]
    problems += [f"{name}: not in the file" for name in report.missing]
    more = f"\n  and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
    lines = "\n  ".join(problems[:SHOWN])
    return f"{path} doesn't fit {net_name}; a partial file needs --partial:\n  {lines}{more}"


def _whole(source: str, shapes: list[tuple[int, ...]]) -> tuple[int, ...]:
    """The shape of a layer's columns end to end."""
    return (sum(shape[0] for shape in shapes), *shapes[0][1:]) if len(shapes) > 1 else shapes[0]


def _squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Without leading ones, which Caffe's legacy shapes have: (1, 1, 1000, 4096) -> (1000, 4096)."""
    while len(shape) > 1 and shape[0] == 1:
        shape = shape[1:]
    return shape


def _fits(shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    """Whether a tensor can take the wanted shape without mixing its rows."""
    if shape == wanted:
        return True
    if math.prod(shape) != math.prod(wanted) or not wanted:
        return False
    own = _squeezed(shape)
    if len(wanted) == 2:  # a fully connected layer written as a convolution reads the maps in the order (C, H, W)
        return own[:1] == wanted[:1]
    return own == _squeezed(wanted)


def _recipe(net_name: str, options: dict[str, Any], done: Preprocessing) -> Recipe:
    mean: Literal["picture", "rgb", "none"] = (
        "none" if done.mean is None else "rgb" if done.mean.ndim == 1 else "picture"
    )
    return Recipe(
        name=net_name,
        net=net_name,
        net_options=options,
        size=done.size,
        crop=done.crop,
        channels=done.channels,
        mean=mean,
        scale=done.scale,
        colour_std=0.0,
    )


# Numbers


def _convert(
    net: Net,
    naming: names.Naming,
    chosen: dict[str, Found],
    writer: str,
    factors: tuple[float, ...] | None,
    report: Report,
) -> dict[str, Tensor]:
    """Our tensors, in memory of their own. `factors` divide the input channels of the first convolution."""
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
