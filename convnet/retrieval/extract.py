"""Extraction: the activations of a net's stages for any pictures -> a folder of features.

Rows go to the disk as they come, and a stopped extraction goes on: the files are then the same to the last bit.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from convnet.data import preprocess
from convnet.errors import DataError, Interrupted, UsageError, unknown
from convnet.evaluation.trained_net import TrainedNet
from convnet.evaluation.views import protocol
from convnet.io import atomic, npy, strict_json
from convnet.io.signals import Stop
from convnet.io.strict_json import Json
from convnet.progress import SILENT, Progress
from convnet.retrieval import unfinished
from convnet.retrieval.activations import Activations, activations, shapes_of, states
from convnet.retrieval.features import DTYPES, FORMAT, LEFT_OUT, META, PICTURES, Features, lines, open_features
from convnet.retrieval.formats import pyarrow, write_hdf5, write_parquet
from convnet.retrieval.pictures import Pictures
from convnet.retrieval.unfinished import Unfinished, part_of

ONE_FILE = MappingProxyType({"hdf5": (write_hdf5, "features.h5"), "parquet": (write_parquet, "features.parquet")})
FORMATS = ("npy", *ONE_FILE)


def extract(
    net: TrainedNet,
    checkpoint: str,
    pictures: Pictures,
    out: Path,
    stages: Sequence[str],
    *,
    kind: str = "npy",
    dtype: str = "float32",
    normalize: bool = False,
    views: str = "single",
    scales: str | None = None,
    progress: Progress = SILENT,
    stop: Stop | None = None,
) -> Features:
    """Writes the activations of `stages` into the folder `out`, or goes on with what was stopped there.

    checkpoint: the sha256 of the net's file. kind: one of FORMATS. normalize: each picture's activations of a stage are
    divided by their Euclidean length (all zeros stay so). views, scales: as `activations` knows them.

    Raises: UsageError where `out` holds something else, or a package is missing; DataError for a picture whose
    activations aren't finite, or beyond float16; DiskError; Interrupted.
    """
    for value, known in ((kind, FORMATS), (dtype, DTYPES)):
        if value not in known:
            raise UsageError(unknown("format" if known is FORMATS else "type", value, known))
    if kind == "parquet":
        pyarrow()
    shapes = shapes_of(net, stages, views)
    asked: Json = {
        "checkpoint": checkpoint,
        "arithmetic": str(net.device.dtype).removeprefix("torch."),
        "pictures": pictures.identity,
    }
    asked |= {"stages": list(shapes), "views": str(protocol(views, net.preprocessing, scales)), "dtype": dtype}
    asked |= {"normalized": normalize, "kind": kind}
    with atomic.lock(out, "extracting"):
        if (out / META).exists():
            return _there(out, asked, progress)
        _check_free(out)
        rooms = {_file(stage): npy.HEADER_BYTES for stage in shapes} | {PICTURES: 0, LEFT_OUT: 0}
        with unfinished.opened(out, rooms, _digest(asked)) as work:
            first = work.state.get("done", 0)
            parts = activations(net, pictures, list(shapes), views=views, scales=scales, first=first,
                                progress=progress, stop=stop)  # fmt: skip
            for part in _told(parts, progress):
                odd = [*(() if work.state else pictures.odd), *part.odd]
                pieces = {PICTURES: lines(_rows(part, pictures.classes)), LEFT_OUT: lines(odd)}
                for stage, x in part.stages.items():
                    pieces[_file(stage)] = _encoded(x, part.keys, stage, dtype, normalize)
                work.add(pieces, {"done": part.done, "n": work.state.get("n", 0) + len(part.keys)})
            if not (n := work.state["n"]):
                unfinished.forget(out)  # the same command has nothing to go on with
                raise DataError(f"{pictures.name}: none of the {pictures.n:,} pictures could be read")
            meta = {"format": FORMAT, "net": net.net.name, "preprocessing": preprocess.to_dict(net.preprocessing)}
            meta |= {"source": pictures.name, "n": n, "asked": asked, "classes": list(pictures.classes)}
            meta |= _finished(work, net, shapes, n, kind, dtype)
            atomic.write_atomic(out / META, strict_json.seal(meta))
        unfinished.forget(out)
    return open_features(out)


def _there(out: Path, asked: Json, progress: Progress) -> Features:
    features = open_features(out)
    if features.meta["asked"] != asked:
        raise UsageError(f"{out} holds other features; choose another folder with --out, or remove it")
    if (out / unfinished.JOURNAL).exists():  # stopped after its last file
        unfinished.forget(out)
    progress.note(f"{out} holds these features already")
    return features


def _check_free(out: Path) -> None:
    """Raises: UsageError for a folder that holds what is none of ours."""
    others = [path.name for path in out.iterdir() if path.name != ".lock"]
    if others and unfinished.JOURNAL not in others:
        raise UsageError(f"{out} holds {min(others)} already; choose another folder with --out")


def _told(parts: Iterator[Activations], progress: Progress) -> Iterator[Activations]:
    """The parts, with the pictures that could not be read told as they come."""
    try:
        for part in parts:
            for row in part.odd:
                if row["status"] == "failed":
                    progress.warn(f"{row['key']}: {row['reason']}")
            yield part
    except Interrupted as error:
        raise Interrupted(f"{error}; the same command goes on") from None


def _rows(part: Activations, classes: Sequence[str]) -> list[Json]:
    if part.labels is None:
        return [{"key": key} for key in part.keys]
    labels = part.labels.tolist()
    return [{"key": key, "label": k, "class": classes[k]} for key, k in zip(part.keys, labels, strict=True)]


def _encoded(x: NDArray[np.float32], keys: Sequence[str], stage: str, dtype: str, normalize: bool) -> bytes:
    """Raises: DataError naming the picture that float16 can't hold."""
    of_picture = tuple(range(1, x.ndim))
    if normalize:
        length = np.sqrt(np.square(x, dtype=np.float64).sum(of_picture, keepdims=True))
        x = (x / np.where(length, length, 1)).astype(np.float32)
    with np.errstate(over="ignore"):
        y = x.astype(np.dtype(dtype).newbyteorder("<"))
    if not (good := np.isfinite(y).all(of_picture)).all():
        raise DataError(
            f"{stage} of {keys[int(good.argmin())]!r} is beyond float16's 65,504; choose float32, or another stage"
        )
    return y.tobytes()


