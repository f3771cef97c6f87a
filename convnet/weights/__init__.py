"""Others' weights: a file of Caffe, torchvision, timm or numpy -> one of our checkpoints, and a report of every tensor.

Nothing is guessed: a tensor that is missing, left over or of another shape is an error, unless the file is said to be
partial; then the report names it.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from convnet import __version__
from convnet.checkpoint import MAGIC, Checkpoint, save
from convnet.data.preprocess import Preprocessing
from convnet.data.resize import Fit
from convnet.errors import DataError, UsageError, unknown
from convnet.io import atomic
from convnet.nets import create_model
from convnet.nets.layers import Net
from convnet.progress import SILENT, Progress
from convnet.weights import archives, caffe, candidates, download, names, own, pictures
from convnet.weights.found import Found, Part
from convnet.weights.match import match, misfit, squeezed, whole
from convnet.weights.own import Own
from convnet.weights.report import Report, Row
from convnet.weights.torch_files import read_torch

READERS: Mapping[str, Callable[[Path], list[Found]]] = MappingProxyType(
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
    mean: Path | tuple[float, float, float] | None = None,
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
    partial  take what fits; the rest of the net keeps its initial values
    pixels   "imagenet" or "half": how torchvision's and timm's scaled pixels, by ImageNet's mean and std or by 0.5
    rename   {a layer or tensor of the file: the net's}, where the file has another name for it
    entry    which of several sets of tensors in the file, as "state_dict_ema"
    channels  "rgb" or "bgr": the order in which the file's first layer and a mean's file have colours; None: BGR in
             Caffe's files, but for CIFAR's nets, whose data are RGB; RGB in others, with a mean of Caffe's in BGR
    fit      how pictures get their size, "crop", "pad" or "squash"; None: as one of our files says, or "crop"

    Raises: DataError for a file that can't be read or doesn't fit; UsageError for an unknown net or kind of file, or
    where a choice must be made.
    """
    parts = read_parts(path)
    told = own.own_of(path)
    net_name = net_name or (told.net if told is not None else None)
    if net_name is None:
        raise UsageError(f"{path}: the file doesn't say which net it is for; give --net")
    found, notes = _chosen(path, parts, net_name, told, entry, rename)
    net, options, writer, naming = _net_of(path, net_name, found, told)
    report = Report(path.name, net_name, writer, notes=notes)
    chosen = _matched(path, net, net_name, naming, found, partial, report)
    sha256 = atomic.sha256_file(path)
    order = _order(net, writer, told, channels, report)
    if told is not None:
        preprocessing, factors = _own_preprocessing(path, net, told, mean, pixels)
        preprocessing = replace(preprocessing, fit=fit or preprocessing.fit)
    else:
        scaling = pictures.pixels_of(net, writer, sha256, pixels)
        preprocessing, factors = pictures.preprocessing_of(
            net, writer, mean, order if writer == "caffe" or channels else "bgr", scaling, fit or "crop", report
        )
    with _of_file(path):
        weights = _convert(net, naming, chosen, order, factors, report)
    weights |= _fresh(net_name, net, options, report.missing)
    kept = Checkpoint(
        recipe=pictures.recipe_of(net_name, options, preprocessing),
        preprocessing=preprocessing,
        classes=pictures.classes_of(classes, net.num_classes, told.classes if told is not None else None, report),
        weights={name: weights[name] for name in net.state_dict()},
        provenance={"convnet": __version__, "imported": {"file": path.name, "sha256": sha256, "writer": writer}},
    )
    return kept, report


def _matched(
    path: Path, net: Net, name: str, naming: names.Naming, found: list[Found], partial: bool, report: Report
) -> dict[str, Found]:
    """Which tensor of the file goes to which of the net. Raises: DataError when some are missing, unless `partial`."""
    chosen = match(net, naming, found, report)
    if (report.missing or report.left_over) and not partial:
        raise DataError(misfit(path, name, report, len(chosen), len(found)))
    if not chosen:
        raise DataError(f"{path}: no tensor of it fits {name}")
    return chosen


@contextmanager
def _of_file(path: Path) -> Iterator[None]:
    """Within the block errors in a file's data name the file."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


def _fresh(name: str, net: Net, options: Mapping[str, Any], missing: Iterable[str]) -> dict[str, Tensor]:
    """Initial values for what the file lacks."""
    if not missing:
        return {}
    fresh = create_model(name, num_classes=net.num_classes, seed=0, **options).state_dict()
    return {each: fresh[each] for each in missing}


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
        _empty(net_name)  # an unknown net is named before anything is downloaded
    if file is None:
        _check_ending(path)
    out = out or FOLDER / f"{path.name if file else path.name.removesuffix(_ending(path))}.ckpt"
    if out.exists():
        raise UsageError(f"{out} exists; choose another --out, as {FOLDER / path.name}.ckpt, or remove it")
    colour = None
    if file is not None:
        path = download.fetch(file, FOLDER, progress)
        pixels, colour = pixels or file.pixels, file.mean_colour
    kept, report = read_weights(
        path, net_name, mean=mean or colour, classes=classes, partial=partial, pixels=pixels, rename=rename,
        entry=entry, channels=channels, fit=fit,
    )  # fmt: skip
    if file is not None and not file.digest:
        report.notes.append(f"no digest of {file.file_name} is published, so only its length and shapes were checked")
    save(out, kept)
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
    with (
        suppress(OSError),
        open(path, "rb", opener=atomic.regular) as file,
    ):  # one that can't be read is named by its reader
        if file.read(len(MAGIC)) == MAGIC:
            raise UsageError(f"{path} is a checkpoint already; `evaluate`, `predict` and `export` take it as it is")


def read_parts(path: Path) -> list[Part]:
    """All that a file of weights holds. Raises: DataError naming the file."""
    _check_ending(path)
    try:
        ending = _ending(path)
        parts = read_torch(path) if ending in OF_TORCH else [Part("", READERS[ending](path))]
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    except DataError as error:
        raise DataError(str(error) if str(error).startswith(f"{path}:") else f"{path}: {error}") from error
    if not any(part.tensors for part in parts):
        raise DataError(f"{path}: it holds no tensors")
    return parts


def _chosen(
    path: Path, parts: list[Part], net_name: str, told: Own | None, entry: str | None, renames: Mapping[str, str]
) -> tuple[list[Found], list[str]]:
    """The tensors that are the net's weights, by the names that it knows; and what must be told of the choice."""
    if told is not None and not renames:  # our own file has nothing but the weights
        unsealed = "it has no sha256, being of an earlier version or changed: damage to it can't be told"
        return parts[0].tensors, [] if told.is_sealed else [unsealed]
    net = _empty(net_name)
    found, notes = candidates.choose(path, parts, _namings(path, net, parts[0].tensors, told), entry)
    namings = _namings(path, net, found, told)
    here = {each.name for each in found}
    naming = max(namings.values(), key=lambda naming: len(here & naming.keys()))
    found = candidates.rename(path, found, naming, renames)
    last = candidates.renamed_last(net, found, naming)
    notes += [f"{old} is read as {new} (--rename)" for old, new in renames.items()]
    notes += [f"{old} is read as {new}: the only layer of another name, and it fits" for old, new in last.items()]
    return candidates.rename(path, found, naming, last), notes


def _order(net: Net, writer: str, told: Own | None, channels: str | None, report: Report) -> str:
    """In which order the file's first layer reads colours; a choice that isn't the writer's rule is told."""
    if channels is not None and channels not in CHANNELS:
        raise UsageError(unknown("order of colours", channels, CHANNELS))
    if channels is not None:
        report.notes.append(f"the file's first layer is taken to read {channels.upper()} (--channels)")
        return channels
    if told is not None:
        return told.order
    order = net.caffe_channels if writer == "caffe" and net.in_channels == 3 else "rgb"
    if writer == "caffe" and order == "rgb" and net.in_channels == 3:
        report.notes.append("Caffe's CIFAR models read RGB, and so this file is taken; else give --channels bgr")
    return order


def _empty(net_name: str, **options: Any) -> Net:
    """The net without numbers: shapes only."""
    with torch.device("meta"):
        return create_model(net_name, seed=0, **options)


def _namings(path: Path, net: Net, found: list[Found], told: Own | None) -> dict[str, names.Naming]:
    """{writer: names} of those who could have written the file. Raises: UsageError for Caffe's batch norm."""
    if path.suffix.lower() == ".caffemodel" or (told is not None and told.names == "caffe"):
        if any(name.endswith(".running_mean") for name in net.state_dict()):
            raise UsageError(f"{path}: Caffe's batch norm isn't read; choose a --net without it, or a file of PyTorch")
        return {"caffe": names.caffe(net, [each.name for each in found])}
    return names.in_state_dicts(net)


def _naming(path: Path, net: Net, found: list[Found], told: Own | None) -> tuple[str, names.Naming]:
    """Whose names the file has, and them: as it says, or the writer most of whose names are there."""
    here = {each.name for each in found}
    namings = _namings(path, net, found, told)
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
    """The options of a net by the tensors that only some files have, by what its first layer and its own say."""
    here = {each.name: each.shape for each in found}
    shapes = dict(here)  # by our names, where they are known
    for naming in (names.caffe(net, here), *names.in_state_dicts(net).values()):
        shapes |= {target: here[source] for source, targets in naming.items() if source in here for target in targets}
    options = net.options_of(shapes)
    first = shapes.get(next(iter(net.state_dict())), ())
    if len(first) == 4 and first[1] in (1, 3) and first[1] != net.in_channels:
        options["in_channels"] = first[1]
    return options


def _n_classes(net: Net, found: list[Found], naming: names.Naming) -> int:
    """The number of outputs that the file's last layer has, when it's the net's in everything else."""
    template = net.state_dict().get(f"{net.last}.weight")
    sources = [source for source, targets in naming.items() if targets == (f"{net.last}.weight",)]
    shape = next((squeezed(each.shape, 2) for each in found if each.name in sources), ())
    if template is None or math.prod(shape[1:]) != math.prod(template.shape[1:]) or not shape:
        return net.num_classes
    if not 1 <= shape[0] <= MAX_CLASSES:
        raise DataError(f"{sources[0]} has {shape[0]:,} outputs; at most {MAX_CLASSES:,} classes are read")
    return shape[0]


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
    order: str,
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
        shape = whole(source, [tuple(template[target].shape) for target in targets])
        done = [f"{each.dtype} to float32"] if each.dtype != "float32" and goal.is_floating_point() else []
        if each.shape != shape:
            done.append(f"reshaped to {shape}")
        numbers = _finite(source, each.read().reshape(shape))
        if targets[0].partition(".")[0] == first and len(shape) == 4 and shape[1] == 3:
            if order == "bgr":
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
        report.rows.append(Row(each.source or source, each.shape, targets, "; ".join(done) or "copied"))
    return weights


def _finite(source: str, numbers: Tensor) -> Tensor:
    for piece in torch.split(numbers.reshape(-1), 1 << 18):  # a mask of the whole would cost a quarter of it again
        if not torch.isfinite(piece).all():
            raise DataError(f"{source} holds values that are not finite")
    return numbers