def _finished(
    work: Unfinished, net: TrainedNet, shapes: Mapping[str, tuple[int, ...]], n: int, kind: str, dtype: str
) -> Json:
    """Gives all files their names; what features.json says of them."""
    folder, number = work.folder, np.dtype(dtype).newbyteorder("<")
    names = [work.finish(name, b"").name for name in (PICTURES, LEFT_OUT)]
    whole = {stage: (n, *shape) for stage, shape in shapes.items()}
    offsets: dict[str, int | None] = dict.fromkeys(whole, npy.HEADER_BYTES)
    if kind == "npy":
        of_stage = {stage: work.finish(_file(stage), npy.header(shape, number)).name for stage, shape in whole.items()}
        atomic.sync_folder(folder)
    else:
        rows = [json.loads(line) for line in (folder / PICTURES).read_bytes().splitlines()]
        labels = [row["label"] for row in rows] if "label" in rows[0] else None
        write, name = ONE_FILE[kind]
        arrays = {
            stage: np.memmap(part_of(folder / _file(stage)), number, "r", npy.HEADER_BYTES, shape)
            for stage, shape in whole.items()
        }
        offsets = write(folder / name, arrays, [row["key"] for row in rows], labels)
        of_stage = dict.fromkeys(whole, name)
    what = states(net.net, shapes_of(net, None))
    arrays_there = {
        stage: {"file": of_stage[stage], "offset": offsets[stage], "shape": shape, "what": what[stage.split(".")[0]]}
        for stage, shape in whole.items()
    }
    paths = {name: folder / name for name in dict.fromkeys([*names, *of_stage.values()])}
    files = {name: {"bytes": path.stat().st_size, "sha256": atomic.sha256_file(path)} for name, path in paths.items()}
    return {"arrays": arrays_there, "files": files}


def _file(stage: str) -> str:
    return f"{stage}.npy"


def _digest(asked: Json) -> str:
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
